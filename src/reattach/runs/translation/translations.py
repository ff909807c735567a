"""The translations of a process: computed once for all readers, and kept within a bound."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

from reattach.domain.errors import CursorAheadError
from reattach.domain.ids import RunId, Seq
from reattach.domain.limits import REPLAY_SLICE_EVENTS, TRANSLATIONS_BYTES
from reattach.log.base import Slice
from reattach.records.base import Target
from reattach.runs.following.follow import Following, Watch, remainder_of
from reattach.runs.translation.frames import Translator
from reattach.runs.translation.translation import Translation
from reattach.wire.dialects.dialect import Dialect, Fold, RunFacts


class _Follow(Protocol):
    """``RunService.follow``."""

    def __call__(
        self, target: Target, cursor: int, *, prefetches: bool
    ) -> Awaitable[Following]: ...


class Translations:
    """All runs that are read in another dialect in this process.

    The newest stay in memory up to ``max_bytes``, so a second reader of a run translates nothing.
    Those with readers are never dropped.
    """

    def __init__(
        self, follow: _Follow, watch: Watch, *, max_bytes: int = TRANSLATIONS_BYTES
    ) -> None:
        self._follow = follow
        self._watch = watch
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[RunId, str], Translation] = OrderedDict()
        """The least recently used first."""

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)

    async def follow(
        self,
        target: Target,
        dialect: Dialect,
        facts: RunFacts,
        cursor: int,
        *,
        max_events: int = REPLAY_SLICE_EVENTS,
    ) -> Following:
        """Follow a run in a dialect, from ``cursor`` frames on to the end of the run.

        Raises:
            CursorAheadError: The run is open and has no frame at the cursor yet.
            ExpiredError: The first events of the run are gone, so its frames cannot be computed.
            StoreUnavailableError: The log does not answer.
        """
        using = self._using(target, dialect, facts)
        translation = await using.__aenter__()
        try:
            await translation.open()
            if cursor > translation.tail.last_seq and not translation.tail.closed:
                raise _ahead(dialect, target.run_id, cursor, translation.tail.last_seq)
            return translation.reader(Seq(cursor), using, max_events=max_events)
        except BaseException:
            await using.__aexit__(None, None, None)
            raise

    @asynccontextmanager
    async def state(self, target: Target, dialect: Dialect, facts: RunFacts) -> AsyncIterator[Fold]:
        """Yield the state of a dialect at the newest event of a run.

        Raises:
            ExpiredError: The first events of the run are gone.
            StoreUnavailableError: The log does not answer.
        """
        async with self._using(target, dialect, facts) as translation:
            await translation.open()
            yield translation.fold

    def forget(self, run_id: RunId) -> None:
        """Drop what is in memory of a deleted run, except what is in use."""
        for key, translation in tuple(self._kept.items()):
            if key[0] == run_id and not translation.users:
                del self._kept[key]

    def remainder(
        self, target: Target, dialect: Dialect, cursor: int, *, max_events: int
    ) -> Slice | None:
        """Return everything after ``cursor`` of an ended run if that is in memory and short.

        None is always a valid result; then use ``follow``.
        """
        translation = self._kept.get((target.run_id, dialect.name))
        if translation is None or not translation.is_whole or target.status.is_active:
            return None
        if target.log_deleted:
            return None
        return remainder_of(translation.tail, Seq(cursor), max_events=max_events)

    @asynccontextmanager
    async def _using(
        self, target: Target, dialect: Dialect, facts: RunFacts
    ) -> AsyncIterator[Translation]:
        key = (target.run_id, dialect.name)
        if target.log_deleted:  # Nobody reads on from memory, only those who read already (P14).
            self._kept.pop(key, None)
        translation = self._kept.get(key)
        if translation is None:
            make = partial(Translator, dialect, facts)
            follow = partial(self._follow, prefetches=False)
            translation = self._kept[key] = Translation(target, make, follow, self._watch)
        self._kept.move_to_end(key)
        translation.users += 1
        try:
            yield translation
        finally:
            translation.users -= 1
            if not translation.users:
                await asyncio.shield(translation.close())
            self._evict()

    def _evict(self) -> None:
        """Drop the least recently used translations beyond the bound, except those in use."""
        excess_bytes = self.size_bytes - self._max_bytes
        for key, translation in tuple(self._kept.items()):
            if excess_bytes <= 0:
                return
            if not translation.users:
                excess_bytes -= translation.size_bytes
                del self._kept[key]


def _ahead(dialect: Dialect, run_id: RunId, cursor: int, last_seq: Seq) -> CursorAheadError:
    """Return the error for a cursor, in the numbers and the word of the dialect's clients."""
    first = dialect.first_cursor
    return CursorAheadError(run_id, first + cursor, first + last_seq, name=dialect.cursor_name)
