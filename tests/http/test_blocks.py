from __future__ import annotations

from typing import Any

import pytest

from tests.support.asgi_server import Server


async def labels(server: Server, path: str = "/v1/blocks/", **query: Any) -> list[str]:
    return [block["label"] for block in await server.got(path, **query)]


async def test_a_block_is_given_back_as_it_was_made(server: Server) -> None:
    body = {
        "label": "human",
        "value": "Ada",
        "limit": 5000,
        "description": "The user",
        "read_only": True,
        "metadata": {"a": [1]},
        "tags": ["x"],
        "hidden": False,
    }
    made = await server.made("/v1/blocks/", body)
    assert {key: made[key] for key in body} == body
    assert await server.got(f"/v1/blocks/{made['id']}") == made


async def test_an_update_changes_only_given_members_and_null_clears_them(server: Server) -> None:
    made = await server.block("human", "Ada", description="d", limit=10, metadata={"a": 1})
    path = f"/v1/blocks/{made['id']}"
    changed = (await server.client.patch(path, json={"value": "Bob", "description": None})).json()
    assert changed == made | {"value": "Bob", "description": None}
    cleared = (await server.client.patch(path, json={"limit": None, "metadata": None})).json()
    assert (cleared["limit"], cleared["metadata"], cleared["value"]) == (None, {}, "Bob")
    same = (await server.client.patch(path, json={"value": None, "label": None})).json()
    assert same == cleared


async def test_a_value_never_gets_longer_than_its_limit(server: Server) -> None:
    too_long = {"label": "l", "value": "123456", "limit": 5}
    assert (await server.client.post("/v1/blocks/", json=too_long)).status_code == 422
    made = await server.block("l", "12345", limit=5)
    path = f"/v1/blocks/{made['id']}"
    for change in ({"value": "123456"}, {"limit": 4}):
        refused = await server.client.patch(path, json=change)
        assert refused.status_code == 422
        assert "characters" in refused.json()["detail"]
    assert await server.got(path) == made
    both = await server.client.patch(path, json={"value": "123456", "limit": 6})
    assert both.status_code == 200


async def test_blocks_are_listed_oldest_first_and_can_be_searched(server: Server) -> None:
    for label, value in [("human", "Ada"), ("persona", "kind"), ("humans", "Bob")]:
        await server.block(label, value, description=f"of {label}")
    await server.block("secret", hidden=True)
    assert await labels(server) == ["human", "persona", "humans"]
    assert await labels(server, order="desc") == ["humans", "persona", "human"]
    assert await labels(server, label="human") == ["human"]
    assert await labels(server, label_search="UMA") == ["human", "humans"]
    assert await labels(server, value_search="kin") == ["persona"]
    assert await labels(server, description_search="of p") == ["persona"]
    assert await labels(server, templates_only=True) == []
    refused = await server.client.get("/v1/blocks/", params={"tags": ["x"]})
    assert refused.status_code == 501


async def test_a_deleted_block_is_gone_from_its_agents(server: Server) -> None:
    made = await server.block("human")
    agent = await server.agent(block_ids=[made["id"]])
    response = await server.client.delete(f"/v1/blocks/{made['id']}")
    assert (response.status_code, response.json()) == (200, None)
    assert (await server.client.get(f"/v1/blocks/{made['id']}")).status_code == 404
    assert (await server.got(f"/v1/agents/{agent['id']}"))["blocks"] == []


async def test_blocks_are_attached_and_detached(server: Server) -> None:
    made = await server.block("human", "Ada")
    agent = await server.agent()
    path = f"/v1/agents/{agent['id']}/core-memory/blocks"
    attached = await server.client.patch(f"{path}/attach/{made['id']}")
    assert [block["id"] for block in attached.json()["blocks"]] == [made["id"]]
    again = await server.client.patch(f"{path}/attach/{made['id']}")
    assert len(again.json()["blocks"]) == 1
    assert await server.got(f"{path}/human") == made
    changed = await server.client.patch(f"{path}/human", json={"value": "Bob"})
    assert changed.json()["value"] == "Bob"
    assert (await server.got(f"/v1/blocks/{made['id']}"))["value"] == "Bob"
    detached = await server.client.patch(f"{path}/detach/{made['id']}")
    assert detached.json()["blocks"] == []
    assert (await server.client.patch(f"{path}/detach/{made['id']}")).status_code == 404
    assert (await server.client.get(f"{path}/human")).status_code == 404


async def test_an_agent_cannot_have_two_blocks_with_one_label(server: Server) -> None:
    agent = await server.agent(memory_blocks=[{"label": "human", "value": ""}])
    other = await server.block("human")
    path = f"/v1/agents/{agent['id']}/core-memory/blocks"
    refused = await server.client.patch(f"{path}/attach/{other['id']}")
    assert refused.status_code == 409
    assert refused.json()["code"] == "conflict"
    assert len(await server.got(path)) == 1
    renamed = await server.block("persona")
    assert (await server.client.patch(f"{path}/attach/{renamed['id']}")).is_success
    refused = await server.client.patch(f"/v1/blocks/{renamed['id']}", json={"label": "human"})
    assert refused.json()["detail"].startswith(
        f"CONFLICT: Agent {agent['id']} would have two blocks with the label 'human'."
    )


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_an_agents_blocks_are_paged_in_both_directions(server: Server, order: str) -> None:
    blocks = [{"label": str(number), "value": ""} for number in range(5)]
    agent = await server.agent(memory_blocks=blocks)
    path = f"/v1/agents/{agent['id']}/core-memory/blocks"
    every = await server.got(path, order=order)
    shown = [block["label"] for block in every]
    assert shown == (list("01234") if order == "asc" else list("43210"))
    after = await labels(server, path, order=order, after=every[1]["id"], limit=2)
    assert after == shown[2:4]
    before = await labels(server, path, order=order, before=every[3]["id"], limit=2)
    assert before == shown[1:3]
    between = {"after": every[0]["id"], "before": every[3]["id"]}
    assert await labels(server, path, order=order, **between) == shown[1:3]
    unknown = await server.client.get(path, params={"after": "block-unknown"})
    assert unknown.status_code == 404
