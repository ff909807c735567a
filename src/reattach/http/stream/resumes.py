"""Counts of resumes, by where the client was."""

from reattach.domain.errors import CursorAheadError, ExpiredError, ReattachError
from reattach.meters.meters import Meters
from reattach.runs.following.follow import Following


def count_resume(meters: Meters, following: Following, wanted: int, kind: str = "") -> None:
    """Count a client that follows a run from the cursor ``wanted``, or in another way, ``kind``."""
    missed = following.last_seq - following.cursor
    count_position(meters, wanted, following.last_seq, missed, kind)


def count_position(meters: Meters, wanted: int, last_seq: int, missed: int, kind: str = "") -> None:
    """Count a client that asked for the events after ``wanted``, of which ``missed`` exist.

    In an ended run, a cursor after the last event is followed like the end.
    """
    if not kind:
        kind = _kind(wanted, last_seq, missed)
    meters.resumes.add(kind)
    meters.resume_events.observe(max(missed, 0))


def _kind(wanted: int, last_seq: int, missed: int) -> str:
    if wanted <= 0:
        return "start"
    if wanted > last_seq:
        return "ahead"
    return "middle" if missed > 0 else "end"


def count_failed_resume(meters: Meters, error: ReattachError) -> None:
    """Count a client whose events are gone, or whose cursor is ahead of the log."""
    if isinstance(error, CursorAheadError):
        meters.resumes.add("ahead")
    elif isinstance(error, ExpiredError):
        meters.resumes.add("gone")
