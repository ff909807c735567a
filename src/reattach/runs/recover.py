"""How a run ends whose owner is gone: from its log, by whoever takes it over."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from reattach.clock import Clock
from reattach.events import Event, Stopped, Usage
from reattach.limits import REPLAY_SLICE_BYTES
from reattach.log.base import Log
from reattach.records.base import Run, Settlement
from reattach.runs.transcript import Transcript
from reattach.runs.worker import Ending
from reattach.wire import letta
from reattach.wire.sse import split_frames

logger = structlog.get_logger(__name__)


async def end_orphan(
    run: Run,
    ending: Ending,
    log: Log,
    clock: Clock,
    settle: Callable[[Run, Settlement], Awaitable[None]],
) -> None:
    """Give the log of ``run`` its end, if it has none, and settle the run from it.

    ``run.token`` must be newer than that of the owner that is gone, so that the owner can not
    append any more. Repeating it is safe at every point. Raises FencedError if somebody else
    took the run over meanwhile, StoreUnavailableError if a store does not answer.
    """
    head = await log.open(run.id, run.token)
    transcript = await _read(run, log)
    if not head.closed:
        events: list[Event] = [Stopped(ending.reason)]
        if ending.failure is not None:
            events.append(ending.failure)
        events.append(Usage(step_count=len(transcript.steps_seen())))
        first_seq = head.last_seq + 1
        frames = [letta.encode(event, seq, run.id) for seq, event in enumerate(events, first_seq)]
        await log.append(run.id, run.token, first_seq, frames, close=True)
        for event in events:
            transcript.add(event)
    await settle(run, transcript.settlement(run, transcript.steps_seen(), clock.now()))
    logger.info("run recovered", run_id=run.id, was_closed=head.closed, events=head.last_seq)


async def _read(run: Run, log: Log) -> Transcript:
    transcript = Transcript()
    head = await log.head(run.id)
    cursor = head.first_seq - 1
    while cursor < head.last_seq:
        piece = await log.read(
            run.id, cursor, max_bytes=REPLAY_SLICE_BYTES, max_events=head.last_seq
        )
        for frame in split_frames(piece.frames):
            transcript.add(letta.decode(frame))
        cursor = piece.last_seq
        await asyncio.sleep(0)
    return transcript
