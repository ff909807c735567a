"""The retired server's answers to reads and changes of records, as behaviours.

Ids, dates, texts of models and what the protocol decides otherwise are left aside: an answer has
to have the same status and, member by member, at least the same names with values of the same type.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.asgi_server import Server

RECORDED = Path(__file__).parents[1] / "golden/retired_server.jsonl"
GOLDEN: dict[str, dict[str, Any]] = {
    exchange["name"]: exchange
    for exchange in map(json.loads, RECORDED.read_text("utf-8").splitlines())
}
# Members that say more than they did, or are of another kind for reasons of their own.
ASIDE = {
    "llm_config": "says what it knows of the model",
    "model_settings": "only what the client gave",
    "compaction_settings": "only what the client gave",
    "model_endpoint": "not shown",
    "created_by_id": "there are tenants, and no users",
    "last_updated_by_id": "there are tenants, and no users",
    "max_files_open": "there are no files",
    "per_file_view_window_char_limit": "there are no files",
    "max_tokens": "not known of every model",
    "temperature": "left to the provider",
    "parallel_tool_calls": "left to the provider",
    "last_message_at": "null until a message came",
    "completion_tokens_details": "shown where it is known",
    "reasoning_tokens": "shown where it is known",
    "total_duration_ns": "shown wherever it is known",
}


def recorded(name: str) -> Any:
    return json.loads(GOLDEN[name]["response"])


def differences(old: Any, new: Any, place: str = "$") -> list[str]:
    """Where ``new`` lacks a member of ``old``, or has one of another type."""
    if old is None or place.rpartition(".")[2] in ASIDE:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        missing = [f"{place}.{name} is missing" for name in old.keys() - new.keys()]
        common = sorted(old.keys() & new.keys())
        return missing + [d for n in common for d in differences(old[n], new[n], f"{place}.{n}")]
    if isinstance(old, list) and isinstance(new, list):
        if old and not new:
            return [f"{place} is empty"]
        return [d for one in new for d in differences(old[0], one, f"{place}[]")] if old else []
    if type(old) is not type(new):
        return [f"{place}: {old!r} became {new!r}"]
    return []


@pytest.fixture
async def conversation(server: Server) -> dict[str, Any]:
    """As the recorded one: an agent, and a turn with reasoning in the background."""
    agent = await server.agent(name="golden")
    conversation = await server.conversation(agent["id"])
    await server.send(conversation["id"], "hi [think=2]")
    return conversation


async def test_agents_models_and_health_equal_the_golden_responses(
    server: Server, conversation: dict[str, Any]
) -> None:
    for name, path in [
        ("agent_retrieve", f"/v1/agents/{conversation['agent_id']}"),
        ("models_list", "/v1/models/"),
        ("health", "/v1/health/"),
    ]:
        assert differences(recorded(name), await server.got(path)) == [], name


async def test_a_conversation_equals_the_golden_response(server: Server) -> None:
    agent = await server.agent()
    made = await server.conversation(agent["id"])
    old = recorded("conversation_retrieve")
    for new in (made, await server.got(f"/v1/conversations/{made['id']}")):
        assert differences(old, new) == []
        stays_null = {name for name, value in old.items() if value is None}
        assert {name: new[name] for name in stays_null} == dict.fromkeys(stays_null)
        assert len(new["in_context_message_ids"]) == len(old["in_context_message_ids"]) == 1


async def test_a_run_equals_the_golden_response(
    server: Server, conversation: dict[str, Any]
) -> None:
    [run] = await server.got("/v1/runs/", conversation_id=conversation["id"], limit=2)
    path = f"/v1/runs/{run['id']}"
    assert run == await server.got(path)
    assert differences(recorded("runs_list"), [run]) == []
    assert differences(recorded("run_retrieve"), run) == []
    old = recorded("run_retrieve")
    for name in ("status", "stop_reason", "metadata", "request_config"):
        assert run[name] == old[name]
    assert run["completed_at"].endswith("Z")
    for name in ("usage", "steps", "metrics"):
        assert differences(recorded(f"run_{name}"), await server.got(f"{path}/{name}")) == []


async def test_the_messages_of_a_run_equal_the_golden_response(
    server: Server, conversation: dict[str, Any]
) -> None:
    [run] = await server.got("/v1/runs/")
    old, new = recorded("run_messages"), await server.got(f"/v1/runs/{run['id']}/messages")
    assert [item["message_type"] for item in new] == [item["message_type"] for item in old]
    for was, item in zip(old, new, strict=True):
        assert list(item) == list(was)
        assert differences(was, item) == []
    assert new[1]["id"] == new[2]["id"]
    assert [item["otid"][-1] for item in new[1:]] == [item["otid"][-1] for item in old[1:]]


@pytest.mark.parametrize("order", ["desc", "asc"])
async def test_lists_of_messages_have_the_same_items_in_the_same_order(
    server: Server, conversation: dict[str, Any], order: str
) -> None:
    path = f"/v1/conversations/{conversation['id']}/messages"
    new = await server.got(path, limit=6, order=order)
    shapes = {item["message_type"]: item for item in recorded(f"messages_list_{order}")}
    assert new[-1 if order == "desc" else 0]["message_type"] == "system_message"
    for item in new:
        was = shapes.get(item["message_type"])
        if was is not None:
            assert list(item) == list(was)
    assert GOLDEN[f"messages_list_{order}"]["status"] == 200


async def test_forks_changes_and_deletions_equal_the_golden_responses(
    server: Server, conversation: dict[str, Any]
) -> None:
    path = f"/v1/conversations/{conversation['id']}"
    fork = await server.client.post(f"{path}/fork")
    update = await server.client.patch(path, json=GOLDEN["update"]["body"])
    delete = await server.client.delete(path)
    retrieve_deleted = await server.client.get(path)
    for name, response in [
        ("fork", fork),
        ("update", update),
        ("delete", delete),
        ("retrieve_deleted", retrieve_deleted),
    ]:
        assert response.status_code == GOLDEN[name]["status"], name
        assert differences(recorded(name), response.json()) == [], name
    assert update.json()["summary"] == recorded("update")["summary"]
    assert delete.text == GOLDEN["delete"]["response"] == "null"
    assert "actor" not in retrieve_deleted.text
    # The retired server showed no message in these two; they are there all the same.
    assert fork.json()["in_context_message_ids"]
    assert update.json()["in_context_message_ids"]
