from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import event

from reattach.domain.ids import DEFAULT_TENANT, AgentId
from tests.support.asgi_server import Server, own_text, started
from tests.support.record_samples import setting

BLOCK = {"label": "human", "value": "Ada", "description": "The user", "limit": 100}


async def ids(server: Server, **query: Any) -> list[str]:
    return [agent["id"] for agent in await server.got("/v1/agents/", **query)]


async def test_an_agent_is_given_back_as_it_was_made(server: Server) -> None:
    made = await server.agent(
        name="Ada's agent",
        system="Be brief.",
        description="d",
        model="scripted/slow",
        model_settings={"provider_type": "openai", "temperature": 0.5, "own": [1]},
        embedding="openai/text-embedding-3-small",
        memory_blocks=[BLOCK],
        tags=["b", "a", "b"],
        metadata={"k": {"v": 1}},
        timezone="Europe/Berlin",
        context_window_limit=5000,
        hidden=False,
        tool_rules=[{"type": "run_first", "tool_name": "t"}],
        compaction_settings={"model": "scripted/echo", "mode": "all"},
        message_buffer_autoclear=True,
        unknown_member=1,
    )
    assert made == await server.got(f"/v1/agents/{made['id']}")
    assert made["name"] == "Ada's agent"
    assert made["system"] == "Be brief."
    assert made["model"] == made["llm_config"]["handle"] == "scripted/slow"
    assert made["llm_config"]["context_window"] == 5000
    assert made["model_settings"] == {"provider_type": "openai", "temperature": 0.5, "own": [1]}
    assert made["embedding"] == "openai/text-embedding-3-small"
    assert made["tags"] == ["b", "a"]
    assert made["metadata"] == {"k": {"v": 1}}
    assert made["timezone"] == "Europe/Berlin"
    assert made["tool_rules"] == [{"type": "run_first", "tool_name": "t"}]
    assert made["compaction_settings"] == {"model": "scripted/echo", "mode": "all"}
    assert made["message_buffer_autoclear"] is True
    assert made["blocks"] == made["memory"]["blocks"]
    assert {key: made["blocks"][0][key] for key in BLOCK} == BLOCK
    assert "unknown_member" not in made


async def test_an_agent_can_be_created_from_an_empty_body(server: Server) -> None:
    made = await server.agent()
    assert made["name"].startswith("Agent ")
    assert made["model"] == "scripted/echo"
    assert made["system"]
    assert made["agent_type"] == "letta_v1_agent"
    assert made["blocks"] == made["tags"] == []


async def test_an_agents_default_thread_begins_with_its_prompt_and_memory(server: Server) -> None:
    shared = await server.block("shared", "the sky is blue")
    made = await server.agent(system="Be brief.", memory_blocks=[BLOCK], block_ids=[shared["id"]])
    items = await server.got(f"/v1/agents/{made['id']}/messages", conversation_id="default")
    assert [item["id"] for item in items] == made["message_ids"]
    assert items[0]["message_type"] == "system_message"
    for text in ("Be brief.", "Ada", "the sky is blue"):
        assert text in items[0]["content"]


async def test_relations_that_are_not_asked_for_are_empty(server: Server) -> None:
    made = await server.agent(memory_blocks=[BLOCK], tags=["t"])
    path = f"/v1/agents/{made['id']}"
    tags_only = await server.got(path, include=["agent.tags"])
    assert (tags_only["tags"], tags_only["blocks"]) == (["t"], [])
    [listed] = await server.got("/v1/agents/", include=["agent.blocks", "agent.tools"])
    assert listed["tags"] == []
    assert [block["label"] for block in listed["blocks"]] == ["human"]
    assert (await server.got(path))["blocks"]


async def test_the_older_ways_to_name_a_model_and_its_limits_work(server: Server) -> None:
    config = {"model": "slow", "model_endpoint_type": "openai", "context_window": 4000}
    made = await server.agent(
        llm_config=config | {"handle": "scripted/slow"}, max_tokens=7, parallel_tool_calls=True
    )
    assert made["model"] == "scripted/slow"
    assert made["llm_config"]["context_window"] == 4000
    assert made["model_settings"] == {"max_output_tokens": 7, "parallel_tool_calls": True}


async def test_an_update_changes_only_given_members_and_null_clears_them(server: Server) -> None:
    made = await server.agent(name="a", description="d", metadata={"a": 1}, tags=["x"])
    path = f"/v1/agents/{made['id']}"
    changed = (await server.client.patch(path, json={"system": "new", "hidden": True})).json()
    assert (changed["system"], changed["hidden"]) == ("new", True)
    same = {"name", "description", "metadata", "tags", "created_at", "message_ids"}
    assert {key: changed[key] for key in same} == {key: made[key] for key in same}
    assert changed["updated_at"] > made["updated_at"]
    cleared = await server.client.patch(
        path, json={"description": None, "metadata": None, "tags": None, "name": None}
    )
    assert cleared.json() == await server.got(path)
    assert cleared.json()["description"] is cleared.json()["metadata"] is None
    assert (cleared.json()["tags"], cleared.json()["name"]) == ([], "a")


async def test_settings_that_are_only_kept_change_one_by_one(server: Server) -> None:
    made = await server.agent(max_files_open=3, enable_sleeptime=True)
    path = f"/v1/agents/{made['id']}"
    changed = (await server.client.patch(path, json={"enable_sleeptime": None})).json()
    assert (changed["max_files_open"], changed["enable_sleeptime"]) == (3, None)


async def test_a_deprecated_limit_joins_the_models_settings(server: Server) -> None:
    made = await server.agent(model_settings={"temperature": 1})
    path = f"/v1/agents/{made['id']}"
    changed = (await server.client.patch(path, json={"max_tokens": 5})).json()
    assert changed["model_settings"] == {"temperature": 1.0, "max_output_tokens": 5}


async def test_an_agent_gets_other_blocks_all_or_none(server: Server) -> None:
    first, second = await server.block("one"), await server.block("two")
    made = await server.agent(block_ids=[first["id"]])
    path = f"/v1/agents/{made['id']}"
    both = await server.client.patch(path, json={"block_ids": [second["id"], first["id"]]})
    assert [block["label"] for block in both.json()["blocks"]] == ["two", "one"]
    unknown = "block-123e4567-e89b-42d3-8456-426614174000"
    refused = await server.client.patch(path, json={"name": "new", "block_ids": [unknown]})
    assert refused.status_code == 404
    assert (await server.got(path)) == both.json()


async def test_two_blocks_of_one_label_make_no_agent(server: Server) -> None:
    response = await server.client.post("/v1/agents/", json={"memory_blocks": [BLOCK, BLOCK]})
    assert response.status_code == 409
    assert response.json()["detail"] == (
        f"CONFLICT: The agent would have two blocks with the label '{BLOCK['label']}'. Give one of "
        "them another label, or leave one out."
    )
    assert await ids(server) == []
    assert await server.got("/v1/blocks/") == []


@pytest.mark.parametrize(
    ("model", "status"), [("nobody/has-it", 404), ("nonsense", 400), ("/x", 400), ("", 400)]
)
async def test_an_unknown_model_is_refused_at_once(server: Server, model: str, status: int) -> None:
    response = await server.client.post("/v1/agents/", json={"model": model})
    assert response.status_code == status
    assert isinstance(response.json()["detail"], str)
    made = await server.agent()
    changed = await server.client.patch(f"/v1/agents/{made['id']}", json={"model": model})
    assert changed.status_code == status


@pytest.mark.parametrize(
    "member",
    [
        {"secrets": {"KEY": "v"}},
        {"folder_ids": ["x"]},
        {"identity_ids": ["x"]},
        {"from_template": "t"},
        {"initial_message_sequence": [{"role": "user", "content": "x"}]},
    ],
)
async def test_unsupported_members_of_an_agent_get_501_with_an_alternative(
    server: Server, member: dict[str, Any]
) -> None:
    response = await server.client.post("/v1/agents/", json=member)
    assert response.status_code == 501
    assert response.json()["code"] == "not_implemented"
    [(name, value)] = member.items()
    assert name in response.json()["detail"]
    empty: dict[str, Any] = {name: type(value)()}
    assert (await server.client.post("/v1/agents/", json=empty)).status_code == 200


async def test_agents_can_be_filtered_in_lists(server: Server) -> None:
    a = await server.agent(name="alpha", tags=["x", "y"])
    b = await server.agent(name="beta", tags=["y"])
    c = await server.agent(name="alphabet")
    await server.agent(name="secret", hidden=True)
    every = [c["id"], b["id"], a["id"]]
    assert await ids(server) == every
    assert await ids(server, order="asc") == every[::-1]
    assert await ids(server, ascending=True) == every[::-1]
    assert await ids(server, name="alpha") == [a["id"]]
    assert await ids(server, query_text="LPHA") == [c["id"], a["id"]]
    assert await ids(server, tags=["x", "y"]) == [b["id"], a["id"]]
    assert await ids(server, tags=["x", "y"], match_all_tags=True) == [a["id"]]
    assert await ids(server, identity_id="identity-1") == []
    await server.send(a["id"], "hi")
    assert await ids(server, last_stop_reason="end_turn") == [a["id"]]
    assert (await ids(server, order_by="last_run_completion"))[0] == a["id"]
    assert (await ids(server, sort_by="last_run_completion"))[0] == a["id"]


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_agents_are_paged_whole_and_once_in_both_directions(
    server: Server, order: str
) -> None:
    for number in range(5):
        await server.agent(name=f"agent {number}")
    every = await ids(server, order=order)
    forwards: list[str] = []
    while page := await ids(server, order=order, limit=2, after=(forwards or [""])[-1]):
        forwards += page
    assert forwards == every
    backwards: list[str] = every[-1:]
    while page := await ids(server, order=order, limit=2, before=backwards[0]):
        backwards = page + backwards
    assert backwards == every


async def test_a_deleted_agent_is_gone_with_all_that_it_had(server: Server) -> None:
    shared = await server.block("shared")
    made = await server.agent(block_ids=[shared["id"]])
    conversation = await server.conversation(made["id"])
    await server.send(conversation["id"], "hi")
    [run] = await server.got("/v1/runs/")
    path = f"/v1/agents/{made['id']}"
    response = await server.client.delete(path)
    assert response.json() == {"message": f"Agent id={made['id']} successfully deleted"}
    for gone in (path, f"/v1/conversations/{conversation['id']}", f"/v1/runs/{run['id']}"):
        assert (await server.client.get(gone)).status_code == 404
    assert (await server.client.delete(path)).status_code == 404
    assert (await server.got(f"/v1/blocks/{shared['id']}"))["id"] == shared["id"]


async def test_deleting_an_agent_cancels_its_active_runs(server: Server) -> None:
    made = await server.agent()
    run_id = await started(server, made["id"], "[hang=1]")
    assert (await server.got(f"/v1/runs/{run_id}"))["status"] == "running"
    assert (await server.client.delete(f"/v1/agents/{made['id']}")).status_code == 200
    assert (await server.client.get(f"/v1/runs/{run_id}")).status_code == 404


async def test_resetting_messages_empties_the_default_thread_alone(server: Server) -> None:
    made = await server.agent(system="old")
    conversation = await server.conversation(made["id"])
    await server.send(made["id"], "hi")
    await server.send(conversation["id"], "hi")
    path = f"/v1/agents/{made['id']}"
    await server.client.patch(path, json={"system": "new"})
    state = (
        await server.client.patch(
            f"{path}/reset-messages", json={"add_default_initial_messages": False}
        )
    ).json()
    assert len(state["message_ids"]) == 1
    [item] = await server.got(f"{path}/messages", conversation_id="default")
    assert (item["id"], own_text(item["content"])) == (state["message_ids"][0], "new")
    assert len(await server.got(f"/v1/conversations/{conversation['id']}/messages")) == 3


async def test_concurrent_changes_of_different_stored_members_are_all_kept(server: Server) -> None:
    path = f"/v1/agents/{(await server.agent())['id']}"
    members = {
        "tool_rules": [{"type": "exit_loop"}],
        "max_files_open": 3,
        "enable_sleeptime": True,
        "message_buffer_autoclear": True,
        "project_id": "p",
    }
    answers = await asyncio.gather(
        *(server.client.patch(path, json={name: value}) for name, value in members.items())
    )
    assert [answer.status_code for answer in answers] == [200] * len(members)
    shown = await server.got(path)
    assert {name: shown[name] for name in members} == members


async def test_an_agent_whose_model_is_gone_is_still_shown(server: Server) -> None:
    made = await server.agent()
    records = server.context.records
    await records.agents.update(DEFAULT_TENANT, AgentId(made["id"]), setting(model="gone/model"))
    shown = await server.got(f"/v1/agents/{made['id']}")
    assert (shown["model"], shown["llm_config"]["model"]) == ("gone/model", "model")


async def test_a_longer_list_costs_no_more_queries(server: Server) -> None:
    counted: list[str] = []
    database = server.context.records._database
    event.listen(
        database.reads.engine,
        "before_cursor_execute",
        lambda *args: counted.append(args[2]),
    )
    shared = await server.block("shared")
    paths = ("/v1/agents/", "/v1/conversations/", "/v1/blocks/", "/v1/runs/")
    queries: list[list[int]] = []
    for _ in range(2):
        for _ in range(3):
            made = await server.agent(block_ids=[shared["id"]], tags=["t"])
            conversation = await server.conversation(made["id"])
            await server.send(conversation["id"], "hi")
        queries.append([])
        for path in paths:
            counted.clear()
            assert await server.got(path)
            queries[-1].append(len(counted))
    assert queries[0] == queries[1]
    assert max(queries[0]) <= 7  # Each list first asks for the sizes of its rows.


async def test_llm_config_sets_the_model_settings(server: Server) -> None:
    config = {
        "model": "slow",
        "model_endpoint_type": "scripted",
        "context_window": 4000,
        "enable_reasoner": True,
        "max_reasoning_tokens": 2000,
        "reasoning_effort": "low",
        "verbosity": "high",
        "temperature": 0.5,
        "max_tokens": 7000,
    }
    made = await server.agent(llm_config=config, model_settings={"temperature": 1.0})
    assert made["model_settings"] == {
        "temperature": 1.0,
        "max_output_tokens": 7000,
        "verbosity": "high",
        "reasoning": {"reasoning_effort": "low"},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
    }
    shown = {name: made["llm_config"][name] for name in config}
    assert shown == config | {"temperature": 1.0, "model_endpoint_type": "openai"}
    off = await server.agent(llm_config={**config, "enable_reasoner": False})
    assert off["model_settings"]["thinking"] == {"type": "disabled"}
    assert off["llm_config"]["enable_reasoner"] is False
