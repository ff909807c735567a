from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.domain.clock import SystemClock
from reattach.domain.ids import DEFAULT_TENANT
from reattach.tools.base import Toolbox
from reattach.tools.connections import McpServers
from reattach.tools.function import FunctionTool
from reattach.tools.mcp import connect
from reattach.tools.servers import McpServer, server_id
from reattach.tools.threads import Threads
from reattach.wire.dialects.openai_items import response_id
from tests.support import tool_functions
from tests.support.asgi_server import OTHER_TENANT, Server, serving, started, with_key


@dataclass(frozen=True)
class Look:
    """A request that names things of a tenant, as ``{agent}``, ``{conversation}`` and so on."""

    method: str
    path: str
    """As the API's description has it."""
    query: str = ""
    body: Any = None

    def url(self, ids: dict[str, str]) -> str:
        path = re.sub(r"{(\w+?)(_id)?}", lambda name: ids[name[1]], self.path)
        return path + (f"?{self.query}".format(**ids) if self.query else "")

    def content(self, ids: dict[str, str]) -> Any:
        text = json.dumps(self.body)
        for name, value in ids.items():
            text = text.replace(f"<{name}>", value)
        return json.loads(text)


MESSAGE = {"messages": [{"role": "user", "content": "hi"}]}
RUN_INPUT = {
    "threadId": "t-1",
    "runId": "r-1",
    "messages": [{"id": "m-1", "role": "user", "content": "hi"}],
}
COPILOTKIT = "/copilotkit/agent/{agent_name}"
AGENT, CONVERSATION, RUN, RESPONSE = (
    "/v1/agents/{agent_id}",
    "/v1/conversations/{conversation_id}",
    "/v1/runs/{run_id}",
    "/openai/v1/responses/{response_id}",
)
MEMORY = f"{AGENT}/core-memory/blocks"
TOOLS = f"{AGENT}/tools"
DEFAULT = "/v1/conversations/default"
CHAT = "/ai-sdk/{agent_id}/chat"
UI_MESSAGE = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "hi"}]}

LOOKS = [
    Look("get", AGENT),
    Look("patch", AGENT, body={"name": "stolen"}),
    Look("delete", AGENT),
    Look("patch", f"{AGENT}/reset-messages", body={}),
    Look("get", f"{AGENT}/messages"),
    Look("get", f"{AGENT}/messages", "conversation_id={conversation}"),
    Look("post", f"{AGENT}/messages", body=MESSAGE),
    Look("post", f"{AGENT}/messages/stream", body=MESSAGE),
    Look("post", f"{AGENT}/messages/async", body=MESSAGE),
    Look("post", f"{AGENT}/messages/cancel", body={}),
    Look("post", f"{AGENT}/messages/cancel", body={"run_ids": ["<run>"]}),
    Look("get", MEMORY),
    Look("get", f"{MEMORY}/{{block_label}}"),
    Look("patch", f"{MEMORY}/{{block_label}}", body={"value": "stolen"}),
    Look("patch", f"{MEMORY}/attach/{{block_id}}"),
    Look("patch", f"{MEMORY}/detach/{{block_id}}"),
    Look("get", TOOLS),
    Look("get", TOOLS, "after={tool}"),
    Look("patch", f"{TOOLS}/attach/{{tool_id}}"),
    Look("patch", f"{TOOLS}/attach/{{tool_id}}", body={}),
    Look("patch", f"{TOOLS}/detach/{{tool_id}}"),
    Look("patch", f"{TOOLS}/approval/{{tool_name}}", body={"requires_approval": True}),
    Look("patch", AGENT, body={"tools": []}),
    Look("patch", AGENT, body={"tool_ids": ["<tool>"]}),
    Look("get", "/v1/agents/", "after={agent}"),
    Look("get", "/v1/agents/", "before={agent}"),
    Look("post", "/v1/agents/", body={"block_ids": ["<block>"]}),
    Look("get", "/v1/blocks/{block_id}"),
    Look("patch", "/v1/blocks/{block_id}", body={"value": "stolen"}),
    Look("delete", "/v1/blocks/{block_id}"),
    Look("get", "/v1/blocks/", "after={block}"),
    Look("get", "/v1/blocks/", "before={block}"),
    Look("get", CONVERSATION),
    Look("patch", CONVERSATION, body={"summary": "stolen"}),
    Look("delete", CONVERSATION),
    Look("post", f"{CONVERSATION}/fork"),
    Look("get", f"{CONVERSATION}/messages"),
    Look("post", f"{CONVERSATION}/messages", body=MESSAGE),
    Look("post", f"{CONVERSATION}/messages", body={**MESSAGE, "streaming": False}),
    Look("post", f"{CONVERSATION}/stream", body={}),
    Look("post", f"{CONVERSATION}/stream", body={"run_id": "<run>"}),
    Look("post", f"{CONVERSATION}/stream", body={"otid": "<otid>"}),
    Look("get", f"{CONVERSATION}/stream"),
    Look("get", f"{CONVERSATION}/stream", "run_id={run}"),
    Look("get", f"{CONVERSATION}/stream", "otid={otid}"),
    Look("get", f"{CONVERSATION}/stream", "last_event_id={run}:1"),
    Look("get", f"{CONVERSATION}/stream", "last_event_id={run}:1-done"),
    Look("get", f"{CONVERSATION}/snapshot"),
    Look("get", f"{CONVERSATION}/snapshot", "run_id={run}"),
    Look("get", f"{CONVERSATION}/snapshot", "otid={otid}"),
    Look("post", f"{CONVERSATION}/cancel"),
    Look("post", f"{CONVERSATION}/compact"),
    Look("post", f"{CONVERSATION}/recompile"),
    Look("post", f"{DEFAULT}/compact", body={"agent_id": "<agent>"}),
    Look("post", f"{DEFAULT}/recompile", body={"agent_id": "<agent>"}),
    Look("post", f"{AGENT}/summarize"),
    Look("post", f"{AGENT}/recompile"),
    Look("post", f"{DEFAULT}/fork", "agent_id={agent}"),
    Look("get", f"{DEFAULT}/messages", "agent_id={agent}"),
    Look("post", f"{DEFAULT}/messages", body={**MESSAGE, "agent_id": "<agent>"}),
    Look("post", f"{DEFAULT}/stream", body={"agent_id": "<agent>"}),
    Look("get", f"{DEFAULT}/stream", "agent_id={agent}"),
    Look("post", f"{DEFAULT}/cancel", "agent_id={agent}"),
    Look("post", "/v1/conversations/", "agent_id={agent}"),
    Look("get", "/v1/conversations/", "agent_id={agent}"),
    Look("get", "/v1/conversations/", "after={conversation}"),
    Look("get", "/v1/conversations/", "before={conversation}"),
    Look("get", "/v1/messages/", "after={message}"),
    Look("get", "/v1/messages/", "before={message}"),
    Look("get", "/v1/messages/{message_id}"),
    Look("get", RUN),
    Look("delete", RUN),
    Look("post", f"{RUN}/cancel"),
    Look("get", f"{RUN}/messages"),
    Look("get", f"{RUN}/usage"),
    Look("get", f"{RUN}/steps"),
    Look("get", f"{RUN}/metrics"),
    Look("post", f"{RUN}/stream", body={}),
    Look("get", f"{RUN}/stream"),
    Look("get", f"{RUN}/stream", "last_event_id=1-done"),
    Look("get", f"{RUN}/stream", "last_event_id={run}:1-done"),
    Look("get", f"{RUN}/snapshot"),
    Look("get", f"{RUN}/snapshot", "seq=1"),
    Look("get", f"{RUN}/frames"),
    Look("get", f"{RUN}/timeline"),
    Look("get", "/v1/runs/", "after={run}"),
    Look("get", "/v1/runs/", "before={run}"),
    Look("get", "/v1/runs/", "agent_id={agent}"),
    Look("get", "/v1/runs/", "conversation_id={conversation}"),
    Look("get", "/v1/runs/active", "agent_id={agent}"),
    Look("post", "/v1/tokens", body={"run_id": "<run>", "scope": "read"}),
    Look("post", "/v1/tokens", body={"conversation_id": "<conversation>", "scope": "send"}),
    Look("get", "/v1/tokens", "after={token}"),
    Look("get", "/v1/tokens", "run_id={run}"),
    Look("get", "/v1/tokens", "conversation_id={conversation}"),
    Look("delete", "/v1/tokens/{token_id}"),
    Look("get", f"{RUN}/log"),
    Look("get", f"{RUN}/log", "offset=1&live=sse"),
    Look("head", f"{RUN}/log"),
    Look("post", CHAT, body={"id": "chat-1", "messages": [UI_MESSAGE]}),
    Look("get", f"{CHAT}/{{chat_id}}/stream"),
    Look("delete", f"{CHAT}/{{chat_id}}/stream"),
    Look("get", f"{CHAT}/{{chat_id}}/messages"),
    Look("post", f"{CHAT}/{{chat_id}}/stop"),
    Look("get", "/v1/admin/runs", "after={run}"),
    Look("get", "/v1/admin/runs", "agent_id={agent}"),
    Look("get", "/v1/admin/runs", "conversation_id={conversation}"),
    Look("get", "/v1/admin/runs", "query={run}"),
    Look("get", "/v1/admin/runs/{run_id}"),
    Look("get", "/v1/admin/keys", "after={key}"),
    Look("delete", "/v1/admin/keys/{key_id}"),
    Look("get", "/v1/admin/audit", "after={entry}"),
    Look("get", "/v1/admin/tenants", "after={tenant}"),
    Look("get", "/openai/v1/models/{model}"),
    Look("post", "/openai/v1/responses", body={"model": "<model>", "input": "hi"}),
    Look("post", "/openai/v1/responses", body={"conversation": "<conversation>", "input": "hi"}),
    Look("post", "/openai/v1/responses", body={"previous_response_id": "<response>", "input": ""}),
    Look("get", RESPONSE),
    Look("get", RESPONSE, "stream=true"),
    Look("delete", RESPONSE),
    Look("post", f"{RESPONSE}/cancel"),
    Look("get", f"{RESPONSE}/input_items"),
    Look("get", f"{RESPONSE}/input_items", "after={item}"),
    Look("post", "/openai/v1/conversations", body={"metadata": {"agent_id": "<model>"}}),
    Look("get", f"/openai{CONVERSATION}"),
    Look("delete", f"/openai{CONVERSATION}"),
    Look("get", f"/openai{CONVERSATION}/items"),
    Look("get", f"/openai{CONVERSATION}/items", "after={item}"),
    Look("post", f"/openai{CONVERSATION}/items", body={"items": []}),
    Look("get", f"/openai{CONVERSATION}/items/{{item_id}}"),
    Look("post", "/ag-ui/{agent_id}", body=RUN_INPUT),
    Look("post", f"{COPILOTKIT}/run", body=RUN_INPUT),
    Look("post", f"{COPILOTKIT}/connect", body={**RUN_INPUT, "threadId": "<conversation>"}),
    Look("post", f"{COPILOTKIT}/stop/{{thread_name}}", body={"runId": "r-1"}),
]

EVERYBODYS = [
    Look("get", "/v1/tools/"),
    Look("get", "/v1/tools/", "after={tool}"),
    Look("get", "/v1/tools/{tool_id}"),
    Look("get", "/v1/mcp-servers/"),
    Look("get", "/v1/mcp-servers/{mcp_server_id}"),
    Look("get", "/v1/mcp-servers/{mcp_server_id}/tools"),
    Look("get", "/v1/mcp-servers/{mcp_server_id}/tools/{tool_id}"),
]
"""The server's own routes, which show nothing of any tenant."""

TOOL_ID = FunctionTool(tool_functions.add, Threads()).id

UNKNOWN = {
    "agent": "agent-123e4567-e89b-42d3-8456-426614174000",
    "block": "block-123e4567-e89b-42d3-8456-426614174000",
    "conversation": "conv-123e4567-e89b-42d3-8456-426614174000",
    "message": "message-123e4567-e89b-42d3-8456-426614174000",
    "run": "run-123e4567-e89b-42d3-8456-426614174000",
    "token": "token-123e4567-e89b-42d3-8456-426614174000",
    "otid": "otid-123e4567",
    "chat": "chat-1",
    "key": "key-123e4567-e89b-42d3-8456-426614174000",
    "entry": "audit-123e4567-e89b-42d3-8456-426614174000",
    "tenant": "org-123e4567-e89b-42d3-8456-426614174000",
    "model": "agent-123e4567-e89b-42d3-8456-426614174000",
    "response": "resp_123e4567e89b42d38456426614174000",
    "item": "msg_1",
    "agent_name": "agent-123e4567-e89b-42d3-8456-426614174000",
    "thread_name": "thread of a client",
    "block_label": "human",
    "tool": TOOL_ID,
    "tool_name": "add",
    "mcp_server": server_id("files"),
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    functions = (tool_functions.add, tool_functions.deploy)
    toolbox = Toolbox([FunctionTool(function, Threads()) for function in functions])
    servers = McpServers({"files": McpServer(command="serve")}, connect, SystemClock())
    async with serving(tmp_path, toolbox=toolbox, mcp_servers=servers) as server:
        yield server


async def state(client: httpx2.AsyncClient, ids: dict[str, str]) -> list[Any]:
    """All that the owner sees."""
    paths = (
        "/v1/agents/",
        "/v1/blocks/",
        "/v1/conversations/?archive_status=all",
        "/v1/runs/",
        f"/v1/agents/{ids['agent']}",
        f"/v1/agents/{ids['agent']}/messages",
    )
    return [(await client.get(path)).json() for path in paths]


async def response_without_ids(
    client: httpx2.AsyncClient, look: Look, ids: dict[str, str]
) -> tuple[int, str, list[str]]:
    """The response without the ids in it, and the names of its headers."""
    content = None if look.body is None else look.content(ids)
    response = await client.request(look.method, look.url(ids), json=content)
    text = response.text
    for name, value in ids.items():
        text = (
            text.replace(value, f"<{name}>") if name not in {"block_label", "tool_name"} else text
        )
    return response.status_code, text, sorted(response.headers)


@pytest.mark.slow
@pytest.mark.promise("P11")
async def test_objects_of_another_tenant_are_answered_like_unknown_ones(server: Server) -> None:
    block = await server.block("human", "Ada")
    agent = await server.agent(block_ids=[block["id"]], name="owned", tools=["add", "deploy"])
    conversation = await server.conversation(agent["id"])
    sent = {"messages": [{"role": "user", "content": "secret [hang=1]", "otid": "otid-owned"}]}
    run_id = await started(server, conversation["id"], "", **sent)
    await started(server, agent["id"], "secret [hang=1]")
    ids = {
        "agent": agent["id"],
        "block": block["id"],
        "conversation": conversation["id"],
        "message": agent["message_ids"][0],
        "run": run_id,
        "otid": "otid-owned",
        "block_label": "human",
        "tool": TOOL_ID,
        "tool_name": "add",
    }
    owner, stranger = await with_key(server, DEFAULT_TENANT), await with_key(server, OTHER_TENANT)
    token = await owner.post("/v1/tokens", json={"run_id": run_id, "scope": "read"})
    ids["token"] = token.json()["id"]
    ids |= {"chat": "chat-1", "model": agent["id"], "tenant": DEFAULT_TENANT}
    ids |= {"response": response_id(run_id), "item": "msg_1"}
    ids |= {"agent_name": agent["id"], "thread_name": "thread of a client"}
    for name, path in (("key", "/v1/admin/keys"), ("entry", "/v1/admin/audit")):
        ids[name] = (await owner.get(path)).json()["items"][0]["id"]
    before = await state(owner, ids)
    for look in LOOKS:
        theirs = await response_without_ids(stranger, look, ids)
        assert theirs == await response_without_ids(stranger, look, UNKNOWN), look
        assert theirs[0] in {200, 400, 404}, look
        if look.path != "/v1/admin/tenants":  # It has the stranger's own row in any case.
            assert (theirs[0] == 200) <= theirs[1].startswith(("[]", '{"items":[]')), look
        assert await state(owner, ids) == before, look
    for path in ("/v1/agents/", "/v1/blocks/", "/v1/conversations/", "/v1/runs/"):
        assert (await stranger.get(path)).json() == []
    assert (await owner.post(f"/v1/conversations/{ids['conversation']}/cancel")).is_success
    assert (await owner.post(f"/v1/agents/{ids['agent']}/messages/cancel", json={})).is_success


@pytest.mark.promise("P11")
async def test_no_request_that_names_something_is_left_out(server: Server) -> None:
    looked = {
        (look.method, look.path.replace("/default/", "/{conversation_id}/"))
        for look in (*LOOKS, *EVERYBODYS)
    }
    naming = {
        (method, path)
        for path, methods in server.app.openapi()["paths"].items()
        for method, operation in methods.items()
        if "{" in path
        or any(parameter["name"] == "after" for parameter in operation.get("parameters", ()))
    }
    assert len(naming) > 30
    assert naming - looked == set()


@pytest.mark.promise("P11")
async def test_global_endpoints_reveal_nothing_about_tenants(server: Server) -> None:
    clients = [await with_key(server, tenant) for tenant in (DEFAULT_TENANT, OTHER_TENANT)]
    before = [
        [await response_without_ids(client, look, UNKNOWN) for client in clients]
        for look in EVERYBODYS
    ]
    assert all(ours == theirs for ours, theirs in before)
    # Nothing answers of the tools of an MCP server that was not reached.
    assert [ours[0] for ours, _ in before] == [200] * (len(EVERYBODYS) - 1) + [404]
    owned = {"tools": ["add"], "name": "owned"}
    agent = (await clients[0].post("/v1/agents/", json=owned)).json()
    rule = {"requires_approval": True}
    path = f"/v1/agents/{agent['id']}/tools/approval/add"
    assert (await clients[0].patch(path, json=rule)).is_success
    after = [
        [await response_without_ids(client, look, UNKNOWN) for client in clients]
        for look in EVERYBODYS
    ]
    assert after == before


@pytest.mark.promise("P11")
async def test_strangers_share_no_otids_and_no_conversations(server: Server) -> None:
    clients = [await with_key(server, tenant) for tenant in (DEFAULT_TENANT, OTHER_TENANT)]
    runs = []
    for client in clients:
        agent = (await client.post("/v1/agents/", json={})).json()
        body = {
            "messages": [{"role": "user", "content": "hi", "otid": "same"}],
            "streaming": False,
        }
        path = f"/v1/conversations/{agent['id']}/messages"
        answer = (await client.post(path, json=body)).json()
        runs.append(answer["messages"][0]["run_id"])
    assert len(set(runs)) == 2
    for client, run_id in zip(clients, runs, strict=True):
        assert [run["id"] for run in (await client.get("/v1/runs/")).json()] == [run_id]
