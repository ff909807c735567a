"""A server's start: the time to its first answer, its CPU, and its memory when idle."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench.contenders.contender import ROOT, asked, program, python
from bench.measuring.load import Request
from bench.measuring.machine import cpu_seconds, memory
from bench.measuring.results import Chapter, Goal, at_most, table
from bench.measuring.rounds import Figures, Measurement, Turn, interleaved
from bench.options import Options

OWN: Final = "Reattach"
FIRST, AGAIN = "first start", "start with existing files"
ROUNDS: Final = 5
IDLE_SECONDS: Final = 1.0
HEALTH: Final = Request.of("GET", "/v1/health/")
MOST_SECONDS: Final = 0.6
MOST_MIB: Final = 70
MIB: Final = 1024 * 1024


def started(checkout: Path, directory: Path, options: Options) -> Figures:
    """Start a server, ask it once, let it rest, and stop it."""
    environment = {
        "REATTACH_DATA_DIR": str(directory),
        "REATTACH_LOG_LEVEL": "error",
        "PYTHONPATH": str(checkout / "src"),
    }
    command = python("reattach", "serve", "--port", "0", checkout=checkout)
    begin = time.monotonic()
    with program(command, options.cores, environment, checkout) as (port, pid):
        asked(port, HEALTH)
        seconds, used = time.monotonic() - begin, cpu_seconds([pid])
        time.sleep(IDLE_SECONDS)
        size = memory([pid])
    return {
        "first answer s": seconds,
        "CPU s": used,
        "idle memory MiB": size.proportional_bytes / MIB,
    }


def measurements(checkout: Path, options: Options) -> Iterator[Measurement]:
    with TemporaryDirectory(prefix="bench-data-") as directory:
        for name in (FIRST, AGAIN):
            yield name, partial(started, checkout, Path(directory), options)


def main(options: Options) -> Chapter:
    checkouts = {OWN: ROOT, **{f"{OWN} in {one.name}": one for one in options.against}}
    turns = [Turn(name, partial(measurements, one, options)) for name, one in checkouts.items()]
    results = interleaved(turns, options.times(ROUNDS))
    columns = {one: one for one in ("first answer s", "CPU s", "idle memory MiB")}
    return Chapter(
        "start",
        "Start",
        "From the start of the program to its first answer, with the built-in model and without "
        "settings. Python's compiled files exist. Memory is measured a second after the answer.",
        [table(results, "Starts", [FIRST, AGAIN], columns)],
        [
            Goal("a start with existing files", f"≤ {MOST_SECONDS:g} s",
                 results.middle(OWN, AGAIN, "first answer s"), at_most(MOST_SECONDS), "s"),
            Goal("memory of an idle server", f"≤ {MOST_MIB} MiB",
                 results.middle(OWN, AGAIN, "idle memory MiB"), at_most(MOST_MIB), "MiB"),
        ],
        notes=results.failures(),
    )  # fmt: skip
