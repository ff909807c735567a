"""The machine that is measured on: its cores, and what a process of it has used."""

import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_KIB = re.compile(r"^(Pss|Rss):\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core does what; with a single one everything shares it, and figures say little."""

    server: int
    load: int
    """The client's, and that of the stores beside the server where there is no third core."""
    store: int

    @classmethod
    def available(cls) -> Self:
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[1 % len(cores)], cores[2 if len(cores) > 2 else -1])


@contextmanager
def children_on(core: int) -> Iterator[None]:
    """Let the processes that are started meanwhile, and theirs, run on one core only."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def favour(pid: int) -> bool:
    """Let the process come before others of the machine; False if that is not allowed.

    ``nice`` does nothing between sessions where the kernel groups by them; the group's own does.
    """
    try:
        Path(f"/proc/{pid}/autogroup").write_text("-20")
    except OSError:
        return False
    return True


def cpu_seconds(pids: Iterable[int]) -> float:
    """What these processes have used since their start, in user and system mode, to the ns."""
    return sum(
        time.clock_gettime(~pid << 3 | 2) for pid in pids
    )  # The kernel's MAKE_PROCESS_CPUCLOCK.


@dataclass(frozen=True, slots=True)
class Memory:
    resident_bytes: int
    proportional_bytes: int
    """Shared pages count in part: PSS."""


def memory(pids: Iterable[int]) -> Memory:
    """What these processes hold of the machine's memory, together."""
    resident = proportional = 0
    for pid in pids:
        told = dict(_KIB.findall(Path(f"/proc/{pid}/smaps_rollup").read_text()))
        resident += int(told["Rss"]) * 1024
        proportional += int(told["Pss"]) * 1024
    return Memory(resident, proportional)


@dataclass(frozen=True)
class Cost:
    """What a process has used so far."""

    cpu_seconds: float
    reads: int
    writes: int


def cost_of(pid: int) -> Cost:
    """What a process has used since its start."""
    proc = Path(f"/proc/{pid}")
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    io = dict(line.split(": ") for line in (proc / "io").read_text().splitlines())
    ticks = int(fields[11]) + int(fields[12])
    return Cost(ticks / _TICKS_PER_SECOND, int(io["syscr"]), int(io["syscw"]))


def described() -> str:
    """The machine in one line."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores of {cpu[1] if cpu else platform.machine()}, "
        f"{gib:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()} ({sys.implementation.name})"
    )


def load_average() -> float:
    """Processes that want a core, on average over the last minute: above 0 others are at work."""
    return os.getloadavg()[0]
