"""A reconnect storm: all readers of live runs are cut at the same instant and reconnect."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from bench.contenders.contender import Contender, Pace, fresh, wait_until
from bench.contenders.contestants import missing, others
from bench.contenders.product import Reattach
from bench.measuring.load import Group, Load
from bench.measuring.machine import cpu_seconds
from bench.measuring.reading import SETTLE_SECONDS, following
from bench.measuring.results import Chapter, Goal, at_most, table
from bench.measuring.rounds import Measurement, Turn, interleaved
from bench.measuring.schedule import open_gate
from bench.options import Options

READERS, QUICK_READERS = 5000, 200
RUNS = 50
"""Runs that the cut readers follow, with equally many readers each."""
RATE = 5.0
OTHERS, OTHERS_RATE = 50, 50.0
"""Runs with one reader each that is not cut."""
BEFORE_SECONDS, QUICK_BEFORE_SECONDS = 2.0, 0.6
AFTER_SECONDS, QUICK_AFTER_SECONDS = 5.0, 1.0
CAUGHT_UP_SECONDS = 60.0
ROUNDS = 3


def storm(contender: Contender, options: Options) -> dict[str, float]:
    """Measure one storm. Raises SpoiledError if a reader lost or doubled an event or left."""
    readers = (QUICK_READERS if options.quick else READERS) // RUNS
    after_seconds = QUICK_AFTER_SECONDS if options.quick else AFTER_SECONDS
    before_seconds = QUICK_BEFORE_SECONDS if options.quick else BEFORE_SECONDS
    seconds = before_seconds + after_seconds
    with TemporaryDirectory() as directory, fresh(contender, options.cores) as server:
        gate = Path(directory, uuid4().hex)
        cut = server.paced(Pace(RUNS, int(RATE * seconds), RATE, gate))
        calm = server.paced(Pace(OTHERS, int(OTHERS_RATE * seconds), OTHERS_RATE, gate))
        flags = server.live_flags | {"stamped"}
        groups = [
            Group("cut", "once", following(server, cut, readers), flags),
            Group("others", "once", following(server, calm, 1), flags),
        ]
        with Load(server.port, groups, options.cores.load) as load:
            load.opened(120)
            time.sleep(SETTLE_SECONDS)
            start_ns = time.monotonic_ns() + 200_000_000
            cut_ns = start_ns + int(before_seconds * 1e9)
            load.measure(start_ns, cut_ns + int(after_seconds * 1e9))
            open_gate(gate, start_ns)
            load.cut("cut", cut_ns)
            wait_until(cut_ns)
            before = cpu_seconds(server.pids)
            last = load.caught_up(CAUGHT_UP_SECONDS)
            used = cpu_seconds(server.pids) - before
            report = load.done(CAUGHT_UP_SECONDS)
    totals, calm_totals = report.groups["cut"], report.groups["others"]
    return {
        "last back s": last,
        "back p50 s": totals.caught_up.p50 / 1e9,
        "back p99 s": totals.caught_up.p99 / 1e9,
        "cut": totals.caught_up.count,
        "others p50 ms": calm_totals.lag_in_storm.p50 / 1e6,
        "others p99 ms": calm_totals.lag_in_storm.p99 / 1e6,
        "others max ms": calm_totals.lag_in_storm.max / 1e6,
        "CPU ms per reconnect": 1000 * used / totals.caught_up.count,
    }


def main(options: Options) -> Chapter:
    contenders = [Reattach(), *others(options, "storm")]
    name = f"{QUICK_READERS if options.quick else READERS:,} readers"

    def measurements(contender: Contender) -> Iterator[Measurement]:
        yield name, partial(storm, contender, options)

    turns = [Turn(one.name, partial(measurements, one)) for one in contenders]
    results = interleaved(turns, options.times(ROUNDS))
    columns = ("cut", "last back s", "back p50 s", "back p99 s", "others p50 ms", "others p99 ms",
               "others max ms", "CPU ms per reconnect")  # fmt: skip
    return Chapter(
        "storm",
        "Reconnect storm",
        f"Readers of {RUNS} live runs of {RATE:.0f} events a second are cut at the same instant, "
        f"and reconnect at once with their cursors; {OTHERS} others, each on a run of "
        f"{OTHERS_RATE:.0f} a second, are not cut. A reader is back with its first event that is "
        "late by less than 0.1 s; their lag is that of what came until all were back. Nothing is "
        "lost or doubled, or there is no figure.",
        [table(results, "Storms", [name], dict(zip(columns, columns, strict=True)))],
        [
            Goal("5,000 reconnects during live traffic: the last is caught up", "≤ 5 s",
                 None if options.quick else results.middle(Reattach().name, name, "last back s"),
                 at_most(5), "s"),
        ],
        notes=results.failures() + missing(options, "storm"),
    )  # fmt: skip
