"""The events of a run as values, for readers other than HTTP responses."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from reattach.domain.errors import StoreUnavailableError
from reattach.domain.ids import Seq
from reattach.domain.limits import REPLAY_SLICE_EVENTS
from reattach.runs.following.follow import Target
from reattach.runs.service import RunService
from reattach.wire.sse import frame_data, split_frames


async def events_of(
    runs: RunService, target: Target, after_seq: Seq
) -> AsyncGenerator[dict[str, Any]]:
    """Yield every event after ``after_seq`` once and in order, live until the run's end.

    The terminal group is yielded once the run's record says how it ended. A slow consumer blocks
    the generator.

    Raises:
        StoreUnavailableError: The log cannot be followed any longer; resume after the last event.
        ReattachError: Any error of ``RunService.follow``.
    """
    following = await runs.follow(target, after_seq, max_events=REPLAY_SLICE_EVENTS)
    woken = asyncio.Event()
    following.wake = woken.set
    runs.watch.add(following, pings=False)
    try:
        while True:
            woken.clear()
            piece = await following.read()
            if following.closed and not await runs.is_settled_in_time(target):
                raise _unavailable(target, "its record does not have its end yet")
            for frame in split_frames(piece.frames):
                yield msgspec.json.decode(frame_data(frame))
            if piece.frames:
                continue
            if following.failure is not None:
                raise following.failure
            if following.released:
                raise _unavailable(target, "this server is shutting down")
            if following.closed:
                return
            await woken.wait()
    finally:
        runs.watch.remove(following)
        await following.aclose()


def _unavailable(target: Target, reason: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"The events of {target.run_id} cannot be followed at present: {reason}. "
        "Resume after the last event."
    )
