"""The objects of OpenAI's Responses API: responses and the items that they consist of.

Ids derive from those of the run, of messages and of tool calls, in both directions, so nothing is
stored for them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from reattach.domain.events import Failed, Usage
from reattach.domain.ids import RunId
from reattach.domain.messages import (
    ApprovalPart,
    ContentPart,
    HiddenReasoningPart,
    ImagePart,
    Message,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.wire.dialects.dialect import RunFacts

Json = dict[str, Any]

SERVER_LABEL: Final = "reattach"
"""The name under which the tools of the server appear, as those of an MCP server."""

EARLIER_CALLS: Final = "earlier_calls"
"""The member of ``RunFacts.given`` with calls of the run before, which this one answers: by their
ids their arguments, and whether they needed an approval."""

SERVER_TOOLS: Final = "server_tools"
"""The member of ``RunFacts.given`` with the form of calls that the server runs."""

SETTINGS: Final[Mapping[str, Any]] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": None,
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}
"""The settings of a response, which it repeats, with the values for requests without them."""

_RESPONSE = "resp_"
_RESPONSE_ID: Final = re.compile(r"resp_([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})"
                                 r"([0-9a-f]{12})")  # fmt: skip
_REQUEST = "mcpr_"


# Ids.


def response_id(run_id: str) -> str:
    """Return the id of a run's response."""
    return _RESPONSE + run_id.removeprefix("run-").replace("-", "")


def run_id_of(response_id: str) -> RunId | None:
    """Return the id of the run; None if no response can have this id."""
    found = _RESPONSE_ID.fullmatch(response_id)
    return None if found is None else RunId(f"run-{'-'.join(found.groups())}")


def part_id(prefix: str, message_id: str, index: int) -> str:
    """Return the id of an item that is one part of a message."""
    return f"{prefix}_{message_id.removeprefix('message-').replace('-', '')}{index:04x}"


def call_id_of(approval_request_id: str) -> str:
    """Return the id of the call that an approval request is about."""
    return approval_request_id.removeprefix(_REQUEST)


# Items of the output.


def message_item(item_id: str, text: str | None, status: str = "completed") -> Json:
    """Return a message of the agent; None for a text that has not begun."""
    content = [] if text is None else [text_part(text)]
    return {
        "id": item_id,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def text_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def reasoning_item(
    item_id: str, text: str | None, encrypted: str | None = None, status: str = "completed"
) -> Json:
    """Return reasoning. Clients differ in the member that they show, so its text is in both."""
    return {
        "id": item_id,
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": text}] if text else [],
        "content": [{"type": "reasoning_text", "text": text}] if text else [],
        "encrypted_content": encrypted,
        "status": status,
    }


def function_call_item(call_id: str, name: str, arguments: str, status: str) -> Json:
    return {
        "id": f"fc_{call_id}",
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }


def function_output_item(returned: ToolReturnPart) -> Json:
    return {
        "id": f"fco_{returned.tool_call_id}",
        "type": "function_call_output",
        "call_id": returned.tool_call_id,
        "output": _output_of(returned),
        "status": "completed" if returned.status == "success" else "incomplete",
    }


def mcp_call_item(
    call_id: str,
    name: str,
    arguments: str,
    status: str = "in_progress",
    returned: ToolReturnPart | None = None,
    *,
    was_approved: bool = False,
) -> Json:
    """Return a call of a tool of the server, with what it returned."""
    has_failed = returned is not None and returned.status == "error"
    item: Json = {
        "id": f"mcp_{call_id}",
        "type": "mcp_call",
        "server_label": SERVER_LABEL,
        "name": name,
        "arguments": arguments,
        "approval_request_id": _REQUEST + call_id if was_approved else None,
        "output": None,
        "error": None,
        "status": status,
    }
    if returned is not None:
        item["status"] = "failed" if has_failed else "completed"
        item["output"] = None if has_failed else returned.output
    if returned is not None and has_failed:
        content = [{"type": "text", "text": returned.output}]
        item["error"] = {"type": "mcp_tool_execution_error", "content": content}
    return item


def approval_request_item(call_id: str, name: str, arguments: str) -> Json:
    return {
        "id": _REQUEST + call_id,
        "type": "mcp_approval_request",
        "server_label": SERVER_LABEL,
        "name": name,
        "arguments": arguments,
    }


# Items of stored messages.


def input_items(message: Message) -> list[Json]:
    """Return the items of a message that a client sent; none for returns, which answers have."""
    if message.role is Role.TOOL:
        return []
    contents: list[Json] = []
    items: list[Json] = []
    for index, part in enumerate(message.parts):
        match part:
            case ToolReturnPart():
                items.append(function_output_item(part))
            case ApprovalPart():
                items.append(_approval_response_item(message, index, part))
            case TextPart() | ImagePart():
                contents.append(_content(part, message.role))
            case _:
                pass  # Clients send no others.
    if contents:
        items.insert(
            0,
            {
                "id": part_id("msg", message.id, 0),
                "type": "message",
                "role": "developer" if message.role is Role.SYSTEM else message.role.value,
                "status": "completed",
                "content": contents,
            },
        )
    return items


def stored_items(
    message: Message, returns: Mapping[str, ToolReturnPart], answered: frozenset[str]
) -> list[Json]:
    """Return the items of a message of the agent.

    ``returns`` are those of its calls, by their ids; ``answered`` the ids of calls that a client
    approved or ran.
    """
    items: list[Json] = []
    for index, part in enumerate(message.parts):
        match part:
            case TextPart(text):
                items.append(message_item(part_id("msg", message.id, index), text))
            case ReasoningPart(text, signature):
                items.append(reasoning_item(part_id("rs", message.id, index), text, signature))
            case HiddenReasoningPart():
                items.append(reasoning_item(part_id("rs", message.id, index), None, part.text))
            case ToolCallPart():
                items += _stored_call(part, returns.get(part.tool_call_id), answered)
            case _:
                pass
    return items


def _stored_call(
    call: ToolCallPart, returned: ToolReturnPart | None, answered: frozenset[str]
) -> list[Json]:
    call_id, name, arguments = call.tool_call_id, call.name, call.arguments
    if not call.needs_approval:
        status = "incomplete" if returned is None else ""
        return [mcp_call_item(call_id, name, arguments, status, returned)]
    if returned is None:
        return [approval_request_item(call_id, name, arguments)]
    if call_id in answered:
        return [function_call_item(call_id, name, arguments, "completed")]
    request = approval_request_item(call_id, name, arguments)
    return [request, mcp_call_item(call_id, name, arguments, "", returned, was_approved=True)]


def _approval_response_item(message: Message, index: int, part: ApprovalPart) -> Json:
    return {
        "id": part_id("mcprr", message.id, index),
        "type": "mcp_approval_response",
        "approval_request_id": _REQUEST + part.tool_call_id,
        "approve": part.approve,
        "reason": part.reason,
    }


def _content(part: TextPart | ImagePart, role: Role) -> Json:
    if isinstance(part, TextPart):
        if role is Role.ASSISTANT:
            return text_part(part.text)
        return {"type": "input_text", "text": part.text}
    url = part.url
    if part.base64_data is not None:
        url = f"data:{part.media_type or 'image/png'};base64,{part.base64_data}"
    return {
        "type": "input_image",
        "image_url": url,
        "file_id": None,
        "detail": part.detail or "auto",
    }


def _output_of(returned: ToolReturnPart) -> str | list[Json]:
    if not returned.images:
        return returned.output
    parts: Sequence[ContentPart] = (TextPart(returned.output), *returned.images)
    return [_content(one, Role.USER) for one in parts if isinstance(one, TextPart | ImagePart)]


# Responses.


def response_object(
    facts: RunFacts,
    status: str,
    output: Sequence[Json],
    *,
    usage: Usage | None = None,
    failed: Failed | None = None,
    incomplete_reason: str | None = None,
    completed_at: int | None = None,
) -> Json:
    """Return a response. ``completed_at`` is in seconds since 1970."""
    given = facts.given
    metadata = dict(given.get("metadata") or {})
    if failed is not None:
        metadata["error_type"] = failed.error_type
    conversation = facts.conversation_id
    return {
        "id": response_id(facts.run_id),
        "object": "response",
        "created_at": int(facts.created_at.timestamp()),
        "completed_at": completed_at,
        "status": status,
        "model": given.get("model") or facts.agent_id,
        "output": output,
        "error": None
        if failed is None
        else {"code": "server_error", "message": failed.message or "The answer failed."},
        "incomplete_details": None if incomplete_reason is None else {"reason": incomplete_reason},
        "conversation": None if conversation is None else {"id": conversation},
        "background": bool(given.get("background", facts.background)),
        "metadata": metadata,
        **{name: _setting(given, name) for name in SETTINGS},
        "usage": None if usage is None else usage_object(usage),
    }


def _setting(given: Mapping[str, Any], name: str) -> Any:
    value = given.get(name)
    return SETTINGS[name] if value is None else value


def usage_object(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_input_tokens or 0,
            "cache_write_tokens": usage.cache_write_tokens or 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.total_tokens,
    }
