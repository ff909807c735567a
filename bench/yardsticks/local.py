"""The yardsticks that are programs of this directory, behind the interface of contenders."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

from typing_extensions import override

from bench.contenders.contender import (
    READING,
    Contender,
    Pace,
    Server,
    Stream,
    Work,
    asked,
    program,
    python,
)
from bench.measuring.frames import TERMINAL_EVENTS, templates
from bench.measuring.load import IN_URL, Request
from bench.measuring.machine import Cores, children_on
from bench.yardsticks import packages
from reattach.testing.programs.redis import RedisServer


class LocalServer(Server):
    """A server with the interface that ``bench.yardsticks`` describes."""

    def __init__(self, port: int, pids: list[int]) -> None:
        super().__init__(port, pids)
        self._runs = 0

    def ended(self, events: int, runs: int = 1) -> list[Stream]:
        return [self._made(f"/ended/RUN?events={events}", events) for _ in range(runs)]

    def paced(self, pace: Pace) -> list[Stream]:
        asked_for = f"/paced/RUN?events={pace.events}&rate={pace.per_second}"
        gate = quote(str(pace.gate))
        return [
            self._made(f"{asked_for}&phase_ns={pace.phase_ns(run)}&gate={gate}", pace.events)
            for run in range(pace.runs)
        ]

    def _made(self, path: str, events: int) -> Stream:
        self._runs += 1
        run = f"r{self._runs}"
        asked(self.port, Request.of("POST", path.replace("RUN", run)))
        resume = Request.of("GET", f"/stream/{run}?after{IN_URL}")
        return Stream(resume, events + TERMINAL_EVENTS)


class Local(Contender):
    """A yardstick in a Python module, which with ``redis`` gets a Redis on the core of stores."""

    def __init__(
        self, name: str, module: str, about: str, works: frozenset[Work], *, redis: bool = False
    ) -> None:
        self.name = name
        self.about = about
        self.works = works
        self._module = module
        self._redis = redis

    @contextmanager
    def serving(self, directory: Path, cores: Cores) -> Iterator[Server]:  # noqa: ARG002  stores nothing
        with ExitStack() as stack:
            environment = self._environment()
            if self._redis:
                with children_on(cores.store):
                    redis = stack.enter_context(RedisServer(tcp=True))
                environment["BENCH_REDIS_URL"] = f"redis://127.0.0.1:{redis.port}/0"
            port, pid = stack.enter_context(program(self._command(), cores, environment))
            yield LocalServer(port, [pid])

    def _command(self) -> list[str]:
        return python(f"bench.yardsticks.{self._module}")

    def _environment(self) -> dict[str, str]:
        return {}


CEILING = Local(
    "ceiling",
    "ceiling",
    "a bare uvloop Protocol that writes the same bytes: no framework, no log",
    READING | {"storm"},
)
EMPTY = Local(
    "empty reply",
    "empty",
    "an empty reply of a raw ASGI application under uvicorn",
    frozenset(),
)
NAIVE = Local(
    "naive",
    "naive",
    "Starlette's StreamingResponse, an event a yield, from XRANGE every 100 ms for each reader",
    READING,
    redis=True,
)


class FromPyPI(Local):
    """``fastapi-resumable-stream``, installed in the benchmark's own directory."""

    def missing(self) -> str:
        return packages.python()

    @override
    def _environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(packages.PYTHON)}


RESUMABLE = FromPyPI(
    "fastapi-resumable-stream",
    "resumable",
    "fastapi-resumable-stream of PyPI: a Redis list for each stream, and pub/sub",
    READING,
    redis=True,
)


class FromNpm(Local):
    """``resumable-stream`` behind a Node server, which drops a run at its end."""

    def missing(self) -> str:
        return packages.node()

    @override
    def _command(self) -> list[str]:
        return ["node", str(packages.NODE / f"{self._module}.mjs")]

    @override
    def _environment(self) -> dict[str, str]:
        return {"BENCH_FRAMES": json.dumps(templates())}


RESUMABLE_STREAM = FromNpm(
    "resumable-stream",
    "resumable-stream",
    "resumable-stream of npm behind Node's HTTP server: pub/sub of Redis to whoever comes second",
    frozenset(["live"]),
    redis=True,
)
