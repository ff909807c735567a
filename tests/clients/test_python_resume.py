"""The Python SDK loses its connection, comes back, and has every byte once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from letta_client import ConflictError

from reattach.engine.scripted import UNICODE_FRAGMENTS
from reattach.testing.programs.relay import Relay
from tests.support.python_sdk import AsyncReader, Reader
from tests.support.threads import (
    WAIT_SECONDS,
    Thread,
    Threads,
    assert_one_whole_run,
    seqs_of,
    types_of,
)

Resume = Callable[[Reader, Thread], Any]

LIVE = "[think=2][chunks=30][hang=10]"
"""Ten deltas, events 2 to 11, and then the run is open until it is cancelled."""

TO_CONVERSATION: dict[str, Resume] = {
    "run id": lambda reader, thread: reader.sdk.conversations.messages.stream(
        thread.path_id, run_id=reader.run_id, starting_after=reader.cursor
    ),
    "OTID": lambda reader, thread: reader.sdk.conversations.messages.stream(
        thread.path_id, otid=thread.otid, starting_after=reader.cursor
    ),
    "conversation": lambda reader, thread: reader.sdk.conversations.messages.stream(
        thread.path_id, starting_after=reader.cursor
    ),
    "runs.messages.stream": lambda reader, thread: reader.sdk.runs.messages.stream(
        reader.run_id, starting_after=reader.cursor
    ),
    "run id under default": lambda reader, thread: reader.sdk.conversations.messages.stream(
        "default", run_id=reader.run_id, starting_after=reader.cursor, otid="not this one"
    ),
}
TO_DEFAULT: dict[str, Resume] = {
    "default with agent_id": lambda reader, thread: reader.sdk.conversations.messages.stream(
        "default", agent_id=thread.agent_id, starting_after=reader.cursor
    ),
    "the agent's id": lambda reader, thread: reader.sdk.conversations.messages.stream(
        thread.agent_id, starting_after=reader.cursor
    ),
    "OTID under default": lambda reader, thread: reader.sdk.conversations.messages.stream(
        "default", otid=thread.otid, starting_after=reader.cursor
    ),
}


def cutting(relay: Relay, at_seq: int) -> Callable[[Any], None]:
    def look(chunk: Any) -> None:
        if chunk.seq_id == at_seq:
            relay.cut()

    return look


def assert_cut_answer_is_whole(
    reader: Reader, thread: Thread, relay: Relay, resume: Resume, at_seq: int
) -> None:
    """Cut a live run at ``at_seq``; come back to it; cancel it once all of it was seen."""
    reader.read(lambda: reader.send(thread, LIVE), cutting(relay, at_seq))
    assert reader.broken is not None
    assert at_seq <= reader.cursor <= 11
    opened: list[Any] = []

    def reopen() -> Any:
        opened.append(resume(reader, thread))
        return opened[0]

    def cancel_at_the_last(chunk: Any) -> None:
        if chunk.seq_id == 11:
            thread.post(f"cancel?agent_id={thread.agent_id}")

    if reader.cursor == 11:  # the cut came after all there is
        thread.post(f"cancel?agent_id={thread.agent_id}")
        resume = TO_CONVERSATION["run id"]
    reader.read(reopen, cancel_at_the_last)
    assert reader.complete
    assert opened[0].response.headers["x-run-id"] == reader.run_id
    assert reader.joined == thread.replay(reader.run_id)
    assert_one_whole_run(reader.joined)
    assert reader.text == "".join(f"t{n} " for n in range(8)) == thread.text()
    assert len(thread.runs()) == 1


@pytest.mark.promise("S1", "S4", "S5", "S6", "P4", "P6", "P8")
@pytest.mark.parametrize("way", TO_CONVERSATION)
def test_a_live_run_cut_in_mid_answer_is_whole_after_resuming_by(
    way: str, reader: Reader, relay: Relay, conversation: Thread
) -> None:
    assert_cut_answer_is_whole(reader, conversation, relay, TO_CONVERSATION[way], at_seq=4)


@pytest.mark.promise("S2", "S3", "S5", "S6", "P4")
@pytest.mark.parametrize("way", TO_DEFAULT)
def test_a_live_run_of_the_default_thread_is_whole_after_resuming_by(
    way: str, reader: Reader, relay: Relay, default_thread: Thread
) -> None:
    assert_cut_answer_is_whole(reader, default_thread, relay, TO_DEFAULT[way], at_seq=4)


@pytest.mark.promise("P1", "P4", "S6")
@pytest.mark.parametrize("at_seq", range(1, 11))
def test_a_live_run_cut_after_any_event_is_whole_after_resuming(
    at_seq: int, reader: Reader, relay: Relay, conversation: Thread
) -> None:
    assert_cut_answer_is_whole(reader, conversation, relay, TO_CONVERSATION["OTID"], at_seq)


@pytest.mark.promise("P4", "P6", "P9", "S4", "S5")
@pytest.mark.parametrize("bytes_down", [*range(0, 6000, 149), 6000])
def test_a_send_cut_at_any_byte_makes_one_run_that_is_whole_after_resuming(
    bytes_down: int, reader: Reader, relay: Relay, conversation: Thread
) -> None:
    relay.cut_after(bytes_down)
    reader.read(lambda: reader.send(conversation, "[think=2][chunks=14]"))
    if not reader.complete:
        assert reader.broken is not None
        if reader.run_id:
            reader.read(lambda: reader.resume(conversation))
        else:  # the client does not know whether its message arrived, so it sends it again
            reader.read(lambda: reader.send(conversation, "[think=2][chunks=14]"))
    assert reader.complete
    assert [run["id"] for run in conversation.runs()] == [reader.run_id]
    assert reader.joined == conversation.replay(reader.run_id)
    assert_one_whole_run(reader.joined)
    assert reader.text == conversation.text()


@pytest.mark.promise("P4", "S6")
def test_a_replay_that_is_cut_repeatedly_is_whole_in_the_end(
    reader: Reader, relay: Relay, conversation: Thread
) -> None:
    relay.cut_after(2000)
    reader.read(lambda: reader.send(conversation, "[chunks=40][size=200]"))
    for bytes_down in range(900, 5000, 123):
        relay.cut_after(bytes_down)
        reader.read(lambda: reader.resume(conversation))
        if reader.complete:
            break
    else:
        pytest.fail("it never ended")
    assert len(reader.pieces) > 5
    assert reader.joined == conversation.replay(reader.run_id)


@pytest.mark.promise("P1", "P3", "P4", "S6")
def test_every_cursor_of_an_ended_run_gives_exactly_the_events_after_it(
    reader: Reader, conversation: Thread
) -> None:
    reader.read(lambda: reader.send(conversation, "[think=2][tool=search][chunks=5]"))
    replay = conversation.replay(reader.run_id)
    frames = replay.split(b"\n\n")
    for cursor in range(-1, len(frames) + 2):
        with Reader(conversation.url) as other:
            stream = other.sdk.conversations.messages.stream(
                conversation.path_id, run_id=reader.run_id, starting_after=cursor
            )
            seqs = [chunk.seq_id for chunk in stream]  # type: ignore[union-attr]
            assert seqs == list(range(max(cursor, 0) + 1, len(frames)))
            body = bytes(other.recording.streams[0])
            assert body == b"\n\n".join([*frames[max(cursor, 0) : -1], b"data: [DONE]\n\n"])


@pytest.mark.promise("P5")
def test_a_cursor_past_the_end_of_an_open_run_is_a_conflict_that_names_the_last_event(
    reader: Reader, conversation: Thread
) -> None:
    reader.read(lambda: reader.send(conversation, LIVE), lambda chunk: chunk.seq_id == 11)
    with pytest.raises(ConflictError) as caught:
        reader.resume(conversation, starting_after=12)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["code"] == "cursor_ahead"
    assert caught.value.body["last_seq"] == 11
    reader.sdk.conversations.cancel(conversation.path_id)


@pytest.mark.promise("P4", "S6", "S8")
@pytest.mark.parametrize("batch_size", [1, 2, 7, 0, -5])
def test_no_batch_size_or_poll_interval_changes_or_stalls_a_replay(
    batch_size: int, reader: Reader, conversation: Thread
) -> None:
    reader.read(lambda: reader.send(conversation, "[chunks=20]"), lambda chunk: True)
    reader.read(
        lambda: reader.resume(conversation, batch_size=batch_size, poll_interval=batch_size * 60.0)
    )
    assert reader.complete
    assert reader.joined == conversation.replay(reader.run_id)


@pytest.mark.promise("P4")
def test_emoji_and_line_ends_and_sse_look_alikes_arrive_as_the_model_gave_them(
    reader: Reader, relay: Relay, conversation: Thread
) -> None:
    relay.cut_after(4000)
    reader.read(lambda: reader.send(conversation, "[chunks=20][unicode]"))
    assert reader.broken is not None
    reader.read(lambda: reader.resume(conversation))
    assert reader.complete
    assert reader.text == "".join(f"t{n} {UNICODE_FRAGMENTS[n % 10]}" for n in range(20))
    assert reader.text == conversation.text()
    assert reader.joined == conversation.replay(reader.run_id)


@pytest.mark.promise("P4")
def test_whole_messages_instead_of_tokens_resume_as_well(
    reader: Reader, conversation: Thread
) -> None:
    def send() -> Any:
        return reader.send(conversation, "[think=2][tool=search][chunks=5]", stream_tokens=False)

    reader.read(send, lambda chunk: chunk.seq_id == 2)
    reader.read(lambda: reader.resume(conversation))
    assert reader.joined == conversation.replay(reader.run_id)
    assert types_of(reader.joined) == [
        "ping",
        "tool_call_message",
        "tool_return_message",
        "reasoning_message",
        "assistant_message",
        "stop_reason",
        "usage_statistics",
    ]
    assert reader.text == "t0 t1 t2 t3 t4 "


@pytest.mark.promise("P3", "P4")
def test_a_failed_run_resumes_to_its_error_and_past_it(
    reader: Reader, conversation: Thread
) -> None:
    reader.read(lambda: reader.send(conversation, "[chunks=6][fail=3]"), lambda c: c.seq_id == 2)
    reader.read(lambda: reader.resume(conversation))
    assert reader.error is not None
    reader.read(lambda: reader.resume(conversation))
    assert reader.complete
    assert reader.joined == conversation.replay(reader.run_id)
    assert_one_whole_run(reader.joined)


@pytest.mark.promise("P8")
def test_resuming_by_any_reference_starts_no_run(reader: Reader, conversation: Thread) -> None:
    reader.read(lambda: reader.send(conversation, "hello"))
    runs, items = conversation.runs(), conversation.items()
    for way in ("run id", "OTID", "runs.messages.stream"):
        list(TO_CONVERSATION[way](reader, conversation))
    assert conversation.runs() == runs
    assert conversation.items() == items


@pytest.mark.promise("P4", "P6")
async def test_twenty_asynchronous_readers_of_a_live_run_each_get_the_same_bytes(
    new_reader: Callable[[], AsyncReader], relay: Relay, threads: Threads
) -> None:
    thread = await asyncio.to_thread(threads.conversation)
    sender = new_reader()
    async with asyncio.timeout(WAIT_SECONDS):
        await sender.read(sender.send(thread, LIVE), cutting(relay, 3))
        readers = [new_reader() for _ in range(20)]
        there = asyncio.Barrier(len(readers))

        async def follow(number: int, reader: AsyncReader) -> None:
            reader.run_id, reader.cursor = sender.run_id, number % 5
            await reader.read(reader.resume(thread), lambda chunk: chunk.seq_id == 11)
            await there.wait()
            if number == 0:
                await reader.sdk.conversations.cancel(thread.path_id)
            await reader.read(reader.resume(thread))

        async with asyncio.TaskGroup() as group:
            for number, reader in enumerate(readers):
                group.create_task(follow(number, reader))
        await sender.read(sender.resume(thread))
    replay = await asyncio.to_thread(thread.replay, sender.run_id)
    frames = [frame + b"\n\n" for frame in replay.split(b"\n\n")[:-1]]
    for number, reader in enumerate(readers):
        assert reader.complete
        assert reader.joined == b"".join(frames[number % 5 :])
    assert sender.joined == replay
    assert seqs_of(replay) == list(range(1, 14))


@pytest.mark.promise("P4", "P9", "S4", "S5")
async def test_the_asynchronous_sdk_cut_at_many_bytes_at_once_has_every_answer_whole(
    new_reader: Callable[[], AsyncReader], relay: Relay, threads: Threads
) -> None:
    agent = await asyncio.to_thread(threads.default_thread)
    spots = [await asyncio.to_thread(threads.conversation, agent.agent_id) for _ in range(10)]
    readers = [new_reader() for _ in spots]
    more_cuts = iter(range(1000, 9000, 700))

    async def insist(reader: AsyncReader, thread: Thread) -> None:
        while not reader.complete:
            if reader.run_id:
                await reader.read(reader.resume(thread))
            else:
                await reader.read(reader.send(thread, "[chunks=30][rate=300]"))
            if cuts := next(more_cuts, 0):
                relay.cut_after(cuts)

    relay.cut_after(5000)
    async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as group:
        for reader, thread in zip(readers, spots, strict=True):
            group.create_task(insist(reader, thread))
    for reader, thread in zip(readers, spots, strict=True):
        assert reader.joined == await asyncio.to_thread(thread.replay, reader.run_id)
    assert sum(len(reader.pieces) for reader in readers) > len(readers)
    assert len(await asyncio.to_thread(agent.runs)) == len(readers)
