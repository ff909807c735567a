"""When the events of a run came: collected from all its owners, of which one may still write."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog

from reattach.domain.errors import ReattachError
from reattach.domain.ids import RunId, Seq
from reattach.log.base import Head
from reattach.log.commit_times import (
    Gap,
    Stretch,
    decode_stretch,
    encode_stretch,
    longest,
    thinned,
)
from reattach.records.base import Run, Target
from reattach.records.records import Records
from reattach.records.runs.notifications import TimelineKept, TimelineWanted
from reattach.runs.driver import RunDriver
from reattach.single_flight import SingleFlight

logger = structlog.get_logger(__name__)

ANSWER_SECONDS: Final = 1.0
"""How long another process may take to write the times of a run that it drives."""

SILENT_SECONDS: Final = 10.0
"""How long an owner that did not answer is not asked again."""

_MILLISECOND: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Timeline:
    """The times of a run's events, as far as they are recorded."""

    began_at: datetime
    """The time at which the run was created."""
    commits: Sequence[tuple[Seq, datetime]]
    """Each with the last event that came then."""
    gaps: Sequence[Gap]
    """The longest times without events, the longest first."""
    missing: Sequence[tuple[Seq, Seq]]
    """The first and last events of each part without times, because its owner was killed."""


class Timelines:
    """Collects when the events of runs came.

    The owner of an open run has the times of its own events in memory. If that is another process,
    it is asked to write them.
    """

    def __init__(self, records: Records, drivers: Mapping[str, RunDriver]) -> None:
        self._records = records
        self._drivers = drivers
        self._asking: SingleFlight[RunId, None] = SingleFlight("timeline of an open run")
        self._answers: dict[RunId, asyncio.Event] = {}
        self._silent_since: dict[RunId, float] = {}
        """When the owners of runs did not answer."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def stretches(self, target: Target) -> Sequence[Stretch]:
        """Return the commits of each owner of the run, in the order of the events.

        Raises:
            StoreUnavailableError: The records do not answer.
        """
        run_id = target.run_id
        is_elsewhere = target.status.is_active and run_id not in self._drivers
        if is_elsewhere and self._records.shared and not self._is_silent(run_id):
            await self._asking.do(run_id, partial(self._ask, run_id))
        kept = {
            token: stretch
            for token, text in await self._records.timelines.of_run(run_id)
            if (stretch := _decoded(run_id, text)) is not None
        }
        driver = self._drivers.get(run_id)
        own = None if driver is None else driver.stretch
        if driver is not None and own is not None:
            kept[driver.run.token] = own
        return [kept[token] for token in sorted(kept)]

    async def _ask(self, run_id: RunId) -> None:
        """Let the owner of the run write its commits; give up after ANSWER_SECONDS."""
        answered = self._answers[run_id] = asyncio.Event()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._records.timelines.ask(run_id)
                await answered.wait()
        except TimeoutError:  # The owner is gone or busy: show what it wrote before.
            self._silent_since[run_id] = asyncio.get_running_loop().time()
        finally:
            del self._answers[run_id]

    def _is_silent(self, run_id: RunId) -> bool:
        """Whether the owner of the run did not answer lately, so that asking only takes time."""
        now = asyncio.get_running_loop().time()
        for asked, at in list(self._silent_since.items()):
            if now - at > SILENT_SECONDS:
                del self._silent_since[asked]
        return run_id in self._silent_since

    def handle(self, notification: TimelineWanted | TimelineKept) -> None:
        """Write the commits of a run that this process drives, or note that another one has."""
        run_id = notification.run_id
        if isinstance(notification, TimelineWanted):
            self._answer(run_id)
        elif (answered := self._answers.get(run_id)) is not None:
            answered.set()

    def _answer(self, run_id: RunId) -> None:
        driver = self._drivers.get(run_id)
        if driver is not None:
            task = asyncio.create_task(self._keep(driver.run, driver.stretch), name="keep timeline")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _keep(self, run: Run, stretch: Stretch | None) -> None:
        commits = None if stretch is None else encode_stretch(stretch)
        with suppress(ReattachError):  # The asker shows what there is.
            await self._records.timelines.keep(run.id, run.token, commits)


def _decoded(run_id: RunId, text: str) -> Stretch | None:
    try:
        return decode_stretch(text)
    except ValueError as error:
        logger.warning("times of events are damaged", run_id=run_id, reason=str(error))
        return None


def time_of(stretches: Sequence[Stretch], seq: Seq) -> datetime | None:
    """Return when the event was in the log; None if that is not recorded."""
    for stretch in stretches:
        if (at := stretch.at(seq)) is not None:
            return at
    return None


def join(run: Run, head: Head, stretches: Sequence[Stretch], most: int) -> Timeline:
    """Return the timeline of the run, with at most ``most`` commits."""
    commits: list[tuple[Seq, datetime]] = []
    gaps: list[Gap] = []
    missing: list[tuple[Seq, Seq]] = []
    known_seq, last_at = head.first_seq - 1, run.created_at
    for stretch in stretches:
        if stretch.after_seq > known_seq:
            missing.append((known_seq + 1, stretch.after_seq))
        else:
            waited = stretch.time_of(0) - last_at
            gaps.append(Gap(stretch.after_seq, waited // _MILLISECOND))
        for place, seq in enumerate(stretch.seqs):
            last_at = max(stretch.time_of(place), last_at)  # Clocks of two processes may differ.
            commits.append((Seq(seq), last_at))
        gaps += stretch.gaps
        known_seq = max(known_seq, stretch.last_seq)
    if known_seq < head.last_seq:
        missing.append((known_seq + 1, head.last_seq))
    gaps = longest(gaps)
    at_ms = [(at - run.created_at) // _MILLISECOND for _, at in commits]
    places = thinned([seq for seq, _ in commits], at_ms, gaps, most)
    return Timeline(run.created_at, [commits[place] for place in places], gaps, missing)
