"""The times at which a run's events were in its log: one for each append, not for each event."""

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from heapq import nlargest
from typing import Final, NamedTuple

import msgspec

from reattach.domain.clock import Clock
from reattach.domain.ids import Seq

MAX_COMMITS: Final = 1024
"""The commits that are kept of one owner's work on a run. Memory holds up to twice as many."""

MAX_GAPS: Final = 50
"""The longest gaps, which are always kept."""


_MAX_MS: Final = 10**13
"""Three hundred years."""


class Gap(NamedTuple):
    """A time without events."""

    after_seq: Seq
    milliseconds: int


class Stretch(msgspec.Struct, frozen=True, array_like=True):
    """The commits of one owner of a run, as they are stored."""

    began_at: datetime
    """The wall time from which ``at_ms`` counts."""
    after_seq: Seq
    """The last event in the log before the first of these commits."""
    seqs: tuple[int, ...]
    """The last event of each commit."""
    at_ms: tuple[int, ...]
    """The time of each commit."""
    gaps: tuple[Gap, ...]
    """The longest times between two commits, the longest first."""

    @property
    def last_seq(self) -> Seq:
        """The last event whose time is known."""
        return Seq(self.seqs[-1]) if self.seqs else self.after_seq

    def time_of(self, place: int) -> datetime:
        """Return the time of the commit at this place."""
        return self.began_at + timedelta(milliseconds=self.at_ms[place])

    def at(self, seq: Seq) -> datetime | None:
        """Return when this event was in the log; None if another owner wrote it.

        Where commits were left out, it is the time of the next one that was kept.
        """
        place = bisect_left(self.seqs, seq)
        if seq <= self.after_seq or place == len(self.seqs):
            return None
        return self.time_of(place)


def encode_stretch(stretch: Stretch) -> str:
    """Return the text from which ``decode_stretch`` makes the stretch again."""
    return msgspec.json.encode(stretch).decode()


def decode_stretch(text: str) -> Stretch:
    """Return the stretch of the text.

    Raises:
        ValueError: The text is damaged.
    """
    stretch = msgspec.json.decode(text, type=Stretch)
    if len(stretch.seqs) != len(stretch.at_ms):
        raise ValueError("A commit has no time.")
    if not all(0 <= ms < _MAX_MS for ms in stretch.at_ms):
        raise ValueError("A commit has an impossible time.")
    return stretch


class CommitTimes:
    """The times of the appends of one owner, in bounded memory.

    Beyond twice MAX_COMMITS, commits are left out so that the rest is spread evenly over time. The
    longest gaps and the commits at both ends of them stay.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._monotonic_seconds = clock.monotonic_seconds
        self._began_at: datetime | None = None
        self._base_seconds = 0.0
        self._after_seq = Seq(0)
        self._commits = array("Q")
        """The last event and the time in ms of each commit, side by side: one place in memory for
        what each append adds."""
        self._gaps: Sequence[Gap] = ()
        """The longest gaps before ``_whole_from``."""
        self._whole_from = 0
        """From this place on, no commit was left out."""

    def begin(self, after_seq: Seq) -> None:
        """Note the last event before the first commit. Later calls change nothing."""
        if self._began_at is None:
            self._began_at = self._clock.now()
            self._base_seconds = self._clock.monotonic_seconds()
            self._after_seq = after_seq

    def add(self, seq: Seq) -> None:
        """Note that the log has the events up to ``seq`` as of now."""
        commits = self._commits
        commits.append(seq)
        commits.append(int((self._monotonic_seconds() - self._base_seconds) * 1000))
        if len(commits) > 4 * MAX_COMMITS:
            self._thin()

    @property
    def first_at(self) -> datetime | None:
        """The time of the first commit; None if there is none."""
        if self._began_at is None or not self._commits:
            return None
        return self._began_at + timedelta(milliseconds=self._commits[1])

    def stretch(self) -> Stretch | None:
        """Return the commits so far, or None if there is none."""
        if self._began_at is None or not self._commits:
            return None
        if len(self._commits) > 2 * MAX_COMMITS:
            self._thin()
        return Stretch(
            self._began_at,
            self._after_seq,
            tuple(self._commits[::2]),
            tuple(self._commits[1::2]),
            tuple(self._longest_gaps()),
        )

    def _longest_gaps(self) -> list[Gap]:
        seqs, at_ms = self._commits[::2], self._commits[1::2]
        newer = (
            Gap(Seq(seqs[place]), at_ms[place + 1] - at_ms[place])
            for place in range(self._whole_from, len(seqs) - 1)
        )
        return longest([*self._gaps, *newer])

    def _thin(self) -> None:
        self._gaps = self._longest_gaps()
        commits = self._commits
        kept = thinned(commits[::2], commits[1::2], self._gaps, MAX_COMMITS)
        self._commits = array("Q")
        for place in kept:
            self._commits += commits[2 * place : 2 * place + 2]
        self._whole_from = len(kept) - 1


def longest(gaps: Iterable[Gap], most: int = MAX_GAPS) -> list[Gap]:
    """Return the longest gaps that can be seen at all, the longest first."""
    seen = (gap for gap in gaps if gap.milliseconds > 0)
    return nlargest(most, seen, key=lambda gap: (gap.milliseconds, -gap.after_seq))


def thinned(
    seqs: Sequence[int], at_ms: Sequence[int], gaps: Sequence[Gap], most: int
) -> Collection[int]:
    """Return the places of up to ``most`` commits: those around the longest gaps, and others.

    The others are spread evenly over time. ``gaps`` have the longest first.
    """
    if len(seqs) <= most:
        return range(len(seqs))
    kept = {0, len(seqs) - 1}
    for gap in gaps[: most // 4]:
        place = bisect_left(seqs, gap.after_seq)
        kept |= {min(place, len(seqs) - 1), min(place + 1, len(seqs) - 1)}
    room = max(most - len(kept), 1)
    spacing_ms = (at_ms[-1] - at_ms[0]) / room
    last_ms = at_ms[0]
    for place, now_ms in enumerate(at_ms):
        if place in kept:
            last_ms = now_ms
        elif now_ms - last_ms > spacing_ms:
            kept.add(place)
            last_ms = now_ms
    return sorted(kept)
