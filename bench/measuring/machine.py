"""The machine of the measurement: its cores, and the CPU time and memory of processes."""

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
    """The assignment of cores. On a single core everything shares it, and figures mean little."""

    server: int
    load: int
    """The load client's core, and without a third core that of the stores too."""
    store: int

    @classmethod
    def available(cls) -> Self:
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[1 % len(cores)], cores[2 if len(cores) > 2 else -1])


@contextmanager
def children_on(core: int) -> Iterator[None]:
    """Pin processes that are started within the context to one core."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def raise_priority(pid: int) -> bool:
    """Raise the priority of a process, and return False if that is not permitted.

    Where the kernel schedules by session, ``nice`` has no effect between sessions, so this sets
    the priority of the session's group.
    """
    try:
        Path(f"/proc/{pid}/autogroup").write_text("-20")
    except OSError:
        return False
    return True


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the user and system CPU time of processes since their start, exact to the ns."""
    return sum(
        time.clock_gettime(~pid << 3 | 2) for pid in pids
    )  # The kernel's MAKE_PROCESS_CPUCLOCK.


@dataclass(frozen=True, slots=True)
class Memory:
    resident_bytes: int
    proportional_bytes: int
    """Proportional set size: a shared page counts in parts."""


def memory(pids: Iterable[int]) -> Memory:
    """Sum the memory of processes."""
    resident = proportional = 0
    for pid in pids:
        sizes = dict(_KIB.findall(Path(f"/proc/{pid}/smaps_rollup").read_text()))
        resident += int(sizes["Rss"]) * 1024
        proportional += int(sizes["Pss"]) * 1024
    return Memory(resident, proportional)


@dataclass(frozen=True)
class Cost:
    """Resources that a process has used so far."""

    cpu_seconds: float
    reads: int
    writes: int


def cost_of(pid: int) -> Cost:
    """Measure what a process has used since its start."""
    proc = Path(f"/proc/{pid}")
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    io = dict(line.split(": ") for line in (proc / "io").read_text().splitlines())
    ticks = int(fields[11]) + int(fields[12])
    return Cost(ticks / _TICKS_PER_SECOND, int(io["syscr"]), int(io["syscw"]))


def described() -> str:
    """Describe the machine in one line."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores of {cpu[1] if cpu else platform.machine()}, "
        f"{gib:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()} ({sys.implementation.name})"
    )


def load_average() -> float:
    """Return the load average of the last minute. Above 0, other programs are running."""
    return os.getloadavg()[0]
