"""Sentences for the faults that Pydantic finds, in one table."""

from collections.abc import Mapping
from typing import Any, Final

from reattach.domain.ids import (
    AGENT_NAME_PATTERN,
    AGENT_PATTERN,
    BLOCK_PATTERN,
    CONVERSATION_OR_DEFAULT_PATTERN,
    CONVERSATION_PATH_PATTERN,
    CONVERSATION_PATTERN,
    KEY_PATTERN,
    MCP_SERVER_PATTERN,
    MESSAGE_PATTERN,
    PROBE_PATTERN,
    RUN_PATTERN,
    STREAM_TOKEN_PATTERN,
    TENANT_PATTERN,
    TOOL_PATTERN,
)

HTTP_URL_PATTERN: Final = "^https?://[^/]"
_SHOWN_CHARS: Final = 60

_TIME: Final = "a time in ISO 8601 with its zone, such as 2026-11-28T12:00:00Z"

_EXPECTED: Final[Mapping[str, str]] = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "{object}",
    "enum": "{expected}",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "{ge} or more",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_type": "a whole number",
    "less_than": "a number below {lt}",
    "less_than_equal": "{le} or less",
    "list_type": "an array",
    "literal_error": "{expected}",
    "model_attributes_type": "{object}",
    "model_type": "{object}",
    "path_type": "a path",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "text that is not empty",
    "string_type": "a string",
    "string_unicode": "Unicode text",
    "too_long": "at most {max_length} items",
    "too_short": "an array that is not empty",
    "tuple_type": "an array",
    "union_tag_invalid": "an object whose {member} is one of {expected_tags}",
    "union_tag_not_found": "an object with a {member}",
}
"""Expected values by Pydantic's type of fault, with the names of its context in braces."""


def _id(noun: str, prefix: str) -> str:
    return f"the id of {noun}, '{prefix}' followed by a UUIDv4 in lower case"


_CONVERSATION: Final = _id("a conversation", "conv-")
_MATCHING: Final[Mapping[str, str]] = {
    AGENT_NAME_PATTERN: "letters, digits, spaces and _'-",
    AGENT_PATTERN: _id("an agent", "agent-"),
    BLOCK_PATTERN: _id("a block", "block-"),
    KEY_PATTERN: _id("an API key", "key-"),
    TENANT_PATTERN: "the id of a tenant, without spaces",
    CONVERSATION_PATTERN: _CONVERSATION,
    CONVERSATION_OR_DEFAULT_PATTERN: f"'default', or {_CONVERSATION}",
    CONVERSATION_PATH_PATTERN: f"'default', or {_CONVERSATION}",
    HTTP_URL_PATTERN: "an http:// or https:// URL",
    MCP_SERVER_PATTERN: _id("an MCP server", "mcp_server-"),
    MESSAGE_PATTERN: _id("a message", "message-"),
    TOOL_PATTERN: _id("a tool", "tool-"),
    PROBE_PATTERN: _id("a probe", "probe-"),
    RUN_PATTERN: _id("a run", "run-"),
    STREAM_TOKEN_PATTERN: _id("a stream token", "token-"),
}
"""Values that match a pattern, by the pattern."""


def explain(
    fault: Mapping[str, Any], *, shows_value: bool = True, dict_name: str = "an object"
) -> str:
    """Return a sentence with the expected value and the value received.

    ``fault`` is an item of ``ValidationError.errors()``. Secrets need ``shows_value=False``.
    ``dict_name`` is what the sender's format calls a dict.
    """
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "missing":
        return "Required, but missing."
    if kind == "extra_forbidden":
        return "It is unknown."
    if kind == "value_error":  # A validator of ours raised it, with a whole sentence.
        return str(context["error"])
    if kind == "string_pattern_mismatch":
        pattern = context["pattern"]
        expected = _MATCHING.get(pattern, f"text that matches {pattern}")
    elif kind.startswith(("datetime_", "timezone_")):
        expected = _TIME
    elif kind in _EXPECTED:
        expected = _EXPECTED[kind].format_map(
            {name: f"{one:g}" if isinstance(one, float) else one for name, one in context.items()}
            | {"object": dict_name, "member": _discriminator(context)}
        )
    else:  # A validator of ours raised a PydanticCustomError.
        return str(fault["msg"])
    value = context["tag"] if kind == "union_tag_invalid" else fault["input"]
    came = f"; got {dict_name if isinstance(value, dict) else _came(value)}" if shows_value else ""
    return f"Expected {expected}{came}."


def _discriminator(context: Mapping[str, Any]) -> str:
    """Return the quoted member by which the kinds of an object differ."""
    name = str(context.get("discriminator", ""))
    return name if name.startswith("'") else "'type'"  # Else it is the name of a function.


def _came(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)[:_SHOWN_CHARS]
        case str() if len(value) > _SHOWN_CHARS:
            return f"{value[:_SHOWN_CHARS]!r}… ({len(value) - _SHOWN_CHARS} more characters)"
        case str():
            return repr(value)
        case list() | tuple():
            return f"an array with {len(value)} item{'' if len(value) == 1 else 's'}"
        case _:
            return "another value"
