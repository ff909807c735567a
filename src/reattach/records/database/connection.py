"""Connections to PostgreSQL that never wait for a silent server without an end.

Imported only where a PostgreSQL is used, because its driver is an extra.
"""

import asyncio
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.waiting import Wait
from typing_extensions import override

from reattach.futures import settle
from reattach.records.database.event_loop.socket_watch import SocketWatch
from reattach.records.database.prepared import LeftToThreadError
from reattach.sockets import unacknowledged_bytes

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

SILENCE_SECONDS: Final = 6.0
"""How long nothing may move in either direction while a reply is awaited. A server that waits for a
lock gives up before that and says so; a silent one is gone, though the network may not show it."""


LOOP_BYTES: Final = 64 * 1024
"""The most bytes of statements sent together, or of their answer, in the event loop. To encode or
decode more takes it longer than a visit to a thread."""

PREPARED_MOST: Final = 200
"""Statements that a connection prepares. Each takes memory of the server until it is closed."""

_T = TypeVar("_T")

Statement = tuple[str, Sequence[Any]]
"""A text with numbers for its parameters, and their values in order."""

_COMMIT: Final[Statement] = ("COMMIT", ())
_DONE: Final = frozenset({ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK})


class Answer(NamedTuple):
    """The answer to a statement."""

    rows: list[list[Any]]
    changed: int
    """The number of rows that it changed or returned."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection whose every command ends, with OperationalError when the server is silent.

    ``ask`` and ``commit`` send all statements that wait and receive all answers in one round trip.
    The driver's cursors need several, each of which costs them twice as much. They can be used too:
    everything is executed in order.

    A thread calls ``ask``, ``commit`` and ``rollback``. The event loop takes their steps as
    generators (``asking``, ``committing``, ``rolling_back``), which a ``SocketWatch`` drives.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.commits_later = False
        """Let ``commit`` not wait for the server, for transactions that only read."""
        self.has_begun = False
        """Whether the server has answered a statement of the transaction."""
        self.may_have_committed = False
        """Whether a commit failed in such a way that it may have happened."""
        self._waiting: list[Statement] = []
        """Statements that will be sent together with the next one."""
        self._unread: list[tuple[str, bytes] | None] = []
        """The messages whose results were not received, in order: the text that is prepared with
        its name, or None for an execution."""
        self._unread_syncs = 0
        self._names: dict[str, bytes] = {}
        """The names of prepared statements by their texts."""
        self._names_given = 0
        self.is_in_loop = False
        """Whether the event loop makes a transaction, in which nothing else may wait."""
        self._watch: SocketWatch | None = None

    @classmethod
    def open(cls, session: str, **arguments: Any) -> Self:
        """Connect and execute ``session``."""
        connection = cls.connect(**arguments, autocommit=True)
        try:
            connection.execute(session)
        except BaseException:
            connection.close()
            raise
        return connection

    def watch(self) -> SocketWatch:
        """Let the event loop watch the socket until ``unwatch``, and drive generators."""
        if self._watch is None:
            self._watch = SocketWatch(self)
        return self._watch

    def unwatch(self) -> None:
        """Let threads use the connection. To be called in the event loop, between two uses."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.end()

    @override
    def close(self) -> None:
        self.unwatch()
        super().close()

    def begin_with(self, statement: str) -> None:
        """Begin a transaction, which the server learns together with its first statement."""
        self._waiting = [(statement, ())]
        self.has_begun = self.may_have_committed = False

    def defer(self, sql: str, values: Sequence[Any]) -> None:
        """Execute a statement together with the next one or the commit, which raises its error."""
        self._waiting.append((sql, values))

    def ask(self, *statements: Statement) -> list[Answer]:
        """Execute the statements in order and return their answers.

        Each one sees the changes of those before it. Without ``begin_with`` they are committed.
        """
        return self._wait_for(self.asking(*statements))

    def asking(self, *statements: Statement) -> PQGen[list[Answer]]:
        """Do the same, and yield when it must wait."""
        waiting, self._waiting = self._waiting, []
        self._send([*waiting, *statements])
        results = yield from self._receiving()
        self.has_begun = True
        answers = [self._answer(result) for result in results[len(results) - len(statements) :]]
        if self.is_in_loop and sum(map(_size_bytes, answers)) > LOOP_BYTES:
            raise LeftToThreadError
        return answers

    @override
    def commit(self) -> None:
        self._wait_for(self.committing())

    def committing(self) -> PQGen[None]:
        """Do the same as ``commit``, and yield when it must wait."""
        try:
            yield from self._committing()
        except psycopg.Error:
            if not self.closed:  # SQLAlchemy takes a failed commit for the end of the transaction.
                yield from self.rolling_back()
            raise

    def _committing(self) -> PQGen[None]:
        if not self.has_begun and self._waiting:
            if len(self._waiting) == 1:  # The server knows nothing of the transaction.
                self._waiting = []
                return
            # Once the server has begun, a lost connection cannot be replaced.
            yield from self.asking()
        if not self._waiting and self.pgconn.transaction_status == TransactionStatus.IDLE:
            return
        waiting, self._waiting = self._waiting, []
        self._send([*waiting, _COMMIT])
        if self.commits_later and not self.pgconn.flush():
            return
        self.may_have_committed = True
        yield from self._receiving(certain=len(waiting))
        self.may_have_committed = False

    @override
    def rollback(self) -> None:
        self._wait_for(self.rolling_back())

    def rolling_back(self) -> PQGen[None]:
        """Do the same as ``rollback``, and yield when it must wait."""
        self._waiting = []
        if self._unread_syncs:
            yield from self._receiving()
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            # Not by the driver, which would also drop every prepared statement.
            yield from self.asking(("ROLLBACK", ()))

    def abandoning(self) -> PQGen[None]:
        """Roll back, and close the connection if that fails."""
        try:
            if not self.closed:
                yield from self.rolling_back()
        except psycopg.Error:
            self.close()

    def _wait_for(self, waits: PQGen[_T]) -> _T:
        """Drive the generator in the calling thread."""
        self.require_thread()
        result: _T = super().wait(self._bounded(waits))
        return result

    def require_thread(self) -> None:
        """Raise LeftToThreadError in the event loop."""
        if self.is_in_loop:
            raise LeftToThreadError

    def _send(self, statements: Sequence[Statement]) -> None:
        """Write the statements, all of them or none."""
        pgconn, adapter, names = self.pgconn, self._adapter, self._names
        # A value that cannot be sent is found before anything is.
        bound = [
            adapter.dump_sequence(values, [PyFormat.TEXT] * len(values)) if values else None
            for _, values in statements
        ]
        if self.is_in_loop and sum(map(_bound_bytes, bound)) > LOOP_BYTES:
            raise LeftToThreadError
        try:
            if not self._unread_syncs:
                pgconn.enter_pipeline_mode()
            for (sql, _), values in zip(statements, bound, strict=True):
                name = names.get(sql)
                if name is None:
                    name = self._prepare(sql)
                pgconn.send_query_prepared(name, values)
                self._unread.append(None)
            pgconn.pipeline_sync()
            self._unread_syncs += 1
        except BaseException:
            self.close()
            raise

    def _prepare(self, sql: str) -> bytes:
        """Send the text to be prepared, and return the name that it will have."""
        name = b""  # One that the next text replaces.
        if len(self._names) < PREPARED_MOST:
            self._names_given += 1
            name = b"r%d" % self._names_given
        self.pgconn.send_prepare(name, sql.encode())
        self._unread.append((sql, name))
        return name

    def _receiving(self, *, certain: int = 0) -> "PQGen[list[PGresult]]":
        """Return the results of all executions without an answer, in order.

        Yields when it must wait. Raises the first error. ``may_have_committed`` is set to False if
        that is the error of one of the ``certain`` first executions.
        """
        try:
            results = yield from self._results()
            self.pgconn.exit_pipeline_mode()
        except BaseException:
            self.close()
            raise
        unread, self._unread = self._unread, []
        executed: list[PGresult] = []
        for prepared, result in zip(unread, results, strict=True):
            if result.status not in _DONE:
                if len(executed) < certain:
                    self.may_have_committed = False
                raise error_from_result(result)
            if prepared is None:
                executed.append(result)
            elif name := prepared[1]:
                self._names[prepared[0]] = name
        return executed

    def _results(self) -> "PQGen[list[PGresult]]":
        """Receive everything that the server answers to what was sent."""
        pgconn = self.pgconn
        results: list[PGresult] = []
        while True:
            # Between two uses, the event loop may have taken some of them from the socket.
            while self._unread_syncs and not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:  # The end of the results of one message.
                    if pgconn.status == ConnStatus.BAD:
                        raise psycopg.OperationalError("the connection is lost")
                elif result.status == ExecStatus.PIPELINE_SYNC:
                    self._unread_syncs -= 1
                else:
                    results.append(result)
            if not self._unread_syncs:
                break
            unsent = pgconn.flush()
            if not (yield Wait.RW if unsent else Wait.R):
                continue
            try:
                pgconn.consume_input()
            except psycopg.OperationalError:
                _raise_first(results)  # The server may have said why it hangs up.
                raise
        return results

    def _answer(self, result: "PGresult") -> Answer:
        if not result.ntuples:  # The adapter would look a loader up for each column.
            return Answer([], result.command_tuples or 0)
        adapter = self._adapter
        adapter.set_pgresult(result)
        return Answer(adapter.load_rows(0, result.ntuples, list), result.command_tuples or 0)

    @cached_property
    def _adapter(self) -> Any:
        return Transformer(self)

    @override
    def wait(self, gen: PQGen[Any], *args: Any, **rest: Any) -> Any:
        self.require_thread()
        if self._waiting:
            self.ask()
        elif self._unread_syncs:
            self._wait_for(self._receiving())
        return super().wait(self._bounded(gen), *args, **rest)

    def _bounded(self, gen: PQGen[Any]) -> PQGen[Any]:
        """Yield and return as ``gen`` does, and hang up when nothing moves for too long."""
        moved_at = time.monotonic()
        unsent = 0
        try:
            wanted = next(gen)
            while True:
                # The driver sends "not ready" several times a second.
                ready = yield wanted
                # A slow network may still be taking bytes that were written long ago.
                before, unsent = unsent, 0 if ready else self.unsent_bytes()
                if ready or unsent != before:
                    moved_at = time.monotonic()
                else:
                    self.hang_up_after(time.monotonic() - moved_at)
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value

    def hang_up_after(self, silent_seconds: float) -> None:
        """Hang up if the server has been silent for too long."""
        if silent_seconds >= SILENCE_SECONDS:
            _hang_up(self)

    def unsent_bytes(self) -> int:
        """Return the bytes that the network has not taken yet."""
        return 0 if self.closed else unacknowledged_bytes(self.fileno())


class ListeningConnection(psycopg.AsyncConnection[Any]):
    """A connection that waits for notifications.

    The event loop watches its socket meanwhile. The driver would watch it anew for each one.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._payloads: list[str] = []
        self._woken: asyncio.Future[None] | None = None
        self._failure: psycopg.Error | None = None
        self._watched: int | None = None
        """The descriptor of the socket while the event loop watches it."""
        # Some come with the answer to a statement.
        self.add_notify_handler(lambda notification: self._payloads.append(notification.payload))

    @classmethod
    async def open(cls, session: str, **arguments: Any) -> Self:
        """Connect and execute ``session``.

        A cancelled caller waits for the attempt and closes the connection: one that is abandoned
        while it is being made stays on the server for a minute.
        """
        attempt = asyncio.create_task(cls._open(session, **arguments))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            with suppress(psycopg.Error):
                await (await attempt).close()
            raise

    @classmethod
    async def _open(cls, session: str, **arguments: Any) -> Self:
        connection = await cls.connect(**arguments, autocommit=True)
        try:
            await connection.ask(session)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def payloads(self, within_seconds: float) -> list[str]:
        """Return the payloads that have come, once there are any; none after ``within_seconds``.

        Raises OperationalError when the connection is lost.
        """
        loop = asyncio.get_running_loop()
        self._watch()
        if not self._payloads and self._failure is None:
            self._woken = loop.create_future()
            timer = loop.call_later(within_seconds, settle, self._woken, None, None)
            try:
                await self._woken
            finally:
                timer.cancel()
        payloads, self._payloads = self._payloads, []
        if self._failure is not None and not payloads:
            raise self._failure
        return payloads

    def _watch(self) -> None:
        if self._watched is None and self._failure is None:
            self._watched = self.fileno()
            asyncio.get_running_loop().add_reader(self._watched, self._note_readable)

    def _unwatch(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None:
            asyncio.get_running_loop().remove_reader(watched)

    def _note_readable(self) -> None:
        try:
            self.pgconn.consume_input()
        except psycopg.OperationalError as error:
            self._failure = error
            self._unwatch()
        while (notification := self.pgconn.notifies()) is not None:
            self._payloads.append(notification.extra.decode())
        if self._woken is not None and (self._payloads or self._failure):
            settle(self._woken, None, None)

    @override
    async def close(self) -> None:
        self._unwatch()
        await super().close()

    async def ask(self, statement: str) -> None:
        """Execute a short statement; raises OperationalError when the server is silent."""
        self._unwatch()  # The driver watches the socket too.
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(SILENCE_SECONDS, _hang_up, self)
        try:
            await self.execute(statement)
        finally:
            alarm.cancel()


def _bound_bytes(values: Sequence[Any] | None) -> int:
    return sum(map(len, filter(None, values or ())))


def _size_bytes(answer: Answer) -> int:
    """Return the size of the texts of an answer, which are still to be decoded."""
    return sum(len(value) for row in answer.rows for value in row if type(value) is str)


def _raise_first(results: "Sequence[PGresult]") -> None:
    """Raise the first error of the results, if there is one."""
    for result in results:
        if result.status not in _DONE:
            raise error_from_result(result)


def _hang_up(connection: psycopg.BaseConnection[Any]) -> None:
    """Shut the socket down as a dying server would, so that a waiting command fails at once."""
    if not connection.closed:
        # A second descriptor of the socket: closing it leaves the driver's own open.
        with socket.socket(fileno=os.dup(connection.fileno())) as end, suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
