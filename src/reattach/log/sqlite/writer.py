"""The only writer of the SQLite log's file: commits of appends, and jobs that maintain the file.

The operations of one tick of the event loop are committed together at its end. A small batch that
need not wait for the disk is committed in the event loop, because waking a thread and the loop
again takes longer than the commit. Any other batch is handed to a thread, and so is
everything that follows while the thread is at work, so the order of commits is that of the
operations. The thread commits everything it received since its last commit as one batch, and calls
the event loop once per batch. There is no timer: a lone append is written immediately.

Jobs run in the thread between batches in the order of their requests, each in its own transaction.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final

from reattach.futures import settle
from reattach.log.sqlite import journal, tables
from reattach.log.sqlite.journal import Delete
from reattach.log.sqlite.run_state import Operation, RunState
from reattach.log.sqlite.tables import Durability
from reattach.slow_disk import SlowDisk

_BATCH_BYTES: Final = 4 * 1024 * 1024
"""The size at which a batch is committed: a few ms of writing, far below SQLite's limit of 1 GB."""

_SLOW_SECONDS: Final = 0.01
"""A commit in the event loop that takes longer was held up by the disk."""

_LONGEST_PAUSE_SECONDS: Final = 60.0
"""The longest time for which the thread commits everything after one slow commit."""

Work = Callable[[sqlite3.Connection], object]


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    work: Work
    in_transaction: bool
    is_last: bool
    done: "asyncio.Future[object]"


class Writer:
    """The owner of the thread and its ``connection``. Call it in the event loop only.

    ``loop_connection`` never waits for a lock. It commits batches of up to ``at_once_bytes``.

    ``on_committed(operations, row, size_bytes)`` is called in the loop, in commit order. When a
    commit fails, the thread writes nothing until ``on_failed(operations, error)`` has returned; its
    operations are the failed batch and everything submitted after it, none of which is on disk.
    Commits that change ``synced_runs`` wait for the disk, whatever the durability.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        durability: Durability,
        next_row: int,
        on_committed: Callable[[Sequence[Operation], int, int], None],
        on_failed: Callable[[Sequence[Operation], Exception], None],
        *,
        synced_runs: Set[RunState] = frozenset(),
        loop_connection: sqlite3.Connection,
        at_once_bytes: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._loop_connection = loop_connection
        self._durability: Durability = durability
        self._synced_runs = synced_runs
        self._next_row = next_row
        self._on_committed = on_committed
        self._on_failed = on_failed
        self._submitted: list[Operation] = []
        """Operations of this tick, which are committed together."""
        self._calls: list[Callable[[], None]] = []
        self._is_tick_end_scheduled = False
        self._at_once_bytes = at_once_bytes
        self._disk = SlowDisk(_LONGEST_PAUSE_SECONDS)
        self._begins_wal = True
        """The next commit may write the head of a WAL that begins anew. Whatever the durability,
        SQLite waits until the disk has it."""
        self._in_thread = 0
        """The number of items that the thread was handed and has not reported."""
        self._queue: SimpleQueue[list[Operation] | _Job] = SimpleQueue()
        self._resumed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reattach-log-writer", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation) -> None:
        if not self._is_tick_end_scheduled:
            self._schedule_tick_end()
        self._submitted.append(operation)

    def after_tick(self, call: Callable[[], None]) -> None:
        """Call ``call`` at the end of this tick, before the operations go to the thread."""
        if not self._is_tick_end_scheduled:
            self._schedule_tick_end()
        self._calls.append(call)

    def _schedule_tick_end(self) -> None:
        self._is_tick_end_scheduled = True
        self._loop.call_soon(self._end_tick)

    def _end_tick(self) -> None:
        calls, self._calls = self._calls, []
        for call in calls:
            call()
        self._is_tick_end_scheduled = False
        if self._submitted and not self._commit_at_once(self._submitted):
            self._hand_over()

    def _commit_at_once(self, batch: list[Operation]) -> bool:
        """Commit the operations in the event loop and return True, if that does not hold it up."""
        if self._in_thread or self._begins_wal:
            return False
        if self._durability == "power" or self._synced_runs:
            return False
        began = self._disk.begin()
        if began is None:
            return False
        packed = b"".join([operation.packed for operation in batch])
        if len(packed) > self._at_once_bytes or Delete in {type(op.change) for op in batch}:
            return False
        try:
            journal.insert_row(self._loop_connection, self._next_row, packed)
        except Exception:  # noqa: BLE001 - The thread tries again, and reports the failure.
            return False
        finally:
            self._disk.note(began, _SLOW_SECONDS)
        row = self._next_row
        self._next_row += 1
        self._submitted = []
        self._on_committed(batch, row, len(packed))
        return True

    def note_copied_wal(self) -> None:
        """Note that the WAL was copied as a whole, so the next commit begins it anew."""
        self._begins_wal = True

    async def perform(
        self, work: Work, *, in_transaction: bool = True, is_last: bool = False
    ) -> object:
        """Run ``work`` on the connection after all earlier operations, and return its result.

        If the caller is cancelled, ``work`` may still run. The thread ends after the last job.
        """
        job = _Job(work, in_transaction, is_last, self._loop.create_future())
        self._hand_over()
        self._put(job)
        return await job.done

    async def stop(self) -> None:
        """Write all earlier operations, close the connection and end the thread."""
        await self.perform(sqlite3.Connection.close, in_transaction=False, is_last=True)

    def _hand_over(self) -> None:
        if self._submitted:
            submitted, self._submitted = self._submitted, []
            self._put(submitted)

    def _put(self, item: list[Operation] | _Job) -> None:
        self._in_thread += 1
        self._queue.put(item)

    # In the thread.

    def _run(self) -> None:
        try:
            while True:
                job = self._write_pending(self._queue.get())
                if job is not None:
                    self._perform(job)
                    if job.is_last:
                        return
        except _LoopClosedError:
            self._connection.close()

    def _write_pending(self, item: list[Operation] | _Job) -> _Job | None:
        """Commit ``item`` and the operations behind it; return the job that follows."""
        batch: list[Operation] = []
        items = size_bytes = 0
        following: _Job | None = None
        while True:
            if not isinstance(item, list):
                following = item
                break
            batch += item
            items += 1
            size_bytes += sum([len(operation.packed) for operation in item])
            if size_bytes >= _BATCH_BYTES:
                break
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
        if batch:
            self._commit(batch, items, size_bytes)
        return following

    def _commit(self, batch: list[Operation], items: int, size_bytes: int) -> None:
        try:
            packed = b"".join([operation.packed for operation in batch])
            deleted = [op.change.number for op in batch if isinstance(op.change, Delete)]
            self._set_synchronous(self._durability_of(batch))
            if deleted:
                self._transact(lambda connection: self._write(connection, packed, deleted))
            else:  # A single statement is its own transaction.
                journal.insert_row(self._connection, self._next_row, packed)
        except Exception as error:  # noqa: BLE001 - A dead thread would leave appends hanging.
            self._resumed.clear()
            self._call_in_loop(self._fail, batch, items, error)
            self._resumed.wait()
        else:
            row = self._next_row
            self._next_row += 1
            self._call_in_loop(self._report, batch, items, row, size_bytes)

    def _report(self, batch: list[Operation], items: int, row: int, size_bytes: int) -> None:
        """Report a commit of the thread, in the loop."""
        self._in_thread -= items
        self._begins_wal = False
        self._on_committed(batch, row, size_bytes)

    def _write(self, connection: sqlite3.Connection, packed: bytes, deleted: list[int]) -> None:
        journal.insert_row(connection, self._next_row, packed)
        for number in deleted:
            tables.delete_run(connection, number)

    def _fail(self, batch: list[Operation], items: int, error: Exception) -> None:
        """Fail the batch and all operations after it, in the loop, and let the thread continue."""
        kept: list[_Job] = []
        while True:
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
            if isinstance(item, list):
                batch += item
                items += 1
            else:
                kept.append(item)
        batch += self._submitted
        self._submitted = []
        self._in_thread -= items
        try:
            self._on_failed(batch, error)
        finally:
            for item in kept:
                self._queue.put(item)
            self._resumed.set()

    def _perform(self, job: _Job) -> None:
        try:
            if job.in_transaction:
                # The WAL is sequential, so the next batch's sync covers this job too.
                self._set_synchronous("process")
                result = self._transact(job.work)
            else:
                result = job.work(self._connection)
        except Exception as error:  # noqa: BLE001 - It is raised to the caller of perform.
            self._call_in_loop(self._finish, job, None, error)
        else:
            self._call_in_loop(self._finish, job, result, None)

    def _finish(self, job: _Job, result: object, error: Exception | None) -> None:
        """Report the outcome of a job, in the loop."""
        self._in_thread -= 1
        if not job.in_transaction:  # It may have emptied the WAL.
            self.note_copied_wal()
        settle(job.done, result, error)

    def _durability_of(self, batch: list[Operation]) -> Durability:
        if self._synced_runs and any(each.run in self._synced_runs for each in batch):
            return "power"
        return self._durability

    def _set_synchronous(self, durability: Durability) -> None:
        if self._durability == "power" or self._synced_runs:
            tables.set_synchronous(self._connection, durability)

    def _transact(self, work: Work) -> object:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(self._connection)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return result

    def _call_in_loop(self, callback: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            raise _LoopClosedError from None


class _LoopClosedError(Exception):
    """The event loop was closed without ``stop``, so there is nobody to report to."""
