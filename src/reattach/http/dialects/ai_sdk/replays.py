"""Answers that have ended, and are streamed once more to clients that may have lost their end.

A client that connects again does not say what it has. The connection of one may have broken before
the end, and it shows half an answer until it gets the rest. Another has just loaded the page, with
the whole answer in its history. The second one has listed the messages, so it gets no stream.
"""

from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Annotated, Final

from fastapi import Depends
from starlette.requests import Request

from reattach.domain.ids import RunId
from reattach.records.base import Run

REPLAYED_SECONDS: Final = 3600.0
"""The age up to which an answer that has ended is streamed once more."""

_MAX_LISTED: Final = 10_000
"""Ended runs that are known to have been listed; those beyond are streamed once more."""


class Replays:
    """The ended runs whose messages were listed, in one process."""

    def __init__(self) -> None:
        self._listed: OrderedDict[RunId, None] = OrderedDict()

    def note_listed(self, run: Run) -> None:
        """Note that a client has the messages of a run, unless it was active."""
        if run.status.is_active:
            return
        self._listed[run.id] = None
        self._listed.move_to_end(run.id)
        if len(self._listed) > _MAX_LISTED:
            self._listed.popitem(last=False)

    def is_due(self, run: Run, now: datetime) -> bool:
        """Return whether a client that connects again gets the stream of the run."""
        if run.status.is_active:
            return True
        if run.id in self._listed or run.log_deleted_at is not None or run.completed_at is None:
            return False
        return now - run.completed_at <= timedelta(seconds=REPLAYED_SECONDS)


async def replays(request: Request) -> Replays:
    found: Replays = request.app.state.ai_sdk_replays
    return found


ReplaysDep = Annotated[Replays, Depends(replays)]
