from __future__ import annotations

from typing import Any

import pytest

from tests.support.asgi_server import Server, own_text

UNKNOWN_AGENT = "agent-123e4567-e89b-42d3-8456-426614174000"


async def ids(server: Server, **query: Any) -> list[str]:
    return [one["id"] for one in await server.got("/v1/conversations/", **query)]


async def contents(server: Server, thread_id: str) -> list[str]:
    items = await server.got(f"/v1/conversations/{thread_id}/messages", order="asc")
    return [own_text(items[0]["content"]), *(item["content"] for item in items[1:])]


async def test_a_conversation_is_given_back_as_it_was_made(server: Server) -> None:
    agent = await server.agent(system="Be brief.")
    body = {
        "summary": "s",
        "description": "d",
        "model": "scripted/slow",
        "model_settings": {"provider_type": "openai", "temperature": 0.1},
        "context_window_limit": 1000,
        "hidden": False,
    }
    made = await server.conversation(agent["id"], **body)
    assert {key: made[key] for key in body} == body
    assert made["agent_id"] == agent["id"]
    assert (made["archived"], made["archived_at"], made["last_message_at"]) == (False, None, None)
    assert await server.got(f"/v1/conversations/{made['id']}") == made
    [item] = await server.got(f"/v1/conversations/{made['id']}/messages")
    assert made["in_context_message_ids"] == [item["id"]]
    assert own_text(item["content"]) == "Be brief."


async def test_a_conversation_needs_an_agent_and_no_body(server: Server) -> None:
    agent = await server.agent()
    path = "/v1/conversations/"
    made = await server.client.post(path, params={"agent_id": agent["id"]})
    assert made.status_code == 200
    assert (await server.client.post(path)).status_code == 422
    unknown = await server.client.post(path, params={"agent_id": UNKNOWN_AGENT})
    assert unknown.status_code == 404
    assert unknown.json()["code"] == "not_found"


async def test_a_model_that_the_server_has_not_makes_no_conversation(server: Server) -> None:
    agent = await server.agent()
    path = f"/v1/conversations/?agent_id={agent['id']}"
    for body, status in [
        ({"model": "nobody/has-it"}, 404),
        ({"model": "nonsense"}, 400),
        ({"isolated_block_labels": ["human"]}, 400),
    ]:
        assert (await server.client.post(path, json=body)).status_code == status
    assert await ids(server) == []


async def test_an_update_changes_only_given_members_and_null_clears_them(server: Server) -> None:
    agent = await server.agent()
    made = await server.conversation(
        agent["id"], summary="s", description="d", model="scripted/slow"
    )
    path = f"/v1/conversations/{made['id']}"
    changed = (await server.client.patch(path, json={"summary": "new"})).json()
    same = made.keys() - {"summary", "updated_at"}
    assert changed["summary"] == "new"
    assert {key: changed[key] for key in same} == {key: made[key] for key in same}
    cleared = (await server.client.patch(path, json={"summary": None, "model": None})).json()
    assert (cleared["summary"], cleared["model"], cleared["description"]) == (None, None, "d")
    at = {"last_message_at": "2026-01-02T03:04:05+01:00"}
    dated = (await server.client.patch(path, json=at)).json()
    assert dated["last_message_at"] == "2026-01-02T02:04:05.000000Z"
    none = (await server.client.patch(path, json={"last_message_at": None})).json()
    assert none["last_message_at"] is None
    assert (await server.client.patch(path)).status_code == 422


async def test_archiving_takes_a_conversation_out_of_the_list_until_it_is_undone(
    server: Server,
) -> None:
    agent = await server.agent()
    kept, archived = [await server.conversation(agent["id"]) for _ in range(2)]
    path = f"/v1/conversations/{archived['id']}"
    state = (await server.client.patch(path, json={"archived": True})).json()
    assert state["archived"] is True
    assert state["archived_at"].endswith("Z")
    assert await ids(server) == [kept["id"]]
    assert await ids(server, archive_status="archived") == [archived["id"]]
    assert await ids(server, archive_status="all") == [archived["id"], kept["id"]]
    state = (await server.client.patch(path, json={"archived": False})).json()
    assert (state["archived"], state["archived_at"]) == (False, None)
    assert len(await ids(server)) == 2


async def test_conversations_can_be_filtered_in_lists(server: Server) -> None:
    agent, other = await server.agent(), await server.agent()
    a = await server.conversation(agent["id"], summary="About tea")
    b = await server.conversation(other["id"], summary="coffee")
    c = await server.conversation(agent["id"])
    await server.conversation(agent["id"], hidden=True)
    assert await ids(server) == [c["id"], b["id"], a["id"]]
    assert await ids(server, order="asc") == [a["id"], b["id"], c["id"]]
    assert await ids(server, agent_id=agent["id"]) == [c["id"], a["id"]]
    assert await ids(server, agent_id=UNKNOWN_AGENT) == []
    assert await ids(server, summary_search="TEA") == [a["id"]]
    assert await ids(server, summary_search="%") == []
    assert await ids(server, limit=2, after=c["id"]) == [b["id"], a["id"]]
    await server.send(a["id"], "hi")
    assert (await ids(server, order_by="last_message_at"))[0] == a["id"]
    assert (await ids(server, order_by="last_run_completion"))[0] == a["id"]
    listed = await server.got("/v1/conversations/", summary_search="tea")
    assert len(listed[0]["in_context_message_ids"]) == 3


async def test_a_deleted_conversation_is_gone(server: Server) -> None:
    made = await server.conversation((await server.agent())["id"])
    path = f"/v1/conversations/{made['id']}"
    response = await server.client.delete(path)
    assert (response.status_code, response.json()) == (200, None)
    assert (await server.client.get(path)).status_code == 404
    assert (await server.client.patch(path, json={"summary": "s"})).status_code == 404
    assert (await server.client.get(f"{path}/messages")).status_code == 404
    assert (await server.client.post(f"{path}/fork")).status_code == 404
    assert (await server.client.delete(path)).status_code == 404
    assert await ids(server) == []


async def test_a_fork_has_the_same_messages_and_goes_its_own_way(server: Server) -> None:
    agent = await server.agent(system="S")
    made = await server.conversation(agent["id"], model="scripted/slow", context_window_limit=9000)
    await server.send(made["id"], "one", override_model="scripted/echo")
    source = await server.got(f"/v1/conversations/{made['id']}")
    response = await server.client.post(f"/v1/conversations/{made['id']}/fork")
    fork = response.json()
    assert fork == await server.got(f"/v1/conversations/{fork['id']}")
    assert fork["in_context_message_ids"][1:] == source["in_context_message_ids"][1:]
    assert fork["in_context_message_ids"][0] != source["in_context_message_ids"][0]
    assert (fork["model"], fork["context_window_limit"]) == ("scripted/slow", 9000)
    await server.send(fork["id"], "two", override_model="scripted/echo")
    assert await contents(server, made["id"]) == ["S", "one", "one"]
    assert await contents(server, fork["id"]) == ["S", "one", "one", "two", "two"]


async def test_a_fork_ends_with_the_message_that_it_names(server: Server) -> None:
    made = await server.conversation((await server.agent(system="S"))["id"])
    await server.send(made["id"], "one")
    await server.send(made["id"], "two")
    source = await server.got(f"/v1/conversations/{made['id']}")
    query = {"message_id": source["in_context_message_ids"][2], "hidden": True}
    fork = await server.client.post(f"/v1/conversations/{made['id']}/fork", params=query)
    assert fork.json()["hidden"] is True
    assert fork.json()["id"] not in await ids(server)
    assert await contents(server, fork.json()["id"]) == ["S", "one", "one"]
    unknown = {"message_id": "message-123e4567-e89b-42d3-8456-426614174000"}
    refused = await server.client.post(f"/v1/conversations/{made['id']}/fork", params=unknown)
    assert refused.status_code == 404
    assert len(await ids(server)) == 1


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        ({"message_id": "x", "hidden": True}, {"message_id": "query", "hidden": "query"}),
        ({"anything": 1}, {"": "Send the request without one."}),
        (["x"], {"": "Send the request without one."}),
    ],
)
async def test_a_fork_refuses_a_body_because_it_would_not_be_read(
    server: Server, body: Any, faults: dict[str, str]
) -> None:
    made = await server.conversation((await server.agent())["id"])
    path = f"/v1/conversations/{made['id']}/fork"
    response = await server.client.post(path, json=body)
    assert response.status_code == 422
    found = response.json()["errors"]
    assert [one["loc"][1:] for one in found] == [[name] if name else [] for name in faults]
    for one, part in zip(found, faults.values(), strict=True):
        assert one["msg"].startswith("This route reads no body. ")
        assert part in one["msg"]
    assert len(await ids(server)) == 1
    for content in (b"", b"null", b"{}"):
        json = {"content-type": "application/json"}
        assert (await server.client.post(path, content=content, headers=json)).is_success


async def test_the_refusal_of_a_label_lists_those_that_can_be_isolated(server: Server) -> None:
    blocks = [{"label": label, "value": ""} for label in ("persona", "human")]
    for agent, remedy in (
        (await server.agent(memory_blocks=blocks), "Use labels of its blocks: 'human', 'persona'."),
        (
            await server.agent(),
            "It has no blocks. Attach one first, or leave out 'isolated_block_labels'.",
        ),
    ):
        response = await server.client.post(
            f"/v1/conversations/?agent_id={agent['id']}", json={"isolated_block_labels": ["x"]}
        )
        assert response.status_code == 400
        assert response.json()["detail"] == (
            f"INVALID_ARGUMENT: {agent['id']} has no block with the label 'x' to isolate. {remedy}"
        )


@pytest.mark.parametrize("form", ["default", "agent"])
async def test_the_default_thread_is_forked_by_its_agent(server: Server, form: str) -> None:
    agent = await server.agent(system="S")
    await server.send(agent["id"], "one")
    named = {"default": f"default/fork?agent_id={agent['id']}", "agent": f"{agent['id']}/fork"}
    fork = await server.client.post(f"/v1/conversations/{named[form]}")
    assert fork.status_code == 200
    assert await contents(server, fork.json()["id"]) == ["S", "one", "one"]
    nobody = await server.client.post("/v1/conversations/default/fork")
    assert nobody.status_code == 404
