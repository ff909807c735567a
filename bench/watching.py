"""The cost of being watched: a server with metrics off, on, and asked for them all the time."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from typing import Final

from bench.contenders.contender import asked, fresh
from bench.contenders.product import Reattach, ReattachServer
from bench.measuring.load import Group, Load, Reader, Request
from bench.measuring.machine import cpu_seconds
from bench.measuring.reading import live, repeated
from bench.measuring.results import NO_FIGURE, Chapter, Goal, Table, at_most, figure
from bench.measuring.rounds import Figures, Measurement, Results, Turn, interleaved
from bench.options import Options

OFF, ON, WATCHED = "metrics off", "metrics on", "metrics on, watched"
SCRAPE_SECONDS: Final = 5.0
"""Prometheus scrapes every 15 to 60 seconds by default."""
POLL_SECONDS: Final = 2.0
"""The interval at which an open page asks for the runs and processes."""
MOST_RATIO: Final = 1.03
ROUNDS: Final = 7
SECONDS, QUICK_SECONDS = 6.0, 0.4
RUNS, QUICK_RUNS = 200, 10
READERS, QUICK_READERS = 500, 20
EVENTS, QUICK_EVENTS = 10_000, 1_000
IDLE, QUICK_IDLE = 2_000, 50
RATE: Final = 25.0
LAST: Final = 10

COSTS: Final = {
    "live, many runs of one reader": "CPU µs per delivery",
    "live, one run of many readers": "CPU µs per delivery",
    "replay of a whole run": "CPU µs per event",
    "resume at the end of a run": "CPU µs per request",
    "idle readers": "CPU % idle",
}
"""The measurements, and the cost that counts in each."""


class Watcher:
    """Asks for the metrics as Prometheus does, and for the rest as an open page does."""

    def __init__(self, server: ReattachServer) -> None:
        self._server = server
        self._is_ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=arguments, daemon=True)
            for arguments in (
                (SCRAPE_SECONDS, ["/metrics"]),
                (POLL_SECONDS, ["/v1/runs/?limit=50", "/v1/admin/processes"]),
            )
        ]

    def _repeat(self, seconds: float, paths: list[str]) -> None:
        requests = [Request.of("GET", path, headers={"connection": "close"}) for path in paths]
        while not self._is_ending.wait(seconds):
            for request in requests:
                asked(self._server.port, request)

    @contextmanager
    def watching(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._is_ending.set()
            for thread in self._threads:
                thread.join()


def measurements(server: ReattachServer, options: Options) -> Iterator[Measurement]:
    """Measure each kind of work on a server that has been running since the first round."""
    quick, cores = options.quick, options.cores
    seconds = QUICK_SECONDS if quick else SECONDS
    many_runs, many_readers, replay, resume, idle = COSTS
    paced = partial(live, server, cores, per_second=RATE, seconds=seconds)
    yield many_runs, partial(paced, runs=QUICK_RUNS if quick else RUNS, readers=1)
    yield many_readers, partial(paced, runs=1, readers=QUICK_READERS if quick else READERS)
    (stream,) = server.ended(QUICK_EVENTS if quick else EVENTS)
    whole = Reader(stream.at(0), last=stream.last)
    end = Reader(stream.at(stream.last - LAST), after=stream.last - LAST, last=stream.last)
    again = partial(repeated, server, cores=cores, seconds=seconds)
    yield replay, partial(again, whole, readers=4)
    yield resume, partial(again, end, readers=16)
    yield idle, partial(silent, server, options, seconds)


def silent(server: ReattachServer, options: Options, seconds: float) -> Figures:
    """Hold readers of runs that say nothing."""
    streams = server.silent(10)
    number = QUICK_IDLE if options.quick else IDLE
    listed = [
        Reader(streams[index % len(streams)].resume, start_seconds=index / 1000)
        for index in range(number)
    ]
    groups = [Group("idle", "hold", listed, server.flags)]
    with Load(server.port, groups, options.cores.load) as load:
        load.opened(number / 1000 + 60)
        time.sleep(min(1.0, seconds))
        before = cpu_seconds(server.pids)
        time.sleep(2 * seconds)
        used = cpu_seconds(server.pids) - before
        load.stop(time.monotonic_ns())
        load.done(60)
    return {"CPU % idle": 100 * used / (2 * seconds)}


def main(options: Options) -> Chapter:
    # Pings are what idle readers cost.
    pings = {"ping_interval_seconds": "2"}
    contenders = [
        Reattach(OFF, settings=pings | {"metrics": "false"}),
        Reattach(ON, settings=pings),
        Reattach(WATCHED, settings=pings),
    ]
    with ExitStack() as stack:
        turns = []
        for contender in contenders:
            server = stack.enter_context(fresh(contender, options.cores))
            assert isinstance(server, ReattachServer)
            if contender.name == WATCHED:
                stack.enter_context(Watcher(server).watching())
            turns.append(Turn(contender.name, partial(measurements, server, options)))
        results = interleaved(turns, options.times(ROUNDS))
    return chapter_of(results)


def ratio(results: Results, work: str, of: str) -> float | None:
    """Return the median of the rounds' ratios, because the machine differs from round to round."""
    cost = COSTS[work]
    pairs = zip(results[of, work].rounds, results[OFF, work].rounds, strict=False)
    found = [watched[cost] / unwatched[cost] for watched, unwatched in pairs if unwatched[cost]]
    return median(found) if found else None


def chapter_of(results: Results) -> Chapter:
    rows = []
    for work, cost in COSTS.items():
        figures = [figure(results.get((one, work)), cost) for one in (OFF, ON, WATCHED)]
        ratios = [ratio(results, work, one) for one in (ON, WATCHED)]
        shown = [NO_FIGURE if one is None else f"{one:.3f}" for one in ratios]
        rows.append([work, cost, *figures, *shown])
    goals = [
        Goal(f"{work}: {cost}, {one}", f"≤ {MOST_RATIO} × {OFF}",
             ratio(results, work, one), at_most(MOST_RATIO), f"× {OFF}")
        for work, cost in COSTS.items()
        for one in (ON, WATCHED)
    ]  # fmt: skip
    return Chapter(
        "watching",
        "Watching",
        "The cost of being watched. The servers run at the same time and are measured in turn. "
        f"The watched one is asked for its metrics every {SCRAPE_SECONDS:g} s and for its runs and "
        f"processes every {POLL_SECONDS:g} s.",
        [Table("CPU of the server", ["work", "cost", OFF, ON, WATCHED, "on/off", "watched/off"],
               rows)],
        goals,
        notes=results.failures(),
    )  # fmt: skip
