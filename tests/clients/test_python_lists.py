"""The Python SDK's own pagers walk every list whole and once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import pytest
from letta_client import AsyncLetta

from tests.support.python_sdk import AsyncReader, Reader, new_otid
from tests.support.threads import Thread, Threads

Order = Literal["asc", "desc"]
ORDERS: list[Order] = ["asc", "desc"]


@pytest.fixture(scope="module")
def five(threads: Threads) -> Thread:
    """A conversation of five runs, each with a user's message and an answer of several items."""
    thread = threads.conversation()
    for number in range(5):
        text = f"[think=2][tool=search][chunks={number + 1}]"
        message = thread.message(text) | {"otid": new_otid()}
        answer = thread.post("messages", {"messages": [message], "streaming": False})
        assert answer.status_code == 200
    return thread


def keys_of(items: list[Any]) -> list[tuple[str, str]]:
    """Return a key of an item, because the items of one stored message share its id."""
    return [(item.id, item.message_type) for item in items]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_the_pager_lists_the_messages_of_a_conversation_in_ascending_order(
    limit: int, five: Thread, reader: Reader
) -> None:
    kept = [(item["id"], item["message_type"]) for item in five.items()]
    assert len(kept) >= 5 * 5
    pager = reader.sdk.conversations.messages.list(five.path_id, order="asc", limit=limit)
    assert keys_of(list(pager)) == kept


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_the_pager_lists_the_messages_of_an_agent_in_ascending_order(
    limit: int, five: Thread, reader: Reader
) -> None:
    kept = [(item["id"], item["message_type"]) for item in five.items()]
    pager = reader.sdk.agents.messages.list(
        five.agent_id, conversation_id=five.conversation_id, order="asc", limit=limit
    )
    assert keys_of(list(pager)) == kept


def test_the_pager_walks_to_older_messages_from_the_newest(five: Thread, reader: Reader) -> None:
    kept = [(item["id"], item["message_type"]) for item in five.items()]
    first = reader.sdk.conversations.messages.list(five.path_id, limit=2)
    seen = keys_of(list(first.items))
    while True:
        page = reader.sdk.conversations.messages.list(five.path_id, limit=2, before=seen[-1][0])
        if not page.items:
            break
        seen += keys_of(list(page.items))
    assert len(seen) == len(set(seen))
    assert sorted(seen) == sorted(kept)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("limit", [1, 2, 100])
def test_the_pager_lists_the_runs_of_a_conversation_in_either_order(
    limit: int, order: Order, five: Thread, reader: Reader
) -> None:
    expected = [run["id"] for run in five.runs()]
    if order == "desc":
        expected.reverse()
    pager = reader.sdk.runs.list(conversation_id=five.conversation_id, order=order, limit=limit)
    assert [run.id for run in pager] == expected


@pytest.mark.parametrize("order", ORDERS)
def test_the_pager_lists_the_agents_with_a_tag_in_either_order(
    order: Order, reader: Reader
) -> None:
    tag = new_otid()
    made = [reader.sdk.agents.create(name=f"a{n}", tags=[tag]).id for n in range(5)]
    pager = reader.sdk.agents.list(tags=[tag], order=order, limit=2)
    assert [agent.id for agent in pager] == (made if order == "asc" else made[::-1])


@pytest.mark.parametrize("order", ORDERS)
def test_the_pager_lists_the_steps_and_messages_of_a_run(
    order: Order, five: Thread, reader: Reader
) -> None:
    run_id = five.runs()[0]["id"]
    steps = [step.id for step in reader.sdk.runs.steps.list(run_id, order=order, limit=1)]
    assert len(steps) == len(set(steps)) == 2
    messages = list(reader.sdk.runs.messages.list(run_id, order="asc", limit=1))
    kept = [(i["id"], i["message_type"]) for i in five.items() if i["run_id"] == run_id]
    assert keys_of(messages) == kept


def test_the_pager_lists_the_blocks_with_a_label(reader: Reader) -> None:
    label = f"l{new_otid()}"
    made = [reader.sdk.blocks.create(label=label, value=str(n)).id for n in range(5)]
    assert [b.id for b in reader.sdk.blocks.list(label=label, order="asc", limit=2)] == made
    assert [b.id for b in reader.sdk.blocks.list(label=label, order="desc", limit=2)] == made[::-1]


def test_the_pager_lists_the_conversations_of_an_agent_page_by_page(
    threads: Threads, reader: Reader
) -> None:
    first = threads.conversation()
    made = [first.path_id, *(threads.conversation(first.agent_id).path_id for _ in range(4))]
    listed = reader.sdk.conversations.list(agent_id=first.agent_id, order="asc", limit=3)
    assert [one.id for one in listed] == made[:3]
    rest = reader.sdk.conversations.list(
        agent_id=first.agent_id, order="asc", limit=3, after=listed[-1].id
    )
    assert [one.id for one in rest] == made[3:]


@pytest.mark.parametrize("order", ORDERS)
async def test_the_asynchronous_pagers_list_the_same(
    order: Order, five: Thread, new_reader: Callable[[], AsyncReader]
) -> None:
    sdk: AsyncLetta = new_reader().sdk
    expected = [run["id"] for run in await asyncio.to_thread(five.runs)]
    runs = sdk.runs.list(conversation_id=five.conversation_id, order=order, limit=2)
    assert [run.id async for run in runs] == (expected if order == "asc" else expected[::-1])
    kept = await asyncio.to_thread(five.items)
    messages = sdk.conversations.messages.list(five.path_id, order="asc", limit=2)
    assert [one.id async for one in messages] == [item["id"] for item in kept]
