"""The TypeScript SDK loses its connection, comes back, and has every byte once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reattach.engine.scripted import UNICODE_FRAGMENTS
from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.support.python_sdk import new_otid
from tests.support.threads import (
    DONE,
    Thread,
    Threads,
    assert_one_whole_run,
    raw_client,
    types_of,
)
from tests.support.typescript_sdk import (
    Call,
    Outcome,
    TypeScript,
    TypeScriptReader,
    require_node,
)

LIVE = "[think=2][chunks=30][hang=10]"
"""Ten deltas, events 2 to 11, and then the run is open until it is cancelled."""

UUID = "123e4567-e89b-42d3-8456-426614174000"

NewClient = Callable[..., TypeScriptReader]


@pytest.fixture(scope="module")
def process() -> Iterator[TypeScript]:
    with TypeScript(require_node()) as process:
        yield process


@pytest.fixture
def new_client(process: TypeScript, relay: Relay) -> NewClient:
    def make(**options: Any) -> TypeScriptReader:
        return TypeScriptReader(process, relay.url, **options)

    return make


@pytest.fixture
def client(new_client: NewClient) -> TypeScriptReader:
    return new_client()


def test_where_node_is_missing_the_tests_are_skipped_but_fail_in_ci(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="Node is not installed"):
        require_node()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="Node is not installed"):
        require_node()


# Cut and resumed.

WAYS: dict[str, Callable[[TypeScriptReader, Thread], Call]] = {
    "run id": lambda client, thread: client.resume(thread),
    "OTID": lambda client, thread: client.resume(thread, run_id=None, otid=thread.otid),
    "conversation": lambda client, thread: client.resume(
        thread, run_id=None, agent_id=thread.agent_id
    ),
    "runs.messages.stream": lambda client, thread: client.start(
        "runs.messages.stream", client.run_id, {"starting_after": client.cursor}
    ),
}


def cut_and_resume(client: TypeScriptReader, relay: Relay, thread: Thread, way: str) -> None:
    """Cut a live run after event 4; come back to it; cancel it once all of it was seen."""

    def cut(chunk: Any) -> None:
        if chunk.seq_id == 4:
            relay.cut()

    def cancel(chunk: Any) -> None:
        if chunk.seq_id == 11:
            thread.post(f"cancel?agent_id={thread.agent_id}")

    client.read(client.send(thread, LIVE), cut)
    assert client.broken is not None
    assert 4 <= client.cursor <= 11
    if client.cursor == 11:  # the cut came after all there is
        thread.post(f"cancel?agent_id={thread.agent_id}")
        way = "run id"
    outcome = client.read(WAYS[way](client, thread), cancel)
    assert client.complete
    assert outcome.body.endswith(DONE)
    assert outcome.headers["x-run-id"] == client.run_id
    assert client.joined == thread.replay(client.run_id)
    assert_one_whole_run(client.joined)
    assert client.text == "".join(f"t{n} " for n in range(8)) == thread.text()


@pytest.mark.promise("S1", "S4", "S5", "S6", "P4", "P6")
@pytest.mark.parametrize("way", WAYS)
def test_a_live_run_cut_in_mid_answer_is_whole_after_resuming_by(
    way: str, client: TypeScriptReader, relay: Relay, conversation: Thread
) -> None:
    cut_and_resume(client, relay, conversation, way)


@pytest.mark.promise("S2", "S6", "P4")
@pytest.mark.parametrize("way", ["conversation", "OTID"])
def test_a_live_run_of_the_default_thread_is_whole_after_resuming_by(
    way: str, client: TypeScriptReader, relay: Relay, default_thread: Thread
) -> None:
    cut_and_resume(client, relay, default_thread, way)


@pytest.mark.promise("P4", "P6", "P9", "S4")
@pytest.mark.parametrize("bytes_down", range(0, 6000, 599))
def test_a_send_cut_at_any_byte_makes_one_run_that_is_whole_after_resuming(
    bytes_down: int, client: TypeScriptReader, relay: Relay, conversation: Thread
) -> None:
    text = "[think=2][chunks=14]"
    relay.cut_after(bytes_down)
    client.read(client.send(conversation, text))
    if not client.complete:
        again = client.resume(conversation) if client.run_id else client.send(conversation, text)
        client.read(again)
    assert client.complete
    assert [run["id"] for run in conversation.runs()] == [client.run_id]
    assert client.joined == conversation.replay(client.run_id)
    assert_one_whole_run(client.joined)


@pytest.mark.promise("P4")
def test_emoji_and_line_ends_and_sse_look_alikes_arrive_as_the_model_gave_them(
    client: TypeScriptReader, relay: Relay, conversation: Thread
) -> None:
    relay.cut_after(4000)
    client.read(client.send(conversation, "[chunks=20][unicode]"))
    assert client.broken is not None
    client.read(client.resume(conversation))
    assert client.text == "".join(f"t{n} {UNICODE_FRAGMENTS[n % 10]}" for n in range(20))
    assert client.joined == conversation.replay(client.run_id)


@pytest.mark.promise("P3", "P4", "S6")
def test_a_resume_at_or_past_the_end_gives_no_event_and_ends_at_once(
    client: TypeScriptReader, conversation: Thread
) -> None:
    client.read(client.send(conversation, "hello"))
    for cursor in (client.cursor, client.cursor + 1, 10**6):
        outcome = client.resume(conversation, starting_after=cursor).finish()
        assert outcome.error is None
        assert outcome.body == DONE


# Sending.


@pytest.mark.promise("P9")
def test_one_message_sent_again_and_twenty_times_concurrently_creates_one_run(
    new_client: NewClient, conversation: Thread
) -> None:
    clients = [new_client() for _ in range(20)]
    calls = [client.send(conversation, "[chunks=20][rate=400]") for client in clients]
    for client, call in zip(clients, calls, strict=True):
        client.read(call)
        assert client.complete
    later = new_client()
    later.read(later.send(conversation, "[chunks=20][rate=400]"))
    (run,) = conversation.runs()
    replay = conversation.replay(run["id"])
    assert {client.joined for client in [*clients, later]} == {replay}


@pytest.mark.promise("P9")
def test_an_otid_with_another_text_is_a_conflict_that_the_sdk_does_not_retry(
    new_client: NewClient, conversation: Thread
) -> None:
    client = new_client(max_retries=2)
    client.read(client.send(conversation, "hello"))
    outcome = client.send(conversation, "something else").finish()
    error = outcome.refused()
    assert (error["name"], error["status"]) == ("ConflictError", 409)
    assert error["body"]["code"] == "otid_conflict"
    assert error["body"]["run_id"] == client.run_id
    assert outcome.requests == 1


@pytest.mark.promise("P10", "P6", "P3")
def test_a_second_message_is_refused_once_and_the_run_it_names_can_be_cancelled(
    new_client: NewClient, conversation: Thread
) -> None:
    client, second = new_client(), new_client(max_retries=2)
    seen: list[Outcome] = []

    def send_another(chunk: Any) -> None:
        if chunk.seq_id == 11:
            body = {"input": "me too"}
            call = second.start("conversations.messages.create", conversation.path_id, body)
            seen.append(call.finish())
            seen.append(second.call("conversations.cancel", conversation.path_id))

    client.read(client.send(conversation, LIVE), send_another)
    busy, cancel = seen
    error = busy.refused()
    assert (error["name"], error["status"], busy.requests) == ("ConflictError", 409, 1)
    assert "is currently being processed" in error["body"]["detail"]
    assert f"run_id={client.run_id}" in error["body"]["detail"]
    assert error["body"]["code"] == "conversation_busy"
    assert cancel.value == {client.run_id: "cancelled"}
    assert client.complete
    assert client.chunks[-2].stop_reason == "cancelled"
    assert client.joined == conversation.replay(client.run_id)
    again = second.call("conversations.cancel", conversation.path_id)
    assert again.refused()["name"] == "ConflictError"
    assert again.requests == 1


def test_agents_messages_create_answers_and_streams(
    client: TypeScriptReader, default_thread: Thread
) -> None:
    answer = client.call("agents.messages.create", default_thread.agent_id, {"input": "hello"})
    assert answer.error is None
    assert [message["content"] for message in answer.value["messages"]] == ["hello"]
    body = {"input": "[chunks=4]", "streaming": True, "stream_tokens": True}
    client.read(client.start("agents.messages.create", default_thread.agent_id, body))
    assert client.text == "t0 t1 t2 t3 "


def test_resources_are_created_read_updated_listed_and_deleted(
    client: TypeScriptReader, threads: Threads
) -> None:
    blocks = [{"label": "human", "value": "v"}]
    body = {"name": "ts", "model": "scripted/echo", "memory_blocks": blocks, "tags": [new_otid()]}
    agent = client.call("agents.create", body).value
    listed = client.iterate("agents.list", {"tags": agent["tags"], "limit": 1})
    assert [one["id"] for one in listed.chunks] == [agent["id"]]
    assert client.call("agents.update", agent["id"], {"name": "ts2"}).value["name"] == "ts2"
    made = client.call("conversations.create", {"agent_id": agent["id"], "summary": "s"}).value
    assert client.call("conversations.retrieve", made["id"]).value["summary"] == "s"
    thread = Thread(threads.raw, agent["id"], made["id"])
    client.read(client.send(thread, "[think=1][tool=search][chunks=3]"))
    kept = [(item["id"], item["message_type"]) for item in thread.items()]
    query = {"order": "asc", "limit": 2}
    items = client.iterate("conversations.messages.list", made["id"], query).chunks
    assert [(item["id"], item["message_type"]) for item in items] == kept
    run = client.call("runs.retrieve", client.run_id).value
    assert (run["status"], run["stop_reason"]) == ("completed", "end_turn")
    assert client.call("runs.usage.retrieve", client.run_id).value["completion_tokens"] > 0
    assert len(client.iterate("runs.steps.list", client.run_id).chunks) == 2
    runs = client.iterate("runs.list", {"conversation_id": made["id"], "limit": 1})
    assert [one["id"] for one in runs.chunks] == [client.run_id]
    assert client.call("health").value["status"] == "ok"
    assert "scripted/echo" in [one["handle"] for one in client.call("models.list").value]
    assert client.call("agents.delete", agent["id"]).error is None
    assert client.call("agents.retrieve", agent["id"]).refused()["name"] == "NotFoundError"


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_the_pagers_walk_lists_whole_and_once_in_either_order(
    order: str, client: TypeScriptReader, threads: Threads
) -> None:
    tag = new_otid()
    blocks = [{"label": f"l{n}", "value": "v"} for n in range(3)]
    agents = [
        client.call("agents.create", {"tags": [tag], "memory_blocks": blocks}).value["id"]
        for _ in range(3)
    ]
    thread = Thread(threads.raw, agents[0], None)
    for _ in range(3):
        sent = {"input": "[steps=3][chunks=1]", "streaming": False}
        assert thread.post(f"/v1/agents/{agents[0]}/messages", sent).status_code == 200
    runs = [run["id"] for run in thread.runs()]
    steps = [step["id"] for step in thread.get(f"/v1/runs/{runs[0]}/steps", order="asc")]
    query = {"order": order, "limit": 1}
    for path, args, expected in (
        ("agents.list", [query | {"tags": [tag]}], agents),
        ("runs.list", [query | {"agent_id": agents[0]}], runs),
        ("runs.steps.list", [runs[0], query], steps),
    ):
        walked = [one["id"] for one in client.iterate(path, *args).chunks]
        assert len(walked) == 3
        assert walked == (expected if order == "asc" else expected[::-1])
    attached = client.iterate("agents.blocks.list", agents[0], query).chunks
    labels = [one["label"] for one in attached]
    assert sorted(labels) == ["l0", "l1", "l2"]


# Pings, errors, ends.


@pytest.mark.promise("S7", "P1")
def test_pings_during_silence_go_only_to_clients_that_asked_for_them(
    process: TypeScript, pinging_server: ServerProcess
) -> None:
    with raw_client(pinging_server.url) as raw:
        thread = Threads(raw).conversation()
        sender, pinged, unpinged = (TypeScriptReader(process, pinging_server.url) for _ in range(3))
        seen = {"pings": 0}
        calls: list[Call] = []

        def others(chunk: Any) -> None:
            if chunk.seq_id == 3 and chunk.message_type != "ping":
                calls.append(unpinged.resume(thread, run_id=chunk.run_id, include_pings=False))
                calls.append(pinged.resume(thread, run_id=chunk.run_id))
                pinged.read(calls[1], cancel_at_fourth_ping)

        def cancel_at_fourth_ping(chunk: Any) -> None:
            seen["pings"] += chunk.message_type == "ping" and chunk.seq_id == 3
            if seen["pings"] == 4:
                thread.post("cancel")

        sender.read(sender.send(thread, "[chunks=5][hang=2]"), others)
        silent = unpinged.read(calls[0])
    for client in (sender, pinged, unpinged):
        assert client.complete
        assert client.joined == sender.joined
    assert types_of(sender.joined)[0] == "ping"
    assert [chunk["message_type"] for chunk in silent.chunks].count("ping") == 1
    assert seen["pings"] >= 4


@pytest.mark.promise("P3", "P4")
@pytest.mark.parametrize("background", [False, True])
def test_an_error_event_is_an_api_error_with_the_event_as_its_error(
    background: bool, client: TypeScriptReader, conversation: Thread
) -> None:
    text = "[chunks=9][fail=3:llm_timeout]"
    outcome = client.read(client.send(conversation, text, background=background))
    assert outcome.error is not None
    assert (outcome.error["name"], outcome.error["status"]) == ("APIError", None)
    assert outcome.error["body"] == {
        "message_type": "error_message",
        "run_id": client.run_id,
        "error_type": "llm_timeout",
        "message": "The scripted model failed as the script says: 3.",
        "detail": None,
        "seq_id": 6,
    }
    assert client.text == "t0 t1 t2 "
    if background:
        client.read(client.resume(conversation))
        assert client.complete
        assert client.joined == conversation.replay(client.run_id)


@pytest.mark.promise("S10")
@pytest.mark.parametrize(
    ("name", "status", "path", "args"),
    [
        ("NotFoundError", 404, "runs.messages.stream", [f"run-{UUID}"]),
        ("NotFoundError", 404, "conversations.messages.stream", [f"conv-{UUID}", {"otid": "x"}]),
        ("BadRequestError", 400, "conversations.messages.stream", [f"conv-{UUID}", {}]),
        ("BadRequestError", 400, "conversations.messages.stream", ["default", {"run_id": "x"}]),
        ("UnprocessableEntityError", 422, "conversations.messages.stream", ["nonsense", {}]),
        ("NotFoundError", 404, "tools.retrieve", [f"tool-{UUID}"]),
        ("InternalServerError", 501, "tools.create", [{"source_code": "def f(): ..."}]),
        ("InternalServerError", 501, "folders.list", []),
    ],
)
def test_a_refusal_is_the_sdks_own_error_after_one_request(
    name: str, status: int, path: str, args: list[Any], new_client: NewClient
) -> None:
    outcome = new_client(max_retries=2).iterate(path, *args)
    error = outcome.refused()
    assert (error["name"], error["status"]) == (name, status)
    assert isinstance(error["body"]["detail"], str)
    assert isinstance(error["body"]["code"], str)
    assert outcome.requests == 1


@pytest.mark.promise("P3")
def test_a_stream_ends_right_after_done_in_every_mode(
    client: TypeScriptReader, default_thread: Thread
) -> None:
    for background in (False, True):
        for stream_tokens in (False, True):
            thread = Thread(default_thread.raw, default_thread.agent_id, None)
            options = {"background": background, "stream_tokens": stream_tokens}
            outcome = client.send(thread, "[think=1][chunks=3]", **options).finish()
            assert outcome.error is None
            assert outcome.body.endswith(DONE)
            assert outcome.chunks[-1]["message_type"] == "usage_statistics"
