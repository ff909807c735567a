"""The note of the clock, and the pause of deletion that processes learn from it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from reattach.records.clocks.notes import ClockNote
from reattach.records.records import Records
from reattach.runs.ownership.retention import Retention
from tests.support.clocks import NOON, JumpClock
from tests.support.record_samples import World, at

HOUR = 3600.0
DAY = timedelta(hours=24)
NOTE = ClockNote("boot-1", at(1.5), 2.25, is_steady=True)


async def test_the_last_note_replaces_the_one_before(
    records: Records, other_process: Records
) -> None:
    assert await records.clock_notes.latest() is None
    for note in (NOTE, replace(NOTE, is_steady=False), ClockNote(None, NOON, 0.0, is_steady=True)):
        await records.clock_notes.keep(note)
        assert await other_process.clock_notes.latest() == note


@pytest.mark.promise("P14")
@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
async def test_a_process_that_starts_during_the_pause_keeps_it(
    world: World, other_process: Records, boot: str
) -> None:
    """C9: it runs on the same machine as the one that saw the jump, or on another one."""
    clock = JumpClock()
    watching = Retention(world.records, clock, DAY, "boot-1")
    await watching.check_clock()
    clock.jump(-25 * HOUR)
    await watching.check_clock()
    run_id, _ = await world.turn("hello", completed_at=clock.now())
    clock.jump(25 * HOUR)
    started = Retention(other_process, clock, DAY, boot)
    assert await started.find_expired(10) == []
    clock.leap(23 * HOUR)
    assert await started.find_expired(10) == []
    clock.leap(1 * HOUR + 2)
    assert await started.find_expired(10) == [run_id]
    assert await Retention(other_process, clock, DAY, "boot-3").find_expired(10) == [run_id]
