"""Transactions as functions over a synchronous connection, run in threads.

See docs/decisions/0011: a visit to a thread costs more than most statements, so a transaction is
one visit, whatever the number of its statements. Work that comes at once may share one.
"""

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from reattach.domain.errors import ConflictError, InvalidArgumentError, StoreUnavailableError
from reattach.domain.errors.stores import CommitUnknownError
from reattach.futures import settle
from reattach.records.database.columns import UnstorableError
from reattach.records.database.prepared import driver_of

_T = TypeVar("_T")

GROUP_MOST: Final = 100
"""Pieces of work in one transaction."""

PATIENCE_SECONDS: Final = 0.1
"""How long work waits for the transaction before it, which may be waiting for a lock."""


_Job = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class _Threads:
    """As many threads as there were ever calls at once. For one event loop.

    asyncio's executors spend more on handing a call over than SQLite on a short transaction.
    """

    def __init__(self, name: str) -> None:
        self._name: Final = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._running = 0

    def call(self, work: Callable[[], _T]) -> "asyncio.Future[_T]":
        """Call ``work`` in a thread; the future gets its result, or its exception."""
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        future.add_done_callback(self._note_end)
        self._running += 1
        if self._running > len(self._threads):
            thread = threading.Thread(
                target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        self._jobs.put((work, future))
        return future

    def join(self) -> None:
        """Wait until every call has ended. There must be no further one."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _note_end(self, _: "asyncio.Future[Any]") -> None:
        self._running -= 1

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, future = job
            try:
                result, error = work(), None
            except BaseException as raised:  # noqa: BLE001  the caller raises it
                result, error = None, raised
            with suppress(RuntimeError):  # The loop is closed.
                future.get_loop().call_soon_threadsafe(settle, future, result, error)
            del work, future, job, result, error  # The next wait may be long.


class Transactions:
    """Transactions of one kind over a pool of connections, with a thread for each connection."""

    def __init__(
        self, engine: Engine, *, connections: int, wait_seconds: float, is_remote: bool
    ) -> None:
        """``wait_seconds`` bounds the wait for a connection; ``is_remote`` means over a network."""
        self.engine = engine
        self._permits = asyncio.Semaphore(connections)
        self._threads = _Threads("reattach-records")
        self._idle: list[Connection] = []
        """Connections between two transactions. The pool of the engine would spend more on each."""
        self._wait_seconds = wait_seconds
        self._is_remote = is_remote
        self.is_closing = False

    async def run(self, work: Callable[[Connection], _T]) -> _T:
        """Run a transaction in a thread and return its result when it is committed.

        Waiting callers get a connection in the order of their calls. A transaction that has begun
        is not cancelled: a cancelled caller waits for its end.
        """
        return await self.visit(partial(self.transact, work))

    def try_at_once(self, work: Callable[[Connection], _T]) -> tuple[_T] | None:  # noqa: ARG002
        """Run a short transaction in the calling thread and return its result.

        None means that nothing was changed, and that ``run_short`` can make it.
        """
        return None

    async def run_short(self, work: Callable[[Connection], _T]) -> _T:
        """Run a short transaction as ``run`` does."""
        return await self.run(work)

    async def visit(self, work: Callable[[], _T]) -> _T:
        """Call ``work`` in a thread that owns one of the connections meanwhile."""
        with translate_failures():
            if self._permits.locked():
                async with asyncio.timeout(self._wait_seconds):
                    await self._permits.acquire()
            else:
                await self._permits.acquire()
            try:
                if self.is_closing:
                    raise StoreUnavailableError("The server is closing. Try again in a moment.")
                return await _finish(self._threads.call(work))
            finally:
                self._permits.release()

    def transact(self, work: Callable[[Connection], _T]) -> _T:
        """Run a transaction in the calling thread and return its result.

        A connection that was kept may be lost by now, which the first statement of ``work`` finds;
        then ``work`` is called again with a new one.
        """

        def committed(connection: Connection) -> _T:
            connection.begin()
            driver = driver_of(connection)
            result = work(connection)
            with translate_commit_failures(driver) if self._is_remote else nullcontext():
                connection.commit()
            return result

        kept = self._take_idle()
        if kept is not None:
            driver = driver_of(kept)
            try:
                return self._use(kept, committed)
            except DBAPIError as error:
                if not self._is_remote or not error.connection_invalidated or driver.has_begun:
                    raise
        return self._use(self.engine.connect(), committed)

    async def run_alone(self, statement: Callable[[Connection], _T]) -> _T:
        """Execute one statement as ``run`` does; it may be executed twice.

        A remote database commits it by itself, which saves the round trips of BEGIN and COMMIT.
        """
        transact = self._execute if self._is_remote else self.transact
        return await self.visit(partial(transact, statement))

    def _execute(self, statement: Callable[[Connection], _T]) -> _T:
        """Execute a statement without BEGIN, over a new connection if the kept one was lost."""
        kept = self._take_idle()
        if kept is not None:
            try:
                return self._use(kept, statement)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
        return self._use(self.engine.connect(), statement)

    def _use(self, connection: Connection, work: Callable[[Connection], _T]) -> _T:
        """Call ``work`` and keep the connection, or close it if that fails."""
        try:
            result = work(connection)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return result

    @contextmanager
    def lend(self) -> Iterator[Connection]:
        """Lend a connection without a transaction, for work in ``visit``."""
        connection = self._take_idle() or self.engine.connect()
        try:
            yield connection
        finally:
            self._idle.append(connection)

    def _take_idle(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def refuse_more(self) -> None:
        """Let later transactions raise StoreUnavailableError."""
        self.is_closing = True

    async def aclose(self) -> None:
        """Wait for the transactions under way and close all connections. Idempotent."""
        self.refuse_more()
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def close(self) -> None:
        """Wait in the calling thread, and close the connections."""
        self._threads.join()
        while self._idle:
            self._idle.pop().close()
        self.engine.dispose()


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    work: Callable[[Connection], Any]
    result: asyncio.Future[Any]


def _do_nothing(_: Connection) -> None:
    pass


class Grouped:
    """Runs small work in transactions one after the other; what comes meanwhile shares the next.

    The visit to a thread, the begin and the commit cost more than a statement or two. If a group
    fails, each piece is repeated in a transaction of its own, so that none fails because of
    another. ``on_group`` is called first in the transaction of a group, for example to bound the
    wait for locks.
    """

    def __init__(
        self, transactions: Transactions, on_group: Callable[[Connection], None] = _do_nothing
    ) -> None:
        self._transactions = transactions
        self._on_group = on_group
        self._waiting: deque[_Piece] = deque()
        self._current: object | None = None
        """The transaction that new work waits for."""
        self._patience: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, work: Callable[[Connection], _T]) -> _T:
        """Run ``work`` and return its result once its transaction is committed.

        ``work`` may be called twice. A cancelled caller waits for its end.

        Raises the same as ``Transactions.run``.
        """
        if self._current is None:
            alone = self._current = object()
            try:
                return await self._transactions.run(work)
            finally:
                self._pass_on(alone)
        result: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Piece(work, result))
        self._limit_wait()
        return await _finish(result)

    def _limit_wait(self) -> None:
        """Do not let work wait for the current transaction for long."""
        if self._waiting and self._patience is None:
            loop = asyncio.get_running_loop()
            self._patience = loop.call_later(PATIENCE_SECONDS, self._pass_on, self._current)

    def _pass_on(self, ended: object) -> None:
        """Begin the next group, unless it has begun because ``ended`` took long."""
        if self._current is not ended:
            return
        if self._patience is not None:
            self._patience.cancel()
        self._current = self._patience = None
        if self._waiting:
            most = min(GROUP_MOST, len(self._waiting))
            group = [self._waiting.popleft() for _ in range(most)]
            task = asyncio.create_task(self._run_group(group), name="grouped transaction")
            self._current = task
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(self._pass_on)
            self._limit_wait()

    async def _run_group(self, group: Sequence[_Piece]) -> None:
        try:
            if len(group) < 2 or not await self._run_together(group):
                await asyncio.gather(*(self._run_alone(piece) for piece in group))
        finally:
            for piece in group:
                piece.result.cancel()  # Has no effect on one that is done.

    async def _run_together(self, group: Sequence[_Piece]) -> bool:
        """Run the group in one transaction; return False if it failed."""

        def work(connection: Connection) -> list[Any]:
            self._on_group(connection)
            return [piece.work(connection) for piece in group]

        try:
            results = await self._transactions.run(work)
        except Exception:  # noqa: BLE001  each piece raises its own
            return False
        for piece, result in zip(group, results, strict=True):
            piece.result.set_result(result)
        return True

    async def _run_alone(self, piece: _Piece) -> None:
        try:
            piece.result.set_result(await self._transactions.run(piece.work))
        except Exception as error:  # noqa: BLE001  its caller raises it
            piece.result.set_exception(error)


async def _finish(future: "asyncio.Future[_T]") -> _T:
    """Wait until ``future`` is done even when cancelled, and raise the cancellation then."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({future})
        if not future.cancelled():
            future.exception()  # Retrieved, so that asyncio does not log it.
        raise


@contextmanager
def translate_failures() -> Iterator[None]:
    """Raise the errors of the database as errors of the domain, with the SQL in their cause."""
    try:
        yield
    except IntegrityError as error:
        raise ConflictError(
            "The stored data changed in the meantime and now conflicts with this request. "
            "Read it again and repeat the request."
        ) from error
    except (UnstorableError, UnicodeEncodeError, OverflowError, DataError) as error:
        raise _unstorable() from error
    except (DBAPIError, PoolTimeoutError, TimeoutError, sqlite3.Error) as error:
        raise StoreUnavailableError(
            "The database of the records cannot be read or written at present. Try again; if it "
            "persists, check the server's log and the space and permissions of the database."
        ) from error
    except StatementError as error:
        if not isinstance(error.orig, ValueError | OverflowError):
            raise
        raise _unstorable() from error


@contextmanager
def translate_commit_failures(driver: Any) -> Iterator[None]:
    """Raise the failure of a commit over a network as CommitUnknownError, unless it is certain."""
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, TimeoutError) as error:
        if not driver.may_have_committed:
            raise
        raise CommitUnknownError(
            "The database did not confirm a change in time, so it may have been made. "
            "Send the same request again, with its OTIDs; if it persists, check the database."
        ) from error


def _unstorable() -> InvalidArgumentError:
    return InvalidArgumentError(
        "A value cannot be stored: text must be valid Unicode without U+0000, and numbers must be "
        "finite and fit in 64 bits."
    )
