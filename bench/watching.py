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
from bench.measuring.metering import metering
from bench.measuring.reading import live, repeated
from bench.measuring.results import NO_FIGURE, Chapter, Goal, Table, at_most, figure, table
from bench.measuring.rounds import (
    Figures,
    Measurement,
    Results,
    Turn,
    interleaved,
    side_by_side,
)
from bench.options import Options

OFF, ON, WATCHED = "metrics off", "metrics on", "metrics on, watched"
AGAIN: Final = "metrics off, again"
"""The same as OFF, so that the difference between both is that of the machine."""
SCRAPE_SECONDS: Final = 5.0
"""Prometheus scrapes every 15 to 60 seconds by default."""
POLL_SECONDS: Final = 1.0
"""The interval at which a page that shows the runs asks for them."""
METRICS, RUNS_PATH, PROCESSES = "/metrics", "/v1/admin/runs?limit=50", "/v1/admin/processes"
LOOKED_AT: Final = (METRICS, RUNS_PATH, PROCESSES)
LOOKS, QUICK_LOOKS = 30, 2
MOST_RATIO: Final = 1.03
ROUNDS: Final = 5
SECONDS, QUICK_SECONDS = 3.0, 0.4
RUNS, QUICK_RUNS = 100, 5
READERS, QUICK_READERS = 500, 20
EVENTS, QUICK_EVENTS = 10_000, 1_000
IDLE, QUICK_IDLE = 2_000, 50
RATE: Final = 25.0
LAST: Final = 10

ALONE, APPEND = "in one process", "append of an event"
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
                (SCRAPE_SECONDS, METRICS),
                (POLL_SECONDS, RUNS_PATH),
            )
        ]

    def _repeat(self, seconds: float, path: str) -> None:
        while not self._is_ending.wait(seconds):
            asked(self._server.port, look_at(path))

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


def look_at(path: str) -> Request:
    return Request.of("GET", path, headers={"connection": "close"})


def measurements(contender: Reattach, options: Options) -> Iterator[Measurement]:
    """Measure each kind of work on a new server."""
    with ExitStack() as stack:
        server = stack.enter_context(fresh(contender, options.cores))
        if contender.name == WATCHED:
            stack.enter_context(Watcher(server).watching())
        yield from kinds_of_work(server, options)


def looks_after_work(contender: Reattach, options: Options) -> Iterator[Measurement]:
    """Look at a server that has and had runs."""
    with fresh(contender, options.cores) as server:
        server.ended(QUICK_EVENTS, QUICK_RUNS if options.quick else RUNS)
        server.silent(10)
        for path in LOOKED_AT:
            yield path, partial(looks, server, path, options)


def looks(server: ReattachServer, path: str, options: Options) -> Figures:
    """Ask again and again for the same."""
    number = QUICK_LOOKS if options.quick else LOOKS
    request = look_at(path)
    asked(server.port, request)
    before = cpu_seconds(server.pids)
    for _ in range(number):
        asked(server.port, request)
    return {"CPU ms per request": 1000 * (cpu_seconds(server.pids) - before) / number}


def kinds_of_work(server: ReattachServer, options: Options) -> Iterator[Measurement]:
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
    yield replay, partial(again, whole, readers=2)
    yield resume, partial(again, end, readers=8)
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
        Reattach(AGAIN, settings=pings | {"metrics": "false"}),
    ]
    turns = [Turn(one.name, partial(measurements, one, options)) for one in contenders]
    rounds = options.times(ROUNDS)
    results = side_by_side(turns, rounds)
    watched = Turn(ON, partial(looks_after_work, contenders[1], options))
    alone = Turn(ALONE, lambda: iter([(APPEND, partial(metering, quick=options.quick))]))
    results.update(interleaved([watched, alone], rounds))
    return chapter_of(results)


def ratio(results: Results, work: str, of: str) -> float | None:
    """Return the median of the rounds' ratios: within a round all servers worked together."""
    cost = COSTS[work]
    pairs = zip(results[of, work].rounds, results[OFF, work].rounds, strict=False)
    found = [watched[cost] / unwatched[cost] for watched, unwatched in pairs if unwatched[cost]]
    return median(found) if found else None


def chapter_of(results: Results) -> Chapter:
    rows = []
    for work, cost in COSTS.items():
        figures = [figure(results.get((one, work)), cost) for one in (OFF, ON, WATCHED, AGAIN)]
        ratios = [ratio(results, work, one) for one in (ON, WATCHED, AGAIN)]
        shown = [NO_FIGURE if one is None else f"{one:.3f}" for one in ratios]
        rows.append([work, cost, *figures, *shown])
    heads = ["work", "cost", OFF, ON, WATCHED, AGAIN, "on/off", "watched/off", "off again/off"]
    return Chapter(
        "watching",
        "Watching",
        "The cost of being watched. The watched server is asked for its metrics every "
        f"{SCRAPE_SECONDS:g} s and for a page of its runs every {POLL_SECONDS:g} s. All four "
        "servers do the same work at the same time on one core. Ratios are the medians of the "
        "ratios within each round. `off again/off` compares a server with its equal: smaller "
        "differences than that are those of the machine.",
        [
            Table("CPU of the server", heads, rows),
            table(results, "Metering by itself, alternately with and without", [APPEND],
                  {name: name for name in ("CPU µs without", "CPU µs with", "CPU µs of metering")}),
            table(results, "One look", [METRICS, RUNS_PATH, PROCESSES],
                  {"CPU ms per request": "CPU ms per request"}),
        ],
        goals(results),
        notes=results.failures(),
    )  # fmt: skip


def goals(results: Results) -> list[Goal]:
    metered = results.middle(ALONE, APPEND, "CPU µs of metering")
    of_event = results.middle(OFF, next(iter(COSTS)), "CPU µs per delivery")
    share = 100 * metered / of_event if metered is not None and of_event else None
    return [
        Goal("metering of an event, of the CPU of a live event with one reader", "≤ 3 %",
             share, at_most(3), "%"),
        *(
            Goal(f"{work}: {cost}, {one}", f"≤ {MOST_RATIO} × {OFF}",
                 ratio(results, work, one), at_most(MOST_RATIO), f"× {OFF}")
            for work, cost in COSTS.items()
            for one in (ON, WATCHED)
        ),
    ]  # fmt: skip
