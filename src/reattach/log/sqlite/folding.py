"""The upkeep of the SQLite log's file, in small steps between the commits of appends.

A closed run is folded out of the journal into chunks of its own; rows of the journal that hold
nothing else are deleted, from the oldest on. When open runs keep the journal long, they are
folded too, as far as they are. Every step is a transaction after which the file says the same as
before, so the process may die anywhere.
"""

import asyncio
import sqlite3
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from reattach.domain.limits import WAL_AGE_SECONDS, WAL_IDLE_SECONDS
from reattach.log.sqlite import tables
from reattach.log.sqlite.read_pool import ReadPool
from reattach.log.sqlite.run_state import RunState
from reattach.log.sqlite.tables import Chunk, StoredRun
from reattach.log.sqlite.writer import Writer

_RETRY_SECONDS: Final = 1.0
"""How long upkeep rests after the disk refused it. Nothing waits for it."""
_ALL: Final = 2**63 - 1
_ROW_BYTES: Final = 2 * 4096
"""What a commit adds to the WAL beside its payload: partly filled pages, and those above them."""
_SMALLEST_PRUNE: Final = 16
"""Rows of the journal are deleted when they make this part of its limit, or there are many."""
_LOOKS: Final = 8
"""Looks at the size of the WAL for each time that it is emptied because of its size."""
_STEP_RUNS: Final = 64
"""Runs folded in one transaction, however small: their rows are all over the index of ids."""
_PRUNE_ROWS: Final = 256
_PRUNE_BYTES: Final = 1024 * 1024
"""What is deleted in one transaction, in either measure: about a millisecond's work."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How the SQLite log uses disk and memory."""

    chunk_bytes: int = 64 * 1024
    """Frames per chunk: what a replay sends at once, so that it reads nothing twice."""
    step_bytes: int = 256 * 1024
    """Frames folded in one transaction: about a millisecond for which an append may wait."""
    journal_bytes: int = 32 * 1024 * 1024
    """The journal above which open runs are folded: it is read at start, in 0.2 s."""
    closed_runs_bytes: int = 64 * 1024 * 1024
    """Closed runs kept in memory: clients that come back do so soon after the end, if ever."""
    checkpoint_bytes: int = 32 * 1024 * 1024
    """The WAL above which it is checkpointed: ten ms for which an append may wait, so not often."""
    idle_seconds: float = WAL_IDLE_SECONDS
    """How long nothing was written before the WAL is emptied."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What one transaction folds of one run. The last part has all that there was."""

    run: RunState
    stored: StoredRun
    chunks: list[Chunk]
    is_last: bool


class _Wal:
    """When the WAL is to be emptied: by its size on the disk, its age, and after failures.

    Between two looks at the disk it is estimated how much was written, to know when to look.
    """

    def __init__(self, file: str, sizes: Sizes, time: Callable[[], float]) -> None:
        self._file = file
        self._limit_bytes = sizes.checkpoint_bytes
        self._look_bytes = sizes.checkpoint_bytes // _LOOKS
        self._time = time
        self._unseen_bytes = 0
        self._dirty_since = time()
        self.writes = 1
        """Since the WAL was emptied. What an earlier process left counts as one."""
        self.is_urgent = False

    def note_write(self, size_bytes: int) -> None:
        if not self.writes:
            self._dirty_since = self._time()
        self.writes += 1
        self._unseen_bytes += size_bytes + _ROW_BYTES

    @property
    def is_worth_a_look(self) -> bool:
        return self._unseen_bytes > self._look_bytes

    @property
    def is_old(self) -> bool:
        """Whether it holds something that was written long ago."""
        return self._time() - self._dirty_since > WAL_AGE_SECONDS

    def look(self, _connection: sqlite3.Connection) -> None:
        """Find out how large it is, in a thread."""
        self._unseen_bytes = 0
        self.is_urgent |= tables.wal_bytes(self._file) > self._limit_bytes or self.is_old

    def note_emptied(self) -> None:
        self._unseen_bytes = self.writes = 0
        self.is_urgent = False

    def note_read(self) -> None:
        """It could not be emptied, because somebody reads from it. Try again later."""
        self.is_urgent = False


class Folding:
    """Knows what is to be folded, and does it in the task ``run``."""

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
        self._wal = _Wal(file, sizes, asyncio.get_running_loop().time)
        self._unfolded: dict[int, RunState] = {}
        self._pending: OrderedDict[RunState, None] = OrderedDict()
        self._prunable_rows = 0
        self._may_have_garbage = True
        self._needs_room = False
        """A commit failed, or nothing was written for a while: all is done that makes room."""
        self._has_deleted = False
        """The journal may have text of a run that was deleted."""
        self._wake = asyncio.Event()
        self._wake.set()

    def note_row(self, size_bytes: int) -> None:
        """The journal has one more row."""
        self._row_sizes.append(size_bytes)
        self._journal_bytes += size_bytes
        is_first = not self._wal.writes
        self._wal.note_write(size_bytes)
        if is_first or self._journal_bytes > self._sizes.journal_bytes or self._wal.is_worth_a_look:
            self._wake.set()

    def note_failure(self) -> None:
        """A commit failed: if the disk is full, emptying the WAL makes room."""
        self._wal.is_urgent = self._needs_room = True
        self._wake.set()

    def note_run(self, run: RunState) -> None:
        """The journal has something of this run that was not folded."""
        self._unfolded[run.number] = run
        if run.tail.closed:
            self._pending[run] = None
            self._wake.set()

    def forget(self, run: RunState) -> None:
        """The run was deleted, and nothing of it needs to be folded."""
        self._unfolded.pop(run.number, None)
        self._may_have_garbage = self._has_deleted = True
        self._note_floor()
        self._wake.set()

    async def run(self) -> None:
        """Do what there is to do, until cancelled."""
        while True:
            await self._until_needed()
            self._wake.clear()
            try:
                while await self._step():
                    pass
                self._needs_room = False
            except (sqlite3.Error, OSError):
                await asyncio.sleep(_RETRY_SECONDS)
                self._wake.set()

    async def _until_needed(self) -> None:
        """Return when something was noted, and when nothing was written for a while."""
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
        """Do one piece of work; whether there was any."""
        if self._wal.is_urgent:
            await self._checkpoint()
        elif self._wal.is_worth_a_look:
            await self._read_pool.call(self._wal.look)
        elif self._is_worth_pruning():
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
        """Most of it beside the writer; then the rest by the writer, who can begin the WAL anew."""
        await self._read_pool.call(tables.checkpoint)
        if await self._writer.perform(tables.truncate_wal, in_transaction=False):
            self._wal.note_emptied()
        else:
            self._wal.note_read()

    def _is_worth_pruning(self) -> bool:
        count = self._prunable_rows
        if count >= _PRUNE_ROWS or (count and self._needs_room):
            return True
        smallest = self._sizes.journal_bytes // _SMALLEST_PRUNE
        return count > 0 and sum(self._row_sizes[row] for row in range(count)) >= smallest

    async def _prune(self) -> None:
        count = size_bytes = 0
        while count < min(self._prunable_rows, _PRUNE_ROWS) and size_bytes < _PRUNE_BYTES:
            size_bytes += self._row_sizes[count]
            count += 1
        await self._writer.perform(partial(tables.prune, before_row=self._first_row + count))
        self._wal.note_write(size_bytes)
        self._first_row += count
        self._prunable_rows -= count
        self._journal_bytes -= size_bytes
        for _ in range(count):
            self._row_sizes.popleft()

    def _next_step(self) -> list[_Part]:
        """What to fold in one transaction: parts of runs, not much more than a step in all."""
        is_to_be_emptied = self._needs_room and self._has_deleted
        if not self._pending and (
            is_to_be_emptied or self._journal_bytes > self._sizes.journal_bytes
        ):
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
        """What the run has beyond its chunks, as chunks that fill the room."""
        tail, last_seq = run.tail, run.tail.last_seq
        after = max(run.folded_seq, run.first_seq - 1)
        chunks: list[Chunk] = []
        while after < last_seq and room_bytes > 0:
            cut = tail.slice(after, max_bytes=self._sizes.chunk_bytes, max_events=last_seq - after)
            ends = tail.ends(cut.first_seq, cut.last_seq)
            chunks.append(Chunk(cut.first_seq, cut.last_seq, ends, cut.frames))
            room_bytes -= len(cut.frames)
            after = cut.last_seq
        is_last = after >= last_seq
        end = last_seq if is_last else after
        run.first_row_of_rest = None
        closed = run.tail.closed and is_last
        stored = StoredRun(run.number, run.run_id, run.token, run.first_seq, end, closed)
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
        self._note_floor()

    def _put_back(self, run: RunState) -> None:
        self._pending[run] = None
        self._pending.move_to_end(run, last=False)

    def _note_floor(self) -> None:
        """Find out how many rows from the oldest on hold nothing that was not folded."""
        floor = self._first_row + len(self._row_sizes)
        floor = min(map(_first_row, self._unfolded.values()), default=floor)
        self._prunable_rows = floor - self._first_row


def _first_row(run: RunState) -> int:
    return _ALL if run.first_row is None else run.first_row
