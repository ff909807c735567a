"""Frames of closed runs that came with the last slice, for the reader that goes on there."""

from collections import OrderedDict
from typing import Final

from reattach.domain.ids import Seq
from reattach.log.redis.pages import Page
from reattach.log.redis.run_state import LocalRun
from reattach.log.tail import Pieces, Slice

PAGE_BYTES: Final = 512 * 1024
"""The most bytes that are read at a time for a reader that goes on. It blocks Redis for under two
milliseconds, and each page costs this process a tenth of one."""
PAGE_EVENTS: Final = 10_000

_PAGES: Final = 16
"""The most pages in memory. A reader that stalls may lose its page, and reads it again."""


class ReadAhead:
    """The last pages, one for each run with a single reader."""

    def __init__(self) -> None:
        self._pages: OrderedDict[LocalRun, Page] = OrderedDict()

    def put(self, run: LocalRun, page: Page) -> None:
        """Keep a page in place of the run's last one."""
        self._pages[run] = page
        self._pages.move_to_end(run)
        if len(self._pages) > _PAGES:
            self._pages.popitem(last=False)

    def has(self, run: LocalRun, after_seq: Seq) -> bool:
        """Whether the next frames are here."""
        page = self._pages.get(run)
        return page is not None and page.first_seq <= after_seq + 1 <= page.last_seq

    def slice(
        self, run: LocalRun, after_seq: Seq, *, max_bytes: int, max_events: int
    ) -> Slice | None:
        """Return the next frames if they are here, and drop a page that has been read."""
        found = self.pieces(run, after_seq, max_bytes=max_bytes, max_events=max_events)
        if found is None:
            return None
        return Slice(after_seq + 1, found.last_seq, b"".join(found.frames))

    def pieces(
        self, run: LocalRun, after_seq: Seq, *, max_bytes: int, max_events: int
    ) -> Pieces | None:
        """Return the frames of ``slice`` in the pieces in which they came."""
        page = self._pages.get(run)
        if page is None:
            return None
        found = page.pieces(after_seq, max_bytes=max_bytes, max_events=max_events)
        if found is None or found.last_seq >= page.last_seq:
            del self._pages[run]
        return found

    def drop(self, run: LocalRun) -> None:
        self._pages.pop(run, None)
