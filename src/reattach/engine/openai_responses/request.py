"""A turn as a request of the Responses API."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from reattach.domain.arguments import json_object
from reattach.domain.errors import ModelError
from reattach.domain.messages import (
    UNREACHABLE,
    UNSEEN,
    ImagePart,
    Message,
    Role,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.engine.base import ClientTool, ModelSettings, ServerTool, Turn
from reattach.engine.pydantic_ai.images import ImagesByUrl
from reattach.engine.pydantic_ai.provider_messages import ToolNames, returns_by_message
from reattach.engine.pydantic_ai.settings import provider_settings

Json = dict[str, Any]

_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""The efforts of reasoning, from the least to the most."""

_MAX_CALL_ID_CHARS: Final = 64


def response_request(
    turn: Turn,
    profile: Mapping[str, Any],
    returns: Sequence[ToolReturnPart] = (),
    images: ImagesByUrl | None = None,
) -> Json:
    """Return the request that makes the provider answer the turn and keep its answer.

    ``profile`` has the known facts of the model, ``returns`` the returns of the turn's due calls.
    ``images`` has the images by URL; others are replaced by a note, as all images are for a model
    that cannot see them (None).
    """
    tools: list[ClientTool | ServerTool] = [*turn.client_tools, *turn.tools]
    request: Json = {
        "model": turn.model.partition("/")[2],
        "input": list(_items(turn, returns, images)),
        "background": True,
        "store": True,
        "stream": True,
        **_settings(turn.settings, profile, has_tools=bool(tools)),
    }
    if turn.system:
        request["instructions"] = turn.system
    if tools:
        request["tools"] = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(tool.parameters or {"type": "object", "properties": {}}),
                "strict": False,  # Otherwise schemas with optional parameters are refused.
            }
            for tool in tools
        ]
    return request


# The conversation.


def _items(
    turn: Turn, returns: Sequence[ToolReturnPart], images: ImagesByUrl | None
) -> Iterator[Json]:
    """Yield the conversation, without reasoning, calls without a return, and stray returns."""
    names = ToolNames(
        {*(tool.name for tool in turn.client_tools), *(tool.name for tool in turn.tools)}
    )
    sources = (*turn.history, *turn.input)
    for message, answers in zip(sources, returns_by_message(sources, returns), strict=True):
        if message.role is Role.ASSISTANT:
            returned = {one.tool_call_id for one in answers}
            yield from _answer_items(message, returned, names)
            yield from (_return_item(one, images) for one in answers)
        elif message.role is Role.SYSTEM:
            if message.text:
                yield {"role": "developer", "content": message.text}
        elif content := list(_contents(message, images)):
            yield {"role": "user", "content": content}


def _answer_items(message: Message, returned: set[str], names: ToolNames) -> Iterator[Json]:
    for part in message.parts:
        if isinstance(part, TextPart) and part.text:
            yield {"role": "assistant", "content": part.text}
        elif isinstance(part, ToolCallPart) and part.tool_call_id in returned:
            yield {
                "type": "function_call",
                "call_id": _call_id(part.tool_call_id),
                "name": names.valid_name(part.name),
                "arguments": json_object(part.arguments),
            }


def _return_item(returned: ToolReturnPart, images: ImagesByUrl | None) -> Json:
    output: str | list[Json] = returned.output
    if returned.status == "error":
        output = json.dumps({"error": returned.output}, ensure_ascii=False)
    if returned.images:
        texts = [_text(returned.output)] if returned.output else []
        output = [*texts, *(_image(one, images) for one in returned.images)]
    call_id = _call_id(returned.tool_call_id)
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def _contents(message: Message, images: ImagesByUrl | None) -> Iterator[Json]:
    for part in message.parts:
        if isinstance(part, TextPart) and part.text:
            yield _text(part.text)
        elif isinstance(part, ImagePart):
            yield _image(part, images)


def _text(text: str) -> Json:
    return {"type": "input_text", "text": text}


def _image(part: ImagePart, images: ImagesByUrl | None) -> Json:
    if images is None:
        return _text(UNSEEN)
    if part.base64_data is not None:
        try:
            base64.b64decode(part.base64_data, validate=True)
        except ValueError as error:
            raise ModelError("An image of the message is not valid base64.") from error
        url = f"data:{part.media_type or 'image/png'};base64,{part.base64_data}"
    elif (url := part.url or "") not in images:
        return _text(UNREACHABLE)
    elif (fetched := images[url]) is not None:
        data = base64.b64encode(fetched.data).decode()
        url = f"data:{fetched.media_type};base64,{data}"
    return {"type": "input_image", "image_url": url, "detail": part.detail or "auto"}


def _call_id(call_id: str) -> str:
    """Return the id, or a digest if it is longer than the provider accepts."""
    if len(call_id) <= _MAX_CALL_ID_CHARS:
        return call_id
    return f"call-{hashlib.sha256(call_id.encode()).hexdigest()[:32]}"


# The settings.


def _settings(asked: ModelSettings, profile: Mapping[str, Any], *, has_tools: bool) -> Json:
    """Return the settings under the names of this API; unsupported ones are left out."""
    named: Mapping[str, Any] = provider_settings(asked, "openai", profile, has_tools=has_tools)
    effort = named.get("openai_reasoning_effort") or _effort(named.get("thinking"), profile)
    settings: Json = {
        "temperature": None if _refuses_temperature(effort, profile) else asked.temperature,
        "max_output_tokens": named.get("max_tokens"),
        "parallel_tool_calls": named.get("parallel_tool_calls"),
    }
    reasoning = {
        "effort": effort,
        "summary": "auto" if asked.shows_reasoning else None,
    }
    if reasoning := {name: value for name, value in reasoning.items() if value is not None}:
        settings["reasoning"] = reasoning
    if asked.verbosity is not None:
        settings["text"] = {"verbosity": asked.verbosity}
    return {name: value for name, value in settings.items() if value is not None}


def _effort(thinking: bool | str | None, profile: Mapping[str, Any]) -> str | None:
    """Return the accepted effort that is nearest to the wanted one; None leaves it to the model."""
    if thinking is None or not profile.get("supports_thinking", False):
        return None
    accepted = _accepted_efforts(profile)
    if thinking is False:
        # A model that always reasons reasons as little as it can.
        return accepted[0] if "none" in accepted or "openai_reasoning_efforts" in profile else None
    wanted = _EFFORTS.index("medium" if thinking is True else thinking)
    active = [effort for effort in accepted if effort != "none"]
    return next((one for one in active if _EFFORTS.index(one) >= wanted), active[-1])


def _accepted_efforts(profile: Mapping[str, Any]) -> Sequence[str]:
    pinned = profile.get("openai_reasoning_efforts")
    if pinned:
        return [effort for effort in _EFFORTS if effort in pinned]
    optional = {
        "none": profile.get("openai_supports_reasoning_effort_none", False),
        "minimal": profile.get("openai_supports_minimal_reasoning_effort", True),
        "max": profile.get("openai_responses_supports_max_reasoning_effort", False),
    }
    return [effort for effort in _EFFORTS if optional.get(effort, True)]


def _refuses_temperature(effort: str | None, profile: Mapping[str, Any]) -> bool:
    """Whether the model refuses a temperature, because it reasons."""
    if not profile.get("openai_supports_reasoning", False):
        return False
    if effort is None:
        return bool(profile.get("thinking_enabled_by_default", False))
    return effort != "none"
