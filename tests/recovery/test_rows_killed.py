"""The table of continuations on a real server that is killed under the runs of many models at once.

``test_rows`` tries every event, with processes that only seem to die.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reattach.testing.programs.server import ServerProcess
from tests.support.continuing_engines import CONTINUE_MODELS, KINDS, TALES, Kind
from tests.support.launch_tool import HANGS
from tests.support.raw_clients import Client, client_of, start
from tests.support.received import Received, answer, end_of
from tests.support.stores import eventually
from tests.support.story_provider import (
    Call,
    Fault,
    Say,
    Story,
    StoryProvider,
    Telling,
    events_of_step,
    rest_of_step,
    story_provider,
    text_of,
)

WAIT_SECONDS = 80.0

HOSTED = [kind for kind in KINDS if kind.is_hosted]

HANGING: Story = (
    (Say(("I look. ",)), Call("call_h", "launch", (f'{{"n":{HANGS}}}',))),
    (Say(("three ", "four")),),
)


@dataclass(frozen=True)
class Row:
    """A moment of a story, as the first event of a step that has the mark."""

    name: str
    story: Story
    step: int
    mark: str
    way: str | None
    """The way of engines that neither follow nor continue; None: the run ends."""


ROWS = (
    Row("nothing", TALES["text"].story, 0, "", "step"),
    Row("reasoning", TALES["reasoning"].story, 0, "so ", "step"),
    Row("text", TALES["text"].story, 0, "two ", None),
    Row("calls", TALES["tools"].story, 0, "call_b", "step"),
    Row("text after calls", TALES["tools"].story, 1, "three ", None),
    Row("begun", HANGING, -1, "", "step"),
)


@dataclass
class Cell:
    """One run, its reader, and what the provider answers."""

    kind: Kind
    row: Row
    marks: Sequence[str]
    """The marks of the interruptions, one for each kill."""
    message: str
    telling: Telling
    conversation_id: str = ""
    run_id: str = ""
    received: Received = field(default_factory=Received)

    @property
    def way(self) -> str | None:
        if self.kind.follows and self.row.name != "begun":
            return "upstream"
        if self.row.way is None and self.kind.continues == "text":
            return "prefix"
        return self.row.way

    async def send(self, client: Client) -> None:
        await client.send(self.conversation_id, self.message, self.received, otid=self.message)

    async def follow(self, client: Client) -> None:
        await client.resume(self.run_id, self.received)

    def is_held(self, launches: Path) -> bool:
        """Whether the run waits for its kill, and its reader has everything so far."""
        if self.row.name == "begun":
            return launches.exists() and f"{HANGS}\n" in launches.read_text()
        return self.telling.silent.is_set() and self.received.text == self.telling.said


def cell(kind: Kind, row: Row, *marks: str) -> Cell:
    """Return a run whose answers fall silent at these marks, one after another."""
    message = f"Tell {row.name} {len(marks)} {kind.name}"
    faults: list[Fault | None] = [None] * max(row.step, 0)
    if row.step >= 0:
        step = row.story[row.step]
        for mark in marks:
            events = events_of_step(kind.model, step)
            place = next(n for n, one in enumerate(events, 1) if mark in one.decode())
            faults.append(Fault(place, "silence"))
            if not kind.follows:  # The next answer has only the rest.
                whole = text_of([row.story[row.step]])
                begun = whole[: whole.index(mark) + len(mark)] if mark in whole else ""
                step = rest_of_step(row.story[row.step], begun.rstrip())
    return Cell(kind, row, marks, message, Telling(row.story, faults))


def server_for(directory: Path, provider: StoryProvider) -> ServerProcess:
    return ServerProcess(
        directory,
        arguments=["--scripted", "--log-level", "warning"],
        environment={
            "REATTACH_MODELS": ",".join(kind.model for kind in HOSTED),
            "REATTACH_CONTINUE_MODELS": ",".join(CONTINUE_MODELS),
            "REATTACH_OPENAI_BASE_URL": f"{provider.url}/v1",
            "REATTACH_OPENAI_API_KEY": "sk-test",
            "REATTACH_TOOLS": "tests.support.launch_tool:launch",
            "ANTHROPIC_API_KEY": "sk-ant-test",
            "ANTHROPIC_BASE_URL": provider.url,
            "LAUNCHES": str(directory / "launches"),
        },
    )


async def conversation(client: Client, model: str) -> str:
    made = await client.post("/v1/agents/", {"model": model, "tools": ["launch"]})
    assert made.status_code == 200, made.text
    made = await client.post(f"/v1/conversations/?agent_id={made.json()['id']}", {})
    return str(made.json()["id"])


@pytest.mark.promise("P1", "P2", "P7", "P17", "P19")
@pytest.mark.timeout(300)
async def test_runs_of_every_model_and_row_go_on_after_their_server_was_killed(
    tmp_path: Path,
) -> None:
    cells = [cell(kind, row, row.mark) for kind in HOSTED for row in ROWS]
    twice = [
        cell(kind, ROWS[2], "two ", "three")
        for kind in HOSTED
        if kind.follows or kind.continues == "text"
    ]
    cells += twice
    launches = tmp_path / "launches"
    async with asyncio.timeout(WAIT_SECONDS * 3), story_provider({}) as provider:
        provider.tellings |= {one.message: one.telling for one in cells}
        with server_for(tmp_path, provider) as server:
            async with client_of(server) as client:
                for one in cells:
                    one.conversation_id = await conversation(client, one.kind.model)
                readers = [asyncio.create_task(one.send(client)) for one in cells]
                await held(cells, launches)
                await asyncio.to_thread(server.kill)
                await asyncio.gather(*readers)
            for one in twice:
                one.telling.silent.clear()
            await start(server)
            async with client_of(server) as client:
                for one in cells:
                    assert one.received.run_id or not one.telling.said
                    one.run_id = await run_of(client, one)
                readers = [asyncio.create_task(one.follow(client)) for one in cells]
                await held(twice, launches)
                await asyncio.gather(
                    *(r for r, c in zip(readers, cells, strict=True) if c not in twice)
                )
                await asyncio.to_thread(server.kill)
                await asyncio.gather(*readers)
            await start(server)
            async with client_of(server) as client:
                for one in twice:
                    await one.follow(client)
                for one in cells:
                    await check(client, one)
    lines = launches.read_text().split()
    assert lines.count(str(HANGS)) == len(HOSTED)
    ran = sum(one.row.name == "text after calls" for one in cells)
    followed = sum(one.row.name == "calls" and one.kind.follows for one in cells)
    assert lines.count("1") == lines.count("2") == ran + followed


async def held(cells: Sequence[Cell], launches: Path) -> None:
    """Return when all of these runs wait for their kill."""
    for one in cells:
        await eventually(lambda one=one: one.is_held(launches), WAIT_SECONDS)


async def run_of(client: Client, one: Cell) -> str:
    runs: list[dict[str, Any]] = await client.got("/v1/runs/", conversation_id=one.conversation_id)
    [run] = runs
    return str(run["id"])


async def check(client: Client, one: Cell) -> None:
    """Check the joined stream, the record and the provider's bill of a run that has ended."""
    assert one.received.done, one.message
    whole = Received()
    await client.resume(one.run_id, whole)
    assert one.received.frames == whole.frames
    end = end_of(whole.frames)
    run = await client.got(f"/v1/runs/{one.run_id}")
    # The first attempt is not a continuation.
    ways = [attempt["way"] for attempt in (run["metadata"] or {}).get("attempts", [])][1:]
    generations = [*range(len(one.row.story))]
    if one.way is None:
        assert ways == []
        assert (end["stop_reason"], end["error_type"]) == ("error", "stream_incomplete")
        assert text_of(one.row.story).startswith(answer(whole.frames))
        return
    assert ways == [one.way] * len(one.marks), one.message
    assert end["stop_reason"] == "end_turn"
    assert answer(whole.frames) == text_of(one.row.story)
    assert await client.stored_text(one.conversation_id, one.run_id) == answer(whole.frames)
    if one.way != "upstream" and one.row.name not in {"calls", "begun"}:
        generations += [max(one.row.step, 0)] * len(one.marks)
    assert sorted(one.telling.generations) == sorted(generations), one.message
