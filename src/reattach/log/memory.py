"""The in-memory log: the shortest correct backend, and the model for testing the others."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from typing_extensions import override

from reattach.domain.errors import (
    LogLostError,
    SeqMismatchError,
    StoreUnavailableError,
    TrimmedError,
)
from reattach.domain.ids import FIRST_SEQ, Seq, Token
from reattach.log.base import (
    CLOSING,
    Capabilities,
    Head,
    Inventory,
    Log,
    LogEntry,
    RunWriter,
    Slice,
    Tail,
    closed_error,
    deleted_error,
    fenced_error,
    not_found_error,
)


class _Run:
    __slots__ = ("tail", "token")

    def __init__(self, token: Token, first_seq: Seq) -> None:
        self.token = token
        self.tail = Tail(first_seq)


class MemoryLog(Log):
    """A log that keeps everything in this process and loses it with the process.

    Use it for tests, and for streams that may be lost.
    """

    capabilities = Capabilities(
        survives_process_kill=False,
        survives_power_loss=False,
        shared_between_processes=False,
        finds_aliases=True,
    )

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._aliases: dict[str, str] = {}
        self._closed = False

    async def open(
        self, run_id: str, token: Token, *, first_seq: Seq = FIRST_SEQ, aliases: Sequence[str] = ()
    ) -> RunWriter:
        self._check_open()
        run = self._runs.setdefault(run_id, _Run(token, first_seq))
        if token < run.token:
            raise fenced_error(run_id, token)
        run.token = token
        if not run.tail.closed and run.tail.last_seq + 1 < first_seq:
            run.tail.fail(LogLostError(run_id, run.tail.last_seq))
            run.tail = Tail(first_seq)
        self._aliases.update(dict.fromkeys(aliases, run_id))
        return self.writer(run_id, token, self._head(run))

    def writer(self, run_id: str, token: Token, head: Head) -> RunWriter:
        return _MemoryRunWriter(self, run_id, token, head)

    async def head(self, run_id: str) -> Head:
        return self._head(self.run(run_id))

    async def read(self, run_id: str, after_seq: Seq, *, max_bytes: int, max_events: int) -> Slice:
        tail = self.run(run_id).tail
        if after_seq + 1 < tail.first_seq:
            raise TrimmedError(run_id, tail.first_seq)
        return tail.slice(after_seq, max_bytes=max_bytes, max_events=max_events)

    @asynccontextmanager
    async def follow(self, run_id: str) -> AsyncIterator[Tail]:
        yield self.run(run_id).tail

    @override
    def closed_tail(self, run_id: str) -> Tail | None:
        run = self._runs.get(run_id)
        return run.tail if run is not None and run.tail.closed and not self._closed else None

    async def trim(self, run_id: str, first_seq: Seq) -> None:
        self.run(run_id).tail.trim(first_seq)

    async def delete(self, run_id: str) -> None:
        self._check_open()
        run = self._runs.pop(run_id, None)
        if run is not None:
            run.tail.fail(deleted_error(run_id))
        for alias in [alias for alias, found in self._aliases.items() if found == run_id]:
            del self._aliases[alias]

    @override
    async def inventory(self, cursor: str | None, *, limit: int) -> Inventory:
        self._check_open()
        rest = sorted(run_id for run_id in self._runs if cursor is None or run_id > cursor)
        entries = [LogEntry(run_id, self._runs[run_id].tail.closed) for run_id in rest[:limit]]
        return Inventory(entries, entries[-1].run_id if len(rest) > limit else None)

    async def find(self, alias: str) -> str | None:
        self._check_open()
        return self._aliases.get(alias)

    async def aclose(self) -> None:
        self._closed = True
        for run in self._runs.values():
            run.tail.fail(StoreUnavailableError(CLOSING))

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError(CLOSING)

    def run(self, run_id: str) -> _Run:
        self._check_open()
        try:
            return self._runs[run_id]
        except KeyError:
            raise not_found_error(run_id) from None

    @staticmethod
    def _head(run: _Run) -> Head:
        return Head(run.tail.first_seq, run.tail.last_seq, run.tail.closed)


class _MemoryRunWriter(RunWriter):
    def __init__(self, log: MemoryLog, run_id: str, token: Token, head: Head) -> None:
        super().__init__(run_id, token, head)
        self._log = log

    async def append(self, first_seq: Seq, frames: Sequence[bytes], *, close: bool = False) -> None:
        if not frames and not close:
            raise ValueError("An append without frames must close the log.")
        run = self._log.run(self.run_id)
        if self.token < run.token:
            raise fenced_error(self.run_id, self.token)
        if _is_retry(run, first_seq, frames, close):
            return
        if run.tail.closed:
            raise closed_error(self.run_id)
        if first_seq != run.tail.last_seq + 1:
            raise SeqMismatchError(self.run_id, first_seq, run.tail.last_seq)
        run.tail.extend(frames, close=close)


def _is_retry(run: _Run, first_seq: Seq, frames: Sequence[bytes], close: bool) -> bool:
    """Return whether the log contains these frames, as its end if ``close``."""
    if close and not (run.tail.closed and first_seq + len(frames) - 1 == run.tail.last_seq):
        return False
    return run.tail.holds(first_seq, frames)
