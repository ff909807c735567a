"""``python -m bench [NAME …]``: measure, and print what was measured."""

import argparse
import platform
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version

from bench import cluster, faults, idle, live
from bench.options import Options

BENCHMARKS: Mapping[str, tuple[str, Callable[[Options], None]]] = {
    "idle": ("readers on a silent run: CPU and system calls of the server", idle.main),
    "live": ("one run at 50 events/s: from the engine's yield to the reader", live.main),
    "cluster": (
        "500 idle readers on 100 runs over three servers: connections, commands, CPU",
        cluster.main,
    ),
    "faults": (
        "faults that befall three servers and their stores: losses, doubles, orphans, time",
        faults.main,
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure the server.",
        epilog="\n".join(f"{name}: {what}" for name, (what, _) in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all, if none is named")
    of_faults = parser.add_argument_group("faults")
    default = Options()
    of_faults.add_argument(
        "--repetitions", type=int, default=default.repetitions, help="of each; %(default)s"
    )
    of_faults.add_argument(
        "--lease-seconds", type=float, default=default.lease_seconds, help="%(default)s"
    )
    of_faults.add_argument("--only", default="", help="a word of the faults' names", metavar="WORD")
    of_faults.add_argument("--table", default="", help="write the table there", metavar="FILE")
    chosen = parser.parse_args()
    options = Options(chosen.repetitions, chosen.lease_seconds, chosen.only, chosen.table)
    names = chosen.names or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(
            f"there is no benchmark {', '.join(unknown)}; known are {', '.join(BENCHMARKS)}"
        )
    print(
        f"Reattach {version('reattach')}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )
    for name in names:
        what, run = BENCHMARKS[name]
        print(f"\n{name}: {what}", flush=True)
        run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
