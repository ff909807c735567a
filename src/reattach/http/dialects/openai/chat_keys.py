"""The headers in which chat applications name the conversation of a completion."""

from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers

from reattach.domain.errors import InvalidArgumentError
from reattach.domain.limits.requests import MAX_CHAT_KEY_CHARS

EXPLICIT: Final = ("x-reattach-chat-key", "x-letta-chat-key")
"""Headers that name a conversation for every request."""

OF_APPLICATIONS: Final = ("x-openwebui-chat-id", "x-conversation-id")
"""Headers of Open WebUI and LibreChat. Both send them with their own jobs too, which make titles,
tags and suggestions out of a conversation, and which do not stream."""

_UNKNOWN: Final = frozenset({"", "new", "null", "undefined", "none"})
"""The names that applications send for a conversation that has no id yet."""

_NOT_KEPT: Final = ("local:", "channel:")
"""The beginnings of names that Open WebUI does not keep as chats: temporary chats, of which one
follows another under the same name, and channels, in which several people write."""


@dataclass(frozen=True, slots=True)
class ChatKey:
    """The client's name of the conversation."""

    key: str | None
    """None: the request has a conversation of its own."""
    is_job: bool = False
    """Whether an application makes a title, tags or suggestions, so it is no turn of a chat."""


def chat_key_of(headers: Headers, *, streams: bool) -> ChatKey:
    """Return the name that a request gives its conversation.

    Raises:
        InvalidArgumentError: The name is too long, or a template that nobody has filled in.
    """
    for name in EXPLICIT:
        if key := _value(headers, name):
            return ChatKey(key)
    for name in OF_APPLICATIONS:
        if key := _value(headers, name):
            is_kept = streams and not key.startswith(_NOT_KEPT)
            return ChatKey(key if is_kept else None, is_job=not streams)
    return ChatKey(None)


def _value(headers: Headers, name: str) -> str | None:
    value = headers.get(name, "").strip()
    if value.lower() in _UNKNOWN:
        return None
    if "{{" in value:  # All conversations of its users would become one.
        raise InvalidArgumentError(
            f"The header {name} is '{value[:100]}', a template that was not filled in.",
            remedy="Correct the name of the variable in the settings of your chat application.",
        )
    if len(value) > MAX_CHAT_KEY_CHARS:
        raise InvalidArgumentError(
            f"The header {name} has {len(value)} characters; at most {MAX_CHAT_KEY_CHARS} are "
            "allowed."
        )
    return value
