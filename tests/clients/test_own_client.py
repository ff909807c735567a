"""The client that reconnects by itself, against a real server and a network that breaks."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
import trustme

from reattach.client import Client, Event, Retry
from reattach.domain.errors import ConflictError, NotFoundError, ReattachError
from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess

BOUND_SECONDS = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    data_dir: Path = tmp_path_factory.mktemp("server")
    with ServerProcess(data_dir, arguments=["--scripted", "--log-level", "warning"]) as server:
        yield server


@pytest.fixture
def relay(server: ServerProcess) -> Iterator[Relay]:
    with Relay(server.address) as relay:
        yield relay


@pytest.fixture
def conversation_id(server: ServerProcess) -> str:
    with httpx2.Client(base_url=server.url) as http:
        agent = http.post("/v1/agents/", json={"name": "a", "model": "scripted/echo"}).json()
        created = http.post("/v1/conversations/", params={"agent_id": agent["id"]}, json={})
        identity: str = created.json()["id"]
        return identity


async def collected(events: AsyncIterator[Event]) -> list[Event]:
    async with asyncio.timeout(BOUND_SECONDS):
        return [event async for event in events]


@pytest.mark.promise("P4", "P9")
async def test_an_answer_arrives_whole_and_once_over_a_network_that_breaks_repeatedly(
    server: ServerProcess, relay: Relay, conversation_id: str
) -> None:
    events: list[Event] = []
    async with Client(relay.url) as client, asyncio.timeout(BOUND_SECONDS):
        relay.cut_after(700)
        async for event in client.send(conversation_id, "[chunks=200][rate=400]"):
            events.append(event)
            if len(events) % 30 == 0:
                relay.cut_after(1500)

    texts = [event["content"] for event in events if event["message_type"] == "assistant_message"]
    assert [event["seq_id"] for event in events] == list(range(1, len(events) + 1))
    assert "".join(texts) == "".join(f"t{index} " for index in range(200))
    assert relay.connections > 1
    with httpx2.Client(base_url=server.url) as http:
        runs = http.get("/v1/runs/", params={"conversation_id": conversation_id}).json()
    assert len(runs) == 1


async def test_following_the_active_run_gives_the_rest_of_the_answer(
    relay: Relay, conversation_id: str
) -> None:
    async with Client(relay.url) as client, asyncio.timeout(BOUND_SECONDS):
        sent = client.send(conversation_id, "[chunks=50][rate=100]")
        first = [await anext(sent) for _ in range(5)]
        rest = await collected(client.follow(conversation_id, starting_after=first[-1]["seq_id"]))

    assert [event["seq_id"] for event in first + rest] == list(range(1, 54))


async def test_a_failed_answer_ends_with_its_error_as_an_event(
    relay: Relay, conversation_id: str
) -> None:
    async with Client(relay.url) as client:
        events = await collected(client.send(conversation_id, "[chunks=5][fail=2]"))

    assert [event["message_type"] for event in events[-3:]] == [
        "stop_reason",
        "error_message",
        "usage_statistics",
    ]


async def test_a_refusal_is_raised_and_not_retried(relay: Relay, conversation_id: str) -> None:
    async with Client(relay.url) as client, asyncio.timeout(BOUND_SECONDS):
        with pytest.raises(NotFoundError):
            await collected(client.follow(conversation_id, otid="never sent"))
        sent = client.send(conversation_id, "[hang=0]")
        await anext(sent)
        with pytest.raises(ConflictError):
            await collected(client.send(conversation_id, "another"))
    with httpx2.Client(base_url=relay.url) as http:
        http.post(f"/v1/conversations/{conversation_id}/cancel").raise_for_status()


async def test_following_an_ended_answer_is_refused_with_the_next_step(
    server: ServerProcess,
) -> None:
    async with Client(server.url) as client:
        with pytest.raises(ReattachError, match=r"No active runs .* list the messages") as refused:
            await collected(client.follow("conv-123e4567-e89b-42d3-8456-426614174000"))
    assert refused.value.code == "no_active_run"


async def test_retries_end_when_there_is_no_server() -> None:
    with Relay(("127.0.0.1", 1)) as nowhere:
        async with Client(nowhere.url, give_up_seconds=0.3) as client:
            with pytest.raises(TimeoutError, match=r"for 0\.3 s; last cause: .*starting_after=7"):
                await collected(client.follow("default", starting_after=7))


async def test_a_client_that_is_not_open_says_how_to_open_it() -> None:
    client = Client("http://127.0.0.1:1")
    with pytest.raises(ReattachError, match=r"not open.*async with"):
        await collected(client.follow())
    async with client:
        pass
    with pytest.raises(ReattachError, match=r"not open.*async with"):
        await collected(client.send("default", "hello"))


def test_an_empty_key_is_refused_as_empty() -> None:
    with pytest.raises(ReattachError, match=r"^The API key is empty\. Copy it again"):
        Client("http://127.0.0.1:1", api_key="")


async def test_a_server_without_tls_behind_an_https_url_is_named_at_once(
    server: ServerProcess,
) -> None:
    """E9: a failure that no retry can fix is raised at once."""
    async with Client(server.url.replace("http://", "https://")) as client:
        with pytest.raises(ReattachError, match=r"does not speak TLS\. Use an http:// URL"):
            await collected(client.follow("default", otid="key"))


async def test_a_certificate_that_is_not_trusted_is_named_at_once() -> None:
    """E9."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    async def unused(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(unused, "127.0.0.1", 0, ssl=context) as tls:
        port = tls.sockets[0].getsockname()[1]
        async with Client(f"https://127.0.0.1:{port}") as client:
            with pytest.raises(ReattachError, match=r"is not trusted: .* SSL_CERT_FILE"):
                await collected(client.follow("default", otid="key"))


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"200 OK\r\nContent-Type: text/html", "answered with text/html instead of an event"),
        (b"403 Forbidden\r\nContent-Type: text/html", "The server answered 403: <h1> No </h1>"),
        (b"302 Found\r\nLocation: /login", "The server answered 302"),
    ],
)
async def test_a_server_of_another_kind_is_named_at_once(answer: bytes, cause: str) -> None:
    """E9."""

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 " + answer + b"\r\nConnection: close\r\n\r\n"
        writer.write(head + b"<h1>\nNo\n</h1>")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answering, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        async with Client(f"http://127.0.0.1:{port}") as client:
            with pytest.raises(ReattachError, match=cause):
                await collected(client.follow("default", otid="key"))


async def test_a_refusal_keeps_the_further_members_of_the_servers_error(
    relay: Relay, conversation_id: str
) -> None:
    async with Client(relay.url) as client, asyncio.timeout(BOUND_SECONDS):
        sent = client.send(conversation_id, "[hang=0]")
        first = await anext(sent)
        with pytest.raises(ConflictError) as refused:
            await collected(client.send(conversation_id, "another"))
    assert refused.value.extra["run_id"] == first["run_id"]
    with httpx2.Client(base_url=relay.url) as http:
        http.post(f"/v1/conversations/{conversation_id}/cancel").raise_for_status()


async def test_a_retry_reports_its_cause_its_cursor_and_the_remaining_time() -> None:
    retries: list[Retry] = []
    with Relay(("127.0.0.1", 1)) as nowhere:
        async with Client(nowhere.url, give_up_seconds=0.3, on_retry=retries.append) as client:
            with pytest.raises(TimeoutError):
                await collected(client.follow("default", starting_after=7))
    assert [retry.cursor for retry in retries] == [7] * len(retries)
    assert all(retry.cause and 0 < retry.remaining_seconds <= 0.3 for retry in retries)
