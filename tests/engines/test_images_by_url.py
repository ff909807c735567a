"""Images that clients name by URL, on their way to a model server in the operator's network."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pydantic_ai.messages as pm
import pytest
from msgspec import structs

from reattach.domain.errors import ModelError
from reattach.domain.limits import MAX_IMAGE_BYTES
from reattach.domain.limits.outbound import IMAGES_FETCHED_BYTES
from reattach.domain.messages import UNREACHABLE, ImagePart, Message, Role, TextPart, ToolReturnPart
from reattach.engine.base import Turn
from reattach.engine.pydantic_ai import PydanticAIEngine
from reattach.engine.pydantic_ai.images import ImageFetcher
from reattach.engine.pydantic_ai.provider_messages import provider_messages
from reattach.testing.conformance.engine import Subject, collect, message
from tests.support.openai_server import openai_server

GIF = b"GIF89a-not-really"


class ImageServer:
    """Answers each path as configured, and records the requests."""

    def __init__(self) -> None:
        self.origin = ""
        self.paths: list[str] = []
        self.answers: dict[str, tuple[str, bytes]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode()
        self.paths.append(path)
        status, body = self.answers.get(path, ("200 OK\r\ncontent-type: image/gif", GIF))
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        writer.close()


@pytest.fixture
async def images() -> AsyncIterator[ImageServer]:
    served = ImageServer()
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    async with server:
        served.origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield served


def message_of(*urls: str) -> Message:
    parts = (TextPart("See."), *(ImagePart(url) for url in urls))
    return structs.replace(message(Role.USER, ""), parts=parts)


def turn_of(*urls: str) -> Turn:
    subject = Subject(PydanticAIEngine(), "openai/small")
    return replace(subject.turn(), input=[message_of(*urls)])


def leading_to(*addresses: str):  # type: ignore[no-untyped-def]
    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolve


@asynccontextmanager
async def asked(fetcher: ImageFetcher, turn: Turn) -> AsyncIterator[list[object]]:
    """The images that a server behind a base URL got with the turn."""
    async with openai_server() as server:
        engine = PydanticAIEngine(
            ["openai/small"],
            openai_base_url=server.base_url,
            openai_api_key="sk-test",
            max_retries=0,
            images=fetcher,
        )
        try:
            await collect(engine, turn)
        finally:
            await engine.aclose()
        content = server.requests[-1]["messages"][-1]["content"]
        yield [part["image_url"]["url"] for part in content if part["type"] == "image_url"]


async def test_a_model_server_in_the_operators_network_gets_bytes_and_never_a_url(
    images: ImageServer,
) -> None:
    """D8: it cannot be made to fetch anything."""
    turn = turn_of(f"{images.origin}/a.gif")
    async with asked(ImageFetcher(to_private=True), turn) as got:
        assert got == [f"data:image/gif;base64,{base64.b64encode(GIF).decode()}"]
    assert images.paths == ["/a.gif"]


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "169.254.169.254"], []])
async def test_an_image_whose_name_leads_into_the_operators_network_is_not_fetched(
    images: ImageServer, addresses: list[str]
) -> None:
    """D8: the turn fails with one text, whatever is there."""
    port = images.origin.rpartition(":")[2]
    fetcher = ImageFetcher(resolve=leading_to(*addresses))
    with pytest.raises(ModelError, match=r"rebound\.example.* cannot be fetched"):
        await fetcher.images(turn_of(f"http://rebound.example:{port}/a.gif"), None)
    assert images.paths == []


async def test_a_redirect_to_a_metadata_service_is_not_followed(images: ImageServer) -> None:
    """D8: every address on the way is checked."""
    images.answers["/away"] = ("302 Found\r\nlocation: http://169.254.169.254/latest", b"")
    images.answers["/near"] = ("302 Found\r\nlocation: /a.gif", b"")
    fetcher = ImageFetcher(to_private=True)
    with pytest.raises(ModelError):
        await fetcher.images(turn_of(f"{images.origin}/away"), None)
    found = await fetcher.images(turn_of(f"{images.origin}/near"), None)
    assert [image and image.data for image in found.values()] == [GIF]


async def test_an_image_of_the_history_that_is_gone_does_not_stop_the_conversation(
    images: ImageServer,
) -> None:
    """D8: the model sees that there was an image."""
    gone = f"{images.origin}/gone"
    images.answers["/gone"] = ("404 Not Found", b"")
    turn = replace(turn_of(f"{images.origin}/a.gif"), history=[message_of(gone)])
    found = await ImageFetcher(to_private=True).images(turn, None)
    sent = provider_messages(turn, images=found)
    contents = [part.content for one in sent for part in one.parts if hasattr(part, "content")]
    assert contents == [
        ["See.", UNREACHABLE],
        ["See.", pm.BinaryContent(GIF, media_type="image/gif")],
    ]


async def test_a_hosted_provider_gets_the_url_of_public_hosts_only() -> None:
    """D8: stored images of before are checked too."""
    public, private = "https://example.org/a.png", "http://10.0.0.1/b.png"
    turn = replace(turn_of(public), history=[message_of(private)])
    found = await ImageFetcher().images(turn, "https://api.openai.com/v1/")
    assert found == {public: None}
    returned = ToolReturnPart("call-1", "look", "success", "", images=(ImagePart(private),))
    in_return = structs.replace(message(Role.TOOL, ""), parts=(returned,))
    with pytest.raises(ModelError):
        await ImageFetcher().images(replace(turn, input=[in_return]), "https://api.openai.com/v1/")


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("200 OK\r\ncontent-type: text/html", b"<html>"),
        ("200 OK", GIF),
        ("200 OK\r\ncontent-type: image/gif\r\ncontent-encoding: gzip", GIF),
        ("200 OK\r\ncontent-type: image/gif", b""),
        ("200 OK\r\ncontent-type: image/gif", b"x" * (MAX_IMAGE_BYTES + 1)),
        ("500 Oh", GIF),
    ],
    ids=["html", "no type", "packed", "empty", "too large", "error"],
)
async def test_an_answer_that_is_no_image_is_not_shown(
    images: ImageServer, head: str, body: bytes
) -> None:
    images.answers["/a.gif"] = (head, body)
    with pytest.raises(ModelError):
        await ImageFetcher(to_private=True).images(turn_of(f"{images.origin}/a.gif"), None)


async def test_the_oldest_images_are_left_out_where_they_are_too_many(images: ImageServer) -> None:
    """D8: what a turn fetches is bounded."""
    images.answers |= {
        f"/{name}": ("200 OK\r\ncontent-type: image/png", b"x" * MAX_IMAGE_BYTES)
        for name in "abcde"
    }
    old = [message_of(f"{images.origin}/{name}") for name in "abcd"]
    turn = replace(turn_of(f"{images.origin}/e"), history=old)
    found = await ImageFetcher(to_private=True).images(turn, None)
    assert [url[-1] for url in found] == ["e", "d", "c"]
    assert sum(len(image.data) for image in found.values() if image) <= IMAGES_FETCHED_BYTES


async def test_an_image_is_fetched_once_for_all_steps_of_a_turn(images: ImageServer) -> None:
    fetcher = ImageFetcher(to_private=True)
    for _ in range(3):
        await fetcher.images(turn_of(f"{images.origin}/a.gif"), None)
    assert images.paths == ["/a.gif"]
