"""Bodies of requests and responses of the AI SDK."""

from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from reattach.domain.limits.requests import (
    MAX_CLIENT_TOOL_BYTES,
    MAX_CLIENT_TOOL_DESCRIPTION_CHARS,
    MAX_CLIENT_TOOLS,
    MAX_ID_CHARS,
    MAX_MESSAGE_PARTS,
    MAX_NAME_CHARS,
    MAX_SYSTEM_CHARS,
)
from reattach.http.schemas.fields import Answer, Body, kept_json


def _in_address(name: str) -> str:
    if "/" in name or name in {".", ".."}:
        raise PydanticCustomError(
            "chat_id", "A chat's id is a part of addresses: leave out '/', and use no '.' alone."
        )
    return name


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    if len(msgspec.json.encode(schema)) > MAX_CLIENT_TOOL_BYTES:
        raise PydanticCustomError(
            "schema_bytes",
            "The schema may have at most {most} bytes as JSON.",
            {"most": MAX_CLIENT_TOOL_BYTES},
        )
    return schema


def _few(tools: Any) -> Any:
    """Count the tools before they are checked, because every one may have faults."""
    if isinstance(tools, dict) and len(tools) > MAX_CLIENT_TOOLS:
        context = {"field_type": "Dictionary", "max_length": MAX_CLIENT_TOOLS,
                   "actual_length": len(tools)}  # fmt: skip
        raise PydanticKnownError("too_long", context)
    return tools


ChatId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS), AfterValidator(_in_address)]
UiMessageId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """Check the members of a part that the server reads, whatever the type of the part."""
    for name in ("type", "toolCallId", "state"):
        if not isinstance(part.get(name, ""), str):
            raise PydanticCustomError("string_type", "'{name}' must be a string.", {"name": name})
    if part.get("state") == "approval-responded":
        approval = part.get("approval")
        if not isinstance(approval, dict) or not isinstance(approval.get("approved"), bool):
            raise PydanticCustomError(
                "approval", "An answered approval has 'approval' with 'approved', true or false."
            )
    return part


class UiMessageBody(Body):
    """A UIMessage. Parts of unknown types are ignored."""

    id: UiMessageId
    role: Literal["system", "user", "assistant"]
    parts: list[Annotated[dict[str, Any], AfterValidator(_part)]] = Field(
        max_length=MAX_MESSAGE_PARTS, fail_fast=True
    )
    metadata: Annotated[Any, AfterValidator(kept_json)] = None


class ChatTool(Body):
    """A tool that the page runs."""

    description: str | None = Field(None, max_length=MAX_CLIENT_TOOL_DESCRIPTION_CHARS)
    parameters: Annotated[dict[str, Any], AfterValidator(_schema)] = Field(
        default_factory=dict,
        validation_alias=AliasChoices("parameters", "inputSchema"),
        description="The JSON schema of its arguments; also called `inputSchema`.",
    )


class ChatBody(Body):
    """A send: the whole history, as ``useChat`` sends it, or only the newest message."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    id: ChatId = Field(description="The id of the chat, which names its conversation.")
    messages: Annotated[list[UiMessageBody], Field(fail_fast=True)] | None = Field(
        None,
        description="The history; only the last message is new. The server has the others, unless "
        "the chat is new.",
    )
    message: UiMessageBody | None = Field(None, description="The new message, without history.")
    trigger: Literal["submit-message", "regenerate-message"] = "submit-message"
    message_id: UiMessageId | None = Field(
        None, alias="messageId", description="The message that is edited or continued."
    )
    tools: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)], ChatTool],
        BeforeValidator(_few),
    ] = Field(
        default_factory=dict,
        max_length=MAX_CLIENT_TOOLS,
        description="The tools that the page runs, by name.",
    )
    system: str | None = Field(
        None, max_length=MAX_SYSTEM_CHARS, description="Instructions after those of the agent."
    )

    @model_validator(mode="after")
    def _has_messages(self) -> Self:
        if (self.message is None) == (not self.messages):
            raise PydanticCustomError(
                "messages_or_message", "Send 'messages' with at least one message, or 'message'."
            )
        return self

    @property
    def newest(self) -> UiMessageBody:
        """The message that the agent has not seen."""
        if self.message is not None:
            return self.message
        assert self.messages
        return self.messages[-1]

    @property
    def earlier(self) -> list[UiMessageBody]:
        """The messages before it."""
        return (self.messages or [])[:-1]


class UiMessageState(Answer):
    """A UIMessage, as ``useChat`` takes it for ``messages``."""

    id: str
    role: Literal["user", "assistant"]
    parts: list[dict[str, Any]]
    metadata: Any = None
