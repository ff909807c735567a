"""The Python SDK sends: duplicates, conflicts, cancels, and every route that takes a message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from letta_client import APIStatusError, BadRequestError, ConflictError, Stream
from letta_client.types.agents import LettaResponse

from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.support.python_sdk import AsyncReader, Reader, Stop
from tests.support.threads import (
    DONE,
    WAIT_SECONDS,
    Thread,
    Threads,
    assert_one_whole_run,
    types_of,
)

OPEN = "[chunks=30][hang=3]"
"""Events 1 to 4, and then the run is open until it is cancelled."""


def at_event_4(chunk: Any) -> bool:
    return bool(chunk.seq_id == 4)


def cancelling_at_event_4(thread: Thread) -> Stop:
    def look(chunk: Any) -> None:
        if at_event_4(chunk):
            thread.post("cancel")

    return look


def body_of(error: APIStatusError) -> dict[str, Any]:
    assert isinstance(error.body, dict)
    return error.body


# One key, one run.


@pytest.mark.promise("P9", "P4")
def test_the_same_message_sent_again_during_and_after_the_run_gets_the_same_bytes(
    reader: Reader, conversation: Thread
) -> None:
    reader.read(lambda: reader.send(conversation, OPEN), at_event_4)
    with Reader(conversation.url) as during, Reader(conversation.url) as after:
        during.read(lambda: during.send(conversation, OPEN), cancelling_at_event_4(conversation))
        after.read(lambda: after.send(conversation, OPEN, stream_tokens=False))
        assert during.joined == after.joined == conversation.replay(reader.run_id)
    assert [run["id"] for run in conversation.runs()] == [reader.run_id]


@pytest.mark.promise("P9")
async def test_twenty_concurrent_sends_of_one_message_create_one_run_that_all_of_them_get(
    new_reader: Callable[[], AsyncReader], threads: Threads
) -> None:
    thread = await asyncio.to_thread(threads.conversation)
    readers = [new_reader() for _ in range(20)]
    async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as group:
        for reader in readers:
            group.create_task(reader.read(reader.send(thread, "[chunks=20][rate=400]")))
    runs = await asyncio.to_thread(thread.runs)
    assert len(runs) == 1
    replay = await asyncio.to_thread(thread.replay, runs[0]["id"])
    assert_one_whole_run(replay)
    for reader in readers:
        assert reader.complete
        assert reader.joined == replay


@pytest.mark.promise("P9")
def test_a_foreground_message_sent_again_gets_the_answer_of_its_run(
    reader: Reader, conversation: Thread
) -> None:
    with Reader(conversation.url) as again:
        reader.read(lambda: reader.send(conversation, "hello", background=False))
        again.read(lambda: again.send(conversation, "hello", background=False))
        assert again.complete
        assert again.joined == reader.joined
    assert len(conversation.runs()) == 1


@pytest.mark.promise("P9")
@pytest.mark.parametrize("elsewhere", [False, True], ids=["other text", "other conversation"])
def test_an_otid_used_for_something_else_is_a_conflict_that_the_sdk_does_not_retry(
    elsewhere: bool, relay: Relay, conversation: Thread, threads: Threads
) -> None:
    with Reader(relay.url, max_retries=2) as reader:
        reader.read(lambda: reader.send(conversation, "hello"))
        other = threads.conversation(conversation.agent_id) if elsewhere else conversation
        message = conversation.message("hello" if elsewhere else "something else")
        requests = len(reader.recording.requests)
        with pytest.raises(ConflictError) as caught:
            reader.sdk.conversations.messages.create(
                other.path_id,
                messages=[message],
                background=True,
            )
        assert len(reader.recording.requests) == requests + 1
    assert body_of(caught.value)["code"] == "otid_conflict"
    assert body_of(caught.value)["run_id"] == reader.run_id
    assert len(conversation.runs()) == 1


# One active run.


@pytest.mark.promise("P10")
def test_a_second_message_during_a_run_is_refused_once_and_names_the_run(
    reader: Reader, relay: Relay, conversation: Thread
) -> None:
    reader.read(lambda: reader.send(conversation, OPEN), at_event_4)
    with Reader(relay.url, max_retries=2) as second:
        with pytest.raises(ConflictError) as caught:
            second.sdk.conversations.messages.create(conversation.path_id, input="me too")
        assert len(second.recording.requests) == 1
    detail = body_of(caught.value)["detail"]
    assert "is currently being processed" in detail
    assert f"run_id={reader.run_id}" in detail
    assert body_of(caught.value)["run_id"] == reader.run_id
    assert body_of(caught.value)["code"] == "conversation_busy"
    with Reader(relay.url) as recovering:
        recovering.run_id = body_of(caught.value)["run_id"]
        recovering.read(
            lambda: recovering.resume(conversation),
            cancelling_at_event_4(conversation),
        )
        assert recovering.joined == conversation.replay(reader.run_id)
    assert len(conversation.runs()) == 1


@pytest.mark.promise("P10")
def test_other_conversations_of_the_agent_are_not_busy(
    reader: Reader, conversation: Thread, threads: Threads
) -> None:
    reader.read(lambda: reader.send(conversation, OPEN), at_event_4)
    other = threads.conversation(conversation.agent_id)
    with Reader(conversation.url) as second:
        second.read(lambda: second.send(other, "hello"))
        assert second.complete
    assert conversation.post("cancel").json() == {reader.run_id: "cancelled"}


# Cancelling.


def cancel_conversation(reader: Reader, thread: Thread) -> Any:
    return reader.sdk.conversations.cancel(thread.path_id, agent_id=thread.agent_id)


def cancel_agent(reader: Reader, thread: Thread) -> Any:
    return reader.sdk.agents.messages.cancel(thread.agent_id)


def cancel_runs(reader: Reader, thread: Thread) -> Any:
    return reader.sdk.agents.messages.cancel(thread.agent_id, run_ids=[reader.run_id])


@pytest.mark.promise("P6", "P3")
@pytest.mark.parametrize("cancel", [cancel_conversation, cancel_agent, cancel_runs])
def test_a_cancelled_run_ends_every_stream_with_one_cancelled_group_and_keeps_its_text(
    cancel: Callable[[Reader, Thread], Any], reader: Reader, default_thread: Thread
) -> None:
    answers = []

    def cancel_at_event_4(chunk: Any) -> None:
        if at_event_4(chunk):
            answers.append(cancel(reader, default_thread))

    reader.read(lambda: reader.send(default_thread, OPEN), cancel_at_event_4)
    assert answers == [{reader.run_id: "cancelled"}]
    assert reader.complete
    assert types_of(reader.joined)[-2:] == ["stop_reason", "usage_statistics"]
    assert reader.chunks[-2].stop_reason == "cancelled"
    assert reader.joined == default_thread.replay(reader.run_id)
    assert default_thread.text() == reader.text == "t0 t1 t2 "
    run = reader.sdk.runs.retrieve(reader.run_id)
    assert (run.status, run.stop_reason) == ("cancelled", "cancelled")
    assert cancel_runs(reader, default_thread) == {reader.run_id: "cancelled"}


@pytest.mark.promise("P6")
def test_cancelling_without_an_active_run_is_a_conflict_and_an_ended_run_keeps_its_status(
    reader: Reader, default_thread: Thread
) -> None:
    reader.read(lambda: reader.send(default_thread, "hello"))
    with pytest.raises(ConflictError, match="No active runs to cancel"):
        cancel_conversation(reader, default_thread)
    assert cancel_runs(reader, default_thread) == {reader.run_id: "completed"}
    assert reader.sdk.runs.retrieve(reader.run_id).status == "completed"


# Other ways to send.


@pytest.mark.promise("P6")
def test_a_foreground_run_continues_without_its_client_and_cannot_be_resumed(
    reader: Reader, relay: Relay, conversation: Thread
) -> None:
    relay.cut_after(1500)
    reader.read(lambda: reader.send(conversation, "[chunks=12][rate=300]", background=False))
    assert reader.broken is not None
    for options in ({}, {"otid": conversation.otid, "run_id": None}):
        with pytest.raises(BadRequestError, match="not created in background mode"):
            reader.resume(conversation, **options)
    with Reader(conversation.url) as waiting:  # the same message waits for the run's end
        waiting.read(lambda: waiting.send(conversation, "[chunks=12][rate=300]", background=False))
        assert waiting.complete
        assert waiting.run_id == reader.run_id
        assert waiting.joined.startswith(reader.joined)
    assert conversation.text() == "".join(f"t{n} " for n in range(12))


def test_json_mode_answers_with_the_stored_messages(conversation: Thread) -> None:
    message = conversation.message("[think=1][tool=search][chunks=3]")
    answers = [
        conversation.post("messages", {"messages": [message], "streaming": False}) for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    parsed = LettaResponse.model_validate_json(answers[0].content)
    assert [m.message_type for m in parsed.messages] == [
        "tool_call_message",
        "tool_return_message",
        "reasoning_message",
        "assistant_message",
    ]
    assert parsed.stop_reason.stop_reason == "end_turn"
    assert answers[0].json()["messages"] == conversation.items()[-4:]
    assert len(conversation.runs()) == 1


def test_agents_messages_create_answers_and_streams(reader: Reader, default_thread: Thread) -> None:
    answer = reader.sdk.agents.messages.create(default_thread.agent_id, input="hello there")
    assert [m.content for m in answer.messages] == ["hello there"]  # type: ignore[union-attr]
    assert answer.stop_reason.stop_reason == "end_turn"

    def stream() -> Stream[Any]:
        return reader.sdk.agents.messages.create(
            default_thread.agent_id,
            messages=[default_thread.message("[chunks=4]")],
            streaming=True,
            stream_tokens=True,
            background=True,
        )

    reader.read(stream)
    assert reader.complete
    assert reader.joined == default_thread.replay(reader.run_id)
    assert reader.text == "t0 t1 t2 t3 "


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_agents_messages_stream_streams(reader: Reader, default_thread: Thread) -> None:
    reader.read(
        lambda: reader.sdk.agents.messages.stream(  # type: ignore[deprecated]
            default_thread.agent_id, input="[chunks=4]", background=True
        ),
        lambda chunk: chunk.seq_id == 1,
    )
    reader.read(lambda: reader.resume(default_thread))
    assert reader.complete
    assert reader.text == "t0 t1 t2 t3 "
    assert_one_whole_run(default_thread.replay(reader.run_id))


@pytest.mark.promise("P3")
def test_a_failed_run_answers_json_mode_with_the_status_of_its_error(
    reader: Reader, default_thread: Thread
) -> None:
    for code, status in {
        "llm_authentication": 401,
        "llm_rate_limit": 429,
        "llm_timeout": 504,
        "llm_error": 500,
    }.items():
        with pytest.raises(APIStatusError) as caught:
            reader.sdk.agents.messages.create(
                default_thread.agent_id, input=f"[chunks=3][fail=1:{code}]"
            )
        assert caught.value.status_code == status
        assert body_of(caught.value)["code"] == code


def test_the_requests_own_system_prompt_and_the_history_reach_the_model(
    reader: Reader, conversation: Thread
) -> None:
    reader.read(lambda: reader.send(conversation, "the first message"))
    for text, expected in {
        "[history]": "user: the first message\nassistant: the first message\n",
        "[system]": "You are a lamp.",
    }.items():
        with Reader(conversation.url) as other:
            other.read(
                partial(
                    other.sdk.conversations.messages.create,
                    conversation.path_id,
                    input=text,
                    override_system="You are a lamp.",
                )
            )
            assert expected in other.text


def test_a_body_ends_directly_after_done(server: ServerProcess, conversation: Thread) -> None:
    answer = conversation.post(
        "messages", {"messages": [conversation.message("hello")], "background": True}
    )
    assert answer.content.endswith(DONE)
    assert answer.content.count(b"[DONE]") == 1
    for frame in answer.content.removesuffix(DONE).split(b"\n\n")[:-1]:
        assert frame.startswith(b"data: {")
        json.loads(frame.removeprefix(b"data: "))
