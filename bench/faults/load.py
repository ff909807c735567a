"""Load of runs with tools on a cluster under faults, and the checks of each of them."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2

from bench.faults.experiment import Outcome
from bench.faults.history import Kind, decoded
from bench.faults.tools import NAMES, calls_begun
from bench.faults.traffic import Habits, ServerClient, WatchedRun, server_clients
from reattach.testing.programs.cluster import Cluster

ROUNDS: Final = (3, 8)
"""Range of the tool calls of a run, one in each step; a text of 40 words follows."""

_RATE: Final = 20
"""Deltas per second, so that a run takes 4 to 7 seconds."""

_PATIENT: Final = Habits(patience_seconds=(1.0, 4.0), taken_events=80)
"""Otherwise 100 readers of busy servers would do little but connect."""

END_SECONDS: Final = 40.0
"""Bound of the time in which runs end after the last fault."""


@dataclass(frozen=True, slots=True)
class ToolRun:
    """A run that calls one tool several times."""

    watched: WatchedRun
    key: str
    tool: str
    rounds: int


@dataclass
class Load:
    """Clients that send one message after another to ``conversations``, and read the answers.

    ``strict`` readers report every refusal of a resume.
    """

    servers: Sequence[ServerClient]
    conversations: Sequence[tuple[str, str]]
    """The id of each, and the tool of its agent."""
    rng: random.Random
    rounds: tuple[int, int] = ROUNDS
    strict: bool = False
    runs: list[ToolRun] = field(default_factory=list)
    stopping: bool = False

    async def send_until_stopped(self) -> None:
        async with asyncio.TaskGroup() as group:
            for conversation_id, tool in self.conversations:
                group.create_task(self._converse(conversation_id, tool))

    async def _converse(self, conversation_id: str, tool: str) -> None:
        while not self.stopping:
            run = self._next_run(conversation_id, tool)
            self.runs.append(run)
            async with asyncio.TaskGroup() as group:
                group.create_task(run.watched.send_and_read())
                group.create_task(run.watched.read())

    def _next_run(self, conversation_id: str, tool: str) -> ToolRun:
        key = f"{self.rng.getrandbits(48):012x}"
        rounds = self.rng.randint(*self.rounds)
        directives = f"[tool={tool}][rounds={rounds}][rate={_RATE}]"
        watched = WatchedRun(
            self.servers,
            conversation_id,
            f'{directives}[arguments={{"run": "{key}"}}]',
            random.Random(self.rng.getrandbits(64)),
            name=f"run {len(self.runs)} of {tool}",
            strict=self.strict,
            habits=_PATIENT,
        )
        return ToolRun(watched, key, tool, rounds)


@asynccontextmanager
async def load_on(
    cluster: Cluster,
    runs: int,
    rng: random.Random,
    *,
    rounds: tuple[int, int] = ROUNDS,
    strict: bool = False,
) -> AsyncIterator[Load]:
    """Keep ``runs`` runs open during the context; afterwards wait for the last ones to end.

    A run that does not end is left, for ``check`` to report.
    """
    async with server_clients(cluster.urls, cluster.api_key) as servers:
        tools = [NAMES[number % len(NAMES)] for number in range(runs)]
        made = [rng.choice(servers).new_conversation(tools=[tool]) for tool in tools]
        conversations = list(zip(await asyncio.gather(*made), tools, strict=True))
        load = Load(servers, conversations, rng, rounds, strict)
        sending = asyncio.create_task(load.send_until_stopped())
        try:
            yield load
        finally:
            load.stopping = True
            await asyncio.wait({sending}, timeout=END_SECONDS)
            if not sending.done():
                sending.cancel()
                await asyncio.wait({sending})
        if not sending.cancelled():
            sending.result()


async def check(
    load: Load, cluster: Cluster, outcome: Outcome, journal: Path, allowed: Sequence[str]
) -> Counter[str]:
    """Add the findings of every run to ``outcome``; return the interruptions that runs survived.

    ``allowed`` are the interruptions that may have happened.
    """
    begun = calls_begun(journal)
    survived: Counter[str] = Counter()
    async with server_clients(cluster.urls, cluster.api_key) as servers:
        for run in load.runs:
            history = run.watched.history
            try:
                survived += await _check_run(load, run, servers, begun.get(run.key, Counter()))
            except (RuntimeError, httpx2.HTTPError, TimeoutError) as error:
                history.report(Kind.OTHER, f"its records or log could not be read: {error!r}")
            if history.ended_at is None:
                history.report(Kind.ORPHAN, "no reader came to an end")
            outcome.runs += 1
            outcome.events_read += history.events_read
            outcome.ends.append(history.end())
            outcome.findings += history.findings
    for interruption in survived.keys() - set(allowed):
        outcome.report(Kind.OTHER, f"{survived[interruption]} times {interruption}")
    return survived


async def _check_run(
    load: Load, run: ToolRun, servers: Sequence[ServerClient], begun: Counter[str]
) -> Counter[str]:
    """Compare what clients saw of the run with its log, its record and the file of its tool."""
    history = run.watched.history
    assert history.run_id is not None
    server = load.rng.choice(servers)
    record = await server.get(f"/v1/runs/{history.run_id}")
    if record["status"] != "completed":
        kind = Kind.ORPHAN if record["status"] in {"created", "running"} else Kind.OTHER
        history.report(kind, f"{history.run_id} is {record['status']}")
        if kind is Kind.ORPHAN:
            return Counter()
    frames, first_seq = await server.log_of(history.run_id)
    history.check_log(frames, first_seq)
    if [frame for _, frame in sorted(history.frames.items())] != frames:
        history.report(Kind.LOSS, "its readers have not seen the whole log")
    if history.end() != "end_turn":
        history.report(Kind.OTHER, f"it ended with {history.end()}")
    attempts = record["metadata"].get("attempts", [])
    _check_tool_calls(run, [decoded(frame) for frame in frames], begun)
    return Counter(one["interruption"] for one in attempts if one["interruption"])


def _check_tool_calls(run: ToolRun, events: Sequence[dict[str, Any]], begun: Counter[str]) -> None:
    """Compare the calls in the log with those that the tool noted, and with the text.

    A call whose return says that its outcome is unknown may have begun, but at most once.
    """
    history = run.watched.history
    called = {e["tool_call"]["tool_call_id"] for e in events if "tool_call" in e}
    returned = [e for e in events if e["message_type"] == "tool_return_message"]
    receipts = [e["tool_return"].split()[0] for e in returned if e["status"] == "success"]
    if len(called) != run.rounds or len(returned) != run.rounds:
        found = f"{len(called)} calls and {len(returned)} returns instead of {run.rounds}"
        history.report(Kind.DOUBLE if len(called) > run.rounds else Kind.LOSS, found)
    unnoted = [receipt for receipt in receipts if begun[receipt] != 1]
    if unnoted:
        history.report(Kind.OTHER, f"{unnoted} did not begin exactly once")
    unknown = [one["tool_return"] for one in returned if "is not known" in one["tool_return"]]
    if run.tool == "charge" and len(begun) > len(receipts) + len(unknown):
        beside = f"{len(receipts)} receipts and {len(unknown)} unknown outcomes"
        history.report(Kind.DOUBLE, f"{len(begun)} calls began for {beside}")
    if run.tool == "look" and unknown:
        history.report(Kind.LOSS, f"calls were not repeated: {unknown}")
    if returned:
        last = returned[-1]
        history.check_text(f"{run.tool} {last['status']}: {last['tool_return']}")
