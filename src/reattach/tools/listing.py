"""The repair of an MCP server's list of tools, so that one bad tool does not cost the others.

The SDK refuses a whole list if one tool violates the protocol. The list is therefore repaired
first: a tool whose schema is missing or has no type accepts any object, and a tool that cannot be
called as described is left out. Pure.
"""

from collections.abc import Mapping
from typing import Any, Final

from reattach.domain.limits import MAX_SHOWN_NAME_CHARS
from reattach.domain.text import storable_text

_ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
_HINTS: Final = ("readOnlyHint", "idempotentHint")
"""The hints of a tool that are used."""


def repair_listing(result: dict[str, Any]) -> list[str]:
    """Make the result of ``tools/list`` valid in place, and return the changes, a line each."""
    listed = result.get("tools")
    if not isinstance(listed, list):
        result["tools"] = []
        return ["its list of tools is not a list"]
    remarks: list[str] = []
    result["tools"] = [
        repaired
        for number, tool in enumerate(listed, 1)
        if (repaired := _repair_tool(tool, number, remarks)) is not None
    ]
    return remarks


def _repair_tool(tool: object, number: int, remarks: list[str]) -> dict[str, Any] | None:
    name = tool.get("name") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or not isinstance(name, str) or not name:
        remarks.append(f"its tool number {number} has no name, and is left out")
        return None
    shown = storable_text(name)[:MAX_SHOWN_NAME_CHARS]
    schema = tool.get("inputSchema")
    if not isinstance(schema, dict) or "type" not in schema:
        more = schema if isinstance(schema, dict) else {}
        schema = {**more, **_ANY_OBJECT}
        remarks.append(f"its tool '{shown}' has no schema of an object, and accepts any object")
    elif schema["type"] != "object":
        remarks.append(f"its tool '{shown}' does not accept an object, and is left out")
        return None
    repaired: dict[str, Any] = {"name": name, "inputSchema": schema}
    description = tool.get("description")
    if isinstance(description, str):
        repaired["description"] = storable_text(description)
    output = tool.get("outputSchema")
    if isinstance(output, dict) and output.get("type") == "object":
        repaired["outputSchema"] = output
    annotations = tool.get("annotations")
    if isinstance(annotations, dict):
        # The SDK would take "yes" or 1 for true as well.
        repaired["annotations"] = {name: True for name in _HINTS if annotations.get(name) is True}
    return repaired
