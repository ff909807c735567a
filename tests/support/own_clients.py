"""Our own clients behind one interface: the Python client, its synchronous twin, and JavaScript.

A call runs beside the test, in a thread or in the process of ``driver.mjs``, and reports in lines.
Arguments and errors have the names of the Python client.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from reattach.client import Client, ReattachError, State, SyncClient, Token
from tests.support.javascript_client import DIRECTORY
from tests.support.node_driver import Json, NodeDriver
from tests.support.threads import WAIT_SECONDS

ERRORS: Final = {
    "Conflict": "ConflictError",
    "GaveUp": "GaveUpError",
    "Gone": "ExpiredError",
    "NotFound": "NotFoundError",
    "ReattachError": "ReattachError",
    "Unauthorized": "UnauthorizedError",
}
"""The errors of the JavaScript client, and those of the Python client that mean the same."""


@dataclass
class Call:
    """A call in progress: its events and states so far."""

    otid: str = ""
    events: list[Json] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    value: Any = None
    error: Json | None = None
    lines: queue.Queue[Json] = field(default_factory=queue.Queue)

    def finish(self, on_event: Callable[[Json], object] = lambda event: None) -> Call:
        """Wait until the call has ended, and pass on each event as it arrives."""
        while (line := self.lines.get(timeout=WAIT_SECONDS)) != {}:
            if "event" in line:
                self.events.append(line["event"])
                on_event(line["event"])
            elif "state" in line:
                self.states.append(line["state"])
            else:
                for name, value in line.items():
                    setattr(self, name, value)
        return self

    @property
    def run_id(self) -> str:
        run_id: str = self.events[0]["run_id"]
        return run_id


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a client. The waits are short by default."""

    first_wait_seconds: float = 0.01
    longest_wait_seconds: float = 0.1
    keepalive_seconds: float = 15.0
    give_up_seconds: float = 60.0
    tokens: Sequence[Token] | None = None
    """Answers of the token function, one after the other; the last one is repeated."""
    storage: str | None = None
    """The name of a storage that all calls share."""
    leave_after: int | None = None
    """Leave the stream after this many events."""


QUICK: Final = Options()


class OwnClient(Protocol):
    """One of our clients."""

    def start(self, url: str, method: str, options: Options = QUICK, **arguments: Any) -> Call:
        """Call a method of a new client."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class _Task:
    url: str
    options: Json
    method: str
    arguments: Json
    leave_after: int | None


class PythonClient:
    """A Python client, each call in a thread of its own."""

    def __init__(self, work: Callable[[Call, _Task], None]) -> None:
        self._work = work
        self._storages: dict[str, dict[str, str]] = {}

    def start(self, url: str, method: str, options: Options = QUICK, **arguments: Any) -> Call:
        call = Call()
        given = {
            "first_wait_seconds": options.first_wait_seconds,
            "longest_wait_seconds": options.longest_wait_seconds,
            "keepalive_seconds": options.keepalive_seconds,
            "give_up_seconds": options.give_up_seconds,
            "token": None if options.tokens is None else in_turn(options.tokens),
            "storage": None
            if options.storage is None
            else self._storages.setdefault(options.storage, {}),
        }

        def run() -> None:
            try:
                self._work(call, _Task(url, given, method, arguments, options.leave_after))
            except ReattachError as error:
                call.lines.put({"error": described(error)})
            finally:
                call.lines.put({})

        threading.Thread(target=run, daemon=True).start()
        return call

    def close(self) -> None:
        pass


def in_turn(tokens: Sequence[Token]) -> Callable[[bool], Token]:
    rest = list(tokens)
    return lambda fresh: rest.pop(0) if len(rest) > 1 else rest[0]


def described(error: ReattachError) -> Json:
    return {
        "name": type(error).__name__,
        "message": str(error),
        "status": error.status,
        "code": error.code,
    }


def reporter(call: Call) -> Callable[[State], None]:
    return lambda state: call.lines.put({"state": state.name})


def work_in_thread(call: Call, task: _Task) -> None:
    with SyncClient(task.url, **task.options) as client:
        if task.method in {"snapshot", "cancel"}:
            call.lines.put({"value": getattr(client, task.method)(**task.arguments)})
            return
        stream = getattr(client, task.method)(**task.arguments, on_state=reporter(call))
        call.lines.put({"otid": getattr(stream, "otid", None) or ""})
        with stream:
            for count, event in enumerate(stream, 1):
                call.lines.put({"event": event})
                if count == task.leave_after:
                    break


async def work_in_task(call: Call, task: _Task) -> None:
    async with Client(task.url, **task.options) as client:
        if task.method in {"snapshot", "cancel"}:
            call.lines.put({"value": await getattr(client, task.method)(**task.arguments)})
            return
        stream = getattr(client, task.method)(**task.arguments, on_state=reporter(call))
        call.lines.put({"otid": getattr(stream, "otid", None) or ""})
        count = 0
        async with stream:
            async for event in stream:
                call.lines.put({"event": event})
                count += 1
                if count == task.leave_after:
                    break


class JavaScriptClient(NodeDriver):
    """The JavaScript client, in a process that makes concurrent calls."""

    def __init__(self, node: str) -> None:
        super().__init__(node, DIRECTORY)

    def start(self, url: str, method: str, options: Options = QUICK, **arguments: Any) -> Call:
        backoff = {
            "firstMs": options.first_wait_seconds * 1000,
            "lastMs": options.longest_wait_seconds * 1000,
        }
        given = {
            "url": url,
            "backoff": backoff,
            "keepaliveMs": options.keepalive_seconds * 1000,
            "giveUpMs": options.give_up_seconds * 1000,
            **({} if options.tokens is None else {"tokens": list(options.tokens)}),
            **({} if options.storage is None else {"storage": options.storage}),
            **({} if options.leave_after is None else {"leaveAfter": options.leave_after}),
        }
        args = _javascript_arguments(method, arguments)
        return self.begin(_JavaScriptCall(), {"options": given, "method": method, "args": args})


@dataclass
class _JavaScriptCall(Call):
    def finish(self, on_event: Callable[[Json], object] = lambda event: None) -> Call:
        super().finish(on_event)
        if self.error is not None:
            self.error["name"] = ERRORS.get(self.error["name"], self.error["name"])
        return self


def _javascript_arguments(method: str, arguments: Mapping[str, Any]) -> list[Any]:
    """Return the arguments of a method of the JavaScript client."""
    if method == "many":
        return [{"run": run, "after": after} for run, after in arguments["runs"].items()]
    more = {
        "otid": arguments.get("otid"),
        "agent": arguments.get("agent_id"),
        "after": arguments.get("starting_after"),
        "snapshot": arguments.get("snapshot"),
    }
    if method == "send":
        return [arguments["conversation_id"], arguments["messages"], _given(more)]
    target = _given(
        {
            "run": arguments.get("run_id"),
            "otid": more.pop("otid"),
            "conversation": arguments.get("conversation_id"),
            "agent": more.pop("agent"),
        }
    )
    return [target, _given(more)]


def _given(members: Json) -> Json:
    return {name: one for name, one in members.items() if one is not None}


def python_clients() -> Mapping[str, Callable[[], OwnClient]]:
    """Return what makes each Python client, by the name for tests."""

    def work(call: Call, task: _Task) -> None:
        asyncio.run(work_in_task(call, task))

    return {"async": lambda: PythonClient(work), "sync": lambda: PythonClient(work_in_thread)}
