"""The times of a run's appends: exact while there are few, and bounded beyond that."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from msgspec import structs

from reattach.domain.events import RunStatus
from reattach.domain.ids import DEFAULT_TENANT, AgentId, Seq, Token, new_run_id
from reattach.log.base import Head
from reattach.log.commit_times import (
    MAX_COMMITS,
    MAX_GAPS,
    CommitTimes,
    Gap,
    Stretch,
    decode_stretch,
    encode_stretch,
)
from reattach.records.base import Run, Thread
from reattach.runs.history.timelines import join, time_of
from tests.support.clocks import NOON, LeapClock


def noted(*waits_ms: int, after_seq: int = 0) -> Stretch:
    """One event after each wait."""
    clock = LeapClock()
    times = CommitTimes(clock)
    times.begin(Seq(after_seq))
    for place, wait_ms in enumerate(waits_ms, 1):
        clock.leap(wait_ms / 1000)
        times.add(Seq(after_seq + place))
    stretch = times.stretch()
    assert stretch is not None
    return stretch


def run_at_noon() -> Run:
    return Run(
        id=new_run_id(),
        tenant=DEFAULT_TENANT,
        thread=Thread(AgentId("agent-1"), None),
        status=RunStatus.COMPLETED,
        background=True,
        created_at=NOON,
        model=None,
        run_type="send_message",
        input=(),
        owner="one",
        token=Token(1),
    )


def later(stretch: Stretch, seconds: float) -> Stretch:
    return Stretch(
        stretch.began_at + timedelta(seconds=seconds),
        stretch.after_seq,
        stretch.seqs,
        stretch.at_ms,
        stretch.gaps,
    )


def test_each_event_has_the_time_of_the_append_that_brought_it() -> None:
    stretch = noted(250, 1000, 500, after_seq=10)
    assert stretch.at(Seq(10)) is None
    assert stretch.at(Seq(11)) == NOON + timedelta(milliseconds=250)
    assert stretch.at(Seq(13)) == NOON + timedelta(milliseconds=1750)
    assert stretch.at(Seq(14)) is None
    assert stretch.gaps == (Gap(Seq(11), 1000), Gap(Seq(12), 500))


def test_nothing_was_noted_before_the_first_append() -> None:
    times = CommitTimes(LeapClock())
    assert (times.stretch(), times.first_at) == (None, None)
    times.begin(Seq(0))
    assert (times.stretch(), times.first_at) == (None, None)


@pytest.mark.parametrize("seed", range(3))
def test_many_appends_take_bounded_memory_and_keep_the_longest_gaps(seed: int) -> None:
    chance = random.Random(seed)
    waits = [chance.choice([1, 2, 3]) for _ in range(20_000)]
    pauses = {chance.randrange(1, len(waits)): 5_000 + 10 * n for n in range(MAX_GAPS)}
    for place, wait in pauses.items():
        waits[place] = wait
    stretch = noted(*waits)
    assert len(stretch.seqs) <= MAX_COMMITS
    assert stretch.seqs[-1] == len(waits)
    assert stretch.at_ms[-1] == pytest.approx(sum(waits), abs=1)
    longest = sorted(((place, wait) for place, wait in pauses.items()), key=lambda one: -one[1])
    assert [gap.after_seq for gap in stretch.gaps[: len(longest)]] == [p for p, _ in longest]
    for place, wait in longest:
        before, after = stretch.at(Seq(place)), stretch.at(Seq(place + 1))
        assert before is not None
        assert after is not None
        assert (after - before).total_seconds() * 1000 == pytest.approx(wait, abs=2)


def test_a_stretch_is_the_same_after_it_was_stored() -> None:
    stretch = noted(1, 20, 300, after_seq=7)
    assert decode_stretch(encode_stretch(stretch)) == stretch


@pytest.mark.parametrize("rest", ["[1,2],[5],[]]", "[1],[9000000000000000000],[]]", "[1],[]", ""])
def test_a_damaged_stretch_is_refused(rest: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_stretch(f'["2026-11-22T12:00:00Z",0,{rest}')


def test_a_run_that_was_handed_over_has_a_gap_between_its_owners() -> None:
    stretches = [noted(500, 500), later(noted(1000, 1000, after_seq=2), 60)]
    timeline = join(run_at_noon(), Head(Seq(1), Seq(4), closed=True), stretches, 100)
    assert [seq for seq, _ in timeline.commits] == [1, 2, 3, 4]
    assert timeline.commits[-1][1] == NOON + timedelta(seconds=62)
    assert timeline.gaps[0] == Gap(Seq(2), 60_000)
    assert timeline.gaps[-1] == Gap(Seq(1), 500)
    assert Gap(Seq(0), 500) in timeline.gaps
    assert timeline.missing == []


def test_events_of_a_killed_owner_are_missing_and_make_no_gap() -> None:
    stretches = [noted(500), later(noted(1000, after_seq=5), 60)]
    timeline = join(run_at_noon(), Head(Seq(1), Seq(9), closed=True), stretches, 100)
    assert timeline.missing == [(2, 5), (7, 9)]
    assert timeline.gaps == [Gap(Seq(0), 500)]
    assert time_of(stretches, Seq(4)) is None
    assert time_of(stretches, Seq(6)) == NOON + timedelta(seconds=61)


def test_a_run_without_any_times_has_only_missing_events() -> None:
    timeline = join(run_at_noon(), Head(Seq(1), Seq(9), closed=True), [], 100)
    assert (timeline.commits, timeline.gaps, timeline.missing) == ([], [], [(1, 9)])
    empty = join(run_at_noon(), Head(Seq(1), Seq(0), closed=False), [], 100)
    assert empty.missing == []


def test_times_never_go_back_between_owners_whose_clocks_differ() -> None:
    stretches = [noted(5000), later(noted(1000, after_seq=1), 0)]
    timeline = join(run_at_noon(), Head(Seq(1), Seq(2), closed=True), stretches, 100)
    assert [at for _, at in timeline.commits] == [NOON + timedelta(seconds=5)] * 2


@pytest.mark.parametrize("most", [1, 2, 7, 50, 200])
def test_an_answer_has_as_many_commits_as_were_asked_for_at_most(most: int) -> None:
    stretch = noted(*[10, 20, 5000, 30] * 200)
    run = structs.replace(run_at_noon(), created_at=NOON)
    timeline = join(run, Head(Seq(1), Seq(800), closed=True), [stretch], most)
    assert len(timeline.commits) <= max(most, 2)
    assert timeline.commits[-1][0] == 800
    assert timeline.commits[0][0] == 1
