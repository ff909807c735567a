"""What happens to runs in other processes: one connection, whatever is listened to."""

import asyncio
import math
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from typing import Final

from redis.asyncio.connection import AbstractConnection

from reattach.errors import StoreUnavailableError
from reattach.log.redis_server import FAILURES, RedisServer

_UNAVAILABLE: Final = "The event log can not be followed at present. Try again in a moment."
_FIRST_DELAY_SECONDS: Final = 0.05
_LONGEST_DELAY_SECONDS: Final = 1.0
_CHANNELS_AT_ONCE: Final = 500
"""Channels of one command, so that Redis does other things in between."""

Listener = Callable[[bytes], None]


class Subscriber:
    """Listens to channels on one connection, which it makes when first needed, and anew when lost.

    News may be lost while there is no connection: ``on_resumed(channel)`` is called as soon as
    the channel is listened to again. Listeners are called in the event loop, in the order in
    which Redis published.
    """

    def __init__(
        self, server: RedisServer, *, answer_seconds: float, on_resumed: Callable[[bytes], None]
    ) -> None:
        self._server = server
        self._answer_seconds = answer_seconds
        self._on_resumed = on_resumed
        self._wanted: dict[bytes, Listener] = {}
        self._confirmed: dict[bytes, Listener] = {}
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._outbox: list[tuple[str, bytes]] = []
        self._connection: AbstractConnection | None = None
        self._receiving: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._is_answer_due = False

    async def subscribe(self, channel: bytes, listener: Listener) -> None:
        """Return when whatever is published from now on will be heard.

        Only one listener a channel. Raises StoreUnavailableError when Redis does not confirm it.
        """
        self._wanted[channel] = listener
        self._refuse(self._waiting.pop(channel, None))
        confirmed = self._waiting[channel] = asyncio.get_running_loop().create_future()
        self._post("SUBSCRIBE", channel)
        if self._receiving is None or self._receiving.done():
            self._receiving = asyncio.create_task(self._receive_always(), name="log news")
        try:
            async with asyncio.timeout(self._answer_seconds):
                await confirmed
        except BaseException as error:
            if self._wanted.get(channel) is listener:
                self.unsubscribe(channel)
            if isinstance(error, TimeoutError):
                await self.reconnect()
                raise StoreUnavailableError(_UNAVAILABLE) from error
            raise

    def unsubscribe(self, channel: bytes) -> None:
        """Call the channel's listener no more. No-op if there is none."""
        self._waiting.pop(channel, None)
        self._confirmed.pop(channel, None)
        if self._wanted.pop(channel, None) is not None:
            self._post("UNSUBSCRIBE", channel)

    async def check(self) -> None:
        """To be called now and then: finds out whether the connection is dead without a word."""
        if self._connection is None:
            return
        if self._is_answer_due:
            await self.reconnect()
        else:
            self._is_answer_due = True
            self._post("PING", b"")

    async def reconnect(self) -> None:
        """Give up the connection; a new one is made at once."""
        self._is_answer_due = False
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        self._wanted.clear()
        self._refuse_waiting()
        for task in self._sending, self._receiving:
            if task is not None:
                task.cancel()
                await asyncio.wait([task])

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
                        part = channels[start : start + _CHANNELS_AT_ONCE]
                        named = part[:0] if verb == "PING" else part
                        await connection.send_command(verb, *named, check_health=False)
        except FAILURES:
            return  # Whoever receives has noticed.

    async def _receive_always(self) -> None:
        delay_seconds = 0.0
        while self._wanted:
            try:
                async with asyncio.timeout(self._answer_seconds):
                    connection = await self._server.listen()
            except FAILURES:
                self._refuse_waiting()
                delay_seconds = min(
                    max(2 * delay_seconds, _FIRST_DELAY_SECONDS), _LONGEST_DELAY_SECONDS
                )
                await asyncio.sleep(delay_seconds)
                continue
            delay_seconds = _FIRST_DELAY_SECONDS
            try:
                await self._receive(connection)
            except FAILURES:
                await asyncio.sleep(delay_seconds)
            finally:
                self._connection = None
                self._confirmed.clear()
                self._outbox.clear()
                self._is_answer_due = False
                await self._server.stop_listening(connection)

    async def _receive(self, connection: AbstractConnection) -> None:
        self._connection = connection
        for channel in self._wanted:
            self._post("SUBSCRIBE", channel)
        while True:
            kind, *rest = await connection.read_response(timeout=math.inf)
            self._is_answer_due = False
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
