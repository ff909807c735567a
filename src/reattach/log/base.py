"""The contract of an event log, whichever backend stores it.

A log is an ordered, append-only sequence of frames, numbered 1, 2, 3 … without gaps, that is closed
at its end. A frame is one event in the bytes that readers get; this package never looks into it.
Backends differ in which failures an acknowledged append survives, and their docstrings say so. In
everything else they behave alike, which ``reattach.testing.conformance.log`` checks.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Final

from reattach.domain.errors import FencedError, LogClosedError, LogNotFoundError
from reattach.domain.ids import FIRST_SEQ, Seq, Token
from reattach.log.run_writer import Done, RunWriter
from reattach.log.tail import Head, Pieces, Slice, Tail, View

__all__ = [
    "CLOSING",
    "UNREADABLE",
    "UNWRITABLE",
    "Capabilities",
    "ClosedRead",
    "Done",
    "Head",
    "Inventory",
    "Log",
    "LogEntry",
    "Pieces",
    "RunWriter",
    "Slice",
    "Tail",
    "View",
    "closed_error",
    "deleted_error",
    "fenced_error",
    "not_found_error",
]


CLOSING: Final = "The server is closing. Reconnect to resume."
"""The detail of every StoreUnavailableError after ``Log.aclose``."""

UNREADABLE: Final = "The event log cannot be read at present. Try again in a moment."
UNWRITABLE: Final = "The event log cannot be written at present. Try again in a moment."


def closed_error(run_id: str) -> LogClosedError:
    return LogClosedError(f"The log of {run_id} is closed.")


def fenced_error(run_id: str, token: Token) -> FencedError:
    return FencedError(f"The log of {run_id} has a newer owner than the one with token {token}.")


def deleted_error(run_id: str) -> LogNotFoundError:
    return LogNotFoundError(f"The log of {run_id} was deleted.")


def not_found_error(run_id: str) -> LogNotFoundError:
    return LogNotFoundError(f"There is no log of {run_id}.")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The differences between backends, as data."""

    survives_process_kill: bool
    """Acknowledged appends survive ``kill -9`` of the process."""
    survives_power_loss: bool
    """Acknowledged appends survive a power failure of the machine."""
    shared_between_processes: bool
    """Several processes may own and follow runs of one log at the same time."""
    finds_aliases: bool
    """``find`` knows the aliases given to ``open``; otherwise it always returns None."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One log in an inventory."""

    run_id: str
    closed: bool


@dataclass(frozen=True, slots=True)
class Inventory:
    """One page of the logs in a store."""

    entries: Sequence[LogEntry]
    cursor: str | None
    """The cursor of the next page; None after the last page."""


@dataclass(frozen=True, slots=True)
class ClosedRead:
    """The extent of a closed log, and some of its frames."""

    head: Head
    piece: Slice


class Log(ABC):
    """The logs of all runs.

    Frames are written by the ``RunWriter`` that ``open`` returns.

    Order and atomicity: an append is stored entirely or not at all, after every append that was
    acknowledged before it. A frame reaches a tail or a read only after the backend has stored it
    as durably as it promises.

    Ownership: ``token`` is the fencing token of the run's owner. A log remembers the highest token
    that opened it and refuses lower ones with FencedError.

    Cancellation: a cancelled open, trim or delete took effect entirely or not at all. Repeating it
    is safe.

    Errors: unless stated otherwise, methods raise LogNotFoundError for a log that was never opened
    or was deleted, and StoreUnavailableError when the store does not answer. After the latter the
    operation may or may not have taken place.

    Loss: when the store loses stored frames, no other frames appear in their place for readers
    that saw them. The run's tail fails with LogLostError, which has the tail's last seq.
    """

    capabilities: Capabilities

    @abstractmethod
    async def open(
        self, run_id: str, token: Token, *, first_seq: Seq = FIRST_SEQ, aliases: Sequence[str] = ()
    ) -> RunWriter:
        """Create the log, or take it over with a higher or equal token, and return its writer.

        ``head`` of the writer is the extent of the log.

        A new log begins at ``first_seq``, which is at least 1. An open log whose next seq is lower
        has lost its end: its frames are dropped, its tail fails with LogLostError, and it continues
        empty at ``first_seq``, as ``Head(first_seq, first_seq - 1, False)``. A log whose tail is
        uncertain continues at LOST_LOG_FIRST_SEQ or later, so read it before you open it.

        Opening a closed log changes only its token and aliases.

        ``aliases`` are added to those by which ``find`` knows the log.

        Raises:
            FencedError: A higher token has opened the log.
        """

    @abstractmethod
    def writer(self, run_id: str, token: Token, head: Head) -> RunWriter:
        """Return a writer as ``open`` does, without opening the log.

        Its appends are refused if the log is not open for ``token``.
        """

    @abstractmethod
    async def head(self, run_id: str) -> Head:
        """Return the current extent of the log."""

    def has_just_answered(self) -> bool:
        """Return whether the store has answered less than a second ago, and not failed since."""
        return False

    def goes_on_after(self, run_id: str, seq: Seq) -> bool:  # noqa: ARG002
        """Return whether the log is known to be open and to have all events after ``seq``, if any.

        That is so if this process writes it, and the store has confirmed it less than a second ago.
        Otherwise ``head`` has to be asked.
        """
        return False

    @abstractmethod
    async def read(self, run_id: str, after_seq: Seq, *, max_bytes: int, max_events: int) -> Slice:
        """Return up to ``max_events`` consecutive frames from ``after_seq + 1`` on.

        They have at most ``max_bytes`` in total, but the first frame is returned whatever its size.
        The slice is empty when ``after_seq`` is the last seq or a later one.

        While the run is followed in this process, its tail already contains every returned frame.
        A follower that read the last frames therefore finds the tail closed, and no reader sees the
        end of a run before the run is settled.

        Raises:
            ExpiredError: ``after_seq + 1`` was trimmed; the error has the earliest seq.
        """

    def pieces(
        self,
        run_id: str,  # noqa: ARG002
        after_seq: Seq,  # noqa: ARG002
        *,
        max_bytes: int,  # noqa: ARG002
        max_events: int,  # noqa: ARG002
    ) -> Pieces | None:
        """Return the frames of ``read`` if an earlier read of a closed log brought them along.

        None is always a valid answer.
        """
        return None

    def has_pieces(self, run_id: str, after_seq: Seq) -> bool:  # noqa: ARG002
        """Whether ``pieces`` would return frames."""
        return False

    @abstractmethod
    def follow(self, run_id: str) -> AbstractAsyncContextManager[Tail]:
        """Share the in-memory end of the log while the context is open.

        All followers of a run in one process share one tail. The tail may begin anywhere in the log
        (``tail.first_seq``); earlier frames come from ``read``, and none is missing between the
        two. The tail of a closed log is closed, and may contain no frames.
        """

    async def read_closed(
        self,
        run_id: str,  # noqa: ARG002
        after_seq: Seq,  # noqa: ARG002
        *,
        max_bytes: int,  # noqa: ARG002
        max_events: int,  # noqa: ARG002
    ) -> ClosedRead | None:
        """Return the extent of a closed log, and what ``read`` would return, before ``follow``.

        There are no frames where ``read`` raises ExpiredError. None is always a valid answer, and
        that of a log that has no cheaper way than ``follow``, ``head`` and ``read``.
        """
        return None

    @property
    def queued_listeners(self) -> int:
        """The listeners of tails in this process that wait for their notification."""
        return 0

    def closed_tail(self, run_id: str) -> Tail | None:  # noqa: ARG002
        """Return the tail of a closed log if it is in memory, for immediate reading only.

        Do not keep it. None is always a valid answer: call ``follow`` then.
        """
        return None

    @abstractmethod
    async def trim(self, run_id: str, first_seq: Seq) -> None:
        """Drop the events before ``first_seq``, at most all; no-op if they are already gone."""

    @abstractmethod
    async def delete(self, run_id: str) -> None:
        """Delete the log and fail its tail with LogNotFoundError. No-op if there is none."""

    async def inventory(self, cursor: str | None, *, limit: int) -> Inventory:  # noqa: ARG002
        """Return a page of about ``limit`` logs after ``cursor``, or the first page for None.

        A log that exists during the whole listing is listed at least once; one that is created or
        deleted meanwhile may be missing. A backend that loses nothing may list nothing.
        """
        return Inventory((), None)

    @abstractmethod
    async def find(self, alias: str) -> str | None:
        """Return the run whose log was last opened with this alias, if that log exists.

        None is always a valid answer: ask the records then.
        """

    async def find_open(self, alias: str) -> str | None:
        """Return the run that ``find`` finds, if its log is open. None is always a valid answer."""
        run_id = await self.find(alias)
        if run_id is not None:
            with suppress(LogNotFoundError):
                if not (await self.head(run_id)).closed:
                    return run_id
        return None

    @abstractmethod
    async def aclose(self) -> None:
        """Finish pending appends and release the store. Tails fail; they are not closed.

        Every later call raises StoreUnavailableError, except another ``aclose``, a no-op.
        """
