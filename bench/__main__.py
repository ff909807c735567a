"""``python -m bench [NAME …]``: measure, print the figures and write them to a file."""

import argparse
import platform
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench import (
    append,
    cluster,
    following,
    growth,
    idle,
    live,
    reload,
    replay,
    storm,
    watching,
)
from bench.browser import page
from bench.clients import table as clients
from bench.dialects import costs, matrix
from bench.faults import chaos, handover, repeated, siege
from bench.measuring.load import CACHE, program
from bench.measuring.results import Chapter, begin, summary_of, write
from bench.options import Options
from bench.requests import reads, sends, turns
from bench.starting import recovery, starts
from bench.telemetry import tracing


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark that writes a chapter of the results."""

    about: str
    measure: Callable[[Options], Chapter]
    minutes: float
    """About how long it takes on two cores, if it is not quick."""


CHAPTERS: Mapping[str, Benchmark] = {
    "replay": Benchmark("ended runs, from anywhere, warm and cold", replay.main, 6),
    "live": Benchmark("many runs, many readers, replays meanwhile: lag and CPU", live.main, 12),
    "sends": Benchmark(
        "a send, from its request to its settled run: CPU, first event", sends.main, 1
    ),
    "turns": Benchmark(
        "a send by the length of its conversation, in memory or not: CPU", turns.main, 1
    ),
    "reads": Benchmark(
        "one GET of an object, a list, the metrics, with few and many kept: CPU", reads.main, 1
    ),
    "start": Benchmark(
        "a server's start: time to its first answer, CPU, memory when idle", starts.main, 1
    ),
    "recovery": Benchmark(
        "open runs after kill -9: from the start to the last one that goes on", recovery.main, 1
    ),
    "dialects": Benchmark("an event in each dialect, live and replayed: CPU", costs.main, 2),
    "append": Benchmark("durable events a second, by backend and durability", append.main, 4),
    "growth": Benchmark(
        "costs against events, runs and readers; sizes after retention", growth.main, 5
    ),
    "reload": Benchmark(
        "an answer after a reload of its page: replay and snapshot", reload.main, 1
    ),
    "following": Benchmark("runs of another server over Redis: lag and CPU", following.main, 2),
    "idle": Benchmark("readers on silent runs: memory, CPU, pings", idle.main, 3),
    "storm": Benchmark("all readers cut at once, and back", storm.main, 2),
    "watching": Benchmark(
        "metrics off, on, and asked for everything all the time: CPU", watching.main, 3
    ),
    "tracing": Benchmark(
        "traces off and on, of live events, sends and resumes: CPU", tracing.main, 2
    ),
}
"""Benchmarks that write a chapter of the results. ``--quick`` applies to these."""

OF_CLUSTERS: Mapping[str, tuple[str, Callable[[Options], None]]] = {
    "cluster": ("500 idle readers on 100 runs over three servers: connections, commands, CPU",
                cluster.main),
    "faults": ("injected faults on three servers and their stores: losses, doubles, orphans, time",
               repeated.main),
    "siege": ("one fault after another beside a hostile tenant: losses, doubles, orphans, audit",
              siege.main),
    "chaos": ("random owners killed, paused and stopped every 2 s under runs with tools",
              chaos.chaos),
    "rolling": ("servers restarted one after the other, again and again, under runs with tools",
                chaos.rolling),
    "clients": ("what a user of each client sees when something breaks", clients.main),
    "matrix": ("every client over cuts, reloads, retries, cancels, approvals and errors",
               matrix.main),
    "page": ("the server's page in a browser: size, first paint, script time, heap", page.main),
    "handover": ("from the stop or death of a server to the next event of its runs",
                 handover.main),
}  # fmt: skip

RESULTS = Path(__file__).parent


def main() -> int:
    parser = _parser()
    chosen = parser.parse_args()
    known = {**CHAPTERS, **OF_CLUSTERS}
    names = chosen.names or list(CHAPTERS)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown benchmark {', '.join(unknown)}; choose from {', '.join(known)}")
    options = _options(chosen)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most_files, most_files)
    )  # Each reader needs a file descriptor.
    print(
        f"Reattach {version('reattach')}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )
    folder = Path(chosen.results) if chosen.results else CACHE / "quick"
    if not chosen.results and not chosen.quick:
        folder = RESULTS
    for name in names:
        if name in OF_CLUSTERS:
            what, measure = OF_CLUSTERS[name]
            print(f"\n{name}: {what}", flush=True)
            measure(options)
    chapters = [name for name in names if name in CHAPTERS]
    failed = measure_chapters(chapters, options, folder, whole=not chosen.names)
    if failed:
        print(f"bench: no chapter was written for {', '.join(failed)}; see above", file=sys.stderr)
    return 1 if failed else 0


def measure_chapters(
    names: Sequence[str], options: Options, folder: Path, *, whole: bool
) -> list[str]:
    """Measure and write chapters, and return those that failed. ``whole`` begins a new file."""
    if not names:
        return []
    program()
    failed: list[str] = []
    chapters: dict[str, Chapter] = {}
    begun_at = time.monotonic()
    if whole:
        begin(folder)
    for number, name in enumerate(names, 1):
        chapter_at = time.monotonic()
        benchmark = CHAPTERS[name]
        passed = (chapter_at - begun_at) / 60
        expected = "" if options.quick else f", takes about {benchmark.minutes:g} min"
        print(
            f"\n{name}: {benchmark.about}\n"
            f"chapter {number} of {len(names)}, after {passed:.1f} min{expected}",
            flush=True,
        )
        try:
            chapter = benchmark.measure(options)
        except Exception:  # noqa: BLE001  The other chapters are worth their time.
            traceback.print_exc()
            failed.append(name)
            continue
        chapters[name] = chapter
        print(f"\n{chapter.printed()}\n{name} took {time.monotonic() - chapter_at:.0f} s")
        write(chapter, folder, _command(name, sys.argv[1:], names))
    if whole:
        minutes = (time.monotonic() - begun_at) / 60
        write(summary_of(chapters, minutes, failed), folder, sys.argv[1:])
    print(f"\nwritten to {folder / 'results.md'}")
    return failed


def _options(chosen: argparse.Namespace) -> Options:
    return Options(
        quick=chosen.quick,
        long=chosen.long,
        rounds=chosen.rounds,
        contenders=chosen.beside,
        against=[Path(folder).resolve() for folder in chosen.against],
        repetitions=chosen.repetitions,
        minutes=chosen.minutes,
        seconds=chosen.seconds,
        runs=chosen.runs,
        seed=chosen.seed,
        lease_seconds=chosen.lease_seconds,
        only=chosen.only,
        table=chosen.table,
    )


def _command(name: str, words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the command line that measures this chapter again."""
    return [name, *(word for word in words if word not in names)]


def _parser() -> argparse.ArgumentParser:
    listed = {name: one.about for name, one in CHAPTERS.items()}
    listed |= {name: what for name, (what, _) in OF_CLUSTERS.items()}
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure the server and the servers that it is compared with.",
        epilog="\n".join(f"{name}: {what}" for name, what in listed.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"benchmarks to run; default: {', '.join(CHAPTERS)}",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes in two minutes; do not quote the figures"
    )
    parser.add_argument(
        "--long",
        action="store_true",
        help="more sizes of live and growth, to 500,000 runs, which takes ten minutes longer",
    )
    parser.add_argument("--rounds", type=int, default=0, help="rounds of each measurement")
    parser.add_argument(
        "--beside", action="append", default=[], metavar="WORD",
        help="only servers to compare with, or clients, whose name contains this word; may be "
        "repeated",
    )  # fmt: skip
    parser.add_argument(
        "--against", action="append", default=[], metavar="FOLDER",
        help="another checkout of this project to compare with in replay, live, idle and sends; "
        "may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--results", default="", metavar="FOLDER",
        help="folder of results.md and its charts; default: bench/, or .bench/quick/ with --quick",
    )  # fmt: skip
    of_faults = parser.add_argument_group("faults")
    default = Options()
    for name, meaning in (
        ("repetitions", "experiments with each fault"),
        ("minutes", "length of a siege"),
        ("seconds", "length of chaos and rolling"),
        ("runs", "runs that are open at once in chaos and rolling"),
        ("seed", "seed of chaos and rolling"),
        ("lease_seconds", "lease of the servers"),
    ):
        usual = getattr(default, name)
        of_faults.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(usual),
            default=usual,
            help=f"{meaning}; default: %(default)s",
        )
    of_faults.add_argument(
        "--only",
        default="",
        help="only faults and situations whose name contains this word",
        metavar="WORD",
    )
    of_faults.add_argument(
        "--table",
        default="",
        help="file to write the table of faults or of clients to, or the matrix",
        metavar="FILE",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
