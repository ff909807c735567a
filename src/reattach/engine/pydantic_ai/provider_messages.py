"""A turn as the messages that Pydantic AI sends to the provider."""

import base64
import mimetypes
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pydantic_ai.messages as pm

from reattach.domain.arguments import json_object
from reattach.domain.errors import ModelError
from reattach.domain.limits import MAX_TOOL_NAME_CHARS
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
from reattach.engine.base import Turn
from reattach.engine.pydantic_ai.images import ImagesByUrl

_REFUSED_CHARACTERS: Final = re.compile(r"[^A-Za-z0-9_-]")
"""The characters that some provider refuses in the name of a tool."""


def provider_messages(
    turn: Turn,
    returns: Sequence[ToolReturnPart] = (),
    *,
    sees_images: bool = True,
    images: ImagesByUrl | None = None,
) -> list[pm.ModelMessage]:
    """Return the turn as Pydantic AI's messages, the system prompt first.

    ``returns`` are returns of the turn's due calls. ``images`` has the images by URL; others are
    replaced by a note, as all images are for a model that cannot see them.

    Reasoning is left out, because a provider refuses another one's signatures. So are calls without
    a return and returns without a call. The returns of a message's calls follow it directly, in the
    order of the calls, as providers require.
    """
    shown = (images or {}) if sees_images else None
    messages: list[pm.ModelMessage] = []
    if turn.system:
        messages.append(pm.ModelRequest([pm.SystemPromptPart(turn.system)]))
    names = ToolNames(
        {*(tool.name for tool in turn.client_tools), *(tool.name for tool in turn.tools)}
    )
    sources = (*turn.history, *turn.input)
    for message, answers in zip(sources, returns_by_message(sources, returns), strict=True):
        if message.role is Role.ASSISTANT:
            returned = {one.tool_call_id for one in answers}
            if response := list(_response_parts(message, returned, names)):
                messages.append(pm.ModelResponse(response))
            if answers:
                parts = [_return_part(one, names, shown) for one in answers]
                messages.append(pm.ModelRequest(parts))
        elif request := list(_request_parts(message, shown)):
            messages.append(pm.ModelRequest(request))
    return messages


def returns_by_message(
    sources: Sequence[Message], returns: Sequence[ToolReturnPart]
) -> list[list[ToolReturnPart]]:
    """Return the returns of each message's calls. Providers may reuse an id in later calls."""
    left: dict[str, ToolReturnPart] = {one.tool_call_id: one for one in returns}
    found: list[list[ToolReturnPart]] = []
    for message in reversed(sources):
        calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
        found.append([left.pop(call.tool_call_id) for call in calls if call.tool_call_id in left])
        left |= {p.tool_call_id: p for p in message.parts if isinstance(p, ToolReturnPart)}
    found.reverse()
    return found


def _response_parts(
    message: Message, returned: set[str], names: "ToolNames"
) -> Iterator[pm.ModelResponsePart]:
    for part in message.parts:
        if isinstance(part, TextPart) and part.text:
            yield pm.TextPart(part.text)
        elif isinstance(part, ToolCallPart) and part.tool_call_id in returned:
            yield pm.ToolCallPart(
                names.valid_name(part.name), json_object(part.arguments), part.tool_call_id
            )


@dataclass(frozen=True, slots=True)
class ToolNames:
    """Names of tools in a history, in which a model may have called one that does not exist."""

    offered: Collection[str]

    def valid_name(self, name: str) -> str:
        """Return the name with only characters that every provider accepts."""
        if name in self.offered:
            return name
        return _REFUSED_CHARACTERS.sub("_", name)[:MAX_TOOL_NAME_CHARS] or "_"


def _return_part(
    returned: ToolReturnPart, names: "ToolNames", images: ImagesByUrl | None
) -> pm.ToolReturnPart:
    content: list[pm.UserContent] = [returned.output] if returned.output else []
    content += [_image(image, images) for image in returned.images]
    return pm.ToolReturnPart(
        names.valid_name(returned.name),
        content if returned.images else returned.output,
        returned.tool_call_id,
        outcome="success" if returned.status == "success" else "failed",
    )


def _request_parts(message: Message, images: ImagesByUrl | None) -> Iterator[pm.ModelRequestPart]:
    if message.role is Role.SYSTEM:
        if message.text:
            yield pm.SystemPromptPart(message.text)
        return
    content: list[pm.UserContent] = []
    for part in message.parts:
        if isinstance(part, TextPart) and part.text:
            content.append(part.text)
        elif isinstance(part, ImagePart):
            content.append(_image(part, images))
    if content:
        only = content[0]
        yield pm.UserPromptPart(only if len(content) == 1 and isinstance(only, str) else content)


def _image(part: ImagePart, images: ImagesByUrl | None) -> pm.UserContent:
    if images is None:
        return UNSEEN
    detail = None if part.detail is None else {"detail": part.detail}
    if part.base64_data is not None:
        try:
            data = base64.b64decode(part.base64_data, validate=True)
        except ValueError as error:
            raise ModelError("An image of the message is not valid base64.") from error
        return pm.BinaryContent(
            data, media_type=part.media_type or "image/png", vendor_metadata=detail
        )
    url = part.url or ""
    if url not in images:
        return UNREACHABLE
    if (fetched := images[url]) is not None:
        return pm.BinaryContent(fetched.data, media_type=fetched.media_type, vendor_metadata=detail)
    kind, _ = mimetypes.guess_type(url)
    return pm.ImageUrl(url, media_type=kind or "image/jpeg", vendor_metadata=detail)
