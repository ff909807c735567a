"""``python -m bench [NAME …]``: measure, print what was measured, and write it down."""

import argparse
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench import append, cluster, faults, following, growth, idle, live, replay, siege, storm
from bench.load import CACHE, program
from bench.options import Options
from bench.results import Chapter, write

CHAPTERS: Mapping[str, tuple[str, Callable[[Options], Chapter]]] = {
    "replay": ("ended runs, from anywhere, warm and cold", replay.main),
    "live": ("many runs, many readers, replays meanwhile: lag and CPU", live.main),
    "following": ("runs of another server over Redis: lag and CPU", following.main),
    "idle": ("readers on silent runs: memory, CPU, pings", idle.main),
    "storm": ("all readers cut at once, and back", storm.main),
    "append": ("durable events a second, by backend and durability", append.main),
    "growth": ("costs against events, runs and readers; sizes after retention", growth.main),
}
"""Those that write a chapter of the results, and that ``--quick`` is for."""

OF_CLUSTERS: Mapping[str, tuple[str, Callable[[Options], None]]] = {
    "cluster": ("500 idle readers on 100 runs over three servers: connections, commands, CPU",
                cluster.main),
    "faults": ("injected faults on three servers and their stores: losses, doubles, orphans, time",
               faults.main),
    "siege": ("one fault after another beside a hostile tenant: losses, doubles, orphans, audit",
              siege.main),
}  # fmt: skip

RESULTS = Path(__file__).parent


def main() -> int:
    parser = _parser()
    chosen = parser.parse_args()
    known = {**CHAPTERS, **OF_CLUSTERS}
    names = chosen.names or list(CHAPTERS)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no benchmark {', '.join(unknown)}; known are {', '.join(known)}")
    options = Options(
        quick=chosen.quick,
        long=chosen.long,
        rounds=chosen.rounds,
        contenders=chosen.beside,
        against=[Path(folder).resolve() for folder in chosen.against],
        repetitions=chosen.repetitions,
        minutes=chosen.minutes,
        lease_seconds=chosen.lease_seconds,
        only=chosen.only,
        table=chosen.table,
    )
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # A file for each reader.
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
    """What makes this chapter again."""
    return [name, *(word for word in words if word not in names)]


def _parser() -> argparse.ArgumentParser:
    listed = {**CHAPTERS, **OF_CLUSTERS}
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure the server and what it is compared with.",
        epilog="\n".join(f"{name}: {what}" for name, (what, _) in listed.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which; without one {', '.join(CHAPTERS)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small, in two minutes; no figure to quote"
    )
    parser.add_argument(
        "--long", action="store_true", help="growth to 100,000 runs too, which takes half an hour"
    )
    parser.add_argument("--rounds", type=int, default=0, help="how often each has its turn")
    parser.add_argument(
        "--beside", action="append", default=[], metavar="WORD",
        help="measure only those others whose name has this word; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--against", action="append", default=[], metavar="FOLDER",
        help="another checkout of this project, measured beside it in replay, live and idle; "
        "may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--results", default="", metavar="FOLDER",
        help="where results.md and its charts go; bench/, or .bench/quick/ with --quick",
    )  # fmt: skip
    of_faults = parser.add_argument_group("faults")
    default = Options()
    of_faults.add_argument(
        "--repetitions", type=int, default=default.repetitions, help="of each; %(default)s"
    )
    of_faults.add_argument(
        "--minutes", type=float, default=default.minutes, help="of a siege; %(default)s"
    )
    of_faults.add_argument(
        "--lease-seconds", type=float, default=default.lease_seconds, help="%(default)s"
    )
    of_faults.add_argument("--only", default="", help="a word of the faults' names", metavar="WORD")
    of_faults.add_argument("--table", default="", help="write the table there", metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
