"""Growth: what things cost when runs get longer, when more of them are kept, and after a day."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.charts import Chart
from bench.contender import Server, fresh
from bench.load import Group, Load, Reader, Spoiled
from bench.machine import cpu_seconds, memory
from bench.options import Options
from bench.product import Reattach, ReattachServer
from bench.reading import LIMIT_SECONDS, repeated
from bench.results import Chapter, Goal, at_most, table
from bench.rounds import Measurement, Results, Turn, interleaved

EVENTS, QUICK_EVENTS = (100, 1000, 10_000, 100_000), (100, 1000, 10_000)
KEPT, QUICK_KEPT, LONG_KEPT = (100, 1000, 10_000), (32, 96), (100_000,)
SECONDS, QUICK_SECONDS = 3.0, 0.3
ROUNDS = 3
LAST = 10
RESUMING = 16
SENDING = 16
"""Conversations that runs are begun in at the same time."""
TURNS = 50
"""Runs of one conversation."""
LOOKED_AT = 100
"""Of the kept runs those that are read again, evenly over all of them."""
SEND_EVENTS = 10
PERIODS, QUICK_PERIODS = 5, 3
"""Of retention, each with as many runs: memory and files must not grow with them."""
RUNS_A_PERIOD, QUICK_RUNS_A_PERIOD = 2000, 32
RETENTION_SECONDS, QUICK_RETENTION_SECONDS = 20.0, 1.0
OWN = Reattach().name


def resume_at(events: int) -> str:
    return f"resume {LAST} from the end of {events:,} events"


def replay_of(events: int) -> str:
    return f"replay of {events:,} events"


def by_events(options: Options) -> Iterator[Measurement]:
    """Runs of more and more events, in one server."""
    seconds = QUICK_SECONDS if options.quick else SECONDS
    with fresh(Reattach(), options.cores) as server:
        for events in QUICK_EVENTS if options.quick else EVENTS:
            (stream,) = server.ended(events)
            again = partial(repeated, server, cores=options.cores, seconds=seconds)
            cursor = stream.last - LAST
            end = Reader(stream.at(cursor), after=cursor, last=stream.last)
            yield resume_at(events), partial(again, end, readers=RESUMING)
            whole = Reader(stream.at(0), last=stream.last)
            yield replay_of(events), partial(again, whole, readers=1)


def send_with(kept: int) -> str:
    return f"send a run with {kept:,} runs kept"


def resume_with(kept: int) -> str:
    return f"resume one of {kept:,} runs kept"


def by_runs(options: Options) -> Iterator[Measurement]:
    """More and more ended runs in one server: what the next one costs, and one of them."""
    with fresh(Reattach(), options.cores) as server:
        there = 0
        for kept in kept_runs(options):
            made = partial(sent, server, kept - there, options)
            there = kept
            yield send_with(kept), made
            yield resume_with(kept), partial(looked_at, server, options)


def kept_runs(options: Options) -> tuple[int, ...]:
    """How many runs are there, one after the other."""
    if options.quick:
        return QUICK_KEPT
    return KEPT + LONG_KEPT if options.long else KEPT


def sent(server: Server, runs: int, options: Options) -> dict[str, float]:
    """Begin so many runs, some at a time, and read each to its end; the figures of the last ones.

    In conversations of a few turns each: a turn is given all that were before it.
    """
    assert isinstance(server, ReattachServer)
    figures: dict[str, float] = {}
    while runs > 0:
        turns = max(min(TURNS, runs // SENDING), 1)
        figures = sent_at_once(server, min(SENDING, runs), turns, options)
        runs -= SENDING * turns
    return figures


def sent_at_once(
    server: ReattachServer, conversations: int, turns: int, options: Options
) -> dict[str, float]:
    readers = [
        Reader(server.send(server.conversation("burst"), str(SEND_EVENTS)), last=SEND_EVENTS + 2)
        for _ in range(conversations)
    ]
    before = cpu_seconds(server.pids)
    group = Group("send", "loop", readers, server.flags | {f"count={turns}"})
    with Load(server.port, [group], options.cores.load) as load:
        report = load.done(conversations * turns * 0.05 + LIMIT_SECONDS)
    used = cpu_seconds(server.pids) - before
    told = report.groups["send"]
    return {
        "CPU µs per request": 1e6 * used / told.responses,
        "first byte p50 ms": told.first_byte.p50 / 1e6,
        "first byte p99 ms": told.first_byte.p99 / 1e6,
        "requests per s": told.responses / (report.wall_ns / 1e9),
    }


def looked_at(server: Server, options: Options) -> dict[str, float]:
    """Read some of the runs again, each from its first event on."""
    assert isinstance(server, ReattachServer)
    streams = [server.run_stream(run_id, SEND_EVENTS) for run_id in server.listed_runs(LOOKED_AT)]
    cursor = 1
    readers = [
        Reader(stream.at(cursor), after=cursor, last=stream.last)
        for stream in streams[:: max(len(streams) // RESUMING, 1)]
    ]
    seconds = QUICK_SECONDS if options.quick else SECONDS
    return repeated(server, readers, options.cores, seconds=seconds)


def day(options: Options) -> Iterator[Measurement]:
    """Periods of retention with as many runs in each: the sizes at the end of every one."""
    retention = QUICK_RETENTION_SECONDS if options.quick else RETENTION_SECONDS
    runs = QUICK_RUNS_A_PERIOD if options.quick else RUNS_A_PERIOD
    contender = Reattach(settings={"retention_seconds": str(retention)})
    with (
        TemporaryDirectory() as directory,
        contender.serving(Path(directory), options.cores) as server,
    ):
        for period in range(1, (QUICK_PERIODS if options.quick else PERIODS) + 1):
            yield (
                f"period {period}",
                partial(after_period, server, Path(directory), runs, retention, options),
            )


def after_period(
    server: Server, data: Path, runs: int, retention: float, options: Options
) -> dict[str, float]:
    """Make the runs, and look when the retention of all of them is over and was swept."""
    assert isinstance(server, ReattachServer)
    sent(server, runs, options)
    full = sizes(server, data)
    deadline = time.monotonic() + 4 * retention + LIMIT_SECONDS
    last = server.listed_runs(1)[0]
    while not server.is_gone(last):
        if time.monotonic() > deadline:
            raise Spoiled("the retention is over and the log still there")
        time.sleep(0.2)
    time.sleep(retention / 2 + 1)
    swept = sizes(server, data)
    return {f"{name}, full": value for name, value in full.items()} | {
        f"{name}, swept": value for name, value in swept.items()
    }


def sizes(server: Server, data: Path) -> dict[str, float]:
    files = sum(file.stat().st_size for file in data.rglob("*") if file.is_file())
    held = memory(server.pids).proportional_bytes
    return {"memory MiB": held / 2**20, "files MiB": files / 2**20}


def main(options: Options) -> Chapter:
    turns = [
        Turn(OWN, partial(by_events, options)),
        Turn(OWN, partial(by_runs, options)),
        Turn(OWN, partial(day, options)),
    ]
    results = interleaved(turns[:1], options.times(ROUNDS))
    for (contender, name), measured in interleaved(turns[1:], 1).items():
        results[contender, name] = measured
    return told(results, options)


def told(results: Results, options: Options) -> Chapter:
    events, kept = (QUICK_EVENTS if options.quick else EVENTS), kept_runs(options)
    periods = range(1, (QUICK_PERIODS if options.quick else PERIODS) + 1)
    heads = {
        "µs of CPU per request": "CPU µs per request",
        "µs of CPU per event": "CPU µs per event",
        "first byte p50 ms": "first byte p50 ms",
        "p99 ms": "first byte p99 ms",
    }
    names = [*map(resume_at, events), *map(replay_of, events)]
    names += [*map(send_with, kept), *map(resume_with, kept)]
    chapter = Chapter(
        "growth",
        "Growth",
        "The same work on runs of more events, on servers that keep more runs, and on one that "
        f"forgets: runs of {SEND_EVENTS} events, made and forgotten over and over. What readers "
        "cost stands in the chapter on live streams.",
        [
            table(results, "Costs by size", names, heads),
            table(
                results,
                "Sizes when a period's runs are there, and when they were forgotten",
                [f"period {period}" for period in periods],
                {
                    "memory MiB, full": "memory MiB, full",
                    "swept": "memory MiB, swept",
                    "files MiB, full": "files MiB, full",
                    "swept ": "files MiB, swept",
                },
            ),
        ],
        goals(results, events, options),
        notes=results.failures(),
    )
    by = {
        f"resume {LAST} from the end, by its events": [(n, resume_at(n)) for n in events],
        "replay, by its events": [(n, replay_of(n)) for n in events],
        "send, by runs kept": [(n, send_with(n)) for n in kept],
        "resume, by runs kept": [(n, resume_with(n)) for n in kept],
    }
    lines = {
        line: [
            (float(number), cost)
            for number, name in points
            if (cost := results.middle(OWN, name, "CPU µs per request"))
        ]
        for line, points in by.items()
    }
    title = "CPU of the server for one request"
    chapter.charts.append(Chart("growth", title, "events or runs", "µs", lines))
    return chapter


def goals(results: Results, events: tuple[int, ...], options: Options) -> list[Goal]:
    files = results.ratio("files MiB, swept", (OWN, last_period(results)), (OWN, "period 2"))
    if options.quick:  # So few runs are all in the journals still, which only grow at first.
        files = None
    longest, shortest = resume_at(events[-1]), resume_at(events[0])
    return [
        Goal(f"resume near the end of {events[-1]:,} events, and of {events[0]:,}: CPU",
             "the same (≤ 1.25 ×)",
             results.ratio("CPU µs per request", (OWN, longest), (OWN, shortest)),
             at_most(1.25), "×"),
        Goal("memory after the last period, and after the second", "the same (≤ 1.1 ×)",
             results.ratio("memory MiB, swept", (OWN, last_period(results)), (OWN, "period 2")),
             at_most(1.1), "×"),
        Goal("files after the last period, and after the second", "the same (≤ 1.1 ×)",
             files, at_most(1.1), "×"),
    ]  # fmt: skip


def last_period(results: Results) -> str:
    periods = [name for _, name in results if name.startswith("period ")]
    return max(periods, default="period 1")
