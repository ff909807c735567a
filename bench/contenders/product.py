"""Reattach on SQLite and on Redis with PostgreSQL, used as its clients use it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal
from uuid import uuid4

from bench.contenders.contender import (
    READING,
    ROOT,
    Contender,
    Pace,
    Server,
    Stream,
    asked,
    program,
    python,
)
from bench.measuring.frames import TERMINAL_EVENTS
from bench.measuring.load import IN_JSON, Request, SpoiledError
from bench.measuring.machine import Cores, children_on
from reattach.records.database.database import upgrade
from reattach.testing.programs.postgresql import PostgresqlServer
from reattach.testing.programs.redis import RedisServer

NO_DRAIN = {"REATTACH_DRAIN_SECONDS": "0"}
"""Silent runs never end by themselves."""


class ReattachServer(Server):
    """A server of a checkout of this project."""

    def __init__(self, port: int, pid: int) -> None:
        super().__init__(port, [pid])
        self._agents: dict[str, str] = {}

    def ended(self, events: int, runs: int = 1) -> list[Stream]:
        streams = [self.stream("burst", str(events), events) for _ in range(runs)]
        for stream in streams:
            assert stream.begin is not None
            asked(self.port, stream.begin)
        return [Stream(stream.resume, stream.last) for stream in streams]

    def half_done(self, events: int) -> str:
        """Start a run that has so many events and stays open, and return its id."""
        stream = self.stream("half_done", str(events), events)
        assert stream.begin is not None
        asked(self.port, stream.begin, whole=False)
        return self.listed_runs(1)[0]

    def paced(self, pace: Pace) -> list[Stream]:
        return [self.stream("paced", pace.text(run), pace.events) for run in range(pace.runs)]

    def silent(self, runs: int) -> list[Stream]:
        streams = [self.stream("silent", "x", 0) for _ in range(runs)]
        for stream in streams:
            assert stream.begin is not None
            asked(self.port, stream.begin, whole=False)
        return [Stream(stream.resume) for stream in streams]

    def silent_pages(self, runs: int, query: str) -> list[Stream]:
        """Start runs that yield nothing, for readers in the form of ``EventSource``."""
        self.silent(runs)
        return [
            Stream(Request.of("GET", f"/v1/runs/{run_id}/stream{query}"))
            for run_id in self.listed_runs(runs)
        ]

    def stream(self, model: str, text: str, events: int) -> Stream:
        """Return the requests of a run in a new conversation, with 0 for an unknown event count."""
        conversation_id = self.conversation(model)
        otid = str(uuid4())
        message = {"role": "user", "content": text, "otid": otid}
        send = {"messages": [message], "background": True, "stream_tokens": True}
        path = f"/v1/conversations/{conversation_id}"
        return Stream(
            resume=Request.of("POST", f"{path}/stream", {"otid": otid, "starting_after": IN_JSON}),
            last=events + TERMINAL_EVENTS if events else 0,
            begin=Request.of("POST", f"{path}/messages", send | {"include_pings": False}),
        )

    def send(self, conversation_id: str, text: str) -> Request:
        """Return the request that sends a message; each time it is sent it starts a run."""
        body = {"input": text, "background": True, "stream_tokens": True, "include_pings": False}
        return Request.of("POST", f"/v1/conversations/{conversation_id}/messages", body)

    def listed_runs(self, count: int) -> list[str]:
        """List the ids of runs, newest first."""
        listed = json.loads(asked(self.port, Request.of("GET", f"/v1/runs/?limit={count}")))
        return [run["id"] for run in listed]

    def run_stream(self, run_id: str, events: int) -> Stream:
        path = f"/v1/runs/{run_id}/stream"
        resume = Request.of("POST", path, {"starting_after": IN_JSON})
        return Stream(resume, events + TERMINAL_EVENTS)

    def is_gone(self, run_id: str) -> bool:
        """Return whether the run's log has been deleted."""
        try:
            asked(self.port, Request.of("POST", f"/v1/runs/{run_id}/stream", {}))
        except SpoiledError as error:
            if " 410 " in str(error):
                return True
            raise
        return False

    def conversation(self, model: str) -> str:
        """Create a conversation of the agent with this model."""
        return self._made(f"/v1/conversations/?agent_id={self.agent(model)}", {})

    def fork(self, conversation_id: str) -> str:
        """Create a conversation that shares the messages of this one."""
        return self._made(f"/v1/conversations/{conversation_id}/fork", {})

    def agent(self, model: str) -> str:
        """Return the agent with this model, which is created when it is first asked for.

        ``model`` is the name of a function, or a handle.
        """
        if model not in self._agents:
            handle = model if "/" in model else f"function/{model}"
            body = {"name": model.replace("/", " "), "model": handle}
            self._agents[model] = self._made("/v1/agents/", body)
        return self._agents[model]

    def _made(self, path: str, body: object) -> str:
        answer = json.loads(asked(self.port, Request.of("POST", path, body)))
        return str(answer["id"])


class Reattach(Contender):
    """Reattach of this or another checkout.

    ``settings`` are REATTACH_ variables without their prefix; ``environment`` has other variables.
    """

    about = "the whole product: engine, log, records, HTTP"
    works = READING | {"idle", "storm"}

    def __init__(
        self,
        name: str = "Reattach",
        store: Literal["sqlite", "redis"] = "sqlite",
        settings: Mapping[str, str] | None = None,
        checkout: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._environment = dict(environment or {})
        self._checkout = checkout
        self._store = store
        self._settings = dict(settings or {})

    @contextmanager
    def serving(self, directory: Path, cores: Cores) -> Iterator[ReattachServer]:
        with ExitStack() as stack:
            environment = {"REATTACH_DATA_DIR": str(directory)}
            if self._store == "redis":
                environment = shared_stores(stack, cores)
            if self._checkout != ROOT:
                environment["PYTHONPATH"] = str(self._checkout / "src")
            settings = {f"REATTACH_{name.upper()}": value for name, value in self._settings.items()}
            serving = program(
                python("bench.server", checkout=self._checkout),
                cores,
                environment | NO_DRAIN | settings | self._environment,
                self._checkout,
            )
            yield ReattachServer(*stack.enter_context(serving))


def shared_stores(stack: ExitStack, cores: Cores) -> dict[str, str]:
    """Start Redis and PostgreSQL on the core of stores."""
    with children_on(cores.store):
        postgresql = stack.enter_context(PostgresqlServer())
        redis = stack.enter_context(RedisServer(tcp=True))
    upgrade(postgresql.url())
    return {
        "REATTACH_DATABASE_URL": postgresql.url(),
        "REATTACH_LOG_URL": f"redis://127.0.0.1:{redis.port}/0",
    }
