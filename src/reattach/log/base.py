"""What a log of runs promises, whatever holds it.

A log is an ordered, append-only sequence of frames, numbered 1, 2, 3 … without gaps, and then
closed. A frame is one event as its readers get it: opaque bytes to everything in this package.
Implementations differ in what an acknowledged append survives, and say so in their docstring;
in everything else they are equal, which ``reattach.testing.conformance.log`` shows.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import cast

from reattach.log.tail import Slice, Tail, View

__all__ = [
    "Capabilities",
    "Done",
    "Head",
    "Inventory",
    "Log",
    "LogEntry",
    "Slice",
    "Tail",
    "View",
]

Done = Callable[[Exception | None], None]
"""Told how an operation ended: None, or why it failed. May not raise."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What distinguishes one backend from another, as data."""

    survives_process_kill: bool
    """An acknowledged append is there after ``kill -9`` of the process."""
    survives_power_loss: bool
    """An acknowledged append is there after the machine lost its power."""
    shared_between_processes: bool
    """Several processes may own and follow runs of one log at the same time."""
    finds_aliases: bool
    """``find`` knows the aliases given to ``open``; otherwise it always returns None."""


@dataclass(frozen=True, slots=True)
class Head:
    """The present extent of a log. An empty one has ``last_seq == 0``."""

    first_seq: int
    """The earliest event kept; 1 unless the log was trimmed."""
    last_seq: int
    closed: bool
    tail_uncertain: bool = False
    """The machine lost its power since the last append: later events may have been lost.

    Only of an open log that nobody has opened since.
    """


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A log as an inventory lists it."""

    run_id: str
    closed: bool


@dataclass(frozen=True, slots=True)
class Inventory:
    """Some of the logs of a store, and where the rest of them is."""

    entries: Sequence[LogEntry]
    cursor: str | None
    """To be given for the next page; None after the last one."""


class Log(ABC):
    """All runs' logs in one place.

    Order and atomicity: an append is in the log wholly or not at all, after everything that was
    acknowledged before it. A frame reaches no tail and no read before the backend holds it to
    its stated durability.

    Ownership: ``token`` is the fencing token of the appender. A log remembers the highest token
    that opened it, and refuses lower ones with FencedError from then on.

    Cancellation: a change that is cancelled (open, append, trim, delete) may or may not have
    happened, wholly; repeating it is safe, an append with the same ``first_seq`` and frames.

    Unless said otherwise, methods raise LogNotFoundError for a run whose log was never opened
    or was deleted, and StoreUnavailableError when the store does not answer; the latter leaves
    it open whether the operation took place.

    Loss: should the store lose what it had held, then no other frames appear in its place to
    those who saw it: the run's tail fails with LogLostError, naming the last seq that it had.
    """

    capabilities: Capabilities

    @abstractmethod
    async def open(
        self, run_id: str, token: int, *, first_seq: int = 1, aliases: Sequence[str] = ()
    ) -> Head:
        """Create the log, or take it over with a higher or equal token, and return its extent.

        The log goes on at ``first_seq`` at the least, which is 1 or more: a new one begins
        there, and an open one that would go on earlier has lost its end, so what it has is
        forgotten, its tail fails with LogLostError, and it begins there empty, as
        ``Head(first_seq, first_seq - 1, False)``. It has no effect on a closed log. A log whose
        tail is uncertain goes on at LOST_LOG_FIRST_SEQ at the least: read it before it is opened.

        ``find`` knows the log by ``aliases`` from now on, as well as by earlier ones.

        Raises FencedError if a higher token has opened it. A closed log may be opened; that
        changes nothing but its token and aliases.
        """

    @abstractmethod
    async def append(
        self,
        run_id: str,
        token: int,
        first_seq: int,
        frames: Sequence[bytes],
        *,
        close: bool = False,
    ) -> None:
        """Append ``frames`` as ``first_seq`` and following, and close the log if told to.

        Returns when the log holds them. The close is one with the append. If the log already
        holds exactly these frames at these places (and is closed after the last of them, if
        ``close``), the call is a repetition whose answer was lost, and succeeds without a change.
        ``frames`` may be empty only with ``close``; otherwise ValueError.

        Raises FencedError for a token lower than the log's, LogClosedError if the log is closed,
        SeqMismatchError if ``first_seq`` is not the next seq; checked in this order, and a
        repetition passes the last two.
        """

    def submit(
        self,
        run_id: str,
        token: int,
        first_seq: int,
        frames: Sequence[bytes],
        *,
        close: bool = False,
        done: Done,
    ) -> "asyncio.Task[None] | None":
        """``append``, for one who has nothing to do until then: it needs no task that waits.

        ``done`` is called once, in the event loop and after this has returned. ``frames`` may not
        change until then. If there is a task it can be cancelled, and must be kept; then ``done``
        is not called.
        """
        append = self.append(run_id, token, first_seq, frames, close=close)
        task = asyncio.get_running_loop().create_task(append, name=f"append {run_id}")

        def tell(task: "asyncio.Task[None]") -> None:
            if not task.cancelled():
                done(cast("Exception | None", task.exception()))

        task.add_done_callback(tell)
        return task

    def after_tick(self, call: Callable[[], None]) -> None:
        """Call it when this turn of the event loop is over, for a ``submit`` of all it brought.

        What many submit then shares its way to the store. ``call`` may not raise.
        """
        asyncio.get_running_loop().call_soon(call)

    @abstractmethod
    async def head(self, run_id: str) -> Head:
        """The present extent of the log."""

    @abstractmethod
    async def read(self, run_id: str, after: int, *, max_bytes: int, max_events: int) -> Slice:
        """Up to ``max_events`` consecutive frames from seq ``after + 1``.

        They make at most ``max_bytes`` in all, except that one frame is always returned if
        there is one. Empty when ``after`` is the last seq or past it.

        While the run is followed in this process, its tail has what is returned, so a follower
        that got the last frames finds the tail closed: nobody sees an end before it is settled.

        Raises ExpiredError, naming the earliest seq, if ``after + 1`` was trimmed away.
        """

    @abstractmethod
    def follow(self, run_id: str) -> AbstractAsyncContextManager[Tail]:
        """Share the in-process end of the log for as long as the context lasts.

        All followers of a run in one process get the same tail. It may begin anywhere in the
        log (``tail.first_seq``); what is earlier is had from ``read``. From entering the context
        on, no event is missing between the two. The tail of a closed log is closed, and may hold
        no frames at all.
        """

    def closed_tail(self, run_id: str) -> Tail | None:  # noqa: ARG002
        """The tail of a closed log, to be read from at once and not to be kept.

        None is always a legal answer; ``follow`` gives it then, or says what is wrong.
        """
        return None

    @abstractmethod
    async def trim(self, run_id: str, first_seq: int) -> None:
        """Forget the events before ``first_seq``, at most all; no-op if they are gone already."""

    @abstractmethod
    async def delete(self, run_id: str) -> None:
        """Forget the log. Its tail ends with LogNotFoundError. No-op if there is none."""

    async def inventory(self, cursor: str | None, *, limit: int) -> Inventory:  # noqa: ARG002
        """List about ``limit`` logs from ``cursor`` on, or from the first if it is None.

        A log that is there from the first page to the last is listed at least once. One that comes
        or goes meanwhile may or may not be. A backend that loses nothing may list nothing.
        """
        return Inventory((), None)

    @abstractmethod
    async def find(self, alias: str) -> str | None:
        """The run whose log was last opened with this alias, if that log is still there.

        None is always a legal answer; whoever keeps records looks there then.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Finish the appends under way and let go of the store. Tails end, unclosed.

        From then on every method raises StoreUnavailableError, and this one does nothing.
        """
