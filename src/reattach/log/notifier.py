"""When listeners are told what is new: at once, and a few at a time where they are many."""

import asyncio
import time
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

Listener = Callable[[], None]
"""To be called when something has changed. It neither raises nor blocks, and looks for itself."""

_LEAST_SECONDS: Final = 0.001
"""How long listeners are told before others have the event loop, at least."""

_AT_ONCE: Final = 16
"""How many are told before there is a look at the clock."""


class Notifier:
    """Tells listeners that something is new, in the order in which they began to wait for that.

    Whoever waits already is not noted again: one who is told late is told once for all that
    happened until then, and then stands behind those who wait longer. So a listener waits at most
    for one call of each of the others, however much happens.

    Between two listeners others may have the event loop, and those who are told are told for as
    long as these have had it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Listener, None] = {}
        self._is_due = False
        self._left_at = 0.0

    def note(self, listeners: Mapping[Listener, None]) -> None:
        """Tell them soon."""
        if listeners:
            self._waiting.update(listeners)
            self._be_due()

    def forget(self, listener: Listener) -> None:
        """Tell it no more, if it waits."""
        self._waiting.pop(listener, None)

    def tell(self) -> None:
        """Tell the first of those who wait now: for one who has noted all that there is."""
        begin = now = time.monotonic()
        until = begin + max(begin - self._left_at, _LEAST_SECONDS)
        while self._waiting and now < until:
            for listener in tuple(islice(self._waiting, _AT_ONCE)):
                if listener in self._waiting:
                    del self._waiting[listener]
                    listener()
            now = time.monotonic()
        self._left_at = now
        if self._waiting:
            self._be_due()

    def _be_due(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_due = False
        if self._waiting:
            self.tell()
