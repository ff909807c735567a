"""The JavaScript client in Node, with a real server behind a relay that breaks connections."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.clients.conftest import scripted_server
from tests.support.javascript_client import Call, JavaScript, events_of, require_client
from tests.support.node_driver import Json
from tests.support.threads import Thread, Threads, assert_one_whole_run, raw_client

QUICK: Json = {"backoff": {"firstMs": 10, "lastMs": 100}}


@pytest.fixture(scope="module")
def javascript() -> Iterator[JavaScript]:
    with JavaScript(require_client()) as process:
        yield process


def send(javascript: JavaScript, url: str, thread: Thread, text: str, **options: Any) -> Call:
    args = (thread.path_id, text, {"agent": thread.agent_id, "otid": thread.otid})
    return javascript.start(url, "send", *args, **QUICK | options)


def assert_whole(call: Call, thread: Thread) -> None:
    """Assert that a call got each event of the conversation's only run once, and its end."""
    assert call.error is None
    assert call.states[-1] == "ended"
    [run] = thread.runs()
    replay = thread.replay(run["id"])
    assert call.events == events_of(replay)
    assert_one_whole_run(replay)


@pytest.mark.promise("P4", "P6", "P9", "S4")
@pytest.mark.parametrize("bytes_down", range(0, 6000, 599))
def test_a_send_cut_at_any_byte_makes_one_run_and_each_event_comes_once(
    bytes_down: int, javascript: JavaScript, relay: Relay, conversation: Thread
) -> None:
    relay.cut_after(bytes_down)
    call = send(javascript, relay.url, conversation, "[think=2][chunks=14]").finish()
    assert_whole(call, conversation)


@pytest.mark.promise("P4")
def test_a_stream_cut_at_many_random_bytes_is_joined_to_the_replay(
    javascript: JavaScript, relay: Relay, conversation: Thread
) -> None:
    dice = random.Random(7)

    def cut(event: Json) -> None:
        if event["seq_id"] % 10 == 0:
            relay.cut_after(dice.randrange(3000))

    call = send(javascript, relay.url, conversation, "[chunks=300][unicode][rate=300]").finish(cut)
    assert_whole(call, conversation)
    assert call.states.count("waiting") >= 5


@pytest.mark.promise("P9")
def test_ten_sends_with_one_otid_follow_one_run(
    javascript: JavaScript, relay: Relay, conversation: Thread
) -> None:
    calls = [send(javascript, relay.url, conversation, "[chunks=20]") for _ in range(10)]
    for call in calls:
        assert_whole(call.finish(), conversation)


@pytest.mark.promise("P4", "P12")
def test_a_connection_that_fell_silent_is_replaced(
    javascript: JavaScript, pinging_server: ServerProcess
) -> None:
    with Relay(pinging_server.address) as relay, raw_client(pinging_server.url) as raw:

        def strand(event: Json) -> None:
            if event["seq_id"] == 5:
                relay.strand()

        thread = Threads(raw).conversation()
        text = "[chunks=100][rate=50]"
        call = send(javascript, relay.url, thread, text, keepaliveMs=150).finish(strand)
        assert_whole(call, thread)
    assert "waiting" in call.states


@pytest.mark.promise("P4", "P6")
@pytest.mark.parametrize("named", ["run", "conversation", "otid"])
def test_a_run_is_followed_from_its_start_by(
    named: str, javascript: JavaScript, relay: Relay, conversation: Thread
) -> None:
    target = {"run": {}, "conversation": {"conversation": conversation.path_id}}.get(named)

    def follow(event: Json) -> None:
        if event.get("content") == "t4 ":
            found = {"run": event["run_id"]} if named == "run" else {"otid": conversation.otid}
            call = javascript.start(relay.url, "follow", target or found, **QUICK)
            followers.append(call.finish(cancel))

    def cancel(event: Json) -> None:
        if event.get("content") == "t4 ":
            where = {"conversation": conversation.path_id}
            call = javascript.start(relay.url, "cancel", where).finish()
            assert set(call.value) == {event["run_id"]}

    followers: list[Call] = []
    sent = send(javascript, relay.url, conversation, "[chunks=5][hang=5]").finish(follow)
    assert_whole(sent, conversation)
    assert_whole(followers[0], conversation)


@pytest.mark.promise("P4", "P11")
def test_many_runs_come_over_one_connection_that_is_cut_at_random_bytes(
    javascript: JavaScript, relay: Relay, conversation: Thread
) -> None:
    dice = random.Random(11)
    runs = [_finished(javascript, relay, conversation) for _ in range(3)]
    unknown = "run-123e4567-e89b-42d3-8456-426614174000"
    wanted = [{"run": run, "after": after} for after, run in enumerate([*runs, unknown])]

    def cut(event: Json) -> None:
        if event.get("seq_id", 0) % 15 == 0:
            relay.cut_after(dice.randrange(3000))

    relay.cut_after(2000)
    call = javascript.start(relay.url, "many", *wanted, **QUICK).finish(cut)
    assert call.error is None
    for after, run in enumerate(runs):
        events = [event for event in call.events if event["run_id"] == run]
        assert events == events_of(conversation.replay(run))[after:]
    [refused] = [event for event in call.events if event["run_id"] == unknown]
    assert (refused["message_type"], refused["status"]) == ("run_error", 404)


@pytest.mark.promise("P20")
def test_a_snapshot_of_an_ended_run_has_the_messages_of_the_conversation(
    javascript: JavaScript, relay: Relay, conversation: Thread
) -> None:
    run = _finished(javascript, relay, conversation)
    snapshot = javascript.start(relay.url, "snapshot", {"run": run}).finish().value
    assert snapshot["seq"] == len(events_of(conversation.replay(run)))
    assert snapshot["messages"] == conversation.items()[1:]  # without the system prompt


def _finished(javascript: JavaScript, relay: Relay, thread: Thread) -> str:
    """Return the id of a new run that has ended."""
    args = (thread.path_id, "[chunks=40]", {"agent": thread.agent_id})
    return javascript.start(relay.url, "send", *args).finish().run_id


@pytest.mark.promise("S10")
@pytest.mark.parametrize(
    ("name", "status", "target"),
    [
        ("NotFound", 404, {"run": "run-123e4567-e89b-42d3-8456-426614174000"}),
        ("NotFound", 404, {"otid": "unknown"}),
        ("ReattachError", 400, {"conversation": "conv-123e4567-e89b-42d3-8456-426614174000"}),
        ("ReattachError", 422, {"conversation": "nonsense"}),
    ],
)
def test_a_refusal_is_an_error_with_the_servers_words(
    name: str, status: int, target: Json, javascript: JavaScript, relay: Relay
) -> None:
    call = javascript.start(relay.url, "follow", target).finish()
    assert call.error is not None
    assert (call.error["name"], call.error["status"]) == (name, status)
    assert call.states == ["connecting", "failed"]
    assert relay.connections == 1


@pytest.mark.promise("P10")
def test_a_second_message_is_a_conflict(
    javascript: JavaScript, relay: Relay, conversation: Thread
) -> None:
    def send_another(event: Json) -> None:
        if event["seq_id"] == 3:
            args: list[Any] = [conversation.path_id, "me too", {}]
            second.append(javascript.start(relay.url, "send", *args).finish())
            conversation.post("cancel")

    second: list[Call] = []
    assert_whole(
        send(javascript, relay.url, conversation, "[hang=5]").finish(send_another), conversation
    )
    assert second[0].error is not None
    assert (second[0].error["name"], second[0].error["code"]) == ("Conflict", "conversation_busy")


@pytest.mark.promise("P7", "P15", "P19")
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_an_answer_goes_on_when_the_server_is_restarted(
    how: str, javascript: JavaScript, tmp_path: Path
) -> None:
    with (
        scripted_server(tmp_path, REATTACH_DRAIN_SECONDS="0") as server,
        raw_client(server.url) as raw,
    ):
        thread = Threads(raw).conversation()

        def restart(event: Json) -> None:
            if event["seq_id"] == 10:
                server.kill() if how == "kill" else server.stop()
                server.start()

        call = send(javascript, server.url, thread, "[chunks=60][rate=60]").finish(restart)
        assert_whole(call, thread)
        assert call.events[-2]["stop_reason"] == "end_turn"
