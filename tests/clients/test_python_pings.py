"""Pings as the Python SDK sees them, on a server that sends them after a tenth of a second."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from letta_client.types.agents.letta_streaming_response import LettaPing

from reattach.testing.programs.server import ServerProcess
from reattach.testing.recording import whole_frames
from tests.support.python_sdk import AsyncReader, Reader
from tests.support.threads import WAIT_SECONDS, Thread, Threads, raw_client, seqs_of, types_of

SILENT = "[chunks=5][hang=2]"
"""A ping and two deltas, and then silence until the run is cancelled."""


@pytest.fixture(scope="module")
def pinging(pinging_server: ServerProcess) -> Iterator[Threads]:
    with raw_client(pinging_server.url) as raw:
        yield Threads(raw)


def pings_of(reader: Reader | AsyncReader, stream: int = 0) -> list[bytes]:
    frames = whole_frames(reader.recording.streams[stream])
    return [frame for frame in frames if b'"message_type":"ping"' in frame]


@pytest.mark.promise("P1")
def test_the_first_event_of_a_send_is_a_ping_with_the_run_id_and_is_replayed(
    reader: Reader, conversation: Thread
) -> None:
    reader.read(lambda: reader.send(conversation, "hello"))
    assert isinstance(reader.chunks[0], LettaPing)
    assert reader.chunks[0].seq_id == 1
    assert reader.chunks[0].run_id == conversation.runs()[0]["id"]
    assert types_of(conversation.replay(reader.run_id))[0] == "ping"
    assert len(pings_of(reader)) == 1


@pytest.mark.promise("P1")
def test_a_send_without_pings_begins_with_the_answer_as_number_1(
    reader: Reader, conversation: Thread
) -> None:
    reader.read(lambda: reader.send(conversation, "hello", include_pings=False))
    assert reader.complete
    assert types_of(reader.joined) == ["assistant_message", "stop_reason", "usage_statistics"]
    assert seqs_of(reader.joined) == [1, 2, 3]


@pytest.mark.promise("S7", "P1")
async def test_pings_during_silence_go_only_to_readers_that_asked_for_them(
    pinging: Threads,
) -> None:
    thread = await asyncio.to_thread(pinging.conversation)
    async with AsyncExitStack() as stack, asyncio.timeout(WAIT_SECONDS):
        readers = [AsyncReader(thread.url) for _ in range(3)]
        for reader in readers:
            stack.push_async_callback(reader.aclose)
        sender, pinged, unpinged = readers
        await sender.read(sender.send(thread, SILENT), lambda chunk: chunk.seq_id == 3)
        seen: list[str] = []

        def fourth_ping(chunk: Any) -> bool:
            if chunk.message_type == "ping" and chunk.seq_id == 3:
                seen.append(chunk.id)
            return len(seen) == 4

        for reader in (pinged, unpinged):
            reader.run_id, reader.cursor = sender.run_id, 2
        opened = asyncio.Event()

        async def follow_without() -> None:
            stream = await unpinged.resume(thread, include_pings=False)
            opened.set()
            unpinged.complete = [chunk.message_type async for chunk in stream] == [
                "assistant_message",
                "stop_reason",
                "usage_statistics",
            ]

        async with asyncio.TaskGroup() as group:
            group.create_task(follow_without())
            await opened.wait()
            await pinged.read(pinged.resume(thread), fourth_ping)
            await pinged.sdk.conversations.cancel(thread.path_id)
        assert unpinged.complete
    assert pings_of(unpinged) == []
    pings = pings_of(pinged)
    assert len(pings) >= 4
    assert len(set(pings)) == len(pings)
    assert all(f'"seq_id":3,"run_id":"{sender.run_id}"'.encode() in ping for ping in pings)
    assert types_of(await asyncio.to_thread(thread.replay, sender.run_id)).count("ping") == 1


@pytest.mark.promise("S7", "P1", "P4")
def test_pings_of_a_connection_are_not_part_of_the_joined_stream(pinging: Threads) -> None:
    thread = pinging.conversation()
    with Reader(thread.url) as reader:
        reader.read(lambda: reader.send(thread, SILENT), lambda chunk: chunk.seq_id == 2)
        pings = 0

        def cancel_at_second_ping(chunk: Any) -> None:
            nonlocal pings
            pings += chunk.message_type == "ping"
            if pings == 2:
                thread.post("cancel")

        reader.read(lambda: reader.resume(thread), cancel_at_second_ping)
        assert reader.complete
        assert len(pings_of(reader, stream=1)) >= 2
        assert reader.joined == thread.replay(reader.run_id)


@pytest.mark.promise("S7")
def test_a_reader_from_the_start_of_a_silent_run_without_events_gets_pings_without_a_number(
    pinging: Threads,
) -> None:
    thread = pinging.conversation()
    with Reader(thread.url) as sender, Reader(thread.url) as reader:
        stream = sender.send(thread, "[hang=0]", include_pings=False)
        run_id = stream.response.headers["x-run-id"]
        with reader.sdk.runs.messages.stream(run_id) as following:
            chunk = next(following)
        assert isinstance(chunk, LettaPing)
        assert chunk.seq_id is None
        assert chunk.run_id == run_id
        assert thread.post("cancel").json() == {run_id: "cancelled"}
        stream.close()
