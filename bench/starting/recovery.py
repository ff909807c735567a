"""Recovery: open runs after the only server was killed, until the last of them goes on."""

import asyncio
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Final

from bench.faults.handover import WORDS, alone, serving_alone
from bench.measuring.results import Chapter, Goal, at_most, table
from bench.measuring.rounds import Figures, Measurement, Turn, interleaved
from bench.options import Options

OWN: Final = "Reattach"
RUNS, QUICK_RUNS = 1000, 30
ROUNDS: Final = 3
MODEL: Final = "scripted/echo"
MOST_SECONDS: Final = 5.0
LONGEST: Final = "last s"


def killed_and_started(runs: int) -> Figures:
    """Kill a server with so many open runs, start it again, and read each run on."""
    with serving_alone() as server:
        row = asyncio.run(alone(server, "", runs, MODEL, WORDS, from_start=True))
    return {
        "runs that went on": len(row.next_event_seconds),
        "median s": median(row.next_event_seconds),
        LONGEST: max(row.next_event_seconds),
    }


def measured(runs: int) -> str:
    return f"kill -9 with {runs:,} open runs, and a start"


def main(options: Options) -> Chapter:
    runs = QUICK_RUNS if options.quick else RUNS
    name = measured(runs)

    def measurements() -> Iterator[Measurement]:
        yield name, partial(killed_and_started, runs)

    results = interleaved([Turn(OWN, measurements)], options.times(ROUNDS))
    columns = ("runs that went on", "median s", LONGEST)
    return Chapter(
        "recovery",
        "Recovery",
        "The only server is killed while it has open runs of the scripted engine, and started "
        "again. Time from the start of the program to the first event of each run's second "
        "attempt at its reader. The server and the readers share the cores.",
        [table(results, "Recoveries", [name], dict(zip(columns, columns, strict=True)))],
        [
            Goal(f"{name}: the last run goes on", f"≤ {MOST_SECONDS:g} s",
                 results.middle(OWN, name, LONGEST), at_most(MOST_SECONDS), "s"),
        ],
        notes=results.failures(),
    )  # fmt: skip
