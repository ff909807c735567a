"""The cost of a live event on its whole way in each dialect: CPU of a server with readers.

An event goes from the engine through the log on SQLite to one reader over a socket. The runs of a
dialect are sent by the route of that dialect. All dialects are measured in turn on one server.
"""

import selectors
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import truediv
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final
from uuid import uuid4

from bench.contenders.contender import Pace, asked, fresh, wait_until
from bench.contenders.product import Reattach, ReattachServer
from bench.measuring.load import Request, SpoiledError
from bench.measuring.machine import children_on, cpu_seconds
from bench.measuring.schedule import open_gate
from bench.options import Options

OVER_A_SOCKET, BESIDE_LETTA = "over a socket", "× Letta's"

ROUNDS: Final = 3
PER_SECOND: Final = 50.0
RUNS, QUICK_RUNS = 100, 5
SECONDS, QUICK_SECONDS = 2.0, 0.2
WARM_UP_SECONDS, QUICK_WARM_UP_SECONDS = 0.5, 0.1
START_SECONDS: Final = 0.1
"""How long the runs wait after the gate has opened, so that all of them have seen it."""
AFTER_SECONDS: Final = 0.1
"""Runs continue this long after the measurement, so that none ends within it."""
LIMIT_SECONDS: Final = 60.0
RECEIVED_BYTES: Final = 1 << 16

_END_OF_PIECE: Final = b' "'
"""Every piece of text ends with a space, and nothing else in a frame does."""

Sending = Callable[[str, str], Request]
"""From the agent and the text of the message to the request that streams the run."""


def _responses(agent_id: str, text: str) -> Request:
    body = {"model": agent_id, "input": text, "stream": True}
    return Request.of("POST", "/openai/v1/responses", body)


def _completion(agent_id: str, text: str) -> Request:
    messages = [{"role": "user", "content": text}]
    body = {"model": agent_id, "messages": messages, "stream": True}
    return Request.of("POST", "/openai/v1/chat/completions", body)


def _ui_messages(agent_id: str, text: str) -> Request:
    message = {"id": str(uuid4()), "role": "user", "parts": [{"type": "text", "text": text}]}
    body = {"id": str(uuid4()), "messages": [message]}
    return Request.of("POST", f"/ai-sdk/{agent_id}/chat", body)


def _ag_ui(agent_id: str, text: str) -> Request:
    message = {"id": str(uuid4()), "role": "user", "content": text}
    body = {"threadId": str(uuid4()), "runId": str(uuid4()), "messages": [message]}
    return Request.of("POST", f"/ag-ui/{agent_id}", body)


SENDINGS: Final[Mapping[str, Sending]] = {
    "OpenAI Responses": _responses,
    "Chat Completions": _completion,
    "AI SDK UI messages": _ui_messages,
    "AG-UI": _ag_ui,
}
"""The dialects that start runs."""

READINGS: Final[Mapping[str, str]] = {
    "Letta, for EventSource": "stream",
    "Durable Streams": "log?offset=-1&live=sse",
}
"""The end of the path at which others read a run that was started otherwise."""


def measured(names: Sequence[str], options: Options) -> Mapping[str, Mapping[str, float]]:
    """Measure every dialect in each round; return the medians by dialect and figure.

    The first name is the one that the others are compared with.
    """
    rounds: dict[str, list[float]] = defaultdict(list)
    with fresh(Reattach(), options.cores) as server:
        for _ in range(options.times(ROUNDS)):
            for name in names:
                rounds[name].append(live(server, name, options))
    compared = rounds[names[0]]
    return {
        name: {
            OVER_A_SOCKET: median(costs),
            BESIDE_LETTA: median(map(truediv, costs, compared)),
        }
        for name, costs in rounds.items()
    }


def live(server: ReattachServer, name: str, options: Options) -> float:
    """Return the CPU µs of an event, with one reader of each run."""
    quick = options.quick
    runs = QUICK_RUNS if quick else RUNS
    seconds = QUICK_SECONDS if quick else SECONDS
    warm_up = QUICK_WARM_UP_SECONDS if quick else WARM_UP_SECONDS
    events = int((warm_up + seconds + AFTER_SECONDS) * PER_SECOND)
    with TemporaryDirectory(prefix="bench-gate-") as directory, children_on(options.cores.load):
        gate = Path(directory, uuid4().hex)
        pace = Pace(runs, events, PER_SECOND, gate)
        with _reading(server.port, _requests(server, name, pace)) as readers:
            start_ns = time.monotonic_ns() + int(START_SECONDS * 1e9)
            open_gate(gate, start_ns)
            readers.read(until_ns=start_ns + int(warm_up * 1e9))
            before = cpu_seconds(server.pids)
            readers.read(until_ns=start_ns + int((warm_up + seconds) * 1e9))
            used = cpu_seconds(server.pids) - before
            readers.read(until_ns=time.monotonic_ns() + int(LIMIT_SECONDS * 1e9))
            if readers.open or readers.pieces < runs * events:
                raise SpoiledError(f"{name}: {readers.pieces} of {runs * events} events came")
    return 1e6 * used / (runs * PER_SECOND * seconds)


def _requests(server: ReattachServer, name: str, pace: Pace) -> list[Request]:
    """Return the requests that stream runs in a dialect; with some of them the runs begin."""
    if name in SENDINGS:
        agent_id = server.agent("paced")
        return [SENDINGS[name](agent_id, pace.text(run)) for run in range(pace.runs)]
    begins = [stream.begin for stream in server.paced(pace) if stream.begin is not None]
    if name not in READINGS:
        return begins
    for begin in begins:
        asked(server.port, begin, whole=False)
    end = READINGS[name]
    return [
        Request.of("GET", f"/v1/runs/{run_id}/{end}") for run_id in server.listed_runs(pace.runs)
    ]


class _Readers:
    """Connections that each read one stream, and count their pieces of text."""

    def __init__(self, connections: Sequence[socket.socket]) -> None:
        self.pieces = 0
        self.open = len(connections)
        self._selector = selectors.DefaultSelector()
        for connection in connections:
            self._selector.register(connection, selectors.EVENT_READ)

    def read(self, *, until_ns: int) -> None:
        """Read until a time of the monotonic clock, or until all streams have ended."""
        while self.open and (left_ns := until_ns - time.monotonic_ns()) > 0:
            for key, _ in self._selector.select(left_ns / 1e9):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                received = connection.recv(RECEIVED_BYTES)
                self.pieces += received.count(_END_OF_PIECE)
                if not received or received.endswith(b"0\r\n\r\n"):
                    self._selector.unregister(connection)
                    self.open -= 1
        wait_until(until_ns if self.open else 0)

    def close(self) -> None:
        self._selector.close()


@contextmanager
def _reading(port: int, requests: Sequence[Request]) -> Iterator[_Readers]:
    """Send the requests, one after the other, and yield the readers of their answers."""
    connections: list[socket.socket] = []
    try:
        for request in requests:
            connection = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_SECONDS)
            connections.append(connection)
            connection.sendall(request.data)
            head = connection.recv(RECEIVED_BYTES, socket.MSG_PEEK)
            if b" 200 " not in head[:16]:
                raise SpoiledError(f"{request.data[:60]!r}: {head[:300]!r}")
        readers = _Readers(connections)
        try:
            yield readers
        finally:
            readers.close()
    finally:
        for connection in connections:
            connection.close()
