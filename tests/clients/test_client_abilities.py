"""The abilities that our clients have in common, with a real server behind a relay that breaks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.clients.conftest import scripted_server
from tests.support.javascript_client import events_of, require_client
from tests.support.node_driver import Json
from tests.support.own_clients import (
    QUICK,
    Call,
    JavaScriptClient,
    Options,
    OwnClient,
    python_clients,
)
from tests.support.threads import Thread, Threads, assert_one_whole_run, raw_client


@pytest.fixture(scope="module", params=["async", "sync", "javascript"])
def client(request: pytest.FixtureRequest) -> Iterator[OwnClient]:
    if request.param != "javascript":
        yield python_clients()[request.param]()
        return
    with JavaScriptClient(require_client()) as process:
        yield process


def send(client: OwnClient, url: str, thread: Thread, text: str, options: Options = QUICK) -> Call:
    return client.start(
        url,
        "send",
        options,
        conversation_id=thread.path_id,
        messages=text,
        agent_id=thread.agent_id,
        otid=thread.otid,
    )


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
    bytes_down: int, client: OwnClient, relay: Relay, conversation: Thread
) -> None:
    relay.cut_after(bytes_down)
    call = send(client, relay.url, conversation, "[think=2][chunks=14]").finish()
    assert_whole(call, conversation)


@pytest.mark.promise("P4")
def test_a_stream_cut_at_many_random_bytes_is_joined_to_the_replay(
    client: OwnClient, relay: Relay, conversation: Thread
) -> None:
    dice = random.Random(7)

    def cut(event: Json) -> None:
        if event["seq_id"] % 10 == 0:
            relay.cut_after(dice.randrange(3000))

    call = send(client, relay.url, conversation, "[chunks=300][unicode][rate=300]").finish(cut)
    assert_whole(call, conversation)
    assert call.states.count("waiting") >= 5


@pytest.mark.promise("P9")
def test_ten_sends_with_one_otid_follow_one_run(
    client: OwnClient, relay: Relay, conversation: Thread
) -> None:
    calls = [send(client, relay.url, conversation, "[chunks=20]") for _ in range(10)]
    for call in calls:
        assert_whole(call.finish(), conversation)


@pytest.mark.promise("P4", "P12")
def test_a_connection_that_fell_silent_is_replaced(
    client: OwnClient, pinging_server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reattach.client.reading._LEAST_SILENCE_SECONDS", 0.0)
    with Relay(pinging_server.address) as relay, raw_client(pinging_server.url) as raw:

        def strand(event: Json) -> None:
            if event["seq_id"] == 5:
                relay.strand()

        thread = Threads(raw).conversation()
        text = "[chunks=100][rate=50]"
        call = send(client, relay.url, thread, text, Options(keepalive_seconds=0.15)).finish(strand)
        assert_whole(call, thread)
    assert "waiting" in call.states


@pytest.mark.promise("P4", "P6")
@pytest.mark.parametrize("named", ["run_id", "conversation_id", "otid"])
def test_a_run_is_followed_from_its_start_by(
    named: str, client: OwnClient, relay: Relay, conversation: Thread
) -> None:
    def follow(event: Json) -> None:
        if event.get("content") == "t4 ":
            value = {
                "run_id": event["run_id"],
                "conversation_id": conversation.path_id,
                "otid": conversation.otid,
            }[named]
            call = client.start(relay.url, "follow", **{named: value})
            followers.append(call.finish(cancel))

    def cancel(event: Json) -> None:
        if event.get("content") == "t4 ":
            where = conversation.path_id
            call = client.start(relay.url, "cancel", conversation_id=where).finish()
            assert set(call.value) == {event["run_id"]}

    followers: list[Call] = []
    sent = send(client, relay.url, conversation, "[chunks=5][hang=5]").finish(follow)
    assert_whole(sent, conversation)
    assert_whole(followers[0], conversation)


@pytest.mark.promise("P4", "P11")
def test_many_runs_come_over_one_connection_that_is_cut_at_random_bytes(
    client: OwnClient, relay: Relay, conversation: Thread
) -> None:
    dice = random.Random(11)
    runs = [_finished(client, relay, conversation) for _ in range(3)]
    unknown = "run-123e4567-e89b-42d3-8456-426614174000"
    wanted = {run: after for after, run in enumerate([*runs, unknown])}

    def cut(event: Json) -> None:
        if event.get("seq_id", 0) % 15 == 0:
            relay.cut_after(dice.randrange(3000))

    relay.cut_after(2000)
    call = client.start(relay.url, "many", runs=wanted).finish(cut)
    assert call.error is None
    for after, run in enumerate(runs):
        events = [event for event in call.events if event["run_id"] == run]
        assert events == events_of(conversation.replay(run))[after:]
    [refused] = [event for event in call.events if event["run_id"] == unknown]
    assert (refused["message_type"], refused["status"]) == ("run_error", 404)


@pytest.mark.promise("P20")
def test_a_snapshot_of_an_ended_run_has_the_messages_of_the_conversation(
    client: OwnClient, relay: Relay, conversation: Thread
) -> None:
    run = _finished(client, relay, conversation)
    snapshot = client.start(relay.url, "snapshot", run_id=run).finish().value
    assert snapshot["seq"] == len(events_of(conversation.replay(run)))
    assert snapshot["messages"] == conversation.items()[1:]  # without the system prompt


def _finished(client: OwnClient, relay: Relay, thread: Thread) -> str:
    """Return the id of a new run that has ended."""
    sent: Json = {"conversation_id": thread.path_id, "messages": "[chunks=40]"}
    return client.start(relay.url, "send", agent_id=thread.agent_id, **sent).finish().run_id


@pytest.mark.promise("S10")
@pytest.mark.parametrize(
    ("name", "status", "target"),
    [
        ("NotFoundError", 404, {"run_id": "run-123e4567-e89b-42d3-8456-426614174000"}),
        ("NotFoundError", 404, {"otid": "unknown"}),
        ("ReattachError", 400, {"conversation_id": "conv-123e4567-e89b-42d3-8456-426614174000"}),
        ("ReattachError", 422, {"conversation_id": "nonsense"}),
    ],
)
def test_a_refusal_is_an_error_with_the_servers_words(
    name: str, status: int, target: Json, client: OwnClient, relay: Relay
) -> None:
    call = client.start(relay.url, "follow", **target).finish()
    assert call.error is not None
    assert (call.error["name"], call.error["status"]) == (name, status)
    assert call.states == ["connecting", "failed"]
    assert relay.connections == 1


@pytest.mark.promise("P10")
def test_a_second_message_is_a_conflict(
    client: OwnClient, relay: Relay, conversation: Thread
) -> None:
    def send_another(event: Json) -> None:
        if event["seq_id"] == 3:
            sent: Json = {"conversation_id": conversation.path_id, "messages": "me too"}
            second.append(client.start(relay.url, "send", **sent).finish())
            conversation.post("cancel")

    second: list[Call] = []
    assert_whole(
        send(client, relay.url, conversation, "[hang=5]").finish(send_another), conversation
    )
    assert second[0].error is not None
    assert (second[0].error["name"], second[0].error["code"]) == (
        "ConflictError",
        "conversation_busy",
    )


@pytest.mark.promise("P7", "P15", "P19")
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_an_answer_goes_on_when_the_server_is_restarted(
    how: str, client: OwnClient, tmp_path: Path
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

        call = send(client, server.url, thread, "[chunks=60][rate=60]").finish(restart)
        assert_whole(call, thread)
        assert call.events[-2]["stop_reason"] == "end_turn"
