"""An MCP server of the official SDK, as a program: good tools and bad ones.

``python -m tests.support.mcp_server`` speaks over standard input and output, and with a port over
streamable HTTP on loopback. Its environment says how it behaves:

- ``MCP_JOURNAL``: a file for a line of each thing that it did
- ``MCP_LEGACY``: it knows the protocol of 2025 only, with sessions
- ``MCP_TOKEN``: it wants this bearer token

``serve`` does the same in a process that has imported all of this already.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn
from mcp import MCPError
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import METHOD_NOT_FOUND
from starlette.types import ASGIApp, Receive, Scope, Send

server = MCPServer("journal", version="1.2.3", log_level="ERROR")


def note(line: str) -> None:
    if path := os.environ.get("MCP_JOURNAL"):
        with Path(path).open("a", encoding="utf-8") as journal:
            journal.write(f"{line}\n")


@server.tool()
def add(n: int = 1, more: int = 1) -> str:
    """Add two numbers."""
    note(f"add {n}")
    return str(n + more)


@server.tool()
def deploy(n: int = 1) -> str:
    """Put a version into use."""
    note(f"deploy {n}")
    return f"deployed {n}"


@server.tool()
def explode(n: int = 1) -> str:
    raise ToolError(f"{n} is not to be had")


@server.tool()
async def hang(n: int = 1) -> str:
    note(f"hang {n}")
    await asyncio.Event().wait()
    return "never"


@server.tool(structured_output=False)
def flood(n: int = 1) -> str:
    return "x" * 1_000_000


@server.tool(name="dotted.name/of a tool")
def dotted(n: int = 1) -> str:
    return "dotted"


@server.tool()
def environment(n: int = 1) -> str:
    """Tell what it was started with."""
    names = ("MCP_SECRET", "MCP_INHERITED", "REATTACH_CALLBACK_SECRET")
    return ",".join(str(os.environ.get(name)) for name in names)


@server.tool()
async def learn(context: Context[Any, Any], n: int = 1) -> str:
    """Have one tool more from now on, and say so in the ways of both protocols."""
    server.add_tool(add, name="learned")
    await context.notify_tools_changed()
    await context.session.send_tool_list_changed()
    return "learned"


async def only_legacy(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    if ctx.method == "server/discover":
        raise MCPError(METHOD_NOT_FOUND, "Method not found")
    return await call_next(ctx)


def guarded(app: ASGIApp, token: str) -> ASGIApp:
    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"").decode()
            if given != f"Bearer {token}":
                start = {"type": "http.response.start", "status": 401, "headers": []}
                await send(start)
                await send({"type": "http.response.body", "body": b""})
                return
        await app(scope, receive, send)

    return guard


def serve(port: int | None, env: Mapping[str, str]) -> None:
    """Serve with these variables too, on the port or over standard input and output."""
    os.environ.update(env)
    note(f"started {os.getpid()}")
    if os.environ.get("MCP_LEGACY"):
        server.middleware.append(only_legacy)
    if port is not None:
        app = guarded(server.streamable_http_app(), os.environ.get("MCP_TOKEN", ""))
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")
    else:
        server.run()


if __name__ == "__main__":
    serve(int(sys.argv[1]) if len(sys.argv) > 1 else None, {})
