"""Readers that reach the end of a run after its settlement, by the process that settled it."""

from __future__ import annotations

import asyncio

import pytest

from reattach.records.base import Run
from reattach.runs import open_runs
from reattach.runs.ownership.settlements import Settlements
from tests.support.live_server import LiveServer, message_body, new_threads, to


@pytest.fixture
def look_ups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs whose record somebody waits for."""
    asked: list[str] = []
    wait = Settlements.wait

    async def counted(self: Settlements, tenant: object, run_id: str) -> Run:
        asked.append(run_id)
        return await wait(self, tenant, run_id)  # type: ignore[arg-type]

    monkeypatch.setattr(Settlements, "wait", counted)
    return asked


async def test_a_reader_needs_no_look_up_for_the_end_of_a_run(
    live: LiveServer, look_ups: list[str]
) -> None:
    agent, conversation = await new_threads(live)
    live.gates.open(agent)
    await live.streamed(to(conversation), message_body("hello"))
    assert not look_ups


async def test_the_record_is_read_if_the_settlement_was_long_ago(
    live: LiveServer, look_ups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_runs, "SETTLED_RUNS_KNOWN", 0)
    agent, conversation = await new_threads(live)
    live.gates.open(agent)
    async with asyncio.timeout(30):
        frames = await live.streamed(to(conversation), message_body("hello"))
    assert frames[-1].kind == "[DONE]"
    assert len(look_ups) <= 1
