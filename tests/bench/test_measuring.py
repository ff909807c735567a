"""Measurements, their rounds, and the results that are written from them."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from bench.__main__ import Benchmark, measure_chapters
from bench.contenders.contender import ROOT, Contender, fresh
from bench.contenders.product import Reattach
from bench.measuring.against import ratios, versions
from bench.measuring.charts import HEIGHT, WIDTH, Chart, drawn
from bench.measuring.load import Reader, SpoiledError
from bench.measuring.machine import Cores
from bench.measuring.reading import live, repeated
from bench.measuring.results import Chapter, Goal, Table, at_most, shown, table, write
from bench.measuring.rounds import Figures, Measurement, Results, Turn, interleaved, until_one_fails
from bench.options import Options
from bench.yardsticks.local import CEILING


@pytest.mark.timeout(100)
@pytest.mark.parametrize("contender", [Reattach(), CEILING], ids=lambda one: one.name)
def test_ended_runs_are_replayed_and_live_runs_report_their_lag(contender: Contender) -> None:
    cores = Cores.available()
    with fresh(contender, cores) as server:
        (stream,) = server.ended(50)
        reader = Reader(stream.at(40), after=40, last=stream.last)
        replays = repeated(server, reader, cores, readers=2, seconds=0.1)
        many = live(server, cores, runs=3, readers=1, per_second=20, seconds=0.5)
        shared = live(server, cores, runs=1, readers=3, per_second=20, seconds=0.5, replay=stream)

    assert replays["events per CPU s"] > replays["requests per s"] > 0
    for figures in (many, shared):
        assert 0 < figures["from yield p50 ms"] <= figures["lag p50 ms"] <= figures["lag max ms"]
        assert figures["server CPU %"] >= 0  # The kernel counts in ticks of 10 ms.


def test_rounds_are_interleaved_and_one_with_an_error_gives_no_figure() -> None:
    order = []
    values = iter([1.0, 3.0, 2.0])

    def good() -> Figures:
        order.append("good")
        return {"ms": next(values)}

    def bad() -> Figures:
        order.append("bad")
        raise SpoiledError("it was cut")

    def measurements_of(measure: object) -> Iterator[Measurement]:
        yield "work", good if measure is good else bad

    turns = [Turn("one", lambda: measurements_of(good)), Turn("two", lambda: measurements_of(bad))]
    results = interleaved(turns, 3)

    assert order == ["good", "bad"] * 3
    assert results.middle("one", "work", "ms") == 2.0
    assert results["one", "work"].spread("ms") == (1.0, 3.0)
    assert results.middle("two", "work", "ms") is None
    assert results.failures() == ["two, work: 3 of 3 rounds have no figure: it was cut"]
    assert table(results, "t", ["work"], {"ms": "ms"}).rows == [["work", "one", "2 (1…3)"]]


def test_sizes_after_one_that_fails_are_skipped() -> None:
    tried = []

    def held(size: int) -> Figures:
        tried.append(size)
        if size > 1:
            raise SpoiledError("it took too long")
        return {"ms": 1.0}

    def sizes() -> Iterator[Measurement]:
        yield from until_one_fails((f"{size} runs", partial(held, size)) for size in (1, 2, 3))

    results = interleaved([Turn("one", sizes)], 2)

    assert tried == [1, 2] * 2
    assert results.middle("one", "1 runs", "ms") == 1.0
    assert results.failures() == [
        "one, 2 runs: 2 of 2 rounds have no figure: it took too long",
        "one, 3 runs: 2 of 2 rounds have no figure: skipped, because 2 runs failed",
    ]


def test_sizes_after_one_that_is_lost_are_skipped() -> None:
    def sizes() -> Iterator[Measurement]:
        yield from until_one_fails(
            ((f"{ms} runs", partial(dict, ms=float(ms))) for ms in (1, 200, 300)),
            lambda figures: figures["ms"] > 100,
        )

    results = interleaved([Turn("one", sizes)], 1)

    assert results.middle("one", "200 runs", "ms") == 200
    assert results.failures() == [
        "one, 300 runs: 1 of 1 rounds have no figure: skipped, because it was too slow for 200 runs"
    ]


@pytest.mark.parametrize(("tries_again", "times"), [(True, 3), (False, 1)])
def test_a_measurement_without_a_figure_is_repeated_only_if_its_turn_tries_again(
    tries_again: bool, times: int
) -> None:
    tried = []

    def bad() -> Figures:
        tried.append("bad")
        raise SpoiledError("it was cut")

    turn = Turn("one", lambda: iter([("work", bad)]), tries_again=tries_again)
    interleaved([turn], 3)

    assert len(tried) == times


def test_a_goal_says_whether_it_was_reached() -> None:
    assert Goal("w", "≤ 2", 1.999, at_most(2), "ms").row() == ["w", "≤ 2", "2 ms", "yes"]
    assert Goal("w", "≤ 2", 2.1, at_most(2), "ms").row() == ["w", "≤ 2", "2.1 ms", "**no**"]
    assert Goal("w", "≤ 2", None, at_most(2)).row() == ["w", "≤ 2", "–", "–"]
    assert [shown(value) for value in (None, 0.01234, 12.34, 123_456)] == [
        "–",
        "0.0123",
        "12.3",
        "123,456",
    ]


def test_a_chapter_replaces_an_earlier_one(tmp_path: Path) -> None:
    chart = Chart("c", "Title & more", "x", "y", {"a": [(1, 10), (1000, 0.5)], "b": []})
    for text in ("first", "second"):
        for name in ("one", "two"):
            chapter = Chapter(name, f"Chapter {name}", f"{text} {name}", charts=[chart])
            chapter.tables.append(Table("T", ["a"], [["1"]]))
            write(chapter, tmp_path, [name, "--rounds", "2"])

    written = (tmp_path / "results.md").read_text("utf-8")
    assert written.index("second one") < written.index("second two")
    assert "first" not in written
    assert written.count("`scripts/bench one --rounds 2`") == 1
    assert "![Title & more](charts/c.svg)" in written
    ET.parse(tmp_path / "charts" / "c.svg")


def test_a_run_of_all_chapters_begins_a_new_file_and_ends_with_the_goals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def good(_: Options) -> Chapter:
        goal = Goal("work", "≤ 2 ms", 1.0, at_most(2), "ms")
        return Chapter("good", "Good", "It is good.", goals=[goal])

    def bad(_: Options) -> Chapter:
        raise OSError("it broke")

    listed = {"bad": Benchmark("fails", bad, 1), "good": Benchmark("works", good, 2)}
    monkeypatch.setattr("bench.__main__.CHAPTERS", listed)
    (tmp_path / "results.md").write_text("an old chapter")

    failed = measure_chapters([*listed], Options(), tmp_path, whole=True)

    assert failed == ["bad"]
    assert "chapter 2 of 2, after 0.0 min, takes about 2 min" in capsys.readouterr().out
    written = (tmp_path / "results.md").read_text("utf-8")
    assert "an old chapter" not in written
    assert "| good | work | ≤ 2 ms | 1 ms | yes |" in written
    assert "the chapter bad, which failed" in written
    assert written.index("## Summary") < written.index("## Good")


def test_bars_and_lines_are_drawn_within_the_picture() -> None:
    lines = {"a": [(10.0, 1.0), (100.0, 50.0)], "b": [(10.0, 3.0)]}
    bars = {"a": [(0.0, 5.0), (1.0, 500.0)], "b": [(0.0, 7.0)]}
    for chart in (Chart("l", "L", "x", "y", lines), Chart("b", "B", "x", "y", bars, ["1", "2"])):
        picture = ET.fromstring(drawn(chart))
        shapes = [one for one in picture.iter() if one.tag.endswith(("circle", "rect"))]
        assert len(shapes) >= 4
        for shape in shapes:
            x, y = (float(shape.get(name) or shape.get(f"c{name}") or 0) for name in "xy")
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT


@pytest.mark.timeout(100)
def test_another_checkout_is_served_from_its_own_folder(tmp_path: Path) -> None:
    checkout = tmp_path / "before"
    checkout.mkdir()
    for name in ("src", "bench"):
        (checkout / name).symlink_to(ROOT / name)
    own, other = versions(Options(against=[checkout]))
    assert (own.name, other.name) == ("Reattach", "Reattach in before")
    with fresh(other, Cores.available()) as server:
        (stream,) = server.ended(5)
        assert stream.last > 5
        (pid,) = server.pids
        assert Path(f"/proc/{pid}/cwd").readlink() == checkout
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert f"PYTHONPATH={checkout / 'src'}".encode() in environment


def test_versions_are_compared_by_the_ratio_of_their_medians(tmp_path: Path) -> None:
    options, results = Options(against=[tmp_path / "before"]), Results()
    for name, values in (("Reattach", (1.0, 2.0, 9.0)), ("Reattach in before", (4.0,))):
        results[name, "work"].rounds.extend({"CPU": value} for value in values)
    (compared,) = ratios(results, options, ["work", "unknown"], {"CPU": "CPU"})
    assert compared.rows == [["work", "0.5"]]
