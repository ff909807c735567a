"""Reading the log of a run whose owner is gone."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from reattach.domain.errors import ExpiredError, LogNotFoundError
from reattach.domain.errors.stores import LogDamagedError
from reattach.domain.events import RunStatus
from reattach.domain.ids import FIRST_SEQ
from reattach.domain.limits import LOST_LOG_FIRST_SEQ, REPLAY_SLICE_BYTES
from reattach.log.base import Head, Log
from reattach.records.base import Run
from reattach.records.runs.hidden_events import HiddenEvent
from reattach.runs.transcript import Transcript
from reattach.wire import letta
from reattach.wire.sse import split_frames

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """The outcome of reading a log."""

    is_complete: bool
    """Whether every event could be read."""
    size_bytes: int


async def find_head(run: Run, log: Log) -> Head | None:
    """Return the head of the run's log; None if there is no log."""
    try:
        return await log.head(run.id)
    except LogNotFoundError:
        return None


def is_lost(run: Run, head: Head | None) -> bool:
    """Whether the log is lost: a running run always had a log."""
    if run.status is RunStatus.CREATED:
        return False
    # A repeated recovery finds the log that the first attempt opened.
    return head is None or head.first_seq == LOST_LOG_FIRST_SEQ


async def read_log(
    run: Run, log: Log, head: Head, transcript: Transcript, hidden: Sequence[HiddenEvent]
) -> Reading:
    """Add the readable events of the log to the transcript, and the ``hidden`` ones between them.

    A later version may have written events that this one does not know, and bytes may be damaged.
    """
    cursor = head.first_seq - 1
    unread = size_bytes = 0
    seq = head.first_seq - 1
    apart = deque(hidden)

    def add(frame: bytes) -> None:
        nonlocal unread
        try:
            transcript.add(letta.decode(frame))
        except Exception:  # noqa: BLE001  damaged bytes can raise anything
            unread += 1

    def add_hidden() -> None:
        while apart and apart[0].after_seq <= seq:
            add(apart.popleft().frame.encode())

    add_hidden()
    is_complete = head.first_seq == FIRST_SEQ
    while cursor < head.last_seq:
        try:
            piece = await log.read(
                run.id, cursor, max_bytes=REPLAY_SLICE_BYTES, max_events=head.last_seq
            )
        except (LogDamagedError, LogNotFoundError, ExpiredError) as error:
            logger.error("log of a run is damaged", run_id=run.id, reason=error.detail)  # noqa: TRY400
            return Reading(False, size_bytes)
        size_bytes += len(piece.frames)
        for frame in split_frames(piece.frames):
            add(frame)
            seq += 1
            add_hidden()
        if piece.last_seq <= cursor:
            logger.error("log of a run ends too early", run_id=run.id, after=cursor)
            return Reading(False, size_bytes)
        cursor = piece.last_seq
        await asyncio.sleep(0)
    if unread:
        logger.error("events of a run cannot be read", run_id=run.id, events=unread)
    return Reading(is_complete and not unread, size_bytes)
