"""Deleted text must not remain in any file."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from reattach.domain.events import RunStatus
from reattach.domain.ids import RunId
from reattach.log.sqlite.log import Sizes
from tests.recovery.test_retention import HOUR_SECONDS, serving
from tests.support.faulty_stores import Gate
from tests.support.received import answer
from tests.support.stores import Stores, eventually

WAIT_SECONDS: Final = 30.0

SECRET: Final = "sesame-8b1f"
LONG: Final = f"{SECRET} " * 3000
"""Text that fills whole pages and parts of shared ones."""


def files_with_secret(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if SECRET.encode() in path.read_bytes()]


@pytest.mark.promise("P14")
async def test_deleted_text_is_in_no_file_of_the_data_directory_after_the_next_upkeep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D10: of runs, conversations, agents and blocks; in no page, journal or write-ahead log."""
    monkeypatch.setattr("reattach.log.sqlite.log.Sizes", partial(Sizes, idle_seconds=0.05))
    async with serving(tmp_path) as server:
        client = server.client
        deleted_run, deleted_conversation = await server.conversation(), await server.conversation()
        other = await server.conversation()
        for number, text in enumerate((SECRET, LONG)):
            for name in (deleted_run, deleted_conversation):
                sent = await server.send(name, text, f"{name}-{number}")
                assert sent.status_code == 200
        assert (await server.send(other, "harmless", "other")).status_code == 200
        agent = {"model": "scripted/echo", "system": LONG, "description": SECRET}
        made = (await server.post("/v1/agents/", agent)).json()["id"]
        block = await server.post("/v1/blocks/", {"label": "human", "value": LONG})
        assert await asyncio.to_thread(files_with_secret, tmp_path)

        for run in (await client.get("/v1/runs/?limit=100")).json():
            if run["conversation_id"] == deleted_run:
                assert (await client.delete(f"/v1/runs/{run['id']}")).status_code == 200
        for path in (
            f"/v1/conversations/{deleted_run}",
            f"/v1/conversations/{deleted_conversation}",
            f"/v1/agents/{made}",
            f"/v1/blocks/{block.json()['id']}",
        ):
            assert (await client.delete(path)).status_code in {200, 204}, path
        server.clock.leap(HOUR_SECONDS + 1)
        await server.context.runs.sweep()
        await server.context.records.tidy()

        async def is_gone() -> bool:
            return not await asyncio.to_thread(files_with_secret, tmp_path)

        await eventually(is_gone)
        messages = await client.get(f"/v1/conversations/{other}/messages")
        assert "harmless" in messages.text


async def test_a_deleted_conversation_keeps_its_text_until_its_active_run_ends(
    stores: Stores,
) -> None:
    """D10: its text is forgotten once the run has ended; forks keep the messages they show."""
    service = stores.service()
    conversation = await stores.conversation()
    tenant = (await service.send(stores.send(conversation, "one"))).tenant
    await eventually(lambda: _has_no_active_run(stores))
    run = await service.send(stores.send(conversation, "[hang=1]"))
    await stores.records.conversations.delete(tenant, conversation.id)
    assert await stores.records.conversations.forget_deleted(10) == 0
    await service.cancel([run])
    assert await stores.records.conversations.forget_deleted(10) == 1
    assert await stores.records.conversations.forget_deleted(10) == 0
    found = await stores.records.runs.get(tenant, RunId(run.id))
    assert found.input == ()


@pytest.mark.promise("P6")
@pytest.mark.usefixtures("contexts_read_apart")
async def test_a_run_goes_on_though_its_conversation_is_deleted_before_it_was_read(
    stores: Stores,
) -> None:
    gate = Gate("messages.context")
    service = stores.service_upon(gate)
    conversation = await stores.conversation()
    run = await service.send(stores.send(conversation, "one two"))
    async with asyncio.timeout(WAIT_SECONDS):
        await gate.waiting.wait()
    await stores.records.conversations.delete(run.tenant, conversation.id)
    gate.opened.set()
    assert (await service.wait_until_settled(run)).status is RunStatus.COMPLETED
    assert answer(await stores.frames(run)) == "one two"


async def _has_no_active_run(stores: Stores) -> bool:
    return not await stores.active_runs()
