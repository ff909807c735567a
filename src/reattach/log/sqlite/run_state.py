"""The runs of a SQLite log that are in memory, and what is on its way to the disk for them."""

import asyncio
from collections import deque
from typing import Final

from reattach.domain.errors import LogLostError, StoreUnavailableError
from reattach.log.base import Done, Head
from reattach.log.notifier import Notifier
from reattach.log.sqlite.journal import Append, Create, Delete, Record, Skip, TakeOver, Trim, pack
from reattach.log.sqlite.tables import StoredRun
from reattach.log.tail import Tail

_RUN_BYTES: Final = 1024
"""What a run costs in memory beside its frames, roughly."""


class Operation:
    """A change of a run that was asked for and is not on the disk yet."""

    __slots__ = ("done", "packed", "record", "run", "waiters")

    def __init__(self, run: "RunState", record: Record, done: Done | None = None) -> None:
        self.run = run
        self.record = record
        self.packed = pack(record)
        self.done = done
        self.waiters: list[asyncio.Future[None]] = []

    def end(self, failure: StoreUnavailableError | None) -> None:
        """Tell those who wait for it."""
        if self.done is not None:
            self.done(failure)
        for waiter in self.waiters:
            if not waiter.done():
                if failure is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(failure)


class RunState:
    """A run as the disk has it, and as it will be once everything in flight is there too.

    Followers see only the first; appends are judged by the second.
    """

    __slots__ = (
        "created",
        "deleting",
        "expected_closed",
        "expected_last_seq",
        "expected_token",
        "first_row",
        "first_row_of_rest",
        "first_seq",
        "folded_seq",
        "followers",
        "in_flight",
        "number",
        "run_id",
        "tail",
        "tail_uncertain",
        "token",
    )

    def __init__(
        self,
        number: int,
        run_id: str,
        token: int,
        first_seq: int = 1,
        notifier: Notifier | None = None,
    ) -> None:
        self.number = number
        self.run_id = run_id
        self.token = token
        self.tail = Tail(first_seq, notifier)
        self.first_seq = first_seq
        self.created = False
        self.tail_uncertain = False
        """An earlier boot wrote it without waiting for the disk, and it is open."""
        self.followers = 0
        self.folded_seq = 0
        """The last seq that is in chunks; what follows is in the journal only."""
        self.first_row: int | None = None
        """The first row of the journal with something of this run that was not folded."""
        self.first_row_of_rest: int | None = None
        """Likewise, of what happened since the fold under way began."""
        self.in_flight: deque[Operation] = deque()
        self.deleting = False
        self.expected_token = token
        self.expected_last_seq = first_seq - 1
        self.expected_closed = False

    @classmethod
    def stored(cls, stored: StoredRun) -> "RunState":
        """A run as its row says, with no frames in memory."""
        run = cls(stored.number, stored.run_id, stored.token)
        run.tail = Tail(stored.last_seq + 1)
        run.first_seq = stored.first_seq
        run.folded_seq = stored.last_seq
        run.created = True
        if stored.closed:
            run.tail.extend((), close=True)
        run.revert()
        return run

    @property
    def head(self) -> Head:
        return Head(
            self.first_seq,
            self.tail.last_seq,
            self.tail.closed,
            self.tail_uncertain and not self.tail.closed,
        )

    @property
    def cost_bytes(self) -> int:
        return self.tail.size_bytes + _RUN_BYTES

    def expect(self, operation: Operation) -> None:
        """Count on this change, which is on its way."""
        self.in_flight.append(operation)
        match operation.record:
            case Append(_, first_seq, frames, close):
                self.expected_last_seq = first_seq + len(frames) - 1
                self.expected_closed = close
            case TakeOver(_, token):
                self.expected_token = token
            case Skip(_, token, first_seq):
                self.expected_token = token
                self.expected_last_seq = first_seq - 1
            case Delete():
                self.deleting = True
            case Create() | Trim():
                pass

    def revert(self) -> None:
        """Count on nothing but what the disk has."""
        self.in_flight.clear()
        self.deleting = False
        self.expected_token = self.token
        self.expected_last_seq = self.tail.last_seq
        self.expected_closed = self.tail.closed

    def takes(self, token: int, first_seq: int) -> bool:
        """Whether the bearer of ``token`` may append from ``first_seq`` on, as is expected."""
        return (
            self.created
            and not self.deleting
            and token >= self.expected_token
            and first_seq == self.expected_last_seq + 1
            and not self.expected_closed
        )

    def apply(self, record: Record) -> bool:
        """Take in what the disk has now; whether that was new.

        Deletion is not: it ends the run as a whole.
        """
        match record:
            case Append(_, first_seq, frames, close):
                known = self.tail.last_seq + 1 - first_seq
                if known > 0:
                    frames = frames[known:]
                elif known < 0:  # The store damaged what came between.
                    self._skip(self.token, first_seq)
                if not frames and close <= self.tail.closed:
                    return False
                self.tail.extend(frames, close=close)
            case Create():
                if self.created:
                    return False
                self.created = True
            case TakeOver(_, token):
                if token <= self.token:
                    return False
                self.token = token
            case Trim(_, first_seq):
                if first_seq <= self.first_seq:
                    return False
                self.first_seq = first_seq
                self.tail.trim(first_seq)
            case Skip(_, token, first_seq):
                return self._skip(token, first_seq)
            case Delete():
                return False
        return True

    def _skip(self, token: int, first_seq: int) -> bool:
        is_new = token > self.token or first_seq > self.first_seq
        self.token = max(token, self.token)
        if first_seq > self.first_seq:
            self.first_seq = first_seq
            self.tail.fail(LogLostError(self.run_id, self.tail.last_seq))
            self.tail = self.tail.replacement(first_seq)
        return is_new

    def note_row(self, row: int) -> bool:
        """Something new of this run is in this row of the journal; whether all else is folded."""
        if self.first_row_of_rest is None:
            self.first_row_of_rest = row
        if self.first_row is None:
            self.first_row = row
            return True
        return False

    def in_flight_frames(self, first_seq: int, count: int) -> list[bytes]:
        """Of ``count`` frames from ``first_seq`` on those that are in flight."""
        return [
            frame
            for operation in self.in_flight
            if isinstance(operation.record, Append)
            for seq, frame in enumerate(operation.record.frames, operation.record.first_seq)
            if first_seq <= seq < first_seq + count
        ]
