"""Bounded and strict readers of a log, for tests."""

import asyncio
from collections.abc import Callable

from reattach.domain.ids import Seq
from reattach.log.base import Log, Tail

WAIT_SECONDS = 30.0
"""The timeout of each step, so that a broken log does not hang the tests."""

LARGE = 2**40
"""An unlimited number of bytes or events."""


async def read(
    log: Log,
    run_id: str,
    after: int = 0,
    *,
    max_bytes: int = LARGE,
    max_events: int = LARGE,
) -> tuple[int, list[bytes]]:
    """Read everything after ``after`` in slices of these bounds, and return the single frames."""
    head = await log.head(run_id)
    frames = [
        (await log.read(run_id, Seq(at), max_bytes=1, max_events=1)).frames
        for at in range(after, head.last_seq)
    ]
    joined, at = b"", after
    while True:
        cut = await log.read(run_id, Seq(at), max_bytes=max_bytes, max_events=max_events)
        if cut.last_seq < cut.first_seq:
            break
        assert cut.first_seq == at + 1
        assert len(cut.frames) <= max_bytes or cut.last_seq == cut.first_seq
        assert cut.last_seq - at <= max_events
        joined, at = joined + cut.frames, cut.last_seq
    assert at == max(head.last_seq, after)
    assert joined == b"".join(frames)
    return after + 1, frames


async def follow(log: Log, run_id: str, after: int) -> list[bytes]:
    """Return every frame after ``after``, and wait until the log is closed."""
    frames: list[bytes] = []
    async with asyncio.timeout(WAIT_SECONDS), log.follow(run_id) as tail:
        while True:
            at = after + len(frames)
            if at + 1 < tail.first_seq:
                frames.append((await log.read(run_id, Seq(at), max_bytes=1, max_events=1)).frames)
            elif at < tail.last_seq:
                frames.append(tail.slice(Seq(at), max_bytes=1, max_events=1).frames)
            elif tail.ended:
                assert tail.failure is None
                return frames
            else:
                await until(tail, lambda at=at: tail.last_seq > at or tail.ended)  # type: ignore[misc]


async def until(tail: Tail, condition: Callable[[], bool]) -> None:
    """Return once ``condition`` holds; check it after every change of the tail."""
    changed = asyncio.Event()
    tail.subscribe(changed.set)
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                await changed.wait()
                changed.clear()
    finally:
        tail.unsubscribe(changed.set)
