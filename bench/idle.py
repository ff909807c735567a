"""The cost of readers of silent runs."""

import time
from collections.abc import Iterator
from functools import partial

from bench.contenders.contender import fresh
from bench.contenders.product import Reattach
from bench.measuring.against import ratios, versions
from bench.measuring.load import Group, Load, Reader
from bench.measuring.machine import cost_of, cpu_seconds, memory
from bench.measuring.results import Chapter, Goal, at_most, table
from bench.measuring.rounds import Measurement, Turn, interleaved
from bench.options import Options

READERS, QUICK_READERS = (1000, 10_000), (300,)
RUNS, QUICK_RUNS = 100, 10
PING_SECONDS, QUICK_PING_SECONDS = 40.0, 2.0
SILENT_SECONDS, QUICK_SILENT_SECONDS = 10.0, 1.0
"""Shorter than the interval of pings."""
OPENINGS_PER_SECOND = 500
ROUNDS = 2


def silent(contender: Reattach, readers: int, options: Options) -> dict[str, float]:
    """Open the readers, and measure first without pings and then with them."""
    ping_seconds = QUICK_PING_SECONDS if options.quick else PING_SECONDS
    with fresh(contender, options.cores) as server:
        streams = server.silent(QUICK_RUNS if options.quick else RUNS)
        listed = [
            Reader(streams[number % len(streams)].resume,
                   start_seconds=number / OPENINGS_PER_SECOND)
            for number in range(readers)
        ]  # fmt: skip
        before = memory(server.pids)
        with Load(
            server.port, [Group("idle", "hold", listed, server.flags)], options.cores.load
        ) as load:
            opening = load.opened(readers / OPENINGS_PER_SECOND + 120)
            held = memory(server.pids)
            cost = cost_of(server.pids[0])
            quiet = _cpu_percent(
                server.pids, QUICK_SILENT_SECONDS if options.quick else SILENT_SECONDS
            )
            after = cost_of(server.pids[0])
            pinged = _cpu_percent(server.pids, 2 * ping_seconds)
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
        "pings expected": readers * int((opening + 2 * ping_seconds) / ping_seconds),
        "late p50 ms": group.ping_gap.p50 / 1e6 - 1000 * ping_seconds,
        "late p99 ms": group.ping_gap.p99 / 1e6 - 1000 * ping_seconds,
        "late max ms": group.ping_gap.max / 1e6 - 1000 * ping_seconds,
        "open s": opening,
    }


def _cpu_percent(pids: tuple[int, ...], seconds: float) -> float:
    before = cpu_seconds(pids)
    time.sleep(seconds)
    return 100 * (cpu_seconds(pids) - before) / seconds


def main(options: Options) -> Chapter:
    numbers = QUICK_READERS if options.quick else READERS

    ping_seconds = QUICK_PING_SECONDS if options.quick else PING_SECONDS

    def measurements(contender: Reattach) -> Iterator[Measurement]:
        for number in numbers:
            yield f"{number:,} readers", partial(silent, contender, number, options)

    contenders = versions(options, {"ping_interval_seconds": str(ping_seconds)})
    turns = [Turn(one.name, partial(measurements, one)) for one in contenders]
    results = interleaved(turns, options.times(ROUNDS))
    columns = ("KiB per reader", "KiB per reader, pinged", "CPU % silent", "CPU % pinged",
               "store calls", "pings", "late p50 ms", "late p99 ms", "late max ms",
               "open s")  # fmt: skip
    heads = dict(zip(columns, columns, strict=True))
    names = [f"{number:,} readers" for number in numbers]
    most = (Reattach().name, names[-1])
    return Chapter(
        "idle",
        "Idle",
        f"Readers of {QUICK_RUNS if options.quick else RUNS} runs that say nothing. Memory is the "
        "proportional set size of the server. Store calls are all reads and writes of the process "
        "that are no socket's, while nothing is said; pings are late by what they come after "
        f"{ping_seconds:g} s.",
        [
            table(results, "Idle readers", names, heads),
            *ratios(results, options, names, heads),
        ],
        [
            Goal("memory of an idle reader", "≤ 15 KiB",
                 results.middle(*most, "KiB per reader"), at_most(15), "KiB"),
            Goal("pings on time: late at p99", "≤ 1 s, the interval of the server's timer",
                 results.middle(*most, "late p99 ms"), at_most(1000), "ms"),
            Goal("store calls while readers are idle", "none for a reader",
                 _per_reader(results.middle(*most, "store calls"), numbers[-1]), at_most(0.01),
                 "a reader in the window"),
        ],
        notes=results.failures(),
    )  # fmt: skip


def _per_reader(calls: float | None, readers: int) -> float | None:
    return None if calls is None else calls / readers
