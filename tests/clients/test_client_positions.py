"""Positions of our clients that outlive the process, with a real server behind a relay."""

from __future__ import annotations

from typing import Any

import pytest

from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.clients.test_client_abilities import assert_whole, send
from tests.support.node_driver import Json
from tests.support.own_clients import Call, Options, OwnClient
from tests.support.threads import Thread


@pytest.mark.promise("P4", "P6")
def test_a_reader_that_starts_again_goes_on_after_the_last_event_that_it_had_processed(
    client: OwnClient, relay: Relay, conversation: Thread
) -> None:
    options = Options(storage=conversation.otid, leave_after=20)
    first = send(client, relay.url, conversation, "[chunks=50][rate=100]", options).finish()
    assert first.states[-1] == "closed"
    again = client.start(
        relay.url,
        "follow",
        Options(storage=conversation.otid),
        conversation_id=conversation.path_id,
        agent_id=conversation.agent_id,
    ).finish()
    # The loop was left before it asked for another event, so it may not have processed this one.
    repeated = again.events.pop(0)
    assert repeated == first.events[-1]
    whole = Call(events=first.events + again.events, states=again.states)
    assert_whole(whole, conversation)


@pytest.mark.promise("P9")
def test_a_message_that_is_sent_again_before_its_run_is_known_starts_one_run(
    client: OwnClient, server: ServerProcess, conversation: Thread
) -> None:
    def start(url: str, options: Options) -> Call:
        where = {"conversation_id": conversation.path_id, "agent_id": conversation.agent_id}
        return client.start(url, "send", options, messages="[chunks=5]", **where).finish()

    storage = conversation.otid
    with Relay(("127.0.0.1", 1)) as nowhere:
        lost = start(nowhere.url, Options(storage=storage, give_up_seconds=0.3))
        assert lost.error is not None
        nowhere.target = server.address
        sent = start(nowhere.url, Options(storage=storage))
        assert sent.otid == lost.otid
        assert_whole(sent, conversation)
        assert start(nowhere.url, Options(storage=storage)).otid != lost.otid


@pytest.mark.promise("P9")
def test_a_message_without_an_answer_keeps_its_otid_while_another_run_goes_on_and_ends(
    client: OwnClient, server: ServerProcess, relay: Relay, conversation: Thread
) -> None:
    def start(text: str, **options: Any) -> Call:
        kept = Options(storage=conversation.otid, **options)
        where = {"conversation_id": conversation.path_id, "agent_id": conversation.agent_id}
        return client.start(relay.url, "send", kept, messages=text, **where)

    def lose(event: Json) -> None:
        if event.get("content") == "t4 ":
            relay.target = ("127.0.0.1", 1)
            begun = [start(text, give_up_seconds=0.3) for text in texts]
            lost.extend(call.finish() for call in begun)
            relay.target = server.address
            conversation.post("cancel")

    lost: list[Call] = []
    texts = ["[chunks=2]", "[chunks=3]"]
    first = start("[chunks=5][hang=5]").finish(lose)
    assert first.states[-1] == "ended"
    for call, text in zip(lost, texts, strict=True):
        assert call.error is not None
        assert start(text).finish().otid == call.otid
    assert len(conversation.runs()) == 3


@pytest.mark.promise("P4", "P10")
def test_a_refused_message_leaves_the_position_in_the_active_run(
    client: OwnClient, server: ServerProcess, conversation: Thread
) -> None:
    def start(method: str, leave_after: int | None = None, **arguments: Any) -> Call:
        kept = Options(storage=conversation.otid, leave_after=leave_after)
        where = {"conversation_id": conversation.path_id, "agent_id": conversation.agent_id}
        return client.start(server.url, method, kept, **where, **arguments)

    first = start("send", 5, messages="[chunks=9][hang=9]").finish()
    refused = start("send", messages="me too").finish()
    assert refused.error is not None
    assert refused.error["code"] == "conversation_busy"
    again = start("follow", 1).finish()
    assert again.events == first.events[-1:]
    conversation.post("cancel")


@pytest.mark.promise("P4", "P20")
def test_a_reader_that_starts_again_after_the_end_gets_its_ended_run(
    client: OwnClient, server: ServerProcess, conversation: Thread
) -> None:
    def start(method: str, leave_after: int | None = None, **arguments: Any) -> Call:
        kept = Options(storage=conversation.otid, leave_after=leave_after)
        where = {"conversation_id": conversation.path_id, "agent_id": conversation.agent_id}
        return client.start(server.url, method, kept, **where, **arguments).finish()

    sent = start("send", messages="[chunks=5]")
    for _ in range(2):
        rest = start("follow")
        assert (rest.events, rest.states[-1]) == ([], "ended")
        shown = start("follow", snapshot=True)
        assert shown.states[-1] == "ended"
        [snapshot] = shown.events
        assert (snapshot["run_id"], snapshot["seq"]) == (sent.run_id, sent.events[-1]["seq_id"])
    elsewhere = {"conversation_id": conversation.path_id, "messages": "[chunks=1][hang=1]"}
    client.start(server.url, "send", Options(leave_after=1), **elsewhere).finish()
    newer = start("follow", 1, snapshot=True)
    conversation.post("cancel")
    assert newer.run_id == conversation.runs()[-1]["id"] != sent.run_id
