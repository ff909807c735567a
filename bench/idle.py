"""The cost of readers of silent runs: by POST, and by GET as web pages read."""

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

from bench.contenders.contender import fresh
from bench.contenders.product import Reattach
from bench.measuring.against import ratios, versions
from bench.measuring.load import Group, Load, Reader
from bench.measuring.machine import cost_of, cpu_seconds, memory
from bench.measuring.results import NO_FIGURE, Chapter, Goal, Table, at_most, shown, table
from bench.measuring.rounds import Measurement, Results, Turn, interleaved
from bench.options import Options

READERS, QUICK_READERS = (10_000,), (300,)
RUNS, QUICK_RUNS = 100, 10
PING_SECONDS, QUICK_PING_SECONDS = 10.0, 1.0
SILENT_SECONDS, QUICK_SILENT_SECONDS = 4.0, 0.4
"""Shorter, with the opening of all readers, than the interval of pings."""
OPENINGS_PER_SECOND = 2500
ROUNDS = 3
POST: Final = "by POST"
QUERIES: Final[Mapping[str, str]] = {"by GET": "", "by GET, pings=event": "?pings=event"}
"""The queries of readers in the form of ``EventSource``."""
COSTS: Final = ("KiB per reader", "KiB per reader, pinged", "CPU % silent", "CPU % pinged")
MOST_RATIO = 1.1
"""A reader by GET may cost so many times as much as one by POST."""


def silent(contender: Reattach, readers: int, way: str, options: Options) -> dict[str, float]:
    """Open the readers, and measure first without pings and then with them."""
    ping_seconds = QUICK_PING_SECONDS if options.quick else PING_SECONDS
    runs = QUICK_RUNS if options.quick else RUNS
    with fresh(contender, options.cores) as server:
        streams = server.silent(runs) if way == POST else server.silent_pages(runs, QUERIES[way])
        listed = [
            Reader(streams[number % len(streams)].resume,
                   start_seconds=number / OPENINGS_PER_SECOND)
            for number in range(readers)
        ]  # fmt: skip
        before = memory(server.pids)
        with Load(
            server.port, [Group("idle", "hold", listed, server.flags)], options.cores.load
        ) as load:
            opening = load.opened(readers / OPENINGS_PER_SECOND + 60)
            held = memory(server.pids)
            cost = cost_of(server.pids[0])
            quiet = _cpu_percent(
                server.pids, QUICK_SILENT_SECONDS if options.quick else SILENT_SECONDS
            )
            after = cost_of(server.pids[0])
            pinged = _cpu_percent(server.pids, ping_seconds)
            most = memory(server.pids)
            load.stop(time.monotonic_ns())
            group = load.done(60).groups["idle"]
    return {
        "KiB per reader": (held.proportional_bytes - before.proportional_bytes) / 1024 / readers,
        "KiB per reader, pinged": (most.proportional_bytes - before.proportional_bytes)
        / 1024
        / readers,
        "CPU % silent": quiet,
        "CPU % pinged": pinged,
        "store calls": after.reads - cost.reads + after.writes - cost.writes,
        "pings": group.pings,
        "late p50 ms": group.ping_gap.p50 / 1e6 - 1000 * ping_seconds,
        "late p99 ms": group.ping_gap.p99 / 1e6 - 1000 * ping_seconds,
        "late max ms": group.ping_gap.max / 1e6 - 1000 * ping_seconds,
        "open s": opening,
    }


def _cpu_percent(pids: tuple[int, ...], seconds: float) -> float:
    before = cpu_seconds(pids)
    time.sleep(seconds)
    return 100 * (cpu_seconds(pids) - before) / seconds


def named(readers: int, way: str) -> str:
    return f"{readers:,} readers {way}"


def main(options: Options) -> Chapter:
    numbers = QUICK_READERS if options.quick else READERS

    ping_seconds = QUICK_PING_SECONDS if options.quick else PING_SECONDS

    def measurements(contender: Reattach) -> Iterator[Measurement]:
        for number in numbers:
            for way in (POST, *QUERIES):
                yield named(number, way), partial(silent, contender, number, way, options)

    contenders = versions(options, {"ping_interval_seconds": str(ping_seconds)})
    turns = [Turn(one.name, partial(measurements, one)) for one in contenders]
    results = interleaved(turns, options.times(ROUNDS))
    columns = (*COSTS, "store calls", "pings", "late p50 ms", "late p99 ms", "late max ms",
               "open s")  # fmt: skip
    heads = dict(zip(columns, columns, strict=True))
    names = [named(number, way) for number in numbers for way in (POST, *QUERIES)]
    return Chapter(
        "idle",
        "Idle",
        f"Readers of {QUICK_RUNS if options.quick else RUNS} runs that say nothing: by POST, with "
        "pings as events, and by GET, as web pages read, with pings as comments or as events. "
        "Memory is the proportional set size of the server. Store calls are all reads and writes "
        "of the process that are no socket's, while nothing is said; pings are late by what they "
        f"come after {ping_seconds:g} s.",
        [
            table(results, "Idle readers", names, heads),
            compared(results, numbers[-1]),
            *ratios(results, options, names, heads),
        ],
        goals(results, numbers[-1]),
        notes=results.failures(),
    )


def compared(results: Results, readers: int) -> Table:
    """Divide the costs of readers by GET by those of readers by POST."""
    rows = []
    for way in QUERIES:
        found = [_ratio(results, readers, way, cost) for cost in COSTS]
        rows.append([way, *(NO_FIGURE if one is None else shown(one) for one in found)])
    return Table(f"{readers:,} readers by GET in units of readers by POST", ["way", *COSTS], rows)


def _ratio(results: Results, readers: int, way: str, cost: str) -> float | None:
    name = Reattach().name
    return results.ratio(cost, (name, named(readers, way)), (name, named(readers, POST)))


def goals(results: Results, readers: int) -> list[Goal]:
    most = (Reattach().name, named(readers, POST))
    return [
        Goal("memory of an idle reader", "≤ 15 KiB",
             results.middle(*most, "KiB per reader"), at_most(15), "KiB"),
        Goal("pings on time: late at p99", "≤ 1 s, the interval of the server's timer",
             results.middle(*most, "late p99 ms"), at_most(1000), "ms"),
        Goal("store calls while readers are idle", "none for a reader",
             _per_reader(results.middle(*most, "store calls"), readers), at_most(0.01),
             "a reader in the window"),
        *(
            Goal(f"{cost}, {way}", f"≤ {MOST_RATIO} × by POST",
                 _ratio(results, readers, way, cost), at_most(MOST_RATIO), "× by POST")
            for way in QUERIES
            for cost in ("KiB per reader, pinged", "CPU % pinged")
        ),
    ]  # fmt: skip


def _per_reader(calls: float | None, readers: int) -> float | None:
    return None if calls is None else calls / readers
