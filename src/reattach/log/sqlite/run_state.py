"""The state of a SQLite log's runs in memory, and of their pending writes."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from reattach.domain.errors import LogLostError, StoreUnavailableError
from reattach.domain.ids import Seq, Token
from reattach.futures import settle
from reattach.log.base import Done, Head
from reattach.log.sqlite.journal import Append, Change, Create, Delete, Skip, TakeOver, Trim, pack
from reattach.log.sqlite.tables import StoredRun
from reattach.log.tail import Tail


class Operation:
    """A requested change of a run that is not on disk yet."""

    __slots__ = ("change", "done", "packed", "run", "waiters")

    def __init__(self, run: "RunState", change: Change, done: Done | None = None) -> None:
        self.run = run
        self.change = change
        self.packed = pack(change)
        self.done = done
        self.waiters: list[asyncio.Future[None]] | None = None

    def finish(self, failure: StoreUnavailableError | None) -> None:
        """Report the outcome to the callback and to the waiters."""
        if self.done is not None:
            self.done(failure)
        for waiter in self.waiters or ():
            settle(waiter, None, failure)

    def add_waiter(self, waiter: "asyncio.Future[None]") -> None:
        """Settle the future with the outcome."""
        if self.waiters is None:
            self.waiters = []
        self.waiters.append(waiter)


@dataclass(slots=True, eq=False)
class RunState:
    """A run as it is on disk, and as it will be once the operations in flight are on disk too.

    Followers see the former. Appends are checked against the latter (``expected_…``).
    """

    number: int
    run_id: str
    token: Token
    tail: Tail
    first_seq: Seq = field(init=False)
    created: bool = False
    tail_uncertain: bool = False
    """The run is open, and a power failure may have lost its last events."""
    followers: int = 0
    folded_seq: int = 0
    """The last seq in chunks; later events are only in the journal."""
    may_be_loaded: bool = True
    """No load of its stored frames into the tail has been tried."""
    is_load_due: bool = False
    """Two readers read the closed run from the chunks, or its disk is slow, so the next slice loads
    all of them."""
    read_until_seq: Seq | None = None
    """Where the last slice that was read from the chunks ended; None: none was."""
    first_row: int | None = None
    """The first journal row with a change of this run that is not folded."""
    first_row_of_rest: int | None = None
    """The first such row that was written since the current fold began."""
    in_flight: deque[Operation] = field(default_factory=deque)
    deleting: bool = field(init=False)
    expected_token: Token = field(init=False)
    expected_last_seq: Seq = field(init=False)
    expected_closed: bool = field(init=False)

    def __post_init__(self) -> None:
        self.first_seq = self.tail.first_seq
        self.revert()

    @classmethod
    def from_stored(cls, stored: StoredRun) -> "RunState":
        """Return the state that the run's row describes, with no frames in memory."""
        tail = Tail(stored.last_seq + 1)
        tail.closed = stored.closed
        run = cls(
            stored.number,
            stored.run_id,
            stored.token,
            tail,
            created=True,
            folded_seq=stored.last_seq,
        )
        run.first_seq = stored.first_seq
        return run

    @property
    def head(self) -> Head:
        return Head(
            self.first_seq,
            self.tail.last_seq,
            self.tail.closed,
            self.tail_uncertain and not self.tail.closed,
        )

    def expect(self, operation: Operation) -> None:
        """Add ``operation`` to those in flight and update the expected state."""
        self.in_flight.append(operation)
        match operation.change:
            case Append() as append:
                self._expect_append(append)
            case TakeOver(_, token):
                self.expected_token = token
            case Skip(_, token, first_seq):
                self.expected_token = token
                self.expected_last_seq = first_seq - 1
            case Delete():
                self.deleting = True
            case Create() | Trim():
                pass

    def append(
        self, token: Token, first_seq: Seq, frames: Sequence[bytes], close: bool, done: Done
    ) -> Operation | None:
        """Return an append that is now in flight; None if it may not be made."""
        if not self.accepts(token, first_seq):
            return None
        change = Append(self.number, first_seq, frames, close)
        operation = Operation(self, change, done)
        self.in_flight.append(operation)
        self._expect_append(change)
        return operation

    def _expect_append(self, change: Append) -> None:
        self.expected_last_seq = change.first_seq + len(change.frames) - 1
        self.expected_closed = change.close

    def revert(self) -> None:
        """Drop all operations in flight and expect the state on disk."""
        self.in_flight.clear()
        self.deleting = False
        self.expected_token = self.token
        self.expected_last_seq = self.tail.last_seq
        self.expected_closed = self.tail.closed

    def accepts(self, token: Token, first_seq: Seq) -> bool:
        """Return whether ``token`` may append from ``first_seq`` on, by the expected state."""
        return (
            self.created
            and not self.deleting
            and token >= self.expected_token
            and first_seq == self.expected_last_seq + 1
            and not self.expected_closed
        )

    def apply(self, change: Change) -> bool:
        """Apply a change that is on disk, and return whether it changed anything.

        A Delete is not applied here, because it removes the whole run.
        """
        if isinstance(change, Append):  # As in ``journal.pack``.
            frames, close = change.frames, change.close
            known = self.tail.last_seq + 1 - change.first_seq
            if known > 0:
                frames = frames[known:]
            elif known < 0:  # The changes in between are damaged.
                self._skip(self.token, change.first_seq)
            if not frames and close <= self.tail.closed:
                return False
            self.tail.extend(frames, close=close)
            return True
        match change:
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

    def _skip(self, token: Token, first_seq: Seq) -> bool:
        is_new = token > self.token or first_seq > self.first_seq
        self.token = max(token, self.token)
        if first_seq > self.first_seq:
            self.first_seq = first_seq
            self.tail.fail(LogLostError(self.run_id, self.tail.last_seq))
            self.tail = self.tail.replacement(first_seq)
        return is_new

    def note_row(self, row: int) -> bool:
        """Note a journal row with a new change; return whether all earlier ones are folded."""
        if self.first_row_of_rest is None:
            self.first_row_of_rest = row
        if self.first_row is None:
            self.first_row = row
            return True
        return False

    def in_flight_frames(self, first_seq: Seq, count: int) -> list[bytes]:
        """Return those of the ``count`` frames from ``first_seq`` on that are in flight."""
        return [
            frame
            for operation in self.in_flight
            if isinstance(operation.change, Append)
            for seq, frame in enumerate(operation.change.frames, operation.change.first_seq)
            if first_seq <= seq < first_seq + count
        ]
