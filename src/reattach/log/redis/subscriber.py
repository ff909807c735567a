"""Subscriptions to the channels of runs, over one connection."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection

from reattach.domain.backoff import Backoff
from reattach.domain.errors import StoreUnavailableError
from reattach.log.redis.client import FAILURES, RedisClient

_UNAVAILABLE: Final = "The event log cannot be followed at present. Try again in a moment."
_CHANNELS_AT_ONCE: Final = 500
"""The most channels per command, so that one command does not block Redis for long."""

Listener = Callable[[bytes], None]


class Subscriber:
    """Subscribes to channels over one connection, opened on first use and reopened when lost.

    Messages published without a connection are lost, so ``on_resumed(channel)`` is called once a
    channel is subscribed again. Listeners are called in the event loop, in order of publication.
    """

    def __init__(self, client: RedisClient, on_resumed: Callable[[bytes], None]) -> None:
        self._client = client
        self._answer_seconds = client.wait_policy.answer_seconds
        self._on_resumed = on_resumed
        self._listeners: dict[bytes, Listener] = {}
        self._confirmed_listeners: dict[bytes, Listener] = {}
        self._confirmations: dict[bytes, asyncio.Future[None]] = {}
        self._outbox: list[tuple[str, bytes]] = []
        self._connection: AbstractConnection | None = None
        """The current connection, until it is dropped."""
        self._run_task: asyncio.Task[None] | None = None
        self._read_task: asyncio.Task[None] | None = None
        self._send_task: asyncio.Task[None] | None = None
        """These two tasks use the current connection, and end before the next one is opened."""
        self._answer_due_at: float | None = None
        """The deadline of a PING, in the event loop's time; None if Redis has answered since."""

    async def subscribe(self, channel: bytes, listener: Listener) -> None:
        """Subscribe, and return when every message published from now on will arrive.

        A channel has only one listener.

        Raises:
            StoreUnavailableError: Redis does not confirm, or the channel is unsubscribed first.
        """
        self._listeners[channel] = listener
        self._reject(self._confirmations.pop(channel, None))
        confirmed = self._confirmations[channel] = asyncio.get_running_loop().create_future()
        self._enqueue("SUBSCRIBE", channel)
        self._ensure_running()
        try:
            async with asyncio.timeout(self._answer_seconds):
                await confirmed
        except BaseException as error:
            if self._listeners.get(channel) is listener:
                self.unsubscribe(channel)
            if isinstance(error, TimeoutError):
                self.reconnect()
                raise StoreUnavailableError(_UNAVAILABLE) from error
            raise

    def unsubscribe(self, channel: bytes) -> None:
        """Stop calling the channel's listener. No-op if there is none."""
        self._reject(self._confirmations.pop(channel, None))
        self._confirmed_listeners.pop(channel, None)
        if self._listeners.pop(channel, None) is not None:
            self._enqueue("UNSUBSCRIBE", channel)

    def check(self) -> None:
        """Find out whether the connection is dead without an error. Call it regularly."""
        self._ensure_running()
        if self._connection is None:
            return
        now = asyncio.get_running_loop().time()
        if self._answer_due_at is None:
            self._answer_due_at = now + self._answer_seconds
            self._enqueue("PING", b"")
        elif now >= self._answer_due_at:
            self.reconnect()

    def reconnect(self) -> None:
        """Drop the connection, if there is one, and open a new one immediately.

        This cancels the reading task instead of closing the connection, because unsent data would
        delay the close of a dead connection, and the reader would not notice.
        """
        if self._read_task is not None:
            self._read_task.cancel()

    async def aclose(self) -> None:
        self._listeners.clear()
        self._reject_waiting()
        if self._run_task is not None:
            self._run_task.cancel()
            await asyncio.wait([self._run_task])

    def _ensure_running(self) -> None:
        if self._listeners and (self._run_task is None or self._run_task.done()):
            self._run_task = asyncio.create_task(self._run(), name="log subscriber")

    def _enqueue(self, verb: str, channel: bytes) -> None:
        """Send the command after the earlier ones; neighbours with the same verb share one."""
        if self._connection is None:
            return  # The next connection subscribes to every wanted channel.
        self._outbox.append((verb, channel))
        if self._send_task is None or self._send_task.done():
            self._send_task = asyncio.create_task(self._send(self._connection), name="log send")

    async def _send(self, connection: AbstractConnection) -> None:
        try:
            while self._outbox:
                outbox, self._outbox = self._outbox, []
                for verb, commands in groupby(outbox, key=itemgetter(0)):
                    channels = [channel for _, channel in commands]
                    for start in range(0, len(channels), _CHANNELS_AT_ONCE):
                        if not connection.is_connected:  # Sending would reconnect it.
                            self.reconnect()
                            return
                        part = channels[start : start + _CHANNELS_AT_ONCE]
                        named = part[:0] if verb == "PING" else part
                        await connection.send_command(verb, *named, check_health=False)
        except FAILURES:
            self.reconnect()

    async def _run(self) -> None:
        backoff = retry_backoff()
        while self._listeners:
            try:
                async with asyncio.timeout(self._answer_seconds):
                    connection = await self._client.acquire_connection()
            except FAILURES:
                self._reject_waiting()
                await backoff.wait()
                continue
            backoff.reset()
            self._read_task = asyncio.create_task(self._receive(connection), name="log receive")
            try:
                await asyncio.wait([self._read_task])
            finally:
                await self._drop(connection)
            await backoff.wait()

    async def _drop(self, connection: AbstractConnection) -> None:
        """End the tasks of the connection, then the connection itself."""
        self._connection = None
        self._confirmed_listeners.clear()
        self._outbox.clear()
        self._answer_due_at = None
        read_task, self._read_task = self._read_task, None
        send_task, self._send_task = self._send_task, None
        for task in read_task, send_task:
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
                error = None if task.cancelled() else task.exception()
                if error is not None and not isinstance(error, FAILURES):
                    report_defect(error)
        await self._client.release_connection(connection)

    async def _receive(self, connection: AbstractConnection) -> None:
        self._connection = connection
        for channel in self._listeners:
            self._enqueue("SUBSCRIBE", channel)
        while True:
            kind, *rest = await connection.read_response(timeout=math.inf)
            self._answer_due_at = None
            if kind == b"message":
                channel, message = rest
                listener = self._confirmed_listeners.get(channel)
                if listener is not None:
                    listener(message)
            elif kind == b"subscribe":
                self._confirm(rest[0])

    def _confirm(self, channel: bytes) -> None:
        listener = self._listeners.get(channel)
        if listener is None:
            return
        self._confirmed_listeners[channel] = listener
        confirmation = self._confirmations.pop(channel, None)
        if confirmation is None:
            self._on_resumed(channel)
        elif not confirmation.done():
            confirmation.set_result(None)

    def _reject_waiting(self) -> None:
        confirmations, self._confirmations = self._confirmations, {}
        for channel, confirmed in confirmations.items():
            self._listeners.pop(channel, None)
            self._reject(confirmed)

    @staticmethod
    def _reject(confirmed: "asyncio.Future[None] | None") -> None:
        if confirmed is not None and not confirmed.done():
            confirmed.set_exception(StoreUnavailableError(_UNAVAILABLE))


def retry_backoff() -> Backoff:
    """Return the waits of a loop that asks Redis until it answers."""
    return Backoff(first_seconds=0.05, longest_seconds=1.0)


def report_defect(error: BaseException) -> None:
    """Report a defect in a background task that continues, so that it is not silent."""
    context = {"message": "A task that follows the event log failed.", "exception": error}
    asyncio.get_running_loop().call_exception_handler(context)


async def run_all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all of ``works``, and report the defects of single ones."""
    for failure in await asyncio.gather(*works, return_exceptions=True):
        if failure is not None:
            report_defect(failure)
