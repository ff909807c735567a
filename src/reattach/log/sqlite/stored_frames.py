"""Frames that only the chunks have: read slice by slice, or loaded into the tail of their run.

A closed run from which a second slice is read is loaded whole, unless it is large, so that this
reader and all others find the rest in memory. The first slice does not wait for that.
"""

import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from reattach.domain.ids import Seq
from reattach.log.base import Tail, not_found_error
from reattach.log.closed_runs import LOAD_BYTES, ClosedRuns
from reattach.log.sqlite import tables
from reattach.log.sqlite.run_state import RunState
from reattach.single_flight import SingleFlight

T = TypeVar("T")


class Query(Protocol):
    """Runs work over a connection of its own in a thread. Raises StoreUnavailableError."""

    async def __call__(self, work: Callable[[sqlite3.Connection], T]) -> T: ...


class StoredFrames:
    """The frames in the chunks of one log. ``evict`` makes room among ``closed_runs``."""

    def __init__(
        self, query: Query, closed_runs: ClosedRuns[RunState], evict: Callable[[int], None]
    ) -> None:
        self._query = query
        self._closed_runs = closed_runs
        self._evict = evict
        self._loads = SingleFlight[str, None]("log load")

    async def read_on(
        self, run: RunState, after_seq: Seq, *, max_bytes: int, max_events: int
    ) -> Tail | None:
        """Do as ``read``, but load the run if it was read before.

        The result may be the run's own tail.
        """
        if run.is_load_due and run in self._closed_runs:  # Else a change of it is being folded.
            await self._loads.do(run.run_id, partial(self._load, run))
            if after_seq + 1 >= run.tail.first_seq:
                return run.tail
        tail = await self.read(run, after_seq, max_bytes=max_bytes, max_events=max_events)
        run.is_load_due = run.tail.closed and run.may_be_loaded
        return tail

    async def read(
        self, run: RunState, after_seq: Seq, *, max_bytes: int, max_events: int
    ) -> Tail | None:
        """Return a tail with the frames from ``after_seq + 1`` on, enough for these bounds.

        None if the chunks do not have them. A run that was folded while open has later frames only
        in its own tail.
        """
        tail = await self._query(
            partial(
                tables.load_tail,
                number=run.number,
                after_seq=after_seq,
                max_bytes=max_bytes,
                max_events=max_events,
            )
        )
        if run.deleting:
            raise not_found_error(run.run_id)
        if tail is not None and tail.last_seq > run.tail.last_seq:
            return None  # A damaged row has the number of this run.
        return tail

    async def _load(self, run: RunState) -> None:
        """Put the frames of a closed run before those of its tail, if they are whole and few."""
        run.is_load_due = run.may_be_loaded = False
        tail = await self._query(
            partial(
                tables.load_run,
                number=run.number,
                first_seq=run.first_seq,
                last_seq=Seq(run.tail.first_seq - 1),
                max_bytes=LOAD_BYTES,
            )
        )
        if tail is None or run.deleting:
            return
        self._evict(tail.size_bytes)
        if run in self._closed_runs and self._closed_runs.has_room(tail.size_bytes):
            run.tail.prepend(tail)
            run.tail.trim(run.first_seq)
            self._closed_runs.add(run)
