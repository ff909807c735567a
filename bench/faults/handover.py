"""Time from the stop or death of a server to the next event of its runs at their readers."""

import asyncio
import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.request import Request, urlopen

from bench.measuring.machine import load_average
from bench.measuring.reader import ServerAddress, conversation_with, open_stream
from bench.options import Options
from reattach.testing.programs.cluster import Cluster
from reattach.testing.programs.server import ServerProcess

RUNS: Final = 100
MANY_RUNS: Final = 1000
LOCAL_MODEL: Final = "local/smollm2-135m-instruct"

_WITHOUT_QUOTAS: Final = {
    "REATTACH_DRAIN_SECONDS": "0",
    "REATTACH_QUOTA_RUNS": "0",
    "REATTACH_QUOTA_STREAMS": "0",
    "REATTACH_QUOTA_REQUESTS_PER_SECOND": "0",
}
WORDS: Final = "[chunks=3000][rate=5]"
_STORY: Final = "Tell a very long story about a lighthouse, with as many details as you can."
_SEQ: Final = re.compile(rb'"seq_id":(\d+)')
_WAIT_SECONDS: Final = 60.0
_SPOKEN: Final = 10
"""Events of each run before the fault."""


@dataclass
class ReadRun:
    """A run and the time at which each of its events arrived."""

    conversation_id: str
    arrived_at: dict[int, float] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def cursor(self) -> int:
        return max(self.arrived_at, default=0)

    async def read(self, server: ServerAddress) -> None:
        """Read from the cursor on, until the connection ends."""
        path = f"/v1/conversations/{self.conversation_id}/stream"
        reader, writer = await open_stream(server, path, {"starting_after": self.cursor})
        try:
            while data := await reader.read(65536):
                now = time.monotonic()
                for seq in map(int, _SEQ.findall(data)):
                    self.arrived_at.setdefault(seq, now)
                self.changed.set()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def until(self, seq: int) -> None:
        """Wait until the event ``seq`` has arrived."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while self.cursor < seq:
                self.changed.clear()
                await self.changed.wait()

    async def until_later_than(self, moment: float) -> None:
        """Wait until an event has arrived after ``moment``."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while max(self.arrived_at.values()) <= moment:
                self.changed.clear()
                await self.changed.wait()

    async def next_event_at(self, server: ServerAddress) -> float:
        """Return when the first event of the second attempt arrived."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while True:
                path = f"/v1/runs/?conversation_id={self.conversation_id}"
                (run,) = await asyncio.to_thread(_get, server, path)
                attempts = run["metadata"].get("attempts", [])
                if len(attempts) > 1:
                    break
                await asyncio.sleep(0.05)
        first_seq = int(attempts[1]["first_seq"])
        await self.until(first_seq)
        return self.arrived_at[first_seq]


async def begin_runs(server: ServerAddress, count: int, model: str, text: str) -> list[ReadRun]:
    """Start runs that nobody reads yet."""
    runs = []
    for _ in range(count):
        conversation_id = await asyncio.to_thread(conversation_with, server, model)
        path = f"/v1/conversations/{conversation_id}/messages"
        body = {"input": text, "background": True, "stream_tokens": True, "include_pings": False}
        _, writer = await open_stream(server, path, body)
        writer.close()
        runs.append(ReadRun(conversation_id))
    return runs


@dataclass(frozen=True, slots=True)
class Row:
    """The seconds of one measurement."""

    what: str
    exit_seconds: float | None
    next_event_seconds: Sequence[float]
    """From the fault, or from the opened port, to the next event of each run."""

    def cells(self) -> list[str]:
        left = "–" if self.exit_seconds is None else f"{self.exit_seconds:.2f}"
        median, longest = statistics.median(self.next_event_seconds), max(self.next_event_seconds)
        return [
            self.what,
            str(len(self.next_event_seconds)),
            left,
            f"{median:.2f}",
            f"{longest:.2f}",
        ]


async def in_cluster(cluster: Cluster, what: str, *, kills: bool) -> Row:
    """Stop or kill a server whose runs are read at another one."""
    victim, other = cluster.servers[0], ServerAddress(cluster.urls[1], cluster.api_key)
    runs = await begin_runs(
        ServerAddress(victim.url, cluster.api_key), RUNS, "scripted/echo", WORDS
    )
    reading = [asyncio.create_task(run.read(other)) for run in runs]
    try:
        await asyncio.gather(*(run.until(_SPOKEN) for run in runs))
        fault_at = time.monotonic()
        await asyncio.to_thread(victim.kill if kills else victim.stop)
        gone_at = time.monotonic()
        # The queries of the attempts would delay the runs that are still being taken over.
        await asyncio.gather(*(run.until_later_than(gone_at) for run in runs))
        arrived = [await run.next_event_at(other) for run in runs]
    finally:
        await _cancel(reading)
    await asyncio.to_thread(cluster.mend)
    seconds = [at - fault_at for at in arrived]
    return Row(what, None if kills else gone_at - fault_at, seconds)


async def alone(
    server: ServerProcess, what: str, count: int, model: str, text: str, *, from_start: bool = False
) -> Row:
    """Kill the only server, start it again, and read on.

    The time begins when the port is open, or with ``from_start`` when the program is started.
    """
    address = ServerAddress(server.url)
    runs = await begin_runs(address, count, model, text)
    reading = [asyncio.create_task(run.read(address)) for run in runs]
    try:
        await asyncio.gather(*(run.until(_SPOKEN) for run in runs))
        await asyncio.to_thread(server.kill)
        await asyncio.gather(*reading)
        started_at = time.monotonic()
        await asyncio.to_thread(server.start)
        opened_at = time.monotonic()
        reading = [asyncio.create_task(run.read(address)) for run in runs]
        await asyncio.gather(*(run.until_later_than(opened_at) for run in runs))
        arrived = [await run.next_event_at(address) for run in runs]
    finally:
        await _cancel(reading)
    began_at = started_at if from_start else opened_at
    return Row(what, None, [at - began_at for at in arrived])


async def first_answer(server: ServerProcess, what: str, model: str) -> Row:
    """Ask the model of a server that has just opened its port for a short answer."""
    address = ServerAddress(server.url)
    opened_at = time.monotonic()
    (run,) = await begin_runs(address, 1, model, "Hi")
    reading = asyncio.create_task(run.read(address))
    try:
        await run.until(1)
    finally:
        await _cancel([reading])
    return Row(what, None, [run.arrived_at[1] - opened_at])


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _get(server: ServerAddress, path: str) -> Any:
    headers = {"authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    with urlopen(Request(f"{server.url}{path}", headers=headers), timeout=30) as response:
        return json.load(response)


@contextmanager
def serving_alone() -> Iterator[ServerProcess]:
    arguments = ("--scripted", "--log-level", "warning")
    with (
        tempfile.TemporaryDirectory(prefix="reattach-") as folder,
        ServerProcess(Path(folder), arguments=arguments, environment=_WITHOUT_QUOTAS) as server,
    ):
        yield server


def main(options: Options) -> None:
    lease = f"lease of {options.lease_seconds:g} s"
    with Cluster(
        2, lease_seconds=options.lease_seconds, environment=_WITHOUT_QUOTAS, relayed=False
    ) as cluster:
        rows = [
            asyncio.run(in_cluster(cluster, "SIGTERM, two servers", kills=False)),
            asyncio.run(in_cluster(cluster, f"kill -9, two servers, {lease}", kills=True)),
        ]
    with serving_alone() as server:
        what = "kill -9 and a start, alone"
        rows.append(asyncio.run(alone(server, what, RUNS, "scripted/echo", WORDS)))
    with serving_alone() as server:
        what = "kill -9 and a start, alone, from the start"
        rows.append(
            asyncio.run(alone(server, what, MANY_RUNS, "scripted/echo", WORDS, from_start=True))
        )
    with serving_alone() as server:
        what = "no fault: a start, and the local model's first short answer"
        rows.append(asyncio.run(first_answer(server, what, LOCAL_MODEL)))
        what = "kill -9 and a start, alone, with the local model"
        rows.append(asyncio.run(alone(server, what, 1, LOCAL_MODEL, _STORY)))
    heads = ["fault", "open runs", "exit (s)", "next event, median (s)", "next event, longest (s)"]
    lines = [heads, ["---"] * len(heads), *(row.cells() for row in rows)]
    print(f"\nLoad average {load_average()}\n")
    print("".join(f"| {' | '.join(line)} |\n" for line in lines))
