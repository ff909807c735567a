"""When readers are told what is new: at once, and together when telling them takes long."""

import asyncio
import time
from typing import Final, Protocol

_REST: Final = 0.25
"""How long nobody is told after a round, as a part of what that took. It bounds the share of the
event loop that telling has, so that events gather for one write to each reader, instead of a write
for each event when there is no time for them."""
_MOST_REST_SECONDS: Final = 0.025


class Told(Protocol):
    """Something with listeners."""

    def tell(self) -> None:
        """Call the listeners, which neither raise nor block."""


class Herald:
    """Tells the listeners of everything that was noted, in rounds.

    A round follows the turn of the event loop in which something was noted. While rounds are short
    that is all; one that took long is followed by a rest.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._noted: dict[Told, None] = {}
        self._rests_until = 0.0

    def note(self, told: Told) -> None:
        """Tell its listeners soon, once for all that happens until then."""
        if not self._noted:
            rest_seconds = self._rests_until - time.monotonic()
            if rest_seconds > 0:
                self._loop.call_later(rest_seconds, self._begin)
            else:
                self._loop.call_soon(self._begin)
        self._noted[told] = None

    def tell(self) -> None:
        """Begin the round now, unless there is a rest: for one who has noted all that there is."""
        if time.monotonic() >= self._rests_until:
            self._begin()

    def _begin(self) -> None:
        noted, self._noted = self._noted, {}
        if not noted:
            return
        begin = time.monotonic()
        for told in noted:
            told.tell()
        end = time.monotonic()
        self._rests_until = end + min(_REST * (end - begin), _MOST_REST_SECONDS)
