"""The tools that a server would have, and what keeps it from having others."""

from collections.abc import Sequence

from reattach.errors import StartupError
from reattach.findings import Finding
from reattach.tools.base import Tool, Toolbox
from reattach.tools.function import function_names, function_tool
from reattach.tools.threads import Threads


def examine_functions(names: Sequence[str]) -> tuple[list[Finding], list[Tool]]:
    """Import the functions that the settings and installed packages bring, each for itself.

    Those that can be had are returned too.
    """
    findings: list[Finding] = []
    tools: list[Tool] = []
    for name in function_names(names):
        try:
            tools.append(function_tool(name, Threads()))
        except StartupError as error:
            findings.append(_wrong(error))
    findings.append(_clash(tools) or Finding("ok", "tools", _listed(tools)))
    return findings, tools


def _clash(tools: Sequence[Tool]) -> Finding | None:
    try:
        Toolbox(tools)
    except StartupError as error:
        return _wrong(error)
    return None


def _wrong(error: StartupError) -> Finding:
    said, _, remedy = error.detail.rpartition(". ")
    if not said:
        return Finding("wrong", "tools", error.detail, "Mend it, or leave it out of the settings.")
    return Finding("wrong", "tools", said, remedy)


def _listed(tools: Sequence[Tool]) -> str:
    if not tools:
        return "no functions are named"
    return "functions: " + ", ".join(sorted(tool.name for tool in tools))
