"""Transactions: functions over a synchronous connection in threads, or steps in the event loop.

See docs/decisions/0011: a visit to a thread costs more than most statements, so a transaction is
one visit, whatever the number of its statements. Work that comes at once may share one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from reattach.domain.errors import StoreUnavailableError
from reattach.records.database.event_loop.threads import Threads
from reattach.records.database.failure import translate_commit_failures, translate_failures
from reattach.records.database.prepared import (
    LeftToThreadError,
    Steps,
    asking,
    committing,
    driver_of,
    steps_taken,
    take_steps,
)

_T = TypeVar("_T")

_LONG_READS: Final = 100
"""How many reads by a function are expected to take more than one step, after one that did."""

GROUP_MOST: Final = 100
"""Pieces of work in one transaction."""

PATIENCE_SECONDS: Final = 0.1
"""How long work waits for the transaction before it, which may be waiting for a lock."""


class Transactions:
    """Transactions of one kind over a pool of connections, with a thread for each connection.

    Over a network, short ones are made in the event loop, which waits for the answers of the server
    while it does other things: see docs/decisions/0029.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        connections: int,
        wait_seconds: float,
        begin: str | None = None,
    ) -> None:
        """``wait_seconds`` bounds the wait for a connection.

        ``begin`` is the statement with which the event loop begins a transaction over a network.
        """
        self.engine = engine
        self._permits = asyncio.Semaphore(connections)
        self._threads = Threads("reattach-records")
        self._idle: list[Connection] = []
        """Connections between two transactions. The pool of the engine would spend more on each."""
        self._watched: list[Connection] = []
        """Those of them that the event loop watches, which threads must not use."""
        self._in_loop = 0
        """The number of transactions that are being made in the event loop."""
        self._none_in_loop = asyncio.Event()
        self._none_in_loop.set()
        self._long_reads: dict[object, int] = {}
        """How many of the next reads by these functions are expected to take more than one step."""
        self._wait_seconds = wait_seconds
        self._begin = begin
        self._is_remote = begin is not None
        self.is_closing = False

    async def run(self, work: Callable[[Connection], _T]) -> _T:
        """Run a transaction in a thread and return its result when it is committed.

        Waiting callers get a connection in the order of their calls. A transaction that has begun
        is not cancelled: a cancelled caller waits for its end.
        """
        return await self.visit(partial(self.transact, work))

    async def run_short(
        self, work: Callable[[Connection], Steps[_T]], read: object | None = None
    ) -> _T:
        """Run a transaction as ``run`` does; over a network in the event loop if that is possible.

        ``work`` may be called twice. ``read`` stands for all transactions that only read by the
        same function.
        """

        def call(connection: Connection) -> _T:
            return take_steps(connection, work(connection))

        if not self._is_remote:
            return await self.run(call)
        waits = partial(self._short, work=work)
        if read is not None:
            expected = self._long_reads.get(read, 0)
            if expected:
                self._long_reads[read] = expected - 1
            else:
                waits = partial(self._one_step, work=work, read=read)
        return await self._visit(partial(self.transact, call), waits)

    def try_at_once(self, work: Callable[[Connection], _T]) -> tuple[_T] | None:  # noqa: ARG002
        """Run a short transaction in the calling thread and return its result.

        None means that nothing was changed, and that ``run_short`` can make it.
        """
        return None

    async def visit(self, work: Callable[[], _T]) -> _T:
        """Call ``work`` in a thread that owns one of the connections meanwhile."""
        return await self._visit(work)

    async def _visit(
        self,
        work: Callable[[], _T],
        waits: Callable[[Connection], Generator[Any, Any, _T]] | None = None,
    ) -> _T:
        """Let the event loop drive ``waits`` if it can, or else a thread call ``work``."""
        with translate_failures():
            if self._permits.locked():
                async with asyncio.timeout(self._wait_seconds):
                    await self._permits.acquire()
            else:
                await self._permits.acquire()
            try:
                if self.is_closing:
                    raise StoreUnavailableError("The server is closing. Try again in a moment.")
                if waits is None:
                    return await _finish(self._call(work))
                with self._counted_in_loop():  # Until a thread has it, if one must.
                    made = await self._drive(waits)
                    if made is not None:
                        return made[0]
                    called = self._call(work)
                return await _finish(called)
            finally:
                self._permits.release()

    def _call(self, work: Callable[[], _T]) -> "asyncio.Future[_T]":
        self._unwatch_one()
        return self._threads.call(work)

    @contextmanager
    def _counted_in_loop(self) -> Iterator[None]:
        self._in_loop += 1
        self._none_in_loop.clear()
        try:
            yield
        finally:
            self._in_loop -= 1
            if not self._in_loop:
                self._none_in_loop.set()

    async def _drive(
        self, waits: Callable[[Connection], Generator[Any, Any, _T]]
    ) -> tuple[_T] | None:
        """Return the result of ``waits`` in the event loop; None if a thread has to do the same.

        Either nothing was changed then, or it is safe to repeat it.
        """
        connection = self._take_watched()
        if connection is None:
            return None
        driver = driver_of(connection)
        watch, steps = driver.watch(), waits(connection)
        on_end = partial(self._put_back, connection, driver)
        ended: asyncio.Future[_T] = watch.drive(steps, on_end)
        try:
            # No shield, which would cost another tick.
            return (await ended,)
        except asyncio.CancelledError:
            if not ended.cancelled():
                ended.exception()  # Retrieved, so that asyncio does not log it.
            await _end_of(watch, steps)
            raise
        except LeftToThreadError:
            return None
        except DBAPIError as error:
            if not error.connection_invalidated or driver.has_begun:
                raise
            return None

    def _put_back(self, connection: Connection, driver: Any) -> None:
        if driver.closed:
            connection.invalidate()
            connection.close()
        else:
            self._watched.append(connection)

    def _take_watched(self) -> Connection | None:
        """Return a connection for the event loop; None if threads need all that there are."""
        if self._watched:
            return self._watched.pop()
        return self._idle.pop() if len(self._idle) > self._threads.running else None

    def _unwatch_one(self) -> None:
        """Leave a connection to the thread that is about to be called, if there is one.

        Otherwise it would make one beyond the limit of the pool.
        """
        if self._watched and len(self._idle) <= self._threads.running:
            self._unwatch(self._watched.pop())

    def _unwatch(self, connection: Connection) -> None:
        driver = driver_of(connection)
        driver.unwatch()
        if driver.broken:  # It was lost meanwhile. A thread makes another one.
            connection.invalidate()
            connection.close()
        else:
            self._idle.append(connection)

    def _short(
        self, connection: Connection, work: Callable[[Connection], Steps[_T]]
    ) -> Generator[Any, Any, _T]:
        """Make a transaction over a network as ``transact`` does, and yield when it must wait."""
        driver = driver_of(connection)
        driver.begin_with(self._begin)
        return self._committed(connection, work)

    def _one_step(
        self, connection: Connection, work: Callable[[Connection], Steps[_T]], read: object
    ) -> Generator[Any, Any, _T]:
        """Make a transaction of one step, for which the server needs no BEGIN and COMMIT.

        One that takes more is begun anew, because all of its steps must see one state.
        """
        driver_of(connection).has_begun = False
        steps = work(connection)
        try:
            steps.send((yield from asking(connection, *next(steps))))
        except StopIteration as end:
            return cast("_T", end.value)
        finally:
            steps.close()
        self._long_reads[read] = _LONG_READS
        return (yield from self._short(connection, work))

    def _committed(
        self, connection: Connection, work: Callable[[Connection], Steps[_T]]
    ) -> Generator[Any, Any, _T]:
        driver = driver_of(connection)
        try:
            result = yield from steps_taken(connection, work(connection))
            with translate_commit_failures(driver):
                yield from committing(connection)
        except Exception:
            yield from driver.abandoning()
            raise
        return result

    @staticmethod
    def _alone(
        connection: Connection, waits: Callable[[Connection], Generator[Any, Any, _T]]
    ) -> Generator[Any, Any, _T]:
        driver = driver_of(connection)
        driver.has_begun = False
        return waits(connection)

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

    async def run_alone(
        self,
        statement: Callable[[Connection], _T],
        waits: Callable[[Connection], Generator[Any, Any, _T]],
    ) -> _T:
        """Execute one statement as ``run_short`` does; it may be executed twice.

        A remote database commits it by itself, which saves the round trips of BEGIN and COMMIT.
        There, ``waits`` executes it in the event loop.
        """
        if self._is_remote:
            alone = partial(self._alone, waits=waits)
            return await self._visit(partial(self._execute, statement), alone)
        return await self.visit(partial(self.transact, statement))

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
        await self._none_in_loop.wait()
        while self._watched:
            self._unwatch(self._watched.pop())
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


async def _end_of(watch: Any, steps: Generator[Any, Any, Any]) -> None:
    """Wait until the event loop has driven ``steps`` to their end, even when cancelled."""
    while (ended := watch.end_of(steps)) is not None:
        with suppress(asyncio.CancelledError):
            await asyncio.wait({ended})
        if ended.done() and not ended.cancelled():
            ended.exception()  # Retrieved, so that asyncio does not log it.


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
