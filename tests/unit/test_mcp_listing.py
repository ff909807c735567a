"""Lists of tools as MCP servers send them: one bad tool does not cost the others."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from reattach.diagnostics import Diagnostic
from reattach.tools.checks import check_servers
from reattach.tools.listing import repair_listing
from reattach.tools.mcp import _read_whole_characters, connect
from reattach.tools.servers import McpServer

OBJECT = {"type": "object"}
GOOD = [{"name": f"tool_{n}", "description": "Good.", "inputSchema": OBJECT} for n in range(25)]


@pytest.mark.parametrize(
    ("bad", "kept", "remark"),
    [
        ({"name": "t", "inputSchema": {}}, {"name": "t", "inputSchema": OBJECT}, "any object"),
        ({"name": "t"}, {"name": "t", "inputSchema": OBJECT}, "any object"),
        ({"name": "t", "inputSchema": None}, {"name": "t", "inputSchema": OBJECT}, "any object"),
        ({"name": "t", "inputSchema": "x"}, {"name": "t", "inputSchema": OBJECT}, "any object"),
        (
            {"name": "t", "inputSchema": {"properties": {"n": {}}}},
            {"name": "t", "inputSchema": {"properties": {"n": {}}, "type": "object"}},
            "any object",
        ),
        ({"name": "t", "inputSchema": {"type": "string"}}, None, "does not accept an object"),
        ({"inputSchema": OBJECT}, None, "number 26 has no name"),
        ({"name": "", "inputSchema": OBJECT}, None, "number 26 has no name"),
        ({"name": 7, "inputSchema": OBJECT}, None, "number 26 has no name"),
        ("tool", None, "number 26 has no name"),
        (None, None, "number 26 has no name"),
        (
            {"name": "t", "inputSchema": OBJECT, "description": 7, "annotations": "x", "icons": 1},
            {"name": "t", "inputSchema": OBJECT},
            None,
        ),
        (
            {
                "name": "t",
                "inputSchema": OBJECT,
                "annotations": {"title": 7, "readOnlyHint": "yes", "idempotentHint": True},
            },
            {"name": "t", "inputSchema": OBJECT, "annotations": {"idempotentHint": True}},
            None,
        ),
        (
            {"name": "t", "inputSchema": OBJECT, "outputSchema": {}},
            {"name": "t", "inputSchema": OBJECT},
            None,
        ),
    ],
)
def test_a_bad_tool_is_mended_or_left_out_and_the_others_stay(
    bad: Any, kept: dict[str, Any] | None, remark: str | None
) -> None:
    """A9: a tool without a usable schema or name, among good ones."""
    result: dict[str, Any] = {"tools": [*GOOD, bad]}
    remarks = repair_listing(result)
    assert result["tools"] == [*GOOD, *([] if kept is None else [kept])]
    assert len(remarks) == (remark is not None)
    assert (remark or "") in "".join(remarks)


@pytest.mark.parametrize("listed", [None, {}, "x"])
def test_a_list_that_is_none_has_no_tools(listed: object) -> None:
    """A9: the member ``tools`` may be anything."""
    result: dict[str, Any] = {"tools": listed}
    assert repair_listing(result) == ["its list of tools is not a list"]
    assert result == {"tools": []}


def odd_server(listed: str) -> McpServer:
    return McpServer(
        command=sys.executable,
        args=("-m", "tests.support.plain_mcp_server"),
        env={"MCP_LIST": listed},
    )


@pytest.mark.parametrize(
    ("bad", "tools", "remark"),
    [
        ('{"name": "add", "inputSchema": {}}', 26, "its tool 'add' has no schema"),
        ('{"name": "add"}', 26, "its tool 'add' has no schema"),
        (
            '{"name": "add", "inputSchema": {"type": "array"}}',
            25,
            "'add' does not accept an object",
        ),
        ('{"name": "add", "description": "\\ud83d", "inputSchema": {"type": "object"}}', 26, None),
        ('{"name": "add", "inputSchema": {"type": "object", "x": "\\udc00"}}', 26, None),
    ],
)
async def test_the_doctor_and_a_connection_have_the_other_tools(
    bad: str, tools: int, remark: str | None
) -> None:
    """A9: a program with 26 tools, one of which the SDK does not take."""
    server = odd_server(f"[{', '.join(map(json.dumps, GOOD))}, {bad}]")
    [finding] = await check_servers({"odd": server}, connect)
    assert isinstance(finding, Diagnostic)
    assert f"{tools} tools" in finding.detail
    assert finding.level == ("ok" if remark is None else "warning")
    assert (remark or "") in finding.detail
    async with connect("odd", server, lambda _: None) as connection:
        assert len(await connection.tools()) == tools
        assert await connection.call("add", {}) == "2"


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (rb'{"a": "\ud83d"}', rb'{"a": "\ufffd"}'),
        (rb'{"a": "\udE00!"}', rb'{"a": "\ufffd!"}'),
        (rb'{"a": "\ud83d\ude00"}', rb'{"a": "\ud83d\ude00"}'),
        (rb'{"a": "\ud83d\ud83d\ude00"}', rb'{"a": "\ufffd\ud83d\ude00"}'),
        (rb'{"a": "\\ud83d"}', rb'{"a": "\\ud83d"}'),
        (rb'{"a": "\\\ud83d"}', rb'{"a": "\\\ufffd"}'),
        (b'data: {"a": "\\ud83d"}\n\ndata: x', b'data: {"a": "\\ufffd"}\n\ndata: x'),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_half_a_character_in_a_body_is_replaced(body: bytes, read: bytes, size: int) -> None:
    """A9: the same by streamable HTTP, wherever the body is cut into pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=pieces()))
    hooks = {"response": [_read_whole_characters]}
    async with httpx2.AsyncClient(transport=transport, event_hooks=hooks) as client:
        assert (await client.post("http://localhost/mcp")).content == read
