"""Reads: what one GET costs the server, with few and with many runs and messages kept."""

import http.client
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench.contenders.contender import asked
from bench.contenders.product import Reattach, ReattachServer
from bench.measuring.against import ratios, versions
from bench.measuring.load import Request, SpoiledError
from bench.measuring.machine import cpu_seconds
from bench.measuring.results import Chapter, Goal, at_most, table
from bench.measuring.rounds import Figures, Measurement, Results, Turn, interleaved
from bench.options import Options
from reattach.server.datadir import records_file

KEPT, QUICK_KEPT = (100, 10_000), (50,)
REQUESTS, QUICK_REQUESTS = 300, 5
ROUNDS: Final = 3
EVENTS: Final = 10
LISTED: Final = 100
COST: Final = "CPU ms per request"

AGENT, CONVERSATION, RUN = "an agent", "a conversation", "a run"
RUNS, MESSAGES = f"{LISTED} runs", f"{LISTED} messages"
OVERVIEW, METRICS = "50 runs for operators", "metrics"
GOALS: Final[Mapping[str, float]] = {
    AGENT: 0.5, CONVERSATION: 0.7, RUN: 0.7, RUNS: 3.0, MESSAGES: 3.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kept:
    """The ids of objects in the records of a server."""

    agent: str
    conversation: str
    run: str
    short_conversation: str
    """The conversation with only the messages of the run."""

    @property
    def paths(self) -> dict[str, str]:
        """The paths that are read, by name."""
        return {
            AGENT: f"/v1/agents/{self.agent}",
            CONVERSATION: f"/v1/conversations/{self.short_conversation}",
            RUN: f"/v1/runs/{self.run}",
            RUNS: f"/v1/runs/?limit={LISTED}",
            MESSAGES: f"/v1/conversations/{self.conversation}/messages?limit={LISTED}",
            OVERVIEW: "/v1/admin/runs?limit=50",
            METRICS: "/metrics",
        }


def row(name: str, kept: int, *, with_key: bool) -> str:
    return f"{name}, {kept:,} kept, {'with' if with_key else 'without'} keys"


def measurements(contender: Reattach, options: Options) -> Iterator[Measurement]:
    """Read everything, first from a server without keys, then from one with a key."""
    for kept in QUICK_KEPT if options.quick else KEPT:
        with TemporaryDirectory(prefix="bench-data-") as directory:
            serving = partial(contender.serving, Path(directory), options.cores)
            objects = fill(serving, Path(directory), kept)
            headers: dict[str, str] = {}
            for with_key in (False, True):
                with serving() as server:
                    for name, path in objects.paths.items():
                        read = partial(repeated, server, path, headers, options)
                        yield row(name, kept, with_key=with_key), read
                    if not with_key:
                        headers["authorization"] = f"Bearer {new_key(server)}"


def repeated(
    server: ReattachServer, path: str, headers: Mapping[str, str], options: Options
) -> Figures:
    """Get the path again and again over one connection."""
    number = QUICK_REQUESTS if options.quick else REQUESTS
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        get(connection, path, headers)
        before = cpu_seconds(server.pids)
        for _ in range(number):
            get(connection, path, headers)
        used = cpu_seconds(server.pids) - before
    return {COST: 1000 * used / number}


def get(connection: http.client.HTTPConnection, path: str, headers: Mapping[str, str]) -> bytes:
    connection.request("GET", path, headers=dict(headers))
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        raise SpoiledError(f"GET {path}: {response.status} {body[:300]!r}")
    return body


def fill(
    serving: Callable[[], AbstractContextManager[ReattachServer]], directory: Path, kept: int
) -> Kept:
    """Make records with so many runs, and so many messages in a conversation.

    One run is made as clients make it, and copied in the database while no server has it open.
    """
    with serving() as server:
        stream = server.stream("burst", str(EVENTS), EVENTS)
        assert stream.begin is not None
        asked(server.port, stream.begin)
        (run_id,) = server.listed_runs(1)
        run = json.loads(asked(server.port, Request.of("GET", f"/v1/runs/{run_id}")))
        long = server.conversation("burst")
    with closing(sqlite3.connect(records_file(directory))) as connection, connection:
        copy_runs(connection, run_id, kept - 1)
        copy_messages(connection, run_id, long, kept)
    return Kept(run["agent_id"], long, run_id, run["conversation_id"])


def copy_runs(connection: sqlite3.Connection, run_id: str, number: int) -> None:
    """Add copies of the run, whose logs have been deleted already."""
    new = {"id": _id_of("run"), "log_deleted_at": "completed_at"}
    _copy(connection, "runs", new, "id = ?", [number, run_id])


def copy_messages(
    connection: sqlite3.Connection, run_id: str, thread_key: str, number: int
) -> None:
    """Add copies of the run's messages to a conversation, after its system message."""
    (messages,) = connection.execute(
        "SELECT count(*) FROM messages WHERE run_id = ?", [run_id]
    ).fetchone()
    (last,) = connection.execute("SELECT max(ordinal) FROM messages").fetchone()
    new = {"id": _id_of("message"), "run_id": "NULL"}
    _copy(connection, "messages", new, "run_id = ?", [number // messages, run_id])
    connection.execute(
        "INSERT INTO thread_messages (thread_key, position, message_id) "
        "SELECT ?, row_number() OVER (ORDER BY ordinal), id FROM messages WHERE ordinal > ?",
        [thread_key, last],
    )


def _id_of(kind: str) -> str:
    """Return SQL for a new id."""
    digits = "lower(hex(randomblob(4))), lower(hex(randomblob(6)))"
    return f"printf('{kind}-%s-4242-4242-8242-%s', {digits})"


def _copy(
    connection: sqlite3.Connection,
    table_name: str,
    new: Mapping[str, str],
    where: str,
    values: list[object],
) -> None:
    found = connection.execute(f"SELECT name FROM pragma_table_info('{table_name}')")
    names = [name for (name,) in found if name != "ordinal"]
    quoted = ", ".join(f'"{name}"' for name in names)
    copied = ", ".join(new.get(name, f'"{name}"') for name in names)
    connection.execute(
        "WITH RECURSIVE copies (number) AS "
        "(SELECT 1 UNION ALL SELECT number + 1 FROM copies WHERE number < ?) "
        f"INSERT INTO {table_name} ({quoted}) SELECT {copied} FROM {table_name}, copies "
        f"WHERE {where}",
        values,
    )


def new_key(server: ReattachServer) -> str:
    """Create a key with all rights."""
    body = {"name": "bench", "scopes": ["read", "send", "admin", "operator"]}
    created = json.loads(asked(server.port, Request.of("POST", "/v1/admin/keys", body)))
    return str(created["secret"])


def main(options: Options) -> Chapter:
    turns = [Turn(one.name, partial(measurements, one, options)) for one in versions(options)]
    return chapter_of(interleaved(turns, options.times(ROUNDS)), options)


def chapter_of(results: Results, options: Options) -> Chapter:
    sizes = QUICK_KEPT if options.quick else KEPT
    names = list(Kept("", "", "", "").paths)
    rows = [
        row(name, kept, with_key=with_key)
        for name in names
        for with_key in (False, True)
        for kept in sizes
    ]
    own = Reattach().name
    goals = [
        Goal(f"{name}, {sizes[-1]:,} kept", f"≤ {most:g} ms",
             results.middle(own, row(name, sizes[-1], with_key=True), COST), at_most(most), "ms")
        for name, most in GOALS.items()
    ]  # fmt: skip
    columns = {COST: COST}
    return Chapter(
        "reads",
        "Reads",
        "The CPU of the server for one GET over one connection, on SQLite: of a single object, of "
        "lists, and of what an operator's page and Prometheus ask for again and again. The "
        "conversation and the agent have the messages of one run.",
        [table(results, "CPU of the server", rows, columns),
         *ratios(results, options, rows, columns)],
        goals,
        notes=results.failures(),
    )  # fmt: skip
