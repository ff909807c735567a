from __future__ import annotations

from typing import Any

import pytest

from tests.support.asgi_server import Server, own_text

UNKNOWN = "message-123e4567-e89b-42d3-8456-426614174000"


@pytest.fixture
def server(shared_server: Server) -> Server:
    return shared_server


@pytest.fixture(scope="module")
async def thread(shared_server: Server) -> str:
    """A conversation with a system message and three turns, the second with reasoning."""
    agent = await shared_server.agent(system="S")
    conversation = await shared_server.conversation(agent["id"])
    for text in ("one", "two [think=1]", "three"):
        await shared_server.send(conversation["id"], text)
    return str(conversation["id"])


EVERY = [
    ("system_message", "S"),
    ("user_message", "one"),
    ("assistant_message", "one"),
    ("user_message", "two [think=1]"),
    ("reasoning_message", "r0 "),
    ("assistant_message", "two"),
    ("user_message", "three"),
    ("assistant_message", "three"),
]
NEWEST_FIRST = [EVERY[7], EVERY[6], EVERY[4], EVERY[5], *EVERY[3::-1]]
"""The parts of one message stay in their own order."""


def types_and_texts(items: list[dict[str, Any]]) -> list[tuple[str, str]]:
    found = [
        (item["message_type"], item.get("content") or item.get("reasoning") or "") for item in items
    ]
    return [(kind, own_text(text) if kind == "system_message" else text) for kind, text in found]


async def listed(server: Server, thread: str, **query: Any) -> list[tuple[str, str]]:
    return types_and_texts(await server.got(f"/v1/conversations/{thread}/messages", **query))


async def ids(server: Server, thread: str) -> list[str]:
    items = await server.got(f"/v1/conversations/{thread}/messages", order="asc")
    return list(dict.fromkeys(item["id"] for item in items))


async def test_messages_are_listed_the_newest_first_unless_asked_otherwise(
    server: Server, thread: str
) -> None:
    assert await listed(server, thread) == NEWEST_FIRST
    assert await listed(server, thread, order="asc") == EVERY


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_before_is_older_and_after_is_newer_whatever_the_order(
    server: Server, thread: str, order: str
) -> None:
    system, one, one_too, two, *_ = await ids(server, thread)
    turn = 1 if order == "asc" else -1
    older = await listed(server, thread, order=order, before=two, limit=2)
    assert older == EVERY[1:3][::turn]
    newer = await listed(server, thread, order=order, after=system, limit=2)
    assert newer == EVERY[1:3][::turn]
    between = await listed(server, thread, order=order, after=one, before=two)
    assert between == [EVERY[2]]
    assert await listed(server, thread, order=order, before=system) == []
    assert one_too


async def test_a_limit_counts_stored_messages_and_never_splits_one(
    server: Server, thread: str
) -> None:
    assert await listed(server, thread, limit=3) == NEWEST_FIRST[:4]
    assert await listed(server, thread, limit=0) == []


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"limit": -1}, 422),
        ({"limit": 1001}, 422),
        ({"limit": "x"}, 422),
        ({"order": "up"}, 422),
        ({"before": UNKNOWN}, 404),
        ({"after": UNKNOWN}, 404),
        ({"after": "nonsense"}, 404),
        ({"include_return_message_types": "x"}, 422),
    ],
)
async def test_an_invalid_query_of_messages_is_refused(
    server: Server, thread: str, query: dict[str, Any], status: int
) -> None:
    path = f"/v1/conversations/{thread}/messages"
    assert (await server.client.get(path, params=query)).status_code == status


async def test_the_pages_of_an_sdk_walk_a_thread_whole_and_once(
    server: Server, thread: str
) -> None:
    upwards: list[dict[str, Any]] = []
    path = f"/v1/conversations/{thread}/messages"
    query: dict[str, Any] = {"order": "asc", "limit": 2}
    while page := await server.got(path, **query):
        upwards += page
        query["after"] = page[-1]["id"]
    assert types_and_texts(upwards) == EVERY
    downwards: list[dict[str, Any]] = []
    query = {"limit": 2}
    while page := await server.got(path, **query):
        downwards += page
        query["before"] = page[-1]["id"]
    assert types_and_texts(downwards) == NEWEST_FIRST


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_a_filter_by_type_still_pages_to_the_end(
    server: Server, thread: str, order: str, limit: int
) -> None:
    path = f"/v1/conversations/{thread}/messages"
    wanted = ["reasoning_message", "system_message"]
    query: dict[str, Any] = {"order": order, "limit": limit, "include_return_message_types": wanted}
    cursor = "after" if order == "asc" else "before"
    found: list[dict[str, Any]] = []
    while page := await server.got(path, **query):
        found += page
        query[cursor] = page[-1]["id"]
    expected = [EVERY[0], EVERY[4]]
    assert types_and_texts(found) == (expected if order == "asc" else expected[::-1])


async def test_a_filter_by_type_reads_backwards_from_a_cursor(server: Server, thread: str) -> None:
    system, *_, last = await ids(server, thread)
    only = {"include_return_message_types": ["user_message"], "limit": 2}
    older = await listed(server, thread, order="asc", before=last, **only)
    assert older == [EVERY[3], EVERY[6]]
    newer = await listed(server, thread, order="desc", after=system, **only)
    assert newer == [EVERY[3], EVERY[1]]


@pytest.mark.parametrize("form", ["default", "agent-"])
async def test_the_default_thread_is_listed_by_its_agent(server: Server, form: str) -> None:
    agent = await server.agent(system="S")
    await server.conversation(agent["id"])
    await server.send(agent["id"], "hi")
    path = "default" if form == "default" else agent["id"]
    query = {"agent_id": agent["id"]} if form == "default" else {}
    assert await listed(server, path, order="asc", **query) == [
        ("system_message", "S"),
        ("user_message", "hi"),
        ("assistant_message", "hi"),
    ]
    nobody = await server.client.get("/v1/conversations/default/messages")
    assert nobody.status_code == 404
    unknown = "/v1/conversations/agent-123e4567-e89b-42d3-8456-426614174000/messages"
    assert (await server.client.get(unknown)).status_code == 404


async def test_an_agents_messages_are_of_all_its_threads_or_of_one(server: Server) -> None:
    agent = await server.agent(system="S")
    conversation = await server.conversation(agent["id"])
    await server.send(agent["id"], "direct")
    await server.send(conversation["id"], "named")
    path = f"/v1/agents/{agent['id']}/messages"
    every = types_and_texts(await server.got(path, order="asc"))
    assert [text for _, text in every] == ["S", "S", "direct", "direct", "named", "named"]
    direct = types_and_texts(await server.got(path, order="asc", conversation_id="default"))
    assert [text for _, text in direct] == ["S", "direct", "direct"]
    named = types_and_texts(await server.got(path, conversation_id=conversation["id"]))
    assert [text for _, text in named] == ["S", "named", "named"]
    only = await server.got(path, include_return_message_types=["assistant_message"])
    assert [text for _, text in types_and_texts(only)] == ["direct", "named"]
    refused = await server.client.get(path, params={"conversation_id": "nonsense"})
    assert refused.status_code == 422


async def test_a_message_is_retrieved_with_all_its_parts(server: Server, thread: str) -> None:
    every = await server.got(f"/v1/conversations/{thread}/messages")
    for item in every:
        parts = await server.got(f"/v1/messages/{item['id']}")
        assert parts == [one for one in every if one["id"] == item["id"]]
    unknown = await server.client.get(f"/v1/messages/{UNKNOWN}")
    assert unknown.status_code == 404
    assert unknown.json()["detail"] == f"Message with id {UNKNOWN} not found."
