"""Lists of tools as MCP servers send them: one bad tool does not cost the others."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from reattach.findings import Finding
from reattach.tools.health import examine_servers
from reattach.tools.listing import mend_listing
from reattach.tools.mcp import connect
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
        ({"name": "t", "inputSchema": {"type": "string"}}, None, "takes no object"),
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
    remarks = mend_listing(result)
    assert result["tools"] == [*GOOD, *([] if kept is None else [kept])]
    assert len(remarks) == (remark is not None)
    assert (remark or "") in "".join(remarks)


@pytest.mark.parametrize("listed", [None, {}, "x"])
def test_a_list_that_is_none_has_no_tools(listed: object) -> None:
    """A9: the member ``tools`` may be anything."""
    result: dict[str, Any] = {"tools": listed}
    assert mend_listing(result) == ["its list of tools is no list"]
    assert result == {"tools": []}


def odd_server(listed: str) -> McpServer:
    return McpServer(
        command=sys.executable, args=("-m", "tests.odd_mcp_server"), env={"MCP_LIST": listed}
    )


@pytest.mark.parametrize(
    ("bad", "tools", "remark"),
    [
        ('{"name": "add", "inputSchema": {}}', 26, "its tool 'add' has no schema"),
        ('{"name": "add"}', 26, "its tool 'add' has no schema"),
        ('{"name": "add", "inputSchema": {"type": "array"}}', 25, "'add' takes no object"),
        ('{"name": "add", "description": "\\ud83d", "inputSchema": {"type": "object"}}', 26, None),
        ('{"name": "add", "inputSchema": {"type": "object", "x": "\\udc00"}}', 26, None),
    ],
)
async def test_the_doctor_and_a_connection_have_the_other_tools(
    bad: str, tools: int, remark: str | None
) -> None:
    """A9: a program with 26 tools, one of which the SDK does not take."""
    server = odd_server(f"[{', '.join(map(json.dumps, GOOD))}, {bad}]")
    [finding] = await examine_servers({"odd": server}, connect)
    assert isinstance(finding, Finding)
    assert f"{tools} tools" in finding.detail
    assert finding.level == ("ok" if remark is None else "warning")
    assert (remark or "") in finding.detail
    async with connect(
        "odd", server, on_change=lambda: None, on_end=lambda: None, on_said=lambda _: None
    ) as connection:
        assert len(await connection.tools()) == tools
        assert await connection.call("add", {}) == "2"
