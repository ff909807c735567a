"""Every list is walked whole and once, by its cursors, in both orders and directions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from reattach.domain.ids import new_agent_id
from reattach.records.spans import MessageSpans
from tests.support.live_server import LiveServer, listening

Order = Literal["asc", "desc"]
ORDERS: list[Order] = ["asc", "desc"]
TOOLS = ("add", "greet", "deploy", "hang")
MESSAGES = {
    "/v1/conversations/{conversation_id}/messages",
    "/v1/agents/{agent_id}/messages",
    "/v1/runs/{run_id}/messages",
    "/v1/messages/",
}
"""Their cursors go by time: `before` is older and `after` is newer, whatever the order."""
OLDEST_FIRST = "/v1/agents/{agent_id}/messages"
FORGIVING = "/v1/runs/{run_id}/messages"
SORTED = {
    "/v1/agents/": ("created_at", "updated_at", "last_run_completion"),
    "/v1/conversations/": ("created_at", "last_message_at", "last_run_completion"),
}
OTHERS = [
    "/v1/runs/",
    "/v1/runs/{run_id}/steps",
    "/v1/blocks/",
    "/v1/agents/{agent_id}/core-memory/blocks",
    "/v1/tools/",
    "/v1/agents/{agent_id}/tools",
    "/v1/tokens",
]
RELATIVE = [
    *((path, "") for path in OTHERS),
    *((path, order_by) for path, orders in SORTED.items() for order_by in orders),
]


@dataclass(frozen=True)
class Filled:
    """A server with at least three items in every list."""

    live: LiveServer
    names: dict[str, str]

    async def page(self, path: str, **query: Any) -> list[str]:
        """The ids of a page, each once: the items of a stored message share one."""
        items = await self.live.got(path.format(**self.names), **query)
        return list(dict.fromkeys(item["id"] for item in items))

    async def whole(self, path: str, order: Order, **query: Any) -> list[str]:
        ids = await self.page(path, order=order, limit=1000, **query)
        assert len(ids) >= 3
        return ids

    async def walked(
        self, path: str, cursor: Literal["after", "before"], order: Order, limit: int, **query: Any
    ) -> list[list[str]]:
        """The pages from the list's start, by their last items, as the SDKs' pagers go."""
        pages = [await self.page(path, order=order, limit=limit, **query)]
        while pages[-1]:
            assert len(pages) < 100
            at = {cursor: pages[-1][-1]}
            pages.append(await self.page(path, order=order, limit=limit, **at, **query))
        return pages

    async def walked_back(
        self, path: str, cursor: Literal["after", "before"], order: Order, limit: int, **query: Any
    ) -> list[str]:
        """All that precedes the list's last item, page by page towards its start."""
        found = (await self.whole(path, order, **query))[-1:]
        while page := await self.page(
            path, order=order, limit=limit, **{cursor: found[0]}, **query
        ):
            assert len(found) < 100
            found = page + found
        return found


@pytest.fixture(scope="module")
async def filled(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Filled]:
    tools = tuple(f"tests.support.tool_functions:{name}" for name in TOOLS)
    async with listening(tmp_path_factory.mktemp("paged"), tools=tools) as live:
        blocks = [await live.block(f"b{n}", "v") for n in range(4)]
        block_ids = [block["id"] for block in blocks]
        agents = [
            (await live.agent(tools=TOOLS, block_ids=block_ids, name=f"a{n}"))["id"]
            for n in range(4)
        ]
        for agent in agents:
            live.gates.open(agent)
        agent = agents[1]
        threads = [(await live.conversation(agent))["id"] for _ in range(4)]
        for thread in (threads[0], threads[2], agent, agents[3]):
            sent = await live.send(thread, "[think=1][chunks=1]")
        sent = await live.send(threads[2], "[think=1][steps=3][chunks=1]")
        for changed in agents[2], agents[0]:
            await live.client.patch(f"/v1/agents/{changed}", json={"description": "d"})
        assert sent
        [run, *_] = await live.got("/v1/runs/", conversation_id=threads[2])
        for _ in range(4):
            asked = {"run_id": run["id"], "scope": "read"}
            assert (await live.client.post("/v1/tokens", json=asked)).is_success
        names = {"agent_id": agent, "conversation_id": threads[2], "run_id": run["id"]}
        yield Filled(live, names)


def query_of(order_by: str) -> dict[str, str]:
    return {"order_by": order_by} if order_by else {}


async def test_every_list_with_a_cursor_is_walked_here(filled: Filled) -> None:
    described = (await filled.live.got("/openapi.json"))["paths"]
    paged = {
        path
        for path, item in described.items()
        if any(one["name"] == "after" for one in item.get("get", {}).get("parameters", ()))
        # The lists of operators have one order; those of OpenAI's API have the form of that API.
        and not path.startswith(("/v1/admin/", "/openai/"))
    }
    assert paged == {*MESSAGES, *SORTED, *OTHERS}


@pytest.mark.parametrize("query", ["order=asc", "order=desc", "before=run-1", "ascending=true"])
async def test_a_list_that_has_one_order_refuses_others(filled: Filled, query: str) -> None:
    for noun in ("runs", "keys", "tenants", "audit"):
        refused = await filled.live.client.get(f"/v1/admin/{noun}?{query}")
        assert refused.status_code == 422
        [error] = refused.json()["errors"]
        assert error["loc"] == ["query", query.partition("=")[0]]
        assert "`after`" in error["msg"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("path", "order_by"), RELATIVE)
async def test_the_cursors_of_a_list_follow_its_order(
    path: str, order_by: str, order: Order, filled: Filled
) -> None:
    query = query_of(order_by)
    expected = await filled.whole(path, order, **query)
    for limit in (1, 2, 1000):
        pages = await filled.walked(path, "after", order, limit, **query)
        assert [one for page in pages for one in page] == expected
        assert all(len(page) <= limit for page in pages)
        assert await filled.walked_back(path, "before", order, limit, **query) == expected
    between = {"after": expected[0], "before": expected[-1]}
    assert await filled.page(path, order=order, **between, **query) == expected[1:-1]


@pytest.mark.parametrize(("path", "order_by"), RELATIVE)
async def test_an_order_is_the_other_one_backwards(
    path: str, order_by: str, filled: Filled
) -> None:
    query = query_of(order_by)
    up, down = [await filled.whole(path, order, **query) for order in ORDERS]
    if order_by in {"", "created_at", "updated_at"}:
        assert up == down[::-1]
    else:  # those without the time stand last in either order
        assert sorted(up) == sorted(down)


@pytest.mark.parametrize("path", sorted(MESSAGES))
async def test_the_cursors_of_messages_go_by_time(path: str, filled: Filled) -> None:
    """E10: of an agent, the order says from which end, and a page reads oldest first."""
    oldest = await filled.whole(path, "asc")
    newest = await filled.whole(path, "desc")
    if path == OLDEST_FIRST:
        assert newest == oldest
        assert await filled.walked_back(path, "before", "desc", 2) == oldest
        return
    assert newest == oldest[::-1]
    for limit in (1, 2, 1000):
        up = await filled.walked(path, "after", "asc", limit)
        assert [one for page in up for one in page] == oldest
        down = await filled.walked(path, "before", "desc", limit)
        assert [one for page in down for one in page] == newest
        # And against the order: the page that borders on the cursor.
        assert await filled.walked_back(path, "before", "asc", limit) == oldest
        assert await filled.walked_back(path, "after", "desc", limit) == newest


@pytest.mark.parametrize("cursor", ["after", "before"])
@pytest.mark.parametrize("path", [*sorted(MESSAGES - {FORGIVING}), *SORTED, *OTHERS])
async def test_a_cursor_that_is_not_there_is_404(path: str, cursor: str, filled: Filled) -> None:
    target = path.format(**filled.names)
    answer = await filled.live.client.get(target, params={cursor: new_agent_id()})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("cursor", ["after", "before"])
async def test_an_unknown_cursor_among_the_messages_of_a_run_is_ignored(
    cursor: str, filled: Filled
) -> None:
    """E10: as the retired server does."""
    whole = await filled.whole(FORGIVING, "asc")
    assert await filled.page(FORGIVING, order="asc", **{cursor: new_agent_id()}) == whole


async def test_a_small_page_of_an_agent_has_its_newest_messages_oldest_first(
    filled: Filled,
) -> None:
    """E10: clients of the retired server show the page as it comes."""
    whole = await filled.whole(OLDEST_FIRST, "asc")
    assert await filled.page(OLDEST_FIRST, limit=2) == whole[-2:]


async def test_a_page_of_large_rows_ends_early_and_its_last_item_is_the_cursor(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B9: the memory of one response is bounded, and pagers find all items."""
    for path in ("/v1/conversations/{conversation_id}/messages", "/v1/runs/", "/v1/agents/"):
        whole = await filled.whole(path, "asc")
        with monkeypatch.context() as patched:
            patched.setattr("reattach.records.paging.PAGE_BYTES", 60)
            assert len(await filled.page(path, order="asc", limit=1000)) < len(whole)
            pages = await filled.walked(path, "after", "asc", 1000)
        assert [one for page in pages for one in page] == whole


async def test_a_small_page_of_one_type_is_not_a_query_for_every_message(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B10: a type that no message has is looked for in pages of a hundred."""
    looks: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        looks.append(args[3].limit)
        return read(*args, **kwargs)

    read = MessageSpans.read
    monkeypatch.setattr(MessageSpans, "read", counted)
    path = "/v1/conversations/{conversation_id}/messages"
    query = {"include_return_message_types": ["hidden_reasoning_message"]}
    assert await filled.page(path, limit=1, **query) == []
    assert looks == [100, 100]
