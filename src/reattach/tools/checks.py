"""The doctor's checks of tools: the functions, and the MCP servers."""

import asyncio
import time
from collections.abc import Mapping, Sequence

from reattach.diagnostics import Diagnostic
from reattach.domain.errors import McpUnreachableError, StartupError
from reattach.tools.base import Tool, Toolbox
from reattach.tools.connections import Connect, ListedTool
from reattach.tools.function import function_names, function_tool
from reattach.tools.servers import McpServer
from reattach.tools.threads import Threads

_SHOWN_REMARKS = 5
"""The bad tools of a server that are shown; a running server logs all of them."""


def check_functions(names: Sequence[str]) -> list[Diagnostic]:
    """Import the functions that the settings and installed packages bring, each for itself."""
    diagnostics: list[Diagnostic] = []
    tools: list[Tool] = []
    for name in function_names(names):
        try:
            tools.append(function_tool(name, Threads()))
        except StartupError as error:
            diagnostics.append(_wrong(error))
    diagnostics.append(_clash(tools) or Diagnostic("ok", "tools", _listed(tools)))
    return diagnostics


async def check_servers(servers: Mapping[str, McpServer], connect: Connect) -> list[Diagnostic]:
    """Reach every MCP server once, all at the same time, and ask for its tools."""
    found = (_examine(name, server, connect) for name, server in sorted(servers.items()))
    return list(await asyncio.gather(*found))


async def _examine(name: str, server: McpServer, connect: Connect) -> Diagnostic:
    what = f"mcp {name}"
    remedy = f"Check [mcp.{name}] in the settings, and that this machine reaches {server.place}."
    began = time.perf_counter()
    try:
        async with (
            asyncio.timeout(server.start_seconds),
            connect(name, server, _ignore) as connection,
        ):
            tools = await connection.tools()
            remarks = connection.remarks
            seconds = time.perf_counter() - began
            count = "1 tool" if len(tools) == 1 else f"{len(tools)} tools"
            detail = (
                f"{server.place}: {connection.about}, protocol {connection.protocol}, "
                f"{count}, in {seconds:.1f} s"
            )
            if server.trust_hints:
                repeated = sum(tool.idempotent for tool in tools)
                detail += f"; an interrupted call of {repeated} of them runs again"
    except McpUnreachableError as error:
        return Diagnostic("wrong", what, f"{server.place}: {error.detail}", remedy)
    except TimeoutError:
        said = f"{server.place}: no connection within {server.start_seconds:g} s"
        return Diagnostic("wrong", what, said, remedy)
    if remarks:
        said = f"{detail}; {'; '.join(remarks[:_SHOWN_REMARKS])}"
        return Diagnostic("warning", what, said, "Tell whoever makes this server.")
    if unknown := _unknown_rules(server, tools):
        said = f"requires_approval names unknown tools: {', '.join(unknown)}"
        has = f"Its tools are: {', '.join(tool.name for tool in tools)}."
        return Diagnostic("warning", what, said, has)
    return Diagnostic("ok", what, detail)


def _unknown_rules(server: McpServer, tools: Sequence[ListedTool]) -> list[str]:
    rule = server.requires_approval
    names = () if isinstance(rule, bool) else rule
    return sorted(set(names) - {tool.name for tool in tools})


def _ignore(line: str) -> None:  # noqa: ARG001
    return None


def _clash(tools: Sequence[Tool]) -> Diagnostic | None:
    try:
        Toolbox(tools)
    except StartupError as error:
        return _wrong(error)
    return None


def _wrong(error: StartupError) -> Diagnostic:
    remedy = error.remedy or "Correct the tool, or remove it from REATTACH_TOOLS."
    return Diagnostic("wrong", "tools", error.fact, remedy)


def _listed(tools: Sequence[Tool]) -> str:
    if not tools:
        return "no functions are configured"
    return "functions: " + ", ".join(sorted(tool.name for tool in tools))
