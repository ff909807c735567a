"""A server that is killed repeatedly under several clients."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reattach.testing.programs.server import ServerProcess
from tests.support.raw_clients import Client, client_of, start
from tests.support.received import Received, answer, end_of

SEED = 20_261_122
KILLS = 5
TALKERS = 5
ANSWERS = [
    "[chunks=300][rate=1500]",
    "[chunks=300]",
    "[think=40][chunks=100][steps=2][rate=2000]",
    "[unicode][chunks=200][rate=1500]",
    "[chunks=60][size=20000]",
    "[chunks=150][rate=1500][fail=140]",
    "a few words",
]


@dataclass
class Seen:
    """Everything that all clients saw of every run."""

    frames: dict[str, dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    texts: dict[str, str] = field(default_factory=dict)
    conversations: dict[str, str] = field(default_factory=dict)

    def add(self, received: Received) -> None:
        if received.run_id is not None:
            known = self.frames[received.run_id]
            for seq, frame in received.by_seq.items():
                assert known.setdefault(seq, frame) == frame


@dataclass
class Talker:
    """A client that sends messages to one conversation in turn and retries for ever."""

    client: Client
    conversation_id: str
    number: int
    sent: int = 0
    received: Received = field(default_factory=Received)
    text: str = ""

    @property
    def otid(self) -> str:
        return f"{self.number}-{self.sent}"

    async def say(self, text: str, on_read: Callable[[], None]) -> None:
        self.sent += 1
        self.text = text
        self.received = Received()
        await self.client.send(
            self.conversation_id,
            text,
            self.received,
            otid=self.otid,
            on_read=on_read,
        )

    async def go_on(self) -> str:
        """Read the rest of the answer after a kill, by cursor if known, and return the run's id."""
        if self.received.done:
            assert self.received.run_id is not None
            return self.received.run_id
        if self.received.run_id is not None:
            await self.client.resume(self.received.run_id, self.received)
        else:
            await self.client.send(self.conversation_id, self.text, self.received, otid=self.otid)
        self.received.end()
        assert self.received.run_id is not None
        return self.received.run_id


def killing(server: ServerProcess, reads_until_kill: int) -> Callable[[], None]:
    """Count a read of any client, and kill the server at the last of a number of them."""
    reads = itertools.count(1)

    def on_read() -> None:
        if next(reads) == reads_until_kill:
            server.kill()

    return on_read


async def check_run(client: Client, seen: Seen, run_id: str, conversation_id: str) -> str:
    """Check one run against its log and records, and return how it ended."""
    whole = Received()
    await client.resume(run_id, whole)
    assert whole.done
    end = end_of(whole.frames)
    assert seen.frames[run_id].items() <= whole.by_seq.items()
    run = await client.got(f"/v1/runs/{run_id}")
    assert run["stop_reason"] == end["stop_reason"]
    assert run["status"] == ("completed" if end["stop_reason"] == "end_turn" else "failed")
    assert await client.stored_text(conversation_id, run_id) == answer(whole.frames)
    return str(end["error_type"] or end["stop_reason"])


@pytest.mark.promise("P1", "P2", "P3", "P4", "P7", "P9", "P19")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("continues", [True, False])
async def test_a_server_that_is_killed_repeatedly_loses_and_doubles_no_event(
    tmp_path: Path, continues: bool
) -> None:
    rng = random.Random(SEED)
    server = ServerProcess(
        tmp_path,
        arguments=["--scripted", "--log-level", "warning"],
        environment={"REATTACH_CONTINUE": str(continues).lower()},
    )
    seen = Seen()
    runs: dict[str, str] = {}
    ends: dict[str, str] = {}
    with server:
        async with client_of(server) as client:
            talkers = [
                Talker(client, await client.conversation(), number) for number in range(TALKERS)
            ]
        for kill in range(KILLS):
            reads_until_kill = rng.choice([0, 1, 5, 20, 100, 200, 400])
            async with client_of(server) as client:
                on_read = killing(server, reads_until_kill)
                async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                    for talker in talkers:
                        talker.client = client
                        group.create_task(talker.say(rng.choice(ANSWERS), on_read))
                    if reads_until_kill == 0:
                        await asyncio.to_thread(server.kill)
                server.kill()
            for talker in talkers:
                seen.add(talker.received)

            await start(server)
            async with client_of(server) as client, asyncio.timeout(30):
                for talker in talkers:
                    talker.client = client
                for talker, run_id in zip(
                    talkers, await asyncio.gather(*(t.go_on() for t in talkers)), strict=True
                ):
                    seen.add(talker.received)
                    runs[run_id] = talker.conversation_id
                # Runs before a kill are checked again after the last kill.
                checked = list(runs.items())[-TALKERS if kill < KILLS - 1 else 0 :]
                for run_id, conversation_id in checked:
                    end = await check_run(client, seen, run_id, conversation_id)
                    assert ends.setdefault(run_id, end) == end
                listed = await client.got("/v1/runs/", limit=1000)
                assert {run["id"] for run in listed} == runs.keys()
                assert all(run["status"] in {"completed", "failed"} for run in listed)
    assert len(runs) == KILLS * TALKERS
    incomplete = set() if continues else {"stream_incomplete"}
    assert set(ends.values()) - {"llm_error"} == {"end_turn"} | incomplete
