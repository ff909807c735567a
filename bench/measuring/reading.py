"""Read runs and measure what that costs the server."""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from bench.contenders.contender import (
    ENDINGS_PER_SECOND,
    Pace,
    Server,
    Stream,
    asked,
    wait_until,
)
from bench.measuring.load import Group, GroupReport, Load, Reader, Request, SpoiledError
from bench.measuring.machine import Cores, cpu_seconds
from bench.measuring.schedule import open_gate

LIMIT_SECONDS = 60.0
"""How late a reader may end."""
LIVE_LIMIT_SECONDS = 10.0
"""How late a reader of a live run may end. A server that is later has lost."""
SETTLE_SECONDS = 0.3
RESTS_BELOW = 0.1
"""CPU share of a core below which a server counts as idle."""
AFTER_SECONDS = 0.2
"""Runs continue this long after the measurement, so that none ends within it."""
WARM_UP_SHARE, MOST_WARM_UP_SECONDS = 0.5, 1.0
"""Warm-up of live traffic, as a part of the measured time."""
OPENINGS_PER_SECOND = 1000
OPEN_SECONDS = 30.0


def repeated(
    server: Server, reader: Reader | Sequence[Reader], cores: Cores, *,
    readers: int = 1, seconds: float, mode: str = "loop", flags: frozenset[str] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Repeat requests for some seconds, with readers that each wait for their answer.

    The readers have one request each or share one. In the mode ``once`` each sends it once.
    """
    listed = [reader] * readers if isinstance(reader, Reader) else list(reader)
    group = Group("replay", mode, listed, server.flags if flags is None else flags)
    before = cpu_seconds(server.pids)
    with Load(server.port, [group], cores.load) as load:
        if mode == "loop":
            load.opened()
            load.stop(time.monotonic_ns() + int(seconds * 1e9))
        report = load.done(seconds + LIMIT_SECONDS)
        used = cpu_seconds(server.pids) - before
    totals = report.groups["replay"]
    if not totals.responses or used <= 0:
        raise SpoiledError("nothing was read, or by a process that is not looked at")
    figures = {
        "requests per s": totals.responses / (report.wall_ns / 1e9),
        "CPU µs per request": 1e6 * used / totals.responses,
        "first byte p50 ms": totals.first_byte.p50 / 1e6,
        "first byte p99 ms": totals.first_byte.p99 / 1e6,
        "whole p50 ms": totals.whole.p50 / 1e6,
        "server CPU %": 100 * used / (report.wall_ns / 1e9),
        "load CPU %": 100 * report.cpu_seconds / (report.wall_ns / 1e9),
    }
    if totals.events:
        figures["CPU µs per event"] = 1e6 * used / totals.events
        figures["events per CPU s"] = totals.events / used
    return figures


def live(
    server: Server, cores: Cores, *, runs: int, readers: int, per_second: float, seconds: float,
    replay: Stream | None = None,
) -> dict[str, float]:  # fmt: skip
    """Read runs that yield at an even rate, while two more readers replay ``replay``."""
    warm_up = min(WARM_UP_SHARE * seconds, MOST_WARM_UP_SECONDS)
    events = int((warm_up + seconds + AFTER_SECONDS) * per_second)
    with TemporaryDirectory(prefix="bench-gate-") as directory:
        gate = Path(directory, uuid4().hex)
        streams = server.paced(Pace(runs, events, per_second, gate))
        groups = [Group("live", "once", following(server, streams, readers),
                        server.live_flags | {"stamped"})]  # fmt: skip
        if replay is not None:
            again = Reader(replay.resume, last=replay.last)
            groups.append(Group("replay", "loop", [again] * 2, server.flags))
        with Load(server.port, groups, cores.load) as load:
            opening = load.opened(OPEN_SECONDS)
            settle(server, most_seconds=SETTLE_SECONDS + 2 * opening)
            start_ns = time.monotonic_ns() + 200_000_000
            from_ns = start_ns + int(warm_up * 1e9)
            to_ns = from_ns + int(seconds * 1e9)
            load.measure(from_ns, to_ns)
            load.stop(to_ns)
            open_gate(gate, start_ns)
            wait_until(from_ns)
            before = cpu_seconds(server.pids), cpu_seconds([load.pid])
            wait_until(to_ns)
            used = cpu_seconds(server.pids) - before[0]
            load_used = cpu_seconds([load.pid]) - before[1]
            pauses_seconds = runs / ENDINGS_PER_SECOND
            report = load.done(AFTER_SECONDS + pauses_seconds + LIVE_LIMIT_SECONDS)
    totals = report.groups["live"]
    expected = runs * readers * per_second * seconds
    if abs(totals.lag.count - expected) > runs * readers * 2:
        raise SpoiledError(f"{totals.lag.count} of {expected:.0f} events came")
    alone = {} if replay else {"CPU µs per delivery": 1e6 * used / totals.lag.count}
    return {
        **lags(totals),
        **alone,
        "server CPU %": 100 * used / seconds,
        "load CPU %": 100 * load_used / seconds,
        "open s": opening,
    }


def settle(server: Server, *, most_seconds: float) -> None:
    """Wait until the server is idle. Some servers never are."""
    until = time.monotonic() + most_seconds
    is_resting = False
    while not is_resting and time.monotonic() < until:
        before = cpu_seconds(server.pids)
        time.sleep(SETTLE_SECONDS)
        is_resting = cpu_seconds(server.pids) - before < RESTS_BELOW * SETTLE_SECONDS


def lags(totals: GroupReport) -> dict[str, float]:
    return {
        "lag p50 ms": totals.lag.p50 / 1e6,
        "lag p99 ms": totals.lag.p99 / 1e6,
        "lag max ms": totals.lag.max / 1e6,
        "from yield p50 ms": totals.lag_of_yield.p50 / 1e6,
        "from yield p99 ms": totals.lag_of_yield.p99 / 1e6,
    }


def following(server: Server, streams: Sequence[Stream], readers: int) -> list[Reader]:
    """Open readers of each run, a few at a time; the first reader starts the run."""
    begun = [
        Reader(stream.begin or stream.resume, stream.resume, last=stream.last)
        for stream in streams
        if readers == 1 or stream.begin is None or _begun(server, stream.begin)
    ]
    listed = [
        reader if readers == 1 else Reader(stream.resume, last=stream.last)
        for _ in range(readers)
        for reader, stream in zip(begun, streams, strict=True)
    ]
    return [
        Reader(reader.first, reader.resume, last=reader.last,
               start_seconds=number / OPENINGS_PER_SECOND)
        for number, reader in enumerate(listed)
    ]  # fmt: skip


def _begun(server: Server, begin: Request) -> bool:
    """Start a run, and leave it to its readers."""
    asked(server.port, begin, whole=False)
    return True
