from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from reattach.domain.limits import MAX_IMAGE_BYTES
from reattach.domain.limits.requests import MAX_IMAGE_URL_CHARS, MAX_SEND_IMAGES
from tests.support.live_server import LiveServer, listening, text

PIXEL = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path_factory.mktemp("live")) as live:
        yield live


async def new_thread(live: LiveServer) -> str:
    agent = (await live.agent())["id"]
    live.gates.open(agent)
    return str((await live.conversation(agent))["id"])


def image(data: str = PIXEL, media_type: str = "image/gif", **rest: Any) -> dict[str, Any]:
    source = {"type": "base64", "media_type": media_type, "data": data, **rest}
    return {"type": "image", "source": source}


def by_url(url: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "url", "url": url}}


def to(thread: str) -> str:
    return f"/v1/conversations/{thread}/messages"


async def test_a_url_that_is_the_image_is_kept_as_the_image(live: LiveServer) -> None:
    thread = await new_thread(live)
    content = [{"type": "text", "text": "look"}, by_url(f"data:image/gif;base64,{PIXEL}")]
    await live.streamed(to(thread), {"input": content})
    [kept] = [item for kind, item in await live.contents(thread) if "user" in kind]
    assert kept == [content[0], image()]


async def test_how_closely_to_look_is_kept(live: LiveServer) -> None:
    thread = await new_thread(live)
    await live.streamed(to(thread), {"input": [image(detail="high")]})
    [kept] = [item for kind, item in await live.contents(thread) if "user" in kind]
    assert kept == [image(detail="high")]


async def test_a_letta_image_that_brings_its_data_is_taken(live: LiveServer) -> None:
    thread = await new_thread(live)
    sent = image()
    source = {**sent["source"], "type": "letta", "file_id": "file-1"}
    await live.streamed(to(thread), {"input": [{"type": "image", "source": source}]})
    [kept] = [item for kind, item in await live.contents(thread) if "user" in kind]
    assert kept == [sent]


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (image("!"), "base64"),
        (image(""), "is empty"),
        (image("A" * (MAX_IMAGE_BYTES // 3 * 4 + 8)), "bytes"),
        (image(media_type="image/svg+xml"), "image/png"),
        (image(media_type="text/html"), "image/png"),
        (by_url("javascript:alert(1)"), "https://"),
        (by_url("ftp://example.org/a.png"), "https://"),
        (by_url("data:image/png,abc"), "base64"),
        (by_url("http://169.254.169.254/latest/meta-data"), "not on the public internet"),
        (by_url("http://127.1:11434/a.png"), "not on the public internet"),
        (by_url("https://localhost/a.png"), "not on the public internet"),
        (by_url("https://user:pw@example.org/a.png"), "user or password"),
        (by_url("https://example.org/" + "x" * MAX_IMAGE_URL_CHARS), "characters"),
    ],
    ids=[
        "no base64", "empty", "too large", "svg", "html", "script", "ftp", "data",
        "metadata", "short form", "this machine", "password", "long url",
    ],
)  # fmt: skip
async def test_an_invalid_image_is_refused_with_the_reason(
    live: LiveServer, part: Any, reason: str
) -> None:
    """D8: neither is the URL of an image that leads into the operator's network."""
    thread = await new_thread(live)
    before = live.rows()
    response = await live.client.post(to(thread), json={"input": [part]})
    assert response.status_code == 422
    assert reason in response.json()["errors"][0]["msg"]
    assert live.rows() == before


async def test_a_send_has_a_bounded_number_of_images(live: LiveServer) -> None:
    thread = await new_thread(live)
    many = {"input": [image()] * (MAX_SEND_IMAGES + 1)}
    assert (await live.client.post(to(thread), json=many)).status_code == 422
    await live.streamed(to(thread), {"input": [image()] * MAX_SEND_IMAGES})


async def test_a_tool_of_the_client_can_return_images(live: LiveServer) -> None:
    thread = await new_thread(live)
    tools = [{"name": "look", "parameters": {"type": "object"}}]
    asked = await live.streamed(
        to(thread), {"input": "[client_tool=look][chunks=0]", "client_tools": tools}
    )
    request = next(f.event for f in asked if f.kind == "approval_request_message")
    output = [{"type": "text", "text": "a pixel"}, image(), by_url("https://example.org/a.png")]
    returned = {
        "type": "tool",
        "tool_call_id": request["tool_calls"][0]["tool_call_id"],
        "tool_return": output,
        "status": "success",
    }
    answer = {"messages": [{"type": "tool_return", "tool_returns": [returned]}]}
    assert text(await live.streamed(to(thread), answer)) == "look success: a pixel\n"
    items = await live.got(to(thread), order="asc")
    kinds = {item["message_type"]: item for item in items}
    assert kinds["tool_return_message"]["tool_return"] == "a pixel"
    assert kinds["tool_return_message"]["tool_returns"][0]["tool_return"] == output
    assert kinds["approval_response_message"]["approvals"][0]["tool_return"] == output
