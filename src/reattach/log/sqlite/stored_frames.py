"""Frames that only the chunks have: read slice by slice, or loaded into the tail of their run.

The first reader of a closed run gets each slice from the file, in the event loop, and nothing is
kept: most runs are read once after a start, and new memory for one takes longer than reading it.
The second one loads the run whole, unless it is large, so that all readers find the rest in memory.
Its first slice does not wait for that. Where the disk is slow, the first reader loads the run.
"""

import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from reattach.domain.ids import Seq
from reattach.log.base import Slice, Tail, not_found_error
from reattach.log.closed_runs import LOAD_BYTES, ClosedRuns
from reattach.log.sqlite import tables
from reattach.log.sqlite.run_state import RunState
from reattach.single_flight import SingleFlight

T = TypeVar("T")


class Queries(Protocol):
    """Runs work over connections of its own. Raises StoreUnavailableError."""

    async def query(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` in a thread."""

    def try_at_once(self, work: Callable[[sqlite3.Connection], T]) -> tuple[T] | None:
        """Run short ``work`` in the event loop; None if that could hold it up."""


class StoredFrames:
    """The frames in the chunks of one log. ``evict`` makes room among ``closed_runs``."""

    def __init__(
        self, queries: Queries, closed_runs: ClosedRuns[RunState], evict: Callable[[int], None]
    ) -> None:
        self._queries = queries
        self._closed_runs = closed_runs
        self._evict = evict
        self._loads = SingleFlight[str, None]("log load")

    async def slice(
        self, run: RunState, after_seq: Seq, *, max_bytes: int, max_events: int
    ) -> Slice | None:
        """Return the frames from ``after_seq + 1`` on, within the bounds of ``Log.read``.

        None if the chunks do not have them. A second reader of a closed run loads it.
        """
        if run.is_load_due and run in self._closed_runs:  # Else a change of it is being folded.
            await self._loads.do(run.run_id, partial(self._load, run))
            if after_seq + 1 >= run.tail.first_seq:
                return run.tail.slice(after_seq, max_bytes=max_bytes, max_events=max_events)
        read = partial(
            tables.read_slice,
            number=run.number,
            after_seq=after_seq,
            max_bytes=max_bytes,
            max_events=max_events,
        )
        at_once = self._queries.try_at_once(read)
        piece = at_once[0] if at_once else await self._queries.query(read)
        self._note_read(run, after_seq, piece, at_once=at_once is not None)
        if run.deleting:
            raise not_found_error(run.run_id)
        if piece is None or piece.last_seq > run.tail.last_seq:
            return None  # In the second case, a damaged row has the number of this run.
        return run.tail.extended(piece, max_bytes=max_bytes, max_events=max_events)

    @staticmethod
    def _note_read(run: RunState, after_seq: Seq, piece: Slice | None, *, at_once: bool) -> None:
        """Note how far the only reader so far has come, or that there are others."""
        goes_on = run.read_until_seq in {None, after_seq}
        run.is_load_due = run.tail.closed and run.may_be_loaded and not (goes_on and at_once)
        run.read_until_seq = after_seq if piece is None else piece.last_seq

    async def tail(
        self, run: RunState, after_seq: Seq, *, max_bytes: int, max_events: int
    ) -> Tail | None:
        """Return a tail with the frames from ``after_seq + 1`` on, enough for these bounds.

        None if the chunks do not have them. A run that was folded while open has later frames only
        in its own tail.
        """
        tail = await self._queries.query(
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
        tail = await self._queries.query(
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
