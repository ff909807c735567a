"""Appends: durable events per second of each log, and the latency until they are durable."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from tempfile import TemporaryDirectory

from bench.contenders.contender import ROOT, python
from bench.measuring.charts import Chart
from bench.measuring.load import SpoiledError
from bench.measuring.machine import children_on, raise_priority
from bench.measuring.results import Chapter, Goal, at_least, at_most, table
from bench.measuring.rounds import Measurement, Results, Turn, interleaved
from bench.options import Options
from reattach.testing.programs.redis import RedisServer

RUNS, QUICK_RUNS = (1, 100, 1000), (100,)
PACES: Mapping[int, float] = {1: 50.0, 100: 200.0, 1000: 50.0}
"""Events per second of each run."""
SECONDS, QUICK_SECONDS = 2.0, 0.3
ROUNDS = 3
END_SECONDS = 120.0
EMBEDDED = "SQLite, survives a killed process"
BACKENDS: Mapping[str, str] = {
    "memory": "memory:",
    EMBEDDED: "sqlite:FILE?durability=process",
    "SQLite, survives a power cut": "sqlite:FILE?durability=power",
    "Redis, kept in memory": "redis",
    "Redis, appendfsync always": "redis --appendonly yes --appendfsync always",
}


def appended(url: str, runs: int, per_second: float, options: Options) -> dict[str, float]:
    """Run ``bench.appending`` on the server's core and return its figures."""
    seconds = QUICK_SECONDS if options.quick else SECONDS
    with ExitStack() as stack:
        directory = stack.enter_context(TemporaryDirectory())
        place = url.replace("FILE", f"{directory}/log.db")
        if url.startswith("redis"):
            with children_on(options.cores.store):
                redis = stack.enter_context(RedisServer(*url.split()[1:], tcp=True))
            place = f"redis://127.0.0.1:{redis.port}/0"
        words = [place, str(runs), str(per_second), str(seconds)]
        with children_on(options.cores.server):
            process = subprocess.Popen(
                python("bench.appending", *words),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                start_new_session=True,
            )
        raise_priority(process.pid)
        try:
            output, errors = process.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise SpoiledError(f"not done after {END_SECONDS:.0f} s") from None
    if process.returncode:
        raise SpoiledError((errors.strip().splitlines() or ["it ended"])[-1])
    figures: dict[str, float] = json.loads(output)
    return figures


def at_a_pace(runs: int) -> str:
    return f"{runs:,} runs, {PACES[runs] * runs:,.0f} events/s offered"


def flat_out(runs: int) -> str:
    return f"{runs:,} runs, as fast as it takes them"


def measurements(url: str, options: Options) -> Iterator[Measurement]:
    for runs in QUICK_RUNS if options.quick else RUNS:
        yield at_a_pace(runs), partial(appended, url, runs, PACES[runs], options)
        yield flat_out(runs), partial(appended, url, runs, 0, options)


def main(options: Options) -> Chapter:
    turns = [Turn(name, partial(measurements, url, options)) for name, url in BACKENDS.items()]
    results = interleaved(turns, options.times(ROUNDS))
    numbers = QUICK_RUNS if options.quick else RUNS
    columns = ("events per s", "p50 ms", "p99 ms", "max ms", "CPU µs per event", "CPU %")
    names = [named(runs) for named in (at_a_pace, flat_out) for runs in numbers]
    heads = dict(zip(columns, columns, strict=True))
    chapter = Chapter(
        "append",
        "Append",
        "The log alone, on the server's core: from when an event was due until the log has "
        "acknowledged it, so that it may be delivered. As fast as it takes them: every run always "
        "has an append of ten events under way. Redis runs on the other core, and its CPU is not "
        "counted.",
        [table(results, "Appends of events of 350 bytes", names, heads)],
        goals(results),
        notes=results.failures(),
    )
    lines = {
        name: [
            (float(place), value)
            for place, runs in enumerate(numbers)
            if (value := results.middle(name, flat_out(runs), "events per s"))
        ]
        for name in BACKENDS
    }
    title = "Durable events a second, as fast as the log takes them"
    words = [f"{runs:,}" for runs in numbers]
    chapter.charts.append(Chart("append", title, "runs", "events/s", lines, words))
    return chapter


def goals(results: Results) -> list[Goal]:
    return [
        Goal("durable append, embedded, 100 runs", "≥ 20,000 events/s",
             results.middle(EMBEDDED, flat_out(100), "events per s"), at_least(20_000), "events/s"),
        Goal("the same at 20,000 events/s: added latency p99", "≤ 5 ms",
             results.middle(EMBEDDED, at_a_pace(100), "p99 ms"), at_most(5), "ms"),
    ]  # fmt: skip
