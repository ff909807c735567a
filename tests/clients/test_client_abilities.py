"""The abilities that our clients have in common, with a real server behind a relay that breaks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reattach.cli.commands import app
from reattach.client import Token
from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.clients.conftest import scripted_server
from tests.support.hanging_server import HangingServer, page
from tests.support.javascript_client import events_of
from tests.support.node_driver import Json
from tests.support.own_clients import (
    QUICK,
    Call,
    Options,
    OwnClient,
)
from tests.support.threads import Thread, Threads, assert_one_whole_run, raw_client


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
    client: OwnClient, server: ServerProcess, conversation: Thread
) -> None:
    dice = random.Random(7)
    cuts = 8

    def arm(_: bytes) -> None:
        """Cut each of the first connections after a number of bytes of its own."""
        if relay.connections > len(armed) and len(armed) < cuts:
            armed.append(dice.randrange(3000))
            relay.cut_after(armed[-1])

    armed: list[int] = []
    with Relay(server.address, on_down=arm) as relay:
        call = send(client, relay.url, conversation, "[chunks=300][unicode][rate=300]").finish()
    assert_whole(call, conversation)
    assert call.states.count("waiting") >= cuts


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


@pytest.mark.promise("P4", "P20")
def test_a_snapshot_comes_first_and_every_later_event_once_over_a_stream_that_is_cut(
    client: OwnClient, relay: Relay, conversation: Thread
) -> None:
    def cut(event: Json) -> None:
        if event.get("seq_id", 0) % 20 == 0:
            relay.cut()

    def follow(event: Json) -> None:
        if event["seq_id"] == 30:
            relay.cut_after(700)
            where = {"run_id": event["run_id"], "snapshot": True}
            followers.append(client.start(relay.url, "follow", **where))

    followers: list[Call] = []
    send(client, relay.url, conversation, "[chunks=300][rate=100]").finish(follow)
    snapshot, *events = followers[0].finish(cut).events
    [run] = conversation.runs()
    replay = events_of(conversation.replay(run["id"]))
    assert (snapshot["message_type"], snapshot["run_id"]) == ("snapshot", run["id"])
    assert 0 < snapshot["seq"] < len(replay)
    assert events == replay[snapshot["seq"] :]


# Tokens.


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Threads]:
    """Conversations of a server that wants a key."""
    directory = tmp_path_factory.mktemp("keyed") / "data"
    made = CliRunner().invoke(app, ["keys", "create", "key", "--data-dir", str(directory)])
    assert made.exit_code == 0, made.output
    authorization = f"Bearer {made.stdout.strip()}"
    with (
        scripted_server(directory) as server,
        raw_client(server.url, authorization=authorization) as raw,
    ):
        yield Threads(raw)


def issued(thread: Thread, **body: Any) -> Json:
    """Return the answer to a request for a token of the conversation."""
    scope = {"conversation_id": thread.conversation_id, "scope": ["read", "send"]}
    answer = thread.post("/v1/tokens", {**scope, **body})
    assert answer.is_success, answer.text
    token: Json = answer.json()
    return token


def test_a_token_is_renewed_before_it_expires_and_the_stream_goes_on(
    client: OwnClient, keyed: Threads
) -> None:
    thread = keyed.conversation()
    tokens = [issued(thread, expires_in_seconds=2), issued(thread)]
    call = send(client, thread.url, thread, "[chunks=60][rate=20]", Options(tokens=tokens))
    assert_whole(call.finish(), thread)
    assert call.states.count("live") == 2
    assert "waiting" not in call.states


@pytest.mark.promise("S11")
def test_a_token_that_is_refused_is_renewed_once_and_a_refused_fresh_one_is_final(
    client: OwnClient, keyed: Threads
) -> None:
    thread = keyed.conversation()
    good: list[Token] = ["rt1.old", issued(thread)]
    call = send(client, thread.url, thread, "[chunks=5]", Options(tokens=good)).finish()
    assert_whole(call, thread)
    assert call.states == ["connecting", "renewing", "live", "ended"]
    refused = send(client, thread.url, thread, "[chunks=5]", Options(tokens=["rt1.old"])).finish()
    assert refused.error is not None
    assert (refused.error["name"], refused.error["status"]) == ("UnauthorizedError", 401)
    assert refused.states == ["connecting", "renewing", "failed"]


# Outages.


def test_it_gives_up_when_there_is_no_server(client: OwnClient) -> None:
    with Relay(("127.0.0.1", 1)) as nowhere:
        call = client.start(
            nowhere.url, "follow", Options(give_up_seconds=0.3), conversation_id="default"
        ).finish()
    assert call.error is not None
    assert (call.error["name"], call.error["status"]) == ("GaveUpError", 0)
    assert call.states[-1] == "failed"


@pytest.mark.promise("P4")
def test_pages_of_a_proxy_and_of_a_captive_portal_are_waited_out(
    client: OwnClient, server: ServerProcess, relay: Relay, conversation: Thread
) -> None:
    pages = [page(404), page(502), page(200)]

    def detour(event: Json) -> None:
        if event["seq_id"] == 10:
            relay.target = detoured.address
            relay.cut()
            for _ in pages:
                detoured.head()
            relay.target = server.address

    with HangingServer(*pages, *[page(502)] * 1000) as detoured:
        call = send(client, relay.url, conversation, "[chunks=50][rate=100]").finish(detour)
    assert_whole(call, conversation)
    assert call.states.count("waiting") >= len(pages)


@pytest.mark.promise("P15", "P19", "P21")
def test_many_runs_go_on_when_the_server_is_stopped_and_started_again(
    client: OwnClient, tmp_path: Path
) -> None:
    with (
        scripted_server(tmp_path, REATTACH_DRAIN_SECONDS="0") as server,
        raw_client(server.url) as raw,
    ):
        runs = {}
        for _ in range(2):
            thread = Threads(raw).conversation()
            begun = send(client, server.url, thread, "[chunks=40][rate=40]", Options(leave_after=1))
            runs[begun.finish().run_id] = thread

        def restart(event: Json) -> None:
            if event.get("seq_id") == 8 and not stopped:
                stopped.append(event)
                server.stop()
                server.start()

        stopped: list[Json] = []
        call = client.start(server.url, "many", runs=dict.fromkeys(runs, 0)).finish(restart)
        assert call.error is None
        for run_id, thread in runs.items():
            events = [event for event in call.events if event["run_id"] == run_id]
            assert events == events_of(thread.replay(run_id))


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
