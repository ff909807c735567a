"""The rate of a run is measured between two looks."""

from __future__ import annotations

from reattach.domain.ids import Seq
from reattach.runs.reports.rates import OLD_SECONDS, YOUNG_SECONDS, Rates


def test_the_second_look_gives_the_events_per_second_since_the_first() -> None:
    rates = Rates()
    assert rates.look({"a": Seq(10)}, 100.0) == {}
    assert rates.look({"a": Seq(30), "b": Seq(5)}, 102.0) == {"a": 10.0}


def test_looks_in_quick_succession_share_a_rate() -> None:
    rates = Rates()
    rates.look({"a": Seq(0)}, 100.0)
    rates.look({"a": Seq(20)}, 102.0)
    assert rates.look({"a": Seq(21)}, 102.0 + YOUNG_SECONDS / 2) == {"a": 10.0}


def test_a_look_after_a_long_time_gives_no_rate() -> None:
    rates = Rates()
    rates.look({"a": Seq(0)}, 100.0)
    assert rates.look({"a": Seq(500)}, 100.0 + OLD_SECONDS + 1) == {}


def test_a_run_that_has_ended_is_forgotten() -> None:
    rates = Rates()
    rates.look({"a": Seq(0)}, 100.0)
    rates.look({}, 101.0)
    assert rates.look({"a": Seq(9)}, 102.0) == {}
