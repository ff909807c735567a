"""What happens to runs in other processes: one connection, whatever is listened to."""

import asyncio
import math
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from typing import Final

from redis.asyncio.connection import AbstractConnection

from reattach.domain.errors import StoreUnavailableError
from reattach.log.redis.client import FAILURES, RedisClient, report_defect

_UNAVAILABLE: Final = "The event log can not be followed at present. Try again in a moment."
_FIRST_DELAY_SECONDS: Final = 0.05
_LONGEST_DELAY_SECONDS: Final = 1.0
_CHANNELS_AT_ONCE: Final = 500
"""Channels of one command, so that Redis does other things in between."""

Listener = Callable[[bytes], None]


class Subscriber:
    """Listens to channels on one connection, which it makes when first needed, and anew when lost.

    Notifications may be lost while there is no connection: ``on_resumed(channel)`` is called as
    soon as the channel is listened to again.
    Listeners are called in the event loop, in the order of publication.
    """

    def __init__(
        self, client: RedisClient, *, answer_seconds: float, on_resumed: Callable[[bytes], None]
    ) -> None:
        self._client = client
        self._answer_seconds = answer_seconds
        self._on_resumed = on_resumed
        self._wanted: dict[bytes, Listener] = {}
        self._confirmed: dict[bytes, Listener] = {}
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._outbox: list[tuple[str, bytes]] = []
        self._connection: AbstractConnection | None = None
        """The present one, from when it is made until it is given up."""
        self._receiving: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        """These two belong to the present connection, and end before the next one is made."""
        self._answer_due_at: float | None = None
        """In the event loop's time; None if Redis has spoken since it was asked to."""

    async def subscribe(self, channel: bytes, listener: Listener) -> None:
        """Return when whatever is published from now on will be heard.

        Only one listener a channel. Raises StoreUnavailableError when Redis does not confirm it,
        and when it is not wanted any more before that.
        """
        self._wanted[channel] = listener
        self._refuse(self._waiting.pop(channel, None))
        confirmed = self._waiting[channel] = asyncio.get_running_loop().create_future()
        self._post("SUBSCRIBE", channel)
        self._keep_receiving()
        try:
            async with asyncio.timeout(self._answer_seconds):
                await confirmed
        except BaseException as error:
            if self._wanted.get(channel) is listener:
                self.unsubscribe(channel)
            if isinstance(error, TimeoutError):
                self.reconnect()
                raise StoreUnavailableError(_UNAVAILABLE) from error
            raise

    def unsubscribe(self, channel: bytes) -> None:
        """Call the channel's listener no more. No-op if there is none."""
        self._refuse(self._waiting.pop(channel, None))
        self._confirmed.pop(channel, None)
        if self._wanted.pop(channel, None) is not None:
            self._post("UNSUBSCRIBE", channel)

    def check(self) -> None:
        """To be called now and then: finds out whether the connection is dead without a word."""
        self._keep_receiving()
        if self._connection is None:
            return
        now = asyncio.get_running_loop().time()
        if self._answer_due_at is None:
            self._answer_due_at = now + self._answer_seconds
            self._post("PING", b"")
        elif now >= self._answer_due_at:
            self.reconnect()

    def reconnect(self) -> None:
        """Give up the connection if there is one; a new one is made at once.

        Who reads is ended rather than the connection closed under it: what is still to be sent on
        a dead connection would keep it from being closed, and the reader from noticing.
        """
        if self._reading is not None:
            self._reading.cancel()

    async def aclose(self) -> None:
        self._wanted.clear()
        self._refuse_waiting()
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.wait([self._receiving])

    def _keep_receiving(self) -> None:
        if self._wanted and (self._receiving is None or self._receiving.done()):
            self._receiving = asyncio.create_task(self._receive_always(), name="log news")

    def _post(self, verb: str, channel: bytes) -> None:
        """Send it after what was posted before, in one command with its neighbours."""
        if self._connection is None:
            return  # What is wanted is asked for when there is a connection.
        self._outbox.append((verb, channel))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(self._connection), name="log news out")

    async def _send(self, connection: AbstractConnection) -> None:
        try:
            while self._outbox:
                outbox, self._outbox = self._outbox, []
                for verb, posts in groupby(outbox, key=itemgetter(0)):
                    channels = [channel for _, channel in posts]
                    for start in range(0, len(channels), _CHANNELS_AT_ONCE):
                        if not connection.is_connected:  # It would make another on its own.
                            self.reconnect()
                            return
                        part = channels[start : start + _CHANNELS_AT_ONCE]
                        named = part[:0] if verb == "PING" else part
                        await connection.send_command(verb, *named, check_health=False)
        except FAILURES:
            self.reconnect()

    async def _receive_always(self) -> None:
        delay_seconds = 0.0
        while self._wanted:
            try:
                async with asyncio.timeout(self._answer_seconds):
                    connection = await self._client.acquire_connection()
            except FAILURES:
                self._refuse_waiting()
                delay_seconds = min(
                    max(2 * delay_seconds, _FIRST_DELAY_SECONDS), _LONGEST_DELAY_SECONDS
                )
                await asyncio.sleep(delay_seconds)
                continue
            delay_seconds = _FIRST_DELAY_SECONDS
            self._reading = asyncio.create_task(self._receive(connection), name="log news in")
            try:
                await asyncio.wait([self._reading])
            finally:
                await self._give_up(connection)
            await asyncio.sleep(delay_seconds)

    async def _give_up(self, connection: AbstractConnection) -> None:
        """End what uses the connection, then the connection, so that the next one is its own."""
        self._connection = None
        self._confirmed.clear()
        self._outbox.clear()
        self._answer_due_at = None
        reading, self._reading = self._reading, None
        sending, self._sending = self._sending, None
        for task in reading, sending:
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
                error = None if task.cancelled() else task.exception()
                if error is not None and not isinstance(error, FAILURES):
                    report_defect(error)
        await self._client.release_connection(connection)

    async def _receive(self, connection: AbstractConnection) -> None:
        self._connection = connection
        for channel in self._wanted:
            self._post("SUBSCRIBE", channel)
        while True:
            kind, *rest = await connection.read_response(timeout=math.inf)
            self._answer_due_at = None
            if kind == b"message":
                channel, news = rest
                listener = self._confirmed.get(channel)
                if listener is not None:
                    listener(news)
            elif kind == b"subscribe":
                self._confirm(rest[0])

    def _confirm(self, channel: bytes) -> None:
        listener = self._wanted.get(channel)
        if listener is None:
            return
        self._confirmed[channel] = listener
        waiting = self._waiting.pop(channel, None)
        if waiting is None:
            self._on_resumed(channel)
        elif not waiting.done():
            waiting.set_result(None)

    def _refuse_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for channel, confirmed in waiting.items():
            self._wanted.pop(channel, None)
            self._refuse(confirmed)

    @staticmethod
    def _refuse(confirmed: "asyncio.Future[None] | None") -> None:
        if confirmed is not None and not confirmed.done():
            confirmed.set_exception(StoreUnavailableError(_UNAVAILABLE))
