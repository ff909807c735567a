"""The event log in a SQLite file: durable on one machine, with no other service."""

import asyncio
import heapq
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from os import PathLike, fspath
from typing import TypeVar

from typing_extensions import override

from reattach.domain.errors import (
    SeqMismatchError,
    StartupError,
    StoreUnavailableError,
    TrimmedError,
)
from reattach.domain.errors.stores import LogDamagedError
from reattach.domain.ids import FIRST_SEQ, Seq, Token
from reattach.domain.limits import LOST_LOG_FIRST_SEQ
from reattach.log.base import (
    CLOSING,
    UNREADABLE,
    UNWRITABLE,
    Capabilities,
    Done,
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
from reattach.log.closed_runs import ClosedRuns
from reattach.log.notifier import Notifier
from reattach.log.sqlite import tables
from reattach.log.sqlite.folding import Folding, Sizes
from reattach.log.sqlite.journal import Append, Change, Create, Delete, Skip, TakeOver, Trim
from reattach.log.sqlite.read_pool import ReadPool
from reattach.log.sqlite.recovery import RecoveredState, recover
from reattach.log.sqlite.run_state import Operation, RunState
from reattach.log.sqlite.stored_frames import StoredFrames
from reattach.log.sqlite.tables import Connect, Durability, StoredRun, default_connect
from reattach.log.sqlite.writer import Writer
from reattach.single_flight import SingleFlight

__all__ = ["Durability", "Sizes", "SqliteLog"]

T = TypeVar("T")


class SqliteLog(Log):
    """The logs of all runs in one SQLite file, which only this process uses.

    With ``durability="process"`` an acknowledged append survives the death of this process by any
    signal. A crash of the machine may lose the most recent appends, each one entirely. With
    ``durability="power"`` an acknowledged append also survives a power failure, if the disk keeps
    its confirmed writes; every commit then waits for the disk.

    Create it with ``open_file``. Other connections of this process may write to other tables of the
    file in short transactions. The caller must keep other processes from opening the file.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        recovered: RecoveredState,
        read_pool: ReadPool,
        durability: Durability,
        sizes: Sizes,
        *,
        file: str,
    ) -> None:
        self.capabilities = Capabilities(
            survives_process_kill=True,
            survives_power_loss=durability == "power",
            shared_between_processes=False,
            finds_aliases=False,
        )
        self.runs = {run.run_id: run for run in recovered.runs.values()}
        self._next_number = recovered.next_number
        self._closed_runs: ClosedRuns[RunState] = ClosedRuns(sizes.closed_runs_bytes)
        self._look_ups = SingleFlight[str, None]("log look-up")
        self._stored_frames = StoredFrames(self, self._closed_runs, self._evict)
        self._read_pool = read_pool
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._notifier = Notifier()
        next_row = recovered.first_row + len(recovered.row_sizes)
        # After another power failure these runs must not get a second, different end.
        uncertain = frozenset(run for run in recovered.runs.values() if run.tail_uncertain)
        self._writer = Writer(
            connection,
            durability,
            next_row,
            self._on_committed,
            self._on_failed,
            synced_runs=uncertain,
            loop_connection=read_pool.loop_connection,
            at_once_bytes=sizes.at_once_bytes,
        )
        self.after_tick = self._writer.after_tick
        self.commit = self._writer.submit
        self._folding = Folding(
            self._writer,
            read_pool,
            sizes,
            self._cache_if_closed,
            file=file,
            first_row=recovered.first_row,
            row_sizes=recovered.row_sizes,
        )
        for run in recovered.runs.values():
            if run.first_row is not None:
                self._folding.note_run(run)
            elif run.tail.closed:
                self._closed_runs.add(run)
        self._upkeep = asyncio.create_task(self._folding.run(), name="log upkeep")

    @classmethod
    async def open_file(
        cls,
        path: str | PathLike[str],
        *,
        durability: Durability = "process",
        sizes: Sizes | None = None,
        connect: Connect = default_connect,
        after_power_cut: bool = False,
    ) -> "SqliteLog":
        """Open the log in the file at ``path``, and create the file if it is missing.

        Runs continue after their last acknowledged append. With ``after_power_cut`` the tails of
        open runs are uncertain. Tests pass ``connect`` to open connections in another way; several
        threads use them.

        Raises:
            StartupError: The file cannot be used.
        """
        file = fspath(path)

        def connect_prepared() -> sqlite3.Connection:
            connection = connect(file)
            tables.prepare(connection, durability)
            return connection

        def start() -> tuple[sqlite3.Connection, RecoveredState, ReadPool]:
            connection = connect_prepared()
            try:
                tables.create(connection)
                recovered = recover(connection, after_power_cut=after_power_cut)
                return connection, recovered, ReadPool(connect_prepared)
            except BaseException:
                connection.close()
                raise

        try:
            connection, recovered, read_pool = await asyncio.to_thread(start)
        except sqlite3.Error as error:
            raise StartupError(
                f"The event log {file} cannot be opened: {error}.",
                remedy="Check that the directory exists, is writable and not full, and that the "
                "file is a SQLite database.",
            ) from error
        return cls(connection, recovered, read_pool, durability, sizes or Sizes(), file=file)

    async def open(
        self,
        run_id: str,
        token: Token,
        *,
        first_seq: Seq = FIRST_SEQ,
        aliases: Sequence[str] = (),  # noqa: ARG002  the records find them
    ) -> RunWriter:
        while (run := await self._find(run_id)) is not None and run.deleting:
            await self.flush(run)
        if run is not None and run.head.tail_uncertain:
            first_seq = max(first_seq, LOST_LOG_FIRST_SEQ)
        if run is None:
            run = RunState(self._next_number, run_id, token, Tail(first_seq, self._notifier))
            self._next_number += 1
            self.runs[run_id] = run
            await self.write(run, Create(run.number, token, run_id, first_seq))
        elif token < run.expected_token:
            raise fenced_error(run_id, token)
        elif not run.expected_closed and run.expected_last_seq + 1 < first_seq:
            await self.write(run, Skip(run.number, token, first_seq))
        elif token > run.expected_token:
            await self.write(run, TakeOver(run.number, token))
        else:
            await self.flush(run)
        return self.writer(run_id, token, run.head)

    def writer(self, run_id: str, token: Token, head: Head) -> RunWriter:
        return _SqliteRunWriter(self, run_id, token, head)

    async def head(self, run_id: str) -> Head:
        return (await self.get(run_id)).head

    async def read(self, run_id: str, after_seq: Seq, *, max_bytes: int, max_events: int) -> Slice:
        run = await self.get(run_id)
        self._closed_runs.touch(run)
        if run.first_seq <= after_seq + 1 < run.tail.first_seq:
            piece = await self._stored_frames.slice(
                run, after_seq, max_bytes=max_bytes, max_events=max_events
            )
        else:
            piece = run.tail.slice(after_seq, max_bytes=max_bytes, max_events=max_events)
        if after_seq + 1 < run.first_seq:
            raise TrimmedError(run_id, run.first_seq)
        if piece is None:
            raise LogDamagedError(f"The log of {run_id} is damaged after event {after_seq}.")
        return piece

    @asynccontextmanager
    async def follow(self, run_id: str) -> AsyncIterator[Tail]:
        run = await self.get(run_id)
        self._closed_runs.touch(run)
        run.followers += 1
        try:
            yield run.tail
        finally:
            run.followers -= 1
            self._evict()

    @property
    @override
    def queued_listeners(self) -> int:
        return len(self._notifier)

    @override
    def closed_tail(self, run_id: str) -> Tail | None:
        run = self.runs.get(run_id)
        if run is None or not run.tail.closed or run.deleting:
            return None
        self._closed_runs.touch(run)
        return run.tail

    async def trim(self, run_id: str, first_seq: Seq) -> None:
        run = await self.get(run_id)
        if run.deleting:
            raise not_found_error(run_id)
        first_seq = min(first_seq, run.expected_last_seq + 1)
        if first_seq > run.first_seq:
            await self.write(run, Trim(run.number, first_seq))

    async def delete(self, run_id: str) -> None:
        run = await self._find(run_id) or await self._find_damaged(run_id)
        if run is None:
            return
        if run.deleting:
            await self.flush(run)
        else:
            await self.write(run, Delete(run.number))

    @override
    async def inventory(self, cursor: str | None, *, limit: int) -> Inventory:
        after_number = int(cursor or 0)
        stored = await self.query(partial(tables.runs_after, number=after_number, limit=limit))
        # Memory has every open run, and is newer than the tables.
        found = {run.number: LogEntry(run.run_id, run.closed) for run in stored}
        for run in self.runs.values():
            if run.number > after_number and run.created and not run.deleting:
                found[run.number] = LogEntry(run.run_id, run.tail.closed)
        numbers = heapq.nsmallest(limit, found)
        more = len(found) > limit or len(stored) == limit
        return Inventory([found[number] for number in numbers], str(numbers[-1]) if more else None)

    async def find(self, alias: str) -> str | None:  # noqa: ARG002
        if self._closing:
            raise StoreUnavailableError(CLOSING)
        return None

    async def aclose(self) -> None:
        if self._closing:
            return
        self._closing = True
        runs = list(self.runs.values())
        self.runs.clear()  # From here on nobody finds a run to write to.
        self._upkeep.cancel()
        await asyncio.wait([self._upkeep])
        await self._writer.stop()
        for run in runs:
            run.tail.fail(StoreUnavailableError(CLOSING))
        await self._read_pool.aclose()
        self._folding.close()
        if not self._upkeep.cancelled():
            self._upkeep.result()

    async def get(self, run_id: str) -> RunState:
        run = await self._find(run_id)
        if run is None or not run.created:
            raise not_found_error(run_id)
        return run

    async def _find(self, run_id: str) -> RunState | None:
        """Return the run from memory, where every open run is, or from the file."""
        while True:
            if self._closing:
                raise StoreUnavailableError(CLOSING)
            run = self.runs.get(run_id)
            if run is not None:
                return run
            look = partial(tables.run_by_id, run_id=run_id)
            found = self._read_pool.try_at_once(look)
            if found is not None:
                return self._load(found[0])
            await self._look_ups.do(run_id, partial(self._look_up, look))
            if run_id not in self.runs:
                return None

    async def _look_up(self, look: Callable[[sqlite3.Connection], StoredRun | None]) -> None:
        """Load the run that ``look`` finds in the file into memory, if there is one."""
        self._load(await self.query(look))

    def _load(self, stored: StoredRun | None) -> RunState | None:
        if stored is None:
            return None
        run = self.runs[stored.run_id] = RunState.from_stored(stored)
        self._closed_runs.add(run)
        return run

    async def _find_damaged(self, run_id: str) -> RunState | None:
        """Return a run that can only be deleted, because its row is damaged."""
        number = await self.query(partial(tables.number_of, run_id=run_id))
        if number is not None and run_id not in self.runs:
            self.runs[run_id] = RunState(number, run_id, Token(0), Tail())
        return self.runs.get(run_id)

    async def query(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` over a connection of a thread. Raises StoreUnavailableError."""
        if self._closing:
            raise StoreUnavailableError(CLOSING)
        try:
            return await self._read_pool.call(work)
        except sqlite3.Error as error:
            raise StoreUnavailableError(UNREADABLE) from error

    async def is_retry(
        self, run: RunState, first_seq: Seq, frames: Sequence[bytes], close: bool
    ) -> bool:
        """Return whether the log contains these frames, as its end if ``close``.

        Frames in flight count; a retry of them waits until they are on disk.
        """
        last_seq = first_seq + len(frames) - 1
        if close and not (run.expected_closed and last_seq == run.expected_last_seq):
            return False
        if first_seq < run.first_seq or last_seq > run.expected_last_seq:
            return False
        written = max(min(run.tail.last_seq + 1 - first_seq, len(frames)), 0)
        rest = first_seq + written
        if run.in_flight_frames(rest, len(frames) - written) != list(frames[written:]):
            return False
        in_chunks = min(max(run.tail.first_seq - first_seq, 0), written)
        in_tail = frames[in_chunks:written]
        if in_tail and not run.tail.holds(first_seq + in_chunks, in_tail):
            return False
        if not in_chunks:
            return True
        size_bytes = sum(map(len, frames[:in_chunks]))
        tail = await self._stored_frames.tail(
            run, first_seq - 1, max_bytes=size_bytes, max_events=in_chunks
        )
        return tail is not None and tail.holds(first_seq, frames[:in_chunks])

    def try_at_once(self, work: Callable[[sqlite3.Connection], T]) -> tuple[T] | None:
        """Run short ``work`` in the event loop; None if that could hold it up."""
        return self._read_pool.try_at_once(work)

    def write(self, run: RunState, change: Change) -> "asyncio.Future[None]":
        """Write ``change``; the future is done when it is on disk and applied to the run."""
        self.submit(Operation(run, change))
        return self.flush(run)

    def submit(self, operation: Operation) -> None:
        run = operation.run
        run.expect(operation)
        if run.tail.closed:
            self._closed_runs.discard(run)
        self._writer.submit(operation)

    def flush(self, run: RunState) -> "asyncio.Future[None]":
        """Return a future that is done when the run's operations in flight are on disk."""
        flushed: asyncio.Future[None] = self._loop.create_future()
        if run.in_flight:
            run.in_flight[-1].add_waiter(flushed)
        else:
            flushed.set_result(None)
        return flushed

    def _on_committed(self, operations: Sequence[Operation], row: int, size_bytes: int) -> None:
        self._folding.note_row(size_bytes)
        for operation in operations:
            run = operation.run
            run.in_flight.popleft()
            if isinstance(operation.change, Delete):
                self._drop(run)
            elif run.apply(operation.change):
                is_first = run.first_row_of_rest is None and run.note_row(row)
                if is_first or run.tail.closed:
                    self._folding.note_run(run)
            else:
                self._cache_if_closed(run)
        self._notifier.notify()
        for operation in operations:
            operation.finish(None)

    def _on_failed(self, operations: Sequence[Operation], error: Exception) -> None:
        self._folding.note_failure()
        for operation in operations:
            run = operation.run
            run.revert()
            if not run.created:
                self.runs.pop(run.run_id, None)
            elif run.first_row is not None:
                self._folding.note_run(run)
            else:
                self._cache_if_closed(run)
            failure = StoreUnavailableError(UNWRITABLE)
            failure.__cause__ = error
            operation.finish(failure)

    def _drop(self, run: RunState) -> None:
        """Drop a run that was deleted on disk. It stays marked as ``deleting``."""
        self.runs.pop(run.run_id, None)
        self._closed_runs.discard(run)
        self._folding.note_deleted(run)
        run.tail.fail(deleted_error(run.run_id))

    def _cache_if_closed(self, run: RunState) -> None:
        """Move a closed run that is completely folded to the cache of closed runs."""
        is_folded = run.first_row is None and not run.in_flight
        if run.tail.closed and is_folded and not run.deleting:
            self._closed_runs.add(run)
            self._evict()

    def _evict(self, more_bytes: int = 0) -> None:
        for run in self._closed_runs.evict(more_bytes):
            self.runs.pop(run.run_id, None)


class _SqliteRunWriter(RunWriter):
    def __init__(self, log: SqliteLog, run_id: str, token: Token, head: Head) -> None:
        super().__init__(run_id, token, head, after_tick=log.after_tick)
        self._log = log

    async def append(self, first_seq: Seq, frames: Sequence[bytes], *, close: bool = False) -> None:
        if not frames and not close:
            raise ValueError("An append without frames must close the log.")
        log = self._log
        run = await log.get(self.run_id)
        if run.accepts(self.token, first_seq):
            await log.write(run, Append(run.number, first_seq, tuple(frames), close))
            return
        if run.deleting:
            raise not_found_error(self.run_id)
        if self.token < run.expected_token:
            raise fenced_error(self.run_id, self.token)
        if await log.is_retry(run, first_seq, frames, close):
            await log.flush(run)
        elif run.expected_closed:
            raise closed_error(self.run_id)
        else:
            raise SeqMismatchError(self.run_id, first_seq, run.expected_last_seq)

    @override
    def submit(
        self, first_seq: Seq, frames: Sequence[bytes], *, close: bool = False, done: Done
    ) -> "asyncio.Task[None] | None":
        run = self._log.runs.get(self.run_id)
        operation = None
        if run is not None and (frames or close):
            operation = run.append(self.token, first_seq, frames, close, done)
        if operation is None:
            return super().submit(first_seq, frames, close=close, done=done)
        self._log.commit(operation)
        return None
