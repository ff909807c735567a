"""Frames of closed runs that came with the last slice, for the reader that goes on there."""

from array import array
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from reattach.domain.ids import Seq
from reattach.log.redis.run_state import LocalRun
from reattach.log.tail import Slice, stop_of

PAGE_BYTES: Final = 512 * 1024
"""The most bytes that are read at a time for a reader that goes on. It blocks Redis for under two
milliseconds, and each page costs this process a tenth of one."""
PAGE_EVENTS: Final = 10_000

_PAGES: Final = 16
"""The most pages in memory. A reader that stalls may lose its page, and reads it again."""


@dataclass(frozen=True, slots=True)
class Page:
    """Joined frames from ``first_seq`` on. ``ends`` are offsets into ``frames``."""

    first_seq: Seq
    frames: bytes
    ends: "array[int]"

    @property
    def last_seq(self) -> Seq:
        return Seq(self.first_seq + len(self.ends) - 1)

    def slice(self, after_seq: Seq, *, max_bytes: int, max_events: int) -> Slice | None:
        """Return frames from ``after_seq + 1`` on, within the bounds of ``Log.read``.

        None if the page does not have that frame.
        """
        ends, start = self.ends, after_seq + 1 - self.first_seq
        if not 0 <= start < len(ends):
            return None
        begin = ends[start - 1] if start else 0
        stop = stop_of(ends, start, begin, max_bytes=max_bytes, max_events=max_events)
        return Slice(after_seq + 1, self.first_seq + stop - 1, self.frames[begin : ends[stop - 1]])


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

    def slice(
        self, run: LocalRun, after_seq: Seq, *, max_bytes: int, max_events: int
    ) -> Slice | None:
        """Return the next frames if they are here, and drop a page that has been read."""
        page = self._pages.get(run)
        if page is None:
            return None
        piece = page.slice(after_seq, max_bytes=max_bytes, max_events=max_events)
        if piece is None or piece.last_seq >= page.last_seq:
            del self._pages[run]
        return piece

    def drop(self, run: LocalRun) -> None:
        self._pages.pop(run, None)
