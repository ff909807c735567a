"""``python -m bench [NAME …]``: measure, print the figures and write them to a file."""

import argparse
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
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
from bench.measuring.results import Chapter, write
from bench.options import Options
from bench.requests import reads, sends, turns
from bench.starting import starts
from bench.telemetry import tracing

CHAPTERS: Mapping[str, tuple[str, Callable[[Options], Chapter]]] = {
    "replay": ("ended runs, from anywhere, warm and cold", replay.main),
    "reload": ("an answer after a reload of its page: replay and snapshot", reload.main),
    "live": ("many runs, many readers, replays meanwhile: lag and CPU", live.main),
    "following": ("runs of another server over Redis: lag and CPU", following.main),
    "idle": ("readers on silent runs: memory, CPU, pings", idle.main),
    "storm": ("all readers cut at once, and back", storm.main),
    "append": ("durable events a second, by backend and durability", append.main),
    "start": ("a server's start: time to its first answer, CPU, memory when idle", starts.main),
    "watching": ("metrics off, on, and asked for everything all the time: CPU", watching.main),
    "tracing": ("traces off and on, of live events, sends and resumes: CPU", tracing.main),
    "reads": ("one GET of an object, a list, the metrics, with few and many kept: CPU", reads.main),
    "sends": ("a send, from its request to its settled run: CPU, first event", sends.main),
    "turns": ("a send by the length of its conversation, in memory or not: CPU", turns.main),
    "growth": ("costs against events, runs and readers; sizes after retention", growth.main),
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
    "dialects": ("an event in each dialect, live and replayed: CPU", costs.main),
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
    options = Options(
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
        what, _ = known[name]
        print(f"\n{name}: {what}", flush=True)
        if name in OF_CLUSTERS:
            OF_CLUSTERS[name][1](options)
            continue
        program()
        begin = time.monotonic()
        chapter = CHAPTERS[name][1](options)
        print(f"\n{chapter.printed()}\n{name} took {time.monotonic() - begin:.0f} s")
        write(chapter, folder, _command(name, sys.argv[1:], names))
    if any(name in CHAPTERS for name in names):
        print(f"\nwritten to {folder / 'results.md'}")
    return 0


def _command(name: str, words: list[str], names: list[str]) -> list[str]:
    """Return the command line that measures this chapter again."""
    return [name, *(word for word in words if word not in names)]


def _parser() -> argparse.ArgumentParser:
    listed = {**CHAPTERS, **OF_CLUSTERS}
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure the server and the servers that it is compared with.",
        epilog="\n".join(f"{name}: {what}" for name, (what, _) in listed.items()),
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
        help="also measure growth to 100,000 runs, which takes half an hour",
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
