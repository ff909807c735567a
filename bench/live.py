"""Live streams: many runs with a reader each, one run with many readers, and replays meanwhile.

Lag is counted from the time when an event was due, not from the time when the engine yielded it, so
that a stalled server cannot hide the stall. All processes read the machine's monotonic clock.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial

from bench.contenders.contender import Contender, Server, fresh
from bench.contenders.contestants import is_subject, missing, others
from bench.contenders.product import Reattach, ReattachServer
from bench.measuring.against import ratios, versions
from bench.measuring.charts import Chart
from bench.measuring.load import Reader
from bench.measuring.reading import live, repeated
from bench.measuring.results import Chapter, Goal, Table, at_most, table
from bench.measuring.rounds import (
    Figures,
    Measurement,
    Results,
    Turn,
    interleaved,
    never_lost,
    until_one_fails,
)
from bench.options import Options
from bench.yardsticks.local import CEILING

RATE = 50.0
RUNS, QUICK_RUNS, LONG_RUNS = (1, 100, 250, 1000), (1, 50), (1, 100, 250, 500, 1000, 2000)
READERS, QUICK_READERS, LONG_READERS = (1000, 5000), (50,), (100, 1000, 5000)
BESIDE_RUNS, BESIDE_READERS = (100, 250), (1000,)
"""The sizes of RUNS and READERS at which other projects are measured."""
SECONDS, QUICK_SECONDS = 3.0, 0.4
ROUNDS = 3
BESIDE_REPLAYS = 100
REPLAYED_EVENTS, QUICK_REPLAYED_EVENTS = 10_000, 2000
BUSY_PERCENT = 90.0
"""The share of a core above which a server writes several events at once, which costs less."""
HELD_MS = 100.0
"""The p99 lag within which a server is considered to keep up."""
LOST_MS = 250.0
"""The p99 lag above which another project's server is not tried at larger sizes."""
SENDS, QUICK_SENDS = 100, 20
FIRST = "first event of a send"
COST = "CPU µs per delivery"
ON_REDIS = Reattach("Reattach, Redis", "redis")
IN_THE_BACKGROUND = {"p50 ms": "lag p50 ms", "p99 ms": "lag p99 ms", "max ms": "lag max ms",
                     "from yield p50 ms": "from yield p50 ms",
                     "from yield p99 ms": "from yield p99 ms",
                     "µs of CPU per delivery": COST,
                     "server CPU %": "server CPU %", "load CPU %": "load CPU %",
                     "opened in s": "open s"}  # fmt: skip


def many_runs(runs: int) -> str:
    return f"{runs:,} runs, 1 reader each"


def many_readers(readers: int) -> str:
    return f"1 run, {readers:,} readers"


def beside_replays(options: Options) -> str:
    runs = QUICK_RUNS[-1] if options.quick else BESIDE_REPLAYS
    return f"{runs} runs while two clients replay"


def measurements(
    contender: Contender, options: Options, server: Server | None = None
) -> Iterator[Measurement]:
    """Measure each size on a new server unless one is given, because ended runs use memory."""
    runs, readers = sizes_of(contender, options)
    lost = never_lost if is_subject(contender) else is_lost
    yield from until_one_fails(
        (
            (many_runs(number), partial(one_live, contender, options, number, 1, server=server))
            for number in runs
        ),
        lost,
    )
    yield from until_one_fails(
        (
            (many_readers(number), partial(one_live, contender, options, 1, number, server=server))
            for number in readers
        ),
        lost,
    )
    if "replay" not in contender.works:
        return
    number = QUICK_RUNS[-1] if options.quick else BESIDE_REPLAYS
    replayed = QUICK_REPLAYED_EVENTS if options.quick else REPLAYED_EVENTS
    yield (
        beside_replays(options),
        partial(one_live, contender, options, number, 1, replayed=replayed, server=server),
    )
    if isinstance(contender, Reattach) and contender is not ON_REDIS:
        yield FIRST, partial(first_event, contender, options, server=server)


def sizes(options: Options) -> tuple[Sequence[int], Sequence[int]]:
    """Return the numbers of runs and of readers, from the smallest to the largest."""
    if options.quick:
        return QUICK_RUNS, QUICK_READERS
    return (LONG_RUNS, LONG_READERS) if options.long else (RUNS, READERS)


def sizes_of(contender: Contender, options: Options) -> tuple[Sequence[int], Sequence[int]]:
    """Return the numbers of runs and of readers at which this server is measured."""
    runs, readers = sizes(options)
    if options.quick and not options.contenders:
        if contender.name != Reattach().name:
            runs = runs[-1:]
        if contender is ON_REDIS:
            readers = ()
    elif not options.long and not options.quick:
        if not is_subject(contender):
            runs = BESIDE_RUNS
        if not is_subject(contender) or contender is ON_REDIS:
            readers = BESIDE_READERS
    return [number for number in runs if number <= contender.most_runs], readers


def is_lost(figures: Figures) -> bool:
    return figures["lag p99 ms"] > LOST_MS


def quick_measurements(contender: Contender, options: Options) -> Iterator[Measurement]:
    """Measure all sizes on one server, because a start takes longer than the rest."""
    with fresh(contender, options.cores) as server:
        yield from measurements(contender, options, server)


def one_live(
    contender: Contender,
    options: Options,
    runs: int,
    readers: int,
    *,
    replayed: int = 0,
    server: Server | None = None,
) -> dict[str, float]:
    seconds = QUICK_SECONDS if options.quick else SECONDS
    with nullcontext(server) if server else fresh(contender, options.cores) as there:
        assert there is not None
        replay = there.ended(replayed)[0] if replayed else None
        return live(
            there, options.cores,
            runs=runs, readers=readers, per_second=RATE, seconds=seconds, replay=replay,
        )  # fmt: skip


def first_event(
    contender: Reattach, options: Options, *, server: Server | None = None
) -> dict[str, float]:
    """Measure the time from a send to the first byte of its first event."""
    with nullcontext(server) if server else fresh(contender, options.cores) as there:
        assert isinstance(there, ReattachServer)
        sends = QUICK_SENDS if options.quick else SENDS
        begins = [there.stream("burst", "1", 1).begin for _ in range(sends)]
        readers = [
            Reader(begin, start_seconds=0.05 * number)
            for number, begin in enumerate(begins)
            if begin is not None
        ]
        figures = repeated(there, readers, options.cores, mode="once", seconds=60.0)
        return {
            "lag p50 ms": figures["first byte p50 ms"],
            "lag p99 ms": figures["first byte p99 ms"],
            "server CPU %": figures["server CPU %"],
        }


def main(options: Options) -> Chapter:
    contenders = [*versions(options), *others(options, "live")]
    if not options.contenders or any(word in ON_REDIS.name for word in options.contenders):
        contenders.insert(1, ON_REDIS)
    measured = quick_measurements if options.quick else measurements
    turns = [
        Turn(one.name, partial(measured, one, options), tries_again=is_subject(one))
        for one in contenders
    ]
    results = interleaved(turns, options.times(ROUNDS))
    return chapter_of(results, [one.name for one in contenders], options)


def chapter_of(results: Results, contenders: list[str], options: Options) -> Chapter:
    runs, readers = sizes(options)
    names = [*map(many_runs, runs), *map(many_readers, readers), beside_replays(options), FIRST]
    chapter = Chapter(
        "live",
        "Live",
        f"Runs that yield {RATE:.0f} events a second each, durable where the server has a log. "
        "Lag: from the moment when an event was due to its last byte at the reader; it holds up to "
        "a millisecond of the schedule itself. `from yield` leaves out the wait for the engine.",
        [
            table(results, "Live streams", names, IN_THE_BACKGROUND),
            *ratios(results, options, names, IN_THE_BACKGROUND),
        ],
        goals(results, options),
        notes=results.failures() + missing(options, "live"),
    )
    chapter.tables.append(held(results, contenders, options))
    for name, numbers, what in (
        ("live-runs", {n: many_runs(n) for n in runs}, "runs of one reader each"),
        ("live-readers", {n: many_readers(n) for n in readers}, "readers of one run"),
    ):
        lines = {
            one: [
                (float(number), lag)
                for number, measurement in numbers.items()
                if (lag := results.middle(one, measurement, "lag p99 ms"))
            ]
            for one in contenders
        }
        title = f"Lag at p99, {RATE:.0f} events a second from each run"
        chapter.charts.append(Chart(name, title, what, "ms", lines))
    return chapter


def held(results: Results, contenders: list[str], options: Options) -> Table:
    """Find the largest size of each server at which the p99 lag stays within the bound."""
    runs, readers = sizes(options)
    rows = []
    for one in contenders:
        row = [one]
        for numbers, named in ((runs, many_runs), (readers, many_readers)):
            lags = {number: results.middle(one, named(number), "lag p99 ms") for number in numbers}
            most = [number for number, lag in lags.items() if lag is not None and lag <= HELD_MS]
            row.append(f"{max(most):,}" if most else "none")
        rows.append(row)
    return Table(
        f"The most of those tried that were held with p99 within {HELD_MS:.0f} ms",
        ["server", "runs of one reader", "readers of one run"],
        rows,
    )


def most_unsaturated(results: Results, options: Options) -> str:
    """Return the largest measurement of many runs in which this project's servers had time left."""
    numbers, _ = sizes(options)
    found = [many_runs(numbers[0])]
    for number in numbers:
        shares = [
            share
            for one in (Reattach().name, ON_REDIS.name)
            if (share := results.middle(one, many_runs(number), "server CPU %")) is not None
        ]
        if shares and max(shares) < BUSY_PERCENT:
            found.append(many_runs(number))
    return found[-1]


def difference(results: Results, measurement: str) -> float | None:
    """Return the CPU of an event beyond the ceiling's, in µs."""
    own = results.middle(Reattach().name, measurement, COST)
    ceiling = results.middle(CEILING.name, measurement, COST)
    return None if own is None or ceiling is None else own - ceiling


def goals(results: Results, options: Options) -> list[Goal]:
    own, lag = Reattach().name, "lag p99 ms"
    fan_out = many_readers(1000)
    alone, thousand, beside = many_runs(1), many_runs(1000), beside_replays(options)
    most = most_unsaturated(results, options)
    return [
        Goal("1,000 readers × 50/s of one run: CPU", "≤ 1.15 × ceiling",
             results.ratio(COST, (own, fan_out), (CEILING.name, fan_out)),
             at_most(1.15), "× ceiling"),
        Goal("the same: p99", "≤ 20 ms", results.middle(own, fan_out, lag), at_most(20), "ms"),
        Goal("5,000 readers × 50/s of one run: p99", "≤ 100 ms",
             results.middle(own, many_readers(5000), lag), at_most(100), "ms"),
        Goal(f"{most}, × 50/s, durable on SQLite: CPU of an event", "≤ 6 µs beyond the ceiling's",
             difference(results, most), at_most(6), "µs"),
        Goal("the same on Redis", "≤ 1.3 × SQLite",
             results.ratio(COST, (ON_REDIS.name, most), (own, most)), at_most(1.3), "× SQLite"),
        Goal("1,000 runs × 50/s, durable on SQLite: p99", "≤ 2 × ceiling",
             results.ratio(lag, (own, thousand), (CEILING.name, thousand)), at_most(2),
             "× ceiling"),
        Goal("the same on Redis", "≤ 1.3 × SQLite",
             results.ratio(lag, (ON_REDIS.name, thousand), (own, thousand)), at_most(1.3),
             "× SQLite"),
        Goal("2,000 runs × 50/s: p99", "≤ 100 ms",
             results.middle(own, many_runs(2000), lag), at_most(100), "ms"),
        Goal("1 run, durable: lag p50", "≤ 2 ms",
             results.middle(own, alone, "lag p50 ms"), at_most(2), "ms"),
        Goal("the same: p99", "≤ 5 ms", results.middle(own, alone, lag), at_most(5), "ms"),
        Goal("live p99 while two clients replay", "≤ 2 × ceiling",
             results.ratio(lag, (own, beside), (CEILING.name, beside)), at_most(2), "× ceiling"),
        Goal(f"{FIRST}: p50", "≤ 4 ms",
             results.middle(own, FIRST, "lag p50 ms"), at_most(4), "ms"),
    ]  # fmt: skip
