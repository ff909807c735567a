"""Everything that goes wrong reaches the Python SDK as the exception class that it has for it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from letta_client import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    Letta,
    NotFoundError,
    UnprocessableEntityError,
)

from reattach.testing.programs.server import ServerProcess
from tests.clients.conftest import scripted_server
from tests.support.commands import reattach_here
from tests.support.python_sdk import Reader
from tests.support.threads import Thread, Threads, raw_client

UUID = "123e4567-e89b-42d3-8456-426614174000"
CONV, AGENT, RUN = f"conv-{UUID}", f"agent-{UUID}", f"run-{UUID}"

Call = Callable[[Letta], object]

NOT_FOUND: dict[str, Call] = {
    "compact": lambda sdk: sdk.conversations.messages.compact(CONV),
    "recompile": lambda sdk: sdk.conversations.recompile(CONV),
    "run": lambda sdk: sdk.runs.retrieve(RUN),
    "run to resume": lambda sdk: sdk.runs.messages.stream(RUN),
    "run to resume under default": lambda sdk: sdk.conversations.messages.stream(
        "default", run_id=RUN
    ),
    "otid": lambda sdk: sdk.conversations.messages.stream(CONV, otid="never sent"),
    "conversation": lambda sdk: sdk.conversations.retrieve(CONV),
    "conversation to send to": lambda sdk: sdk.conversations.messages.create(CONV, input="x"),
    "conversation to cancel": lambda sdk: sdk.conversations.cancel(CONV),
    "agent": lambda sdk: sdk.agents.retrieve(AGENT),
    "agent to send to": lambda sdk: sdk.agents.messages.create(AGENT, input="x"),
    "agent of default": lambda sdk: sdk.conversations.messages.create(
        "default", agent_id=AGENT, input="x"
    ),
    "default without an agent": lambda sdk: sdk.conversations.messages.create("default", input="x"),
    "agent to send to and leave": lambda sdk: sdk.agents.messages.create_async(AGENT, input="x"),
    "block": lambda sdk: sdk.blocks.retrieve(f"block-{UUID}"),
    "mcp server": lambda sdk: sdk.mcp_servers.retrieve(f"mcp_server-{UUID}"),
    "tool": lambda sdk: sdk.tools.retrieve(f"tool-{UUID}"),
    "tools of an agent": lambda sdk: sdk.agents.tools.list(AGENT),
    "tool to attach": lambda sdk: sdk.agents.tools.attach(f"tool-{UUID}", agent_id=AGENT),
    "message": lambda sdk: sdk.messages.retrieve(f"message-{UUID}"),
    "messages": lambda sdk: sdk.conversations.messages.list(CONV),
}
BAD_REQUEST: dict[str, Call] = {
    "no active run": lambda sdk: sdk.conversations.messages.stream(CONV),
    "no active run of an agent": lambda sdk: sdk.conversations.messages.stream(
        "default", agent_id=AGENT
    ),
    "malformed run": lambda sdk: sdk.conversations.messages.stream(CONV, run_id="x"),
}
UNPROCESSABLE: dict[str, Call] = {
    "path": lambda sdk: sdk.conversations.messages.stream("nonsense"),
    "cursor": lambda sdk: sdk.conversations.messages.stream(
        CONV,
        starting_after="abc",  # type: ignore[arg-type]
    ),
    "limit": lambda sdk: sdk.runs.list(limit=-1),
}
NOT_OFFERED: dict[str, Call] = {
    "tool by source": lambda sdk: sdk.tools.create(source_code="def f(): ..."),
    "mcp server by request": lambda sdk: sdk.mcp_servers.create(
        server_name="files",
        config={"mcp_server_type": "streamable_http", "server_url": "https://mcp.example/"},
    ),
    "search for tools": lambda sdk: sdk.tools.search(query="x"),
    "folders": lambda sdk: sdk.folders.list(),
    "archives": lambda sdk: sdk.archives.list(),
}


def assert_raises(error: type[APIStatusError], call: Call, url: str, *, requests: int = 1) -> str:
    """Return the error's text. The SDK, left with its retries, asks that often."""
    with Reader(url, max_retries=2) as reader:
        with pytest.raises(error) as caught:
            call(reader.sdk)
        assert len(reader.recording.requests) == requests
    assert type(caught.value) is error
    assert isinstance(caught.value.body, dict)
    assert isinstance(caught.value.body["code"], str)
    detail = caught.value.body["detail"]
    assert isinstance(detail, str)
    return detail


@pytest.mark.promise("S10")
@pytest.mark.parametrize("what", NOT_FOUND)
def test_a_missing_resource_is_a_not_found_error(what: str, server: ServerProcess) -> None:
    assert_raises(NotFoundError, NOT_FOUND[what], server.url)


@pytest.mark.promise("S10")
@pytest.mark.parametrize("what", BAD_REQUEST)
def test_an_impossible_request_is_a_bad_request_error(what: str, server: ServerProcess) -> None:
    detail = assert_raises(BadRequestError, BAD_REQUEST[what], server.url)
    assert detail.startswith("INVALID_ARGUMENT: ")


@pytest.mark.promise("S10")
@pytest.mark.parametrize("what", UNPROCESSABLE)
def test_a_body_that_does_not_fit_the_schema_is_an_unprocessable_entity_error(
    what: str, server: ServerProcess
) -> None:
    assert_raises(UnprocessableEntityError, UNPROCESSABLE[what], server.url)


@pytest.mark.promise("S10")
def test_a_send_of_nothing_or_of_two_things_is_an_unprocessable_entity_error(
    conversation: Thread,
) -> None:
    def send(**what: Any) -> Call:
        return lambda sdk: sdk.conversations.messages.create(conversation.path_id, **what)

    detail = assert_raises(UnprocessableEntityError, send(messages=[]), conversation.url)
    assert "Messages must not be empty" in detail
    assert_raises(UnprocessableEntityError, send(), conversation.url)
    both = send(input="x", messages=[conversation.message("x")])
    assert_raises(UnprocessableEntityError, both, conversation.url)
    assert conversation.runs() == []


@pytest.mark.parametrize("what", NOT_OFFERED)
def test_a_route_that_is_not_offered_is_an_internal_server_error_that_is_not_retried(
    what: str, server: ServerProcess
) -> None:
    with pytest.raises(InternalServerError) as caught, Reader(server.url) as reader:
        NOT_OFFERED[what](reader.sdk)
    assert caught.value.status_code == 501
    assert "does not support this part" in assert_raises(
        InternalServerError, NOT_OFFERED[what], server.url
    )


@pytest.mark.promise("P3")
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("error_type", ["llm_error", "llm_timeout", "llm_authentication"])
def test_an_error_event_is_an_api_status_error_with_the_event_as_its_body(
    error_type: str, background: bool, reader: Reader, conversation: Thread
) -> None:
    reader.read(
        lambda: reader.send(conversation, f"[chunks=9][fail=3:{error_type}]", background=background)
    )
    assert reader.error is not None
    assert type(reader.error) is APIStatusError
    assert reader.error.status_code == 200
    assert reader.text == "t0 t1 t2 "
    assert reader.chunks[-1].message_type == "stop_reason"
    assert reader.error.body == {
        "message_type": "error_message",
        "run_id": reader.run_id,
        "error_type": error_type,
        "message": "The scripted model failed as the script says: 3.",
        "detail": None,
        "seq_id": 6,
    }
    run = reader.sdk.runs.retrieve(reader.run_id)
    assert (run.status, run.stop_reason) == ("failed", "llm_api_error")
    assert run.metadata is not None
    assert run.metadata["error"]["error_type"] == error_type  # type: ignore[index]


@pytest.mark.promise("P3", "P10")
def test_a_client_that_got_an_error_event_may_send_again_at_once(
    reader: Reader, conversation: Thread
) -> None:
    for _ in range(10):
        reader.cursor = 0
        reader.read(
            lambda: reader.sdk.conversations.messages.create(
                conversation.path_id, input="[chunks=2][fail=1]", stream_tokens=True
            )
        )
        assert reader.error is not None
    assert [run["status"] for run in conversation.runs()] == ["failed"] * 10


def test_a_fault_of_the_engine_is_an_error_event_without_internals(
    reader: Reader, conversation: Thread
) -> None:
    reader.read(lambda: reader.send(conversation, "[chunks=9][crash=3]"))
    assert reader.error is not None
    assert reader.error.body["error_type"] == "internal_error"  # type: ignore[index]
    assert b"crashed as the script says" not in reader.recording.streams[0]
    assert b"Traceback" not in reader.recording.streams[0]


@pytest.mark.promise("P14", "S10")
def test_a_run_whose_log_is_past_its_retention_is_a_410_and_its_messages_stay(
    tmp_path: Path,
) -> None:
    with (
        scripted_server(tmp_path, REATTACH_RETENTION_SECONDS="0.2") as server,
        raw_client(server.url) as raw,
        Reader(server.url) as reader,
    ):
        thread = Threads(raw).conversation()
        reader.read(lambda: reader.send(thread, "hello"))
        for _ in range(2000):
            try:
                reader.resume(thread, starting_after=0).close()
            except APIStatusError as error:
                caught = error
                break
        else:
            pytest.fail("the log was kept on and on")
        assert type(caught) is APIStatusError
        assert caught.status_code == 410
        assert isinstance(caught.body, dict)
        assert caught.body["code"] == "expired"
        assert "expired_at" in caught.body
        assert thread.text() == "hello"
        with pytest.raises(APIStatusError) as again:
            reader.send(thread, "hello")
        assert again.value.status_code == 410
        assert len(thread.runs()) == 1


@pytest.mark.promise("P15")
def test_a_draining_server_refuses_sends_with_a_503_and_serves_readers_to_the_end(
    tmp_path: Path,
) -> None:
    with (
        scripted_server(tmp_path, REATTACH_CONTINUE="false") as server,
        raw_client(server.url) as raw,
        Reader(server.url) as reader,
    ):
        threads = Threads(raw)
        thread, other = threads.conversation(), threads.conversation()

        def drain(chunk: Any) -> bool:
            if chunk.seq_id == 3:
                server.signal(signal.SIGTERM)
            return bool(chunk.seq_id == 3)

        reader.read(lambda: reader.send(thread, "[chunks=5][hang=2]"), drain)
        answers = (raw.get("/v1/ready/").status_code for _ in range(2000))
        assert next(status for status in answers if status != 200) == 503
        with pytest.raises(InternalServerError) as caught:
            reader.send(other, "hello")
        assert caught.value.status_code == 503
        assert int(caught.value.response.headers["retry-after"]) > 0
        assert caught.value.body["code"] == "unavailable"  # type: ignore[index]

        stream = reader.resume(thread)
        server.signal(signal.SIGTERM)
        with pytest.raises(APIStatusError) as end:
            list(stream)
        assert end.value.body["error_type"] == "stream_task_cancelled"  # type: ignore[index]
        assert server.wait() == 0


# Keys.


def new_key(data_dir: Path, *arguments: str) -> str:
    """The secret that the command prints."""
    created = reattach_here("keys", "create", *arguments, "--data-dir", str(data_dir))
    assert created.status == 0
    return created.out.strip()


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """A server's address, a key, and a key of another tenant."""
    data_dir = tmp_path_factory.mktemp("keyed")
    ours = new_key(data_dir, "ours")
    theirs = new_key(data_dir, "theirs", "--tenant", "new")
    assert ours != theirs
    with scripted_server(data_dir) as server:
        yield server.url, ours, theirs


@pytest.mark.promise("S11")
@pytest.mark.parametrize("key", [None, "rk-wrong", "wrong key with spaces"])
def test_a_missing_or_wrong_key_is_an_authentication_error(
    key: str | None, keyed: tuple[str, str, str]
) -> None:
    with Reader(keyed[0], api_key=key, max_retries=2) as reader:
        for call in (
            reader.sdk.models.list,
            lambda: reader.sdk.runs.messages.stream(RUN),
        ):
            with pytest.raises(AuthenticationError) as caught:
                call()
            assert caught.value.body == {"detail": "Unauthorized", "code": "unauthorized"}
        assert reader.sdk.health().status == "ok"
        assert len(reader.recording.requests) == 3


@pytest.mark.promise("S11", "P9", "P11")
def test_another_tenants_key_finds_none_of_our_resources_and_may_use_our_otids(
    keyed: tuple[str, str, str],
) -> None:
    url, ours, theirs = keyed
    with (
        raw_client(url, authorization=f"Bearer {ours}") as raw,
        raw_client(url, authorization=f"Bearer {theirs}") as their_raw,
        Reader(url, api_key=ours) as reader,
        Reader(url, api_key=theirs) as stranger,
    ):
        thread = Threads(raw).conversation()
        reader.read(lambda: reader.send(thread, "our secret"))
        assert reader.joined == thread.replay(reader.run_id)
        asked: list[Callable[[str], object]] = [
            stranger.sdk.runs.retrieve,
            stranger.sdk.runs.messages.stream,
            lambda run_id: stranger.sdk.conversations.messages.stream(CONV, run_id=run_id),
        ]
        for ask in asked:
            with pytest.raises(NotFoundError) as of_ours:
                ask(reader.run_id)
            with pytest.raises(NotFoundError) as of_none:
                ask(RUN)
            message = str(of_ours.value).replace(reader.run_id, RUN)
            assert message == str(of_none.value)
        with pytest.raises(NotFoundError):
            stranger.sdk.conversations.messages.stream(CONV, otid=thread.otid)
        with pytest.raises(NotFoundError):
            stranger.sdk.conversations.messages.create(thread.path_id, input="x")
        their_place = Threads(their_raw).conversation()
        stranger.read(
            lambda: stranger.sdk.conversations.messages.create(
                their_place.path_id,
                messages=[thread.message("their own")],
                background=True,
            )
        )
        assert stranger.text == "their own"
        assert stranger.run_id != reader.run_id
