"""Every parameter of every operation, wrong in type, range, size and encoding."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from reattach.domain.clock import SystemClock
from reattach.domain.ids import DEFAULT_TENANT, new_uuid
from reattach.domain.limits import MAX_INTEGER
from reattach.records.base import KeyScope
from reattach.tools.base import Toolbox
from reattach.tools.connections import McpServers
from reattach.tools.function import FunctionTool
from reattach.tools.mcp import connect
from reattach.tools.servers import McpServer, server_id
from reattach.tools.threads import Threads
from reattach.wire.dialects.openai_items import response_id
from tests.support import tool_functions
from tests.support.asgi_server import Server, serving

# At the usual limit, which a busy machine reaches, the alarm interrupts whatever runs: often the
# server in the same process, which then answers 500 or breaks a stream off.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LONG = "x" * 20_000
QUERY_VALUES = [
    "", "x", "-1", "0", "1.5", "1e400", "NaN", "9" * 400, "null", "true", "[]", "{}", "%00",
    "%ff%fe", "%ed%a0%80", "%F0%9F%98%80", "'%20OR%201=1--", "%25", LONG,
]  # fmt: skip
BODY_VALUES: list[Any] = [
    None, "", "x", LONG, "\x1b[0m\u202e", -1, 0, 1.5, MAX_INTEGER, True, [], {}, [[]], [None],
    ["x"], [{}], {"x": {}}, {"type": "x"}, [{"type": "message"}], [LONG] * 30, {LONG: LONG},
]  # fmt: skip
BODIES = [
    b"", b"null", b"[]", b"{", b'"x"', b"1", b"{}{}", b"\xff", b"NaN", b'{"a": Infinity}',
    b'{"name": "\\ud800"}', b'{"name": "\\u0000"}', b'{"summary": "\\ud800"}', b"[" * 100_000,
    b'{"name": "a", "name": "b"}', b'{"limit": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}",
    b"{}".rjust(100_000), b"\x1f\x8b\x08\x00",
]  # fmt: skip
PATH_VALUES = ["x", "%00", "%ff", "..%2f..%2fetc", "agent-" + "0" * 36, "AGENT-", LONG, "%20", "'"]


def schema_of(description: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any]:
    """The schema of the operation's body, references resolved; {} if it has none."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema: dict[str, Any] = content.get("schema", {})
    for option in [schema, *schema.get("anyOf", ())]:
        if "$ref" in option:
            name = option["$ref"].rpartition("/")[2]
            found: dict[str, Any] = description["components"]["schemas"][name]
            return found
    return schema


class Prober:
    """Sends requests that may be refused but must never break anything."""

    def __init__(self, server: Server, ids: dict[str, str]) -> None:
        self.client = server.client
        self.ids = ids
        self.sent = 0

    def url(self, path: str, **given: str) -> str:
        return re.sub(r"{(\w+)}", lambda name: given.get(name[1], self.ids[name[1]]), path)

    async def send(self, method: str, url: str, **content: Any) -> httpx2.Response:
        response = await self.client.request(method, url, **content)
        self.sent += 1
        place = (method, url[:200], str(content)[:200])
        assert response.status_code < 500 or response.status_code == 501, place
        if response.status_code >= 400 and method != "head":
            body = response.json()
            if url.startswith("/openai/"):  # Which has the form of errors that its clients expect.
                body = body["error"]
                body["detail"] = body["message"]
            assert isinstance(body["detail"], str), place
            assert isinstance(body["code"], str), place
            assert len(response.content) < 20_000, place
            assert "Traceback" not in response.text, place
            assert "sqlalchemy" not in response.text.lower(), place
            assert not re.search(
                r"Input should|should match|Value error|\[0-9a-f\]", body["detail"]
            ), place
        return response


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    toolbox = Toolbox([FunctionTool(tool_functions.add, Threads())])
    servers = McpServers({"files": McpServer(command="serve")}, connect, SystemClock())
    async with serving(tmp_path, toolbox=toolbox, mcp_servers=servers) as server:
        yield server


@pytest.fixture
async def prober(server: Server) -> Prober:
    blocks = [{"label": "human", "value": "v"}]
    agent = await server.agent(memory_blocks=blocks, tools=["add"])
    conversation = await server.conversation(agent["id"])
    await server.send(conversation["id"], "hi")
    [run] = await server.got("/v1/runs/")
    asked = {"run_id": run["id"], "scope": "read"}
    token = await server.client.post("/v1/tokens", json=asked)
    ids = {
        "agent_id": agent["id"],
        "conversation_id": conversation["id"],
        "block_id": agent["blocks"][0]["id"],
        "block_label": "human",
        "message_id": agent["message_ids"][0],
        "run_id": run["id"],
        "tool_id": agent["tools"][0]["id"],
        "tool_name": "add",
        "mcp_server_id": server_id("files"),
        "token_id": token.json()["id"],
        "key_id": f"key-{new_uuid()}",
        "model": agent["id"],
        "response_id": response_id(run["id"]),
        "item_id": "msg_1",
        "chat_id": conversation["id"],
        "agent_name": agent["id"],
        "thread_name": "t-1",
    }
    # The first key that a request made would close an open server to the later ones.
    keys = server.context.records.keys
    _, secret = await keys.create(DEFAULT_TENANT, "test", scopes=[*KeyScope])
    server.client.headers["Authorization"] = f"Bearer {secret}"
    return Prober(server, ids)


def operations(server: Server) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, methods in server.app.openapi()["paths"].items()
        for method, operation in methods.items()
    ]


class Refused:
    """Values that were refused with 422: a route with the same schema need not see them again."""

    def __init__(self, prober: Prober) -> None:
        self._prober = prober
        self._shapes: set[str] = set()

    async def send(
        self, parameter: tuple[str, Any, Any], method: str, url: str, **content: Any
    ) -> None:
        """Send a request unless this name, schema and value were refused before."""
        shape = json.dumps(parameter, sort_keys=True)
        if shape in self._shapes:
            return
        if (await self._prober.send(method, url, **content)).status_code == 422:
            self._shapes.add(shape)


async def everything(server: Server) -> list[Any]:
    lists = ("/v1/agents/", "/v1/blocks/", "/v1/conversations/", "/v1/runs/")
    return [await server.got(path, limit=1000) for path in lists]


async def test_no_query_breaks_anything(server: Server, prober: Prober) -> None:
    before = await everything(server)
    refused = Refused(prober)
    for method, path, operation in operations(server):
        parameters = [one for one in operation.get("parameters", ()) if one["in"] == "query"]
        if method != "get":
            continue
        for parameter in parameters:
            name = parameter["name"]
            for value in QUERY_VALUES:
                url = f"{prober.url(path)}?{name}={value}"
                await refused.send((name, parameter["schema"], value), method, url)
            await prober.send(method, prober.url(path) + "?" + f"{name}=x&" * 300)
    assert await everything(server) == before
    assert prober.sent > 1000


async def test_no_path_breaks_anything(server: Server, prober: Prober) -> None:
    before = await everything(server)
    for method, path, _ in operations(server):
        for name in re.findall(r"{(\w+)}", path):
            for value in PATH_VALUES:
                url = prober.url(path, **{name: value})
                response = await prober.send(method, url, json={})
                may_be_new = name == "chat_id"  # Clients name their chats themselves.
                assert may_be_new or response.status_code >= 400, (method, url[:200])
    assert await everything(server) == before


async def test_no_tool_name_breaks_anything(server: Server, prober: Prober) -> None:
    path = "/v1/agents/{agent_id}/tools/approval/{tool_name}"
    rule = {"requires_approval": True}
    assert (await prober.send("patch", prober.url(path), json=rule)).status_code == 200
    before = await everything(server)
    for value in PATH_VALUES:
        response = await prober.send("patch", prober.url(path, tool_name=value), json=rule)
        assert response.status_code in {404, 422}, value[:50]
    assert await everything(server) == before


async def test_no_body_breaks_anything(server: Server, prober: Prober) -> None:
    before = await everything(server)
    json_type = {"Content-Type": "application/json"}
    for method, path, operation in operations(server):
        if "requestBody" not in operation:
            continue
        url = prober.url(path)
        if path == "/v1/conversations/":
            url += "?agent_id=agent-123e4567-e89b-42d3-8456-426614174000"
        for body in BODIES:
            response = await prober.send(method, url, content=body, headers=json_type)
            refused = body.strip() not in {b"", b"null", b"{}"}
            assert (response.status_code >= 400) >= refused, (method, path, body[:50])
    after = await everything(server)
    assert [len(rows) for rows in after[1:]] == [len(rows) for rows in before[1:]]
    assert len(after[0]) == len(before[0]) + 1  # an agent can be made of {}


async def test_no_member_of_a_body_breaks_anything(server: Server, prober: Prober) -> None:
    description = server.app.openapi()
    refused = Refused(prober)
    for method, path, operation in operations(server):
        members = schema_of(description, operation).get("properties", {})
        for name, schema in members.items():
            for value in BODY_VALUES:
                body = {name: value}
                if "messages" in path and name not in {"messages", "input"}:
                    body |= {"input": "hi", "streaming": True} | body
                url = prober.url(path)
                await refused.send((name, schema, value), method, url, json=body)
    assert prober.sent > 1000
    health = await server.client.get("/v1/health/")
    assert health.status_code == 200
    for thing in await everything(server):
        json.dumps(thing).encode()


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("/v1/agents/", {"name": "a/b"}),
        ("/v1/agents/", {"name": ""}),
        ("/v1/agents/", {"name": "x" * 257}),
        ("/v1/agents/", {"system": "x" * 1_000_001}),
        ("/v1/agents/", {"tags": ["t"] * 101}),
        ("/v1/agents/", {"agent_type": "nonsense"}),
        ("/v1/agents/", {"context_window_limit": 0}),
        ("/v1/agents/", {"context_window_limit": 10**12}),
        ("/v1/agents/", {"metadata": {"x": "y" * 70_000}}),
        ("/v1/agents/", {"model_settings": {"temperature": "hot"}}),
        ("/v1/agents/", {"model_settings": {"temperature": 3}}),
        ("/v1/agents/", {"model_settings": {"own": "y" * 70_000}}),
        ("/v1/agents/", {"block_ids": ["nonsense"]}),
        ("/v1/agents/", {"memory_blocks": [{"label": "a", "value": "x" * 100_001}]}),
        ("/v1/agents/", {"memory_blocks": [{"value": "x"}]}),
        ("/v1/agents/", {"response_format": {"type": "nonsense"}}),
        ("/v1/agents/", {"tool_rules": [1]}),
        ("/v1/blocks/", {"label": "l"}),
        ("/v1/blocks/", {"label": "", "value": ""}),
        ("/v1/blocks/", {"label": "l", "value": "", "limit": 0}),
        ("/v1/blocks/", {"label": "l", "value": "", "limit": 100_001}),
        ("/v1/blocks/", {"label": "l", "value": "", "metadata": []}),
    ],
)
async def test_an_invalid_body_gets_422_and_creates_nothing(
    server: Server, path: str, wrong: dict[str, Any]
) -> None:
    response = await server.client.post(path, json=wrong)
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"][0] == "body"
    assert await server.got(path) == []


async def test_a_query_of_thousands_of_parameters_is_refused(server: Server) -> None:
    """B3: parameters are counted before they are decoded."""
    response = await server.client.get("/v1/agents/?" + "a=1&" * 2_000)
    assert response.status_code == 422
    assert "1000" in response.json()["detail"]


@pytest.mark.parametrize("values", ["[]", "{}", "1", '""', '{"a":{}}'])
async def test_a_body_with_too_many_values_gets_422_with_the_limit(
    server: Server, values: str
) -> None:
    """B3: a large body of tiny values gets a 422 that says how many are allowed."""
    body = f"[{','.join([values] * 200_000)}]".encode()
    headers = {"Content-Type": "application/json"}
    response = await server.client.post("/v1/agents/", content=body, headers=headers)
    assert response.status_code == 422
    assert "100000 values" in response.json()["detail"]


async def test_a_hundred_unknown_ids_are_a_hundred_refusals(server: Server) -> None:
    for number in range(100):
        agent = f"agent-{number:08x}-e89b-42d3-8456-426614174000"
        assert (await server.client.get(f"/v1/agents/{agent}")).status_code == 404
    assert await server.got("/v1/agents/") == []


async def test_text_that_looks_like_a_pattern_is_only_text(server: Server) -> None:
    await server.agent(name="plain")
    for text in ("%", "_", "\\", "*", "'", '"', "p%n"):
        assert await server.got(f"/v1/agents/?query_text={quote(text)}") == []
