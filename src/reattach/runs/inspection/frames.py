"""The events of a run as they are in its log, read around any position."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from reattach.domain.errors import (
    ExpiredError,
    LogNotFoundError,
    StoreUnavailableError,
    TrimmedError,
)
from reattach.domain.errors.stores import EventsLostError, LogDamagedError
from reattach.domain.ids import FIRST_SEQ, Seq
from reattach.domain.limits import REPLAY_SLICE_BYTES, REPLAY_SLICE_EVENTS
from reattach.log.base import Head, Slice
from reattach.records.base import Target
from reattach.runs.following.follow import gone_error
from reattach.runs.service import RunService
from reattach.wire.sse import split_frames

PAGE_BYTES: Final = 1024 * 1024
"""The most bytes of frames in a page, unless a single frame is larger."""


@dataclass(frozen=True, slots=True)
class FramePage:
    """Consecutive frames of a log."""

    head: Head
    """The extent of the log."""
    frames: Sequence[tuple[Seq, bytes]]


async def extent(runs: RunService, target: Target) -> Head:
    """Return the extent of the run's log, however it ended.

    Raises:
        ExpiredError: The log was deleted after its retention, or lost.
        StoreUnavailableError: It could not be read, does not exist yet, or has an end that is not
            recorded yet.
    """
    head = await _head(runs, target)
    if head.closed and not await runs.is_settled_in_time(target):
        raise StoreUnavailableError(
            f"The end of {target.run_id} is not recorded yet. Try again in a moment."
        )
    return head


async def _head(runs: RunService, target: Target) -> Head:
    try:
        head = await runs.log.head(target.run_id)
    except LogNotFoundError:
        pass
    else:
        if head.closed or target.status.is_active:
            return head
    # Following waits for a log that is about to be opened, closes one that has lost its end, and
    # knows why one is gone.
    try:
        following = await runs.follow(target, 0, prefetches=False)
    except ExpiredError as expired:
        try:
            return await runs.log.head(target.run_id)  # Only its beginning is gone.
        except LogNotFoundError:
            raise expired from None
    await following.aclose()
    return await runs.log.head(target.run_id)


async def read_page(
    runs: RunService,
    target: Target,
    *,
    after_seq: Seq | None = None,
    before_seq: Seq | None = None,
    limit: int,
) -> FramePage:
    """Return up to ``limit`` frames: the first after ``after_seq``, or else the last ones.

    ``before_seq`` leaves out the frames from there on. A page has at most PAGE_BYTES.

    Raises:
        ExpiredError: The frames after ``after_seq`` were trimmed, lost or damaged, or the whole
            log is gone.
        StoreUnavailableError: The log could not be read.
    """
    head = await extent(runs, target)
    last_seq = head.last_seq if before_seq is None else min(head.last_seq, before_seq - 1)
    if after_seq is None:
        first_seq = max(last_seq + 1 - limit, head.first_seq)
        return FramePage(head, await _last_frames(runs, target, first_seq, last_seq))
    first_seq = max(after_seq + 1, FIRST_SEQ)
    if first_seq < head.first_seq:
        trimmed = TrimmedError(target.run_id, head.first_seq)
        raise await runs.audit.explain_trimmed(target, trimmed)
    last_seq = min(last_seq, first_seq + limit - 1)
    return FramePage(head, await _first_frames(runs, target, first_seq, last_seq))


def numbered(piece: Slice) -> list[tuple[Seq, bytes]]:
    """Return the frames of the slice with their numbers."""
    frames = split_frames(piece.frames)
    return [(piece.first_seq + place, frame) for place, frame in enumerate(frames)]


async def read_slices(
    runs: RunService, target: Target, first_seq: Seq, last_seq: Seq
) -> AsyncGenerator[Slice]:
    """Yield the frames ``first_seq`` … ``last_seq`` of a log in slices, letting others run.

    Raises:
        EventsLostError: They are damaged.
        StoreUnavailableError: The store does not answer, or the log was lost or deleted meanwhile.
    """
    next_seq = first_seq
    while next_seq <= last_seq:
        try:
            piece = await runs.log.read(
                target.run_id,
                next_seq - 1,
                max_bytes=REPLAY_SLICE_BYTES,
                max_events=min(last_seq + 1 - next_seq, REPLAY_SLICE_EVENTS),
            )
        except LogDamagedError as error:
            raise EventsLostError(target.run_id) from error
        except (LogNotFoundError, TrimmedError) as error:
            raise gone_error(target.run_id) from error
        if not piece.frames:
            return
        yield piece
        next_seq = piece.last_seq + 1
        await asyncio.sleep(0)


async def _first_frames(
    runs: RunService, target: Target, first_seq: Seq, last_seq: Seq
) -> Sequence[tuple[Seq, bytes]]:
    """Return the frames from ``first_seq`` on that fit into a page, and at least one."""
    page: list[tuple[Seq, bytes]] = []
    left_bytes = PAGE_BYTES
    async with aclosing(read_slices(runs, target, first_seq, last_seq)) as slices:
        async for piece in slices:
            for seq, frame in numbered(piece):
                left_bytes -= len(frame)
                if left_bytes < 0 and page:
                    return page
                page.append((seq, frame))
    return page


async def _last_frames(
    runs: RunService, target: Target, first_seq: Seq, last_seq: Seq
) -> Sequence[tuple[Seq, bytes]]:
    """Return the last of the frames that fit into a page, and at least one."""
    page: deque[tuple[Seq, bytes]] = deque()
    page_bytes = 0
    async with aclosing(read_slices(runs, target, first_seq, last_seq)) as slices:
        async for piece in slices:
            for seq, frame in numbered(piece):
                page.append((seq, frame))
                page_bytes += len(frame)
                while page_bytes > PAGE_BYTES and len(page) > 1:
                    page_bytes -= len(page.popleft()[1])
    return tuple(page)
