"""Maintenance of the SQLite log's file, in small steps between the commits of appends.

Folding moves the frames of a closed run from the journal into chunks of its own. Journal rows
whose changes are all folded are deleted, oldest first. If open runs keep the journal long, their
frames so far are folded too. Every step is a transaction that does not change the content of the
logs, so the process may die at any point.
"""

import asyncio
import os
import sqlite3
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from reattach.domain.ids import Seq
from reattach.domain.limits import WAL_AGE_SECONDS, WAL_IDLE_SECONDS
from reattach.log.sqlite import journal, tables
from reattach.log.sqlite.read_pool import ReadPool
from reattach.log.sqlite.run_state import RunState
from reattach.log.sqlite.tables import Chunk, StoredRun
from reattach.log.sqlite.writer import Writer

_RETRY_SECONDS: Final = 1.0
"""The pause after a failed step. Nothing waits for it."""
_NO_ROW: Final = 2**63 - 1
_ROW_BYTES: Final = 2 * 4096
"""The bytes that a commit adds to the WAL beside its payload, for partly filled and inner pages."""
_SMALLEST_PRUNE: Final = 16
"""Rows are deleted once they take 1/16 of the journal's limit, or are ``_PRUNE_ROWS``."""
_SIZE_CHECKS: Final = 8
"""How often the WAL is copied into the database, and its size read, while it grows to its limit."""
_RESTART_SHARE: Final = 0.75
"""The part of its limit at which the WAL is begun anew. Appends wait for the disk meanwhile, so the
longer the WAL, the fewer of them wait."""
_STEP_RUNS: Final = 64
"""The most runs per transaction, because each one touches another page of the id index."""
ENOUGH_RUNS: Final = 32
"""Closed runs that wait for no others."""
_PRUNE_ROWS: Final = 256
_PRUNE_BYTES: Final = 1024 * 1024
"""The most that one transaction deletes, in rows and bytes: about a millisecond of work."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes by which the SQLite log uses disk and memory."""

    chunk_bytes: int = 64 * 1024
    """Frames per chunk: the size of a replay's write, so a replay reads no chunk twice."""
    step_bytes: int = 256 * 1024
    """Frames folded per transaction. An append may wait for it: about a millisecond."""
    journal_bytes: int = 32 * 1024 * 1024
    """Open runs are folded above this size. A start reads such a journal in 0.2 s."""
    closed_runs_bytes: int = 64 * 1024 * 1024
    """Closed runs kept in memory. Most clients that come back do so soon after the end."""
    checkpoint_bytes: int = 32 * 1024 * 1024
    """The WAL's file is truncated above this size. An append may wait 30 ms for that, so the WAL is
    begun anew before, which takes a few."""
    at_once_bytes: int = 1024 * 1024
    """The largest commit in the event loop: two milliseconds of work, where the events in it took
    the loop many times as long. The answer of the thread waits for a tick of the full loop."""
    fold_seconds: float = 0.2
    """How long a closed run waits for others, because each transaction wakes the thread."""
    idle_seconds: float = WAL_IDLE_SECONDS
    """The time without writes after which the WAL is emptied."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The part of a run that one transaction folds. The last part completes the run so far."""

    run: RunState
    stored: StoredRun
    chunks: list[Chunk]
    is_last: bool


class _Wal:
    """Decides when to truncate the WAL: by its size on disk, by its age, and after failures.

    Between two reads of the size an estimate of the written bytes decides when to read it again.
    """

    def __init__(self, file: str, sizes: Sizes, time: Callable[[], float]) -> None:
        self._file = file
        self._limit_bytes = sizes.checkpoint_bytes
        self._look_bytes = sizes.checkpoint_bytes // _SIZE_CHECKS
        self._time = time
        self._unseen_bytes = 0
        self._dirty_since = time()
        self.writes = 1
        """Writes since the WAL was emptied. The remains of an earlier process count as one."""
        self.is_urgent = False

    def note_write(self, size_bytes: int) -> None:
        if not self.writes:
            self._dirty_since = self._time()
        self.writes += 1
        self._unseen_bytes += size_bytes + _ROW_BYTES

    @property
    def needs_size_check(self) -> bool:
        return self._unseen_bytes > self._look_bytes

    @property
    def is_old(self) -> bool:
        """Whether its oldest content was written long ago."""
        return self._time() - self._dirty_since > WAL_AGE_SECONDS

    async def check_size(self) -> None:
        """Read the size from disk."""
        self._unseen_bytes = 0  # Writes from here on may be missing in the size.
        size_bytes = await asyncio.to_thread(tables.wal_bytes, self._file)
        if size_bytes > self._limit_bytes or self.is_old:
            self.is_urgent = True

    def note_emptied(self) -> None:
        self._unseen_bytes = self.writes = 0
        self.is_urgent = False

    def note_busy(self) -> None:
        """Try again later, because a reader kept the WAL from being emptied."""
        self.is_urgent = False


class _DatabaseFile:
    """The file of the database, open beside SQLite's connections to write its pages to the disk.

    Close it after all of them: closing a file releases every lock that the process has on it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None

    def sync(self) -> None:
        """Wait until the disk has everything that was written to the file."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Folding:
    """The maintenance of one log's file. The task ``run`` does the work."""

    def __init__(
        self,
        writer: Writer,
        read_pool: ReadPool,
        sizes: Sizes,
        on_folded: Callable[[RunState], None],
        *,
        file: str,
        first_row: int,
        row_sizes: list[int],
    ) -> None:
        self._writer = writer
        self._read_pool = read_pool
        self._sizes = sizes
        self._on_folded = on_folded
        self._first_row = first_row
        self._row_sizes = deque(row_sizes)
        self._journal_bytes = sum(row_sizes)
        self._file = _DatabaseFile(file)
        self._wal = _Wal(file, sizes, asyncio.get_running_loop().time)
        self._unfolded: dict[int, RunState] = {}
        self._pending: OrderedDict[RunState, None] = OrderedDict()
        self._prunable_rows = self._prunable_bytes = 0
        self._may_have_garbage = True
        self._needs_room = False
        """A commit failed or the log is idle, so everything that frees disk space is due."""
        self._has_deleted = False
        """The journal may contain frames of a deleted run."""
        self._wake = asyncio.Event()
        self._wake.set()
        self._fold_due: asyncio.TimerHandle | None = None

    def note_row(self, size_bytes: int) -> None:
        """Note that the journal has one more row."""
        self._row_sizes.append(size_bytes)
        self._journal_bytes += size_bytes
        is_first = not self._wal.writes
        self._wal.note_write(size_bytes)
        if (
            is_first
            or self._journal_bytes > self._sizes.journal_bytes
            or self._wal.needs_size_check
        ):
            self._wake.set()

    def note_failure(self) -> None:
        """Note a failed commit. If the disk is full, emptying the WAL frees space."""
        self._wal.is_urgent = self._needs_room = True
        self._wake.set()

    def note_run(self, run: RunState) -> None:
        """Note that the journal has changes of ``run`` that are not folded."""
        self._unfolded[run.number] = run
        if run.tail.closed:
            self._pending[run] = None
            if len(self._pending) >= ENOUGH_RUNS:
                self._wake.set()
            elif self._fold_due is None:
                loop = asyncio.get_running_loop()
                self._fold_due = loop.call_later(self._sizes.fold_seconds, self._wake.set)

    def note_deleted(self, run: RunState) -> None:
        """Note that ``run`` was deleted and needs no folding."""
        self._unfolded.pop(run.number, None)
        self._may_have_garbage = self._has_deleted = True
        self._count_prunable_rows()
        self._wake.set()

    async def run(self) -> None:
        """Maintain the file until cancelled."""
        while True:
            await self._wait_for_work()
            self._wake.clear()
            if self._fold_due is not None:
                self._fold_due.cancel()
                self._fold_due = None
            try:
                while await self._step():
                    pass
                self._needs_room = False
            except (sqlite3.Error, OSError):
                await asyncio.sleep(_RETRY_SECONDS)
                self._wake.set()

    def close(self) -> None:
        """Release the file, after all connections to it were closed."""
        self._file.close()

    async def _wait_for_work(self) -> None:
        """Return when there is something to do, and when the log was idle for a while."""
        while True:
            writes = self._wal.writes
            try:
                async with asyncio.timeout(self._sizes.idle_seconds if writes else None):
                    await self._wake.wait()
            except TimeoutError:
                if self._wal.writes == writes or self._wal.is_old:
                    self._wal.is_urgent = self._needs_room = True
                    return
            else:
                return

    async def _step(self) -> bool:
        """Do one step of work, and return whether there was any."""
        if self._wal.is_urgent:
            await self._truncate_wal()
        elif self._wal.needs_size_check:
            await self._wal.check_size()
            if not self._wal.is_urgent:
                await self._checkpoint()
        elif self._should_prune():
            await self._prune()
        elif parts := self._next_step():
            await self._fold(parts)
        elif self._may_have_garbage:
            self._may_have_garbage = False
            if await self._writer.perform(tables.sweep):
                self._may_have_garbage = True
                self._wal.note_write(tables.SWEEP_CHUNKS * self._sizes.chunk_bytes)
        else:
            return False
        return True

    async def _checkpoint(self) -> None:
        """Copy the WAL beside the writer, and let the writer begin it anew if it is long.

        SQLite waits for the disk to have the copy only when it begins the WAL anew. Most of that is
        done here, before appends wait for it.
        """
        content_bytes = await self._copy_wal()
        if content_bytes > _RESTART_SHARE * self._sizes.checkpoint_bytes:
            await self._read_pool.run(self._file.sync)
            await self._writer.perform(tables.restart_wal, in_transaction=False)

    async def _truncate_wal(self) -> None:
        """Empty the WAL.

        Most of it is copied beside the writer. The writer then copies the rest and truncates it.
        """
        await self._copy_wal()
        await self._read_pool.run(self._file.sync)
        if await self._writer.perform(tables.truncate_wal, in_transaction=False):
            self._wal.note_emptied()
        else:
            self._wal.note_busy()

    async def _copy_wal(self) -> int:
        """Copy the WAL beside the writer, and return the bytes of its content."""
        content_bytes, is_whole = await self._read_pool.call(tables.checkpoint)
        if is_whole:
            self._writer.note_copied_wal()
        return content_bytes

    def _should_prune(self) -> bool:
        count = self._prunable_rows
        if count >= _PRUNE_ROWS or (count and self._needs_room):
            return True
        smallest = self._sizes.journal_bytes // _SMALLEST_PRUNE
        return count > 0 and self._prunable_bytes >= smallest

    async def _prune(self) -> None:
        count = size_bytes = 0
        while count < min(self._prunable_rows, _PRUNE_ROWS) and size_bytes < _PRUNE_BYTES:
            size_bytes += self._row_sizes[count]
            count += 1
        await self._writer.perform(partial(journal.prune, before_row=self._first_row + count))
        self._wal.note_write(size_bytes)
        self._first_row += count
        self._prunable_rows -= count
        self._prunable_bytes -= size_bytes
        self._journal_bytes -= size_bytes
        for _ in range(count):
            self._row_sizes.popleft()

    def _next_step(self) -> list[_Part]:
        """Return the parts to fold in one transaction, about ``step_bytes`` in total."""
        should_empty = self._needs_room and self._has_deleted
        if not self._pending and (should_empty or self._journal_bytes > self._sizes.journal_bytes):
            self._has_deleted = False
            self._pending.update(dict.fromkeys(sorted(self._unfolded.values(), key=_first_row)))
        parts: list[_Part] = []
        room_bytes = self._sizes.step_bytes
        while self._pending and room_bytes > 0 and len(parts) < _STEP_RUNS:
            run, _ = self._pending.popitem(last=False)
            if run.first_row is not None and not run.deleting:
                parts.append(self._cut(run, room_bytes))
                room_bytes -= sum(len(chunk.frames) for chunk in parts[-1].chunks)
        return parts

    def _cut(self, run: RunState, room_bytes: int) -> _Part:
        """Cut the frames after the run's last chunk into chunks, up to ``room_bytes``."""
        tail, last_seq = run.tail, run.tail.last_seq
        after_seq = max(run.folded_seq, run.first_seq - 1)
        chunks: list[Chunk] = []
        while after_seq < last_seq and room_bytes > 0:
            cut = tail.slice(
                Seq(after_seq), max_bytes=self._sizes.chunk_bytes, max_events=last_seq - after_seq
            )
            ends = tail.ends(cut.first_seq, cut.last_seq)
            chunks.append(Chunk(cut.first_seq, cut.last_seq, ends, cut.frames))
            room_bytes -= len(cut.frames)
            after_seq = cut.last_seq
        is_last = after_seq >= last_seq
        end = last_seq if is_last else after_seq
        run.first_row_of_rest = None
        closed = run.tail.closed and is_last
        stored = StoredRun(run.number, run.run_id, run.token, run.first_seq, Seq(end), closed)
        return _Part(run, stored, chunks, is_last)

    async def _fold(self, parts: list[_Part]) -> None:
        try:
            stored = [(part.stored, part.chunks) for part in parts]
            await self._writer.perform(partial(tables.fold, runs=stored))
        except sqlite3.Error:
            for part in reversed(parts):
                self._put_back(part.run)
            raise
        for part in parts:
            run = part.run
            run.folded_seq = part.stored.last_seq
            self._wal.note_write(sum(len(chunk.frames) for chunk in part.chunks))
            self._may_have_garbage |= run.first_seq > 1
            if not part.is_last:
                self._put_back(run)
                continue
            run.first_row = run.first_row_of_rest
            if run.first_row is None:
                self._unfolded.pop(run.number, None)
                self._on_folded(run)
        self._count_prunable_rows()

    def _put_back(self, run: RunState) -> None:
        self._pending[run] = None
        self._pending.move_to_end(run, last=False)

    def _count_prunable_rows(self) -> None:
        """Count the rows, oldest first, whose changes are all folded."""
        floor = self._first_row + len(self._row_sizes)
        floor = min(map(_first_row, self._unfolded.values()), default=floor)
        count = floor - self._first_row
        # Rows become prunable in their order, and only stop being it when they are pruned.
        self._prunable_bytes += sum(islice(self._row_sizes, self._prunable_rows, count))
        self._prunable_rows = count


def _first_row(run: RunState) -> int:
    return _NO_ROW if run.first_row is None else run.first_row
