"""Crashes during a compaction do not change the conversation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from reattach.agent.compaction.summary import PROMPT
from reattach.domain.events import RunStatus, StopReason
from reattach.domain.ids import DEFAULT_TENANT
from reattach.domain.limits import ENGINE_STOP_SECONDS
from reattach.domain.messages import Role
from reattach.engine.base import Delta, Turn
from reattach.engine.scripted import ScriptedEngine
from reattach.records.base import (
    Conversation,
    Span,
    Thread,
)
from reattach.runs.service import Send
from tests.support.faulty_stores import Life
from tests.support.stores import Stores

WAIT_SECONDS = ENGINE_STOP_SECONDS * 10


@dataclass
class HangsInSummaries(ScriptedEngine):
    """Answers, except that a summary never ends; its request sets ``asked``."""

    asked: asyncio.Event

    def __post_init__(self) -> None:
        super().__init__()

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        async for delta in super().run(turn):
            yield delta
            if turn.system == PROMPT:
                self.asked.set()
                await asyncio.Event().wait()


def sent(stores: Stores, conversation: Conversation, text: str, *, shown: bool = True) -> Send:
    send = stores.send(conversation, text, compaction_messages=shown)
    return replace(send, agent=replace(stores.agent, context_window_limit=60))


async def filled(stores: Stores) -> Conversation:
    conversation = await stores.conversation()
    service = stores.service()
    for number in range(3):
        run = await service.send(stores.send(conversation, f"turn {number} and " + "more " * 8))
        assert (await service.wait_until_settled(run)).status is RunStatus.COMPLETED
    return conversation


@pytest.mark.promise("P7", "P18")
@pytest.mark.parametrize("shown", [True, False])
async def test_a_process_that_dies_during_a_compaction_does_not_change_the_conversation(
    stores: Stores, shown: bool
) -> None:
    conversation = await filled(stores)
    before = await stores.kept(conversation)
    life = Life(None)
    service = stores.service_upon(life, engine=HangsInSummaries(life.ended))
    async with asyncio.timeout(WAIT_SECONDS):
        run = await service.send(sent(stores, conversation, "now " * 40, shown=shown))
        await life.ended.wait()
        await stores.service().start()
    assert (await stores.run(run)).stop_reason is StopReason.ERROR
    assert await stores.kept(conversation) == before
    await stores.assert_free(conversation)


@pytest.mark.promise("P6")
async def test_a_run_that_is_cancelled_during_a_compaction_does_not_change_the_conversation(
    stores: Stores,
) -> None:
    conversation = await filled(stores)
    before = await stores.kept(conversation)
    asked = asyncio.Event()
    service = stores.service(engine=HangsInSummaries(asked))
    async with asyncio.timeout(WAIT_SECONDS):
        run = await service.send(sent(stores, conversation, "now " * 40))
        await asked.wait()
        assert await service.cancel([run]) == {run.id: "cancelled"}
    assert await stores.kept(conversation) == before


@pytest.mark.promise("P7", "P18")
@pytest.mark.parametrize("shown", [True, False])
async def test_a_process_that_dies_after_a_compaction_loses_no_message(
    stores: Stores, shown: bool
) -> None:
    conversation = await filled(stores)
    before = await stores.records.messages.history(
        DEFAULT_TENANT, Thread(stores.agent.id, conversation.id)
    )
    life = Life(None)
    engine = ScriptedEngine()
    service = stores.service_upon(life, engine=engine)
    async with asyncio.timeout(WAIT_SECONDS):
        run = await service.send(
            sent(stores, conversation, "[hang=3][chunks=9] " + "now " * 40, shown=shown)
        )
        while len(await stores.frames(run)) < (5 if shown else 3):
            await asyncio.sleep(0.01)
        life.ended.set()
        await stores.service().start()
    messages = await stores.records.messages.list(
        DEFAULT_TENANT, Thread(stores.agent.id, conversation.id), Span(1000, ascending=True)
    )
    assert messages[: len(before)] == before
    roles = [message.role for message in messages[len(before) :]]
    assert roles == [Role.USER, Role.SUMMARY, Role.ASSISTANT]
    await stores.assert_free(conversation)
