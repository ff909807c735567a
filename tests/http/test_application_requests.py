"""The requests that applications make, where they ask for more than the SDKs' examples do."""

from __future__ import annotations

from typing import Any

from reattach.domain.ids import new_agent_id
from reattach.tools.base import RETIRED_TOOLS
from tests.support.asgi_server import Server

SYSTEM = "You are one who works in a terminal. " * 450
TAGS = ["origin:letta-code"]
CREATED: dict[str, Any] = {
    "agent_type": "letta_v1_agent",
    "name": "Letta Code",
    "description": "The default agent",
    "model": "scripted/echo",
    "system": SYSTEM,
    "memory_blocks": [{"label": "persona", "value": "Warm.", "description": "My character."}],
    "tags": TAGS,
    "tools": ["web_search", "fetch_webpage"],
    "include_base_tools": False,
    "include_base_tool_rules": False,
    "initial_message_sequence": [],
    "parallel_tool_calls": True,
    "compaction_settings": {"model": "letta/auto"},
    "context_window_limit": 128_000,
}
"""As letta-code 0.34.12 sends it, shortened."""


async def test_an_agent_of_letta_code_is_created_and_keeps_all_its_members(server: Server) -> None:
    agent = await server.agent(**CREATED)

    for name in ("agent_type", "name", "description", "model", "system", "tags"):
        assert agent[name] == CREATED[name]
    assert agent["compaction_settings"]["model"] == "letta/auto"
    assert agent["llm_config"]["context_window"] == 128_000
    assert [(one["label"], one["value"]) for one in agent["blocks"]] == [("persona", "Warm.")]
    path = f"/v1/agents/{agent['id']}"
    included = await server.got(path, include=["agent.tools", "agent.tags"])
    assert (included["tags"], included["blocks"]) == (TAGS, [])


async def test_tools_that_the_retired_server_brought_along_are_left_out(server: Server) -> None:
    agent = await server.agent(tools=sorted(RETIRED_TOOLS))
    assert agent["tools"] == []
    for tools in (["web_search", "websearch"], ["websearch"]):
        refused = await server.client.post("/v1/agents/", json={"tools": tools})
        assert refused.status_code == 404
        assert refused.json()["detail"].startswith("Tool not found with name=websearch")
    changed = await server.client.patch(f"/v1/agents/{agent['id']}", json={"tools": ["memory"]})
    assert changed.json()["tools"] == []
    assert (await server.client.post("/v1/tools/add-base-tools")).json() == []


async def test_a_send_may_explain_tools_and_skills_at_length(server: Server) -> None:
    agent = await server.agent()
    schema = {"type": "object", "properties": {"task": {"type": "string"}}}
    tools = [
        {"name": f"Tool{n}", "description": "Explained. " * 1_800, "parameters": schema}
        for n in range(16)
    ]
    skills = [
        {"name": f"skill-{n}", "description": "It helps. " * 40, "location": f"s/{n}/SKILL.md"}
        for n in range(24)
    ]
    sent = {"client_tools": tools, "client_skills": skills, "agent_id": agent["id"]}
    answer = await server.send("default", "hello", **sent)
    assert [one["content"] for one in answer["messages"]] == ["hello"]

    tools[3]["description"] = "x" * 100_001
    body = {"messages": [{"role": "user", "content": "hello"}], **sent}
    refused = await server.client.post("/v1/conversations/default/messages", json=body)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["loc"] == ["body", "client_tools", 3, "description"]


async def test_the_first_requests_of_applications_are_answered(server: Server) -> None:
    for path in ("/v1/health", "/v1/health/"):
        assert (await server.got(path))["status"] == "ok"
    assert await server.got("/v1/agents/", limit=1) == []
    assert await server.got("/v1/models/")
    agent = await server.agent()
    for part in ("secrets", "mcp-servers", "repositories"):
        for agent_id in (agent["id"], new_agent_id()):
            answer = await server.client.get(f"/v1/agents/{agent_id}/{part}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
