"""What a send asks for, on the conversations' and on the agents' routes."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, ConfigDict, Discriminator, Field, Tag

from reattach.domain.limits import (
    MAX_ANSWERED_CALLS,
    MAX_CALLBACK_URL_CHARS,
    MAX_CLIENT_SKILLS,
    MAX_CLIENT_TOOL_DESCRIPTION_CHARS,
    MAX_CLIENT_TOOLS,
    MAX_DESCRIPTION_CHARS,
    MAX_MESSAGE_PARTS,
    MAX_NAME_CHARS,
    MAX_OTID_CHARS,
    MAX_SEND_MESSAGES,
    MAX_SKILL_LOCATION_CHARS,
    MAX_STEPS,
    MAX_SYSTEM_CHARS,
    MAX_TOOL_CALL_ID_CHARS,
)
from reattach.http.schemas.fields import Answer, Body, StopReasonName
from reattach.http.schemas.message import MessageItem
from reattach.wire.letta import MessageType

Otid = Annotated[
    str,
    Field(
        max_length=MAX_OTID_CHARS,
        description="The client's idempotency key of the message (offline threading id).",
    ),
]


ToolCallId = Annotated[str, Field(min_length=1, max_length=MAX_TOOL_CALL_ID_CHARS)]


def _told(usual: str, **members: str) -> Discriminator:
    """Items are told apart by their type; those without one by ``members`` that only one has."""

    def kind(value: Any) -> str:
        if not isinstance(value, dict):
            return str(getattr(value, "type", None) or usual)
        if value.get("type") is not None:
            return str(value["type"])
        return next((members[name] for name in members if name in value), usual)

    return Discriminator(kind)


class SentText(Body):
    type: Literal["text"]
    text: str


class ImageSource(Body):
    type: Literal["url", "base64", "letta"]
    url: str | None = None
    media_type: str | None = Field(None, max_length=MAX_NAME_CHARS)
    data: str | None = None
    detail: str | None = Field(None, max_length=MAX_NAME_CHARS)


class SentImage(Body):
    type: Literal["image"]
    source: ImageSource


SentPart = Annotated[SentText | SentImage, Field(discriminator="type")]
SentContent = str | Annotated[list[SentPart], Field(max_length=MAX_MESSAGE_PARTS, fail_fast=True)]
"""Lists within lists tell their first fault only: a hundred thousand take seconds to collect."""


class SentMessage(Body):
    """A message for the agent."""

    type: Literal["message"] | None = "message"
    role: Literal["user", "system", "assistant"]
    content: SentContent
    name: str | None = Field(None, max_length=MAX_NAME_CHARS)
    otid: Otid | None = None
    sender_id: str | None = Field(None, max_length=MAX_NAME_CHARS)


class SentVerdict(Body):
    """Whether a tool call may run."""

    type: Literal["approval"] | None = "approval"
    tool_call_id: ToolCallId
    approve: bool
    reason: str | None = None


Lines = Annotated[list[str], Field(fail_fast=True)]


class SentReturn(Body):
    """What a tool returned that the client ran."""

    type: Literal["tool"] | None = "tool"
    tool_call_id: ToolCallId
    tool_return: SentContent
    status: Literal["success", "error"] = "success"
    stdout: Lines | None = None
    stderr: Lines | None = None


SentDecision = Annotated[
    Annotated[SentVerdict, Tag("approval")] | Annotated[SentReturn, Tag("tool")],
    _told("approval", tool_return="tool"),
]


class SentApproval(Body):
    """The answer to an approval request: a decision for each call that waits.

    Without `approvals`, `approve` and `reason` are the decision on all of them.
    """

    type: Literal["approval"] | None = "approval"
    approvals: list[SentDecision] | None = Field(
        None, max_length=MAX_ANSWERED_CALLS, fail_fast=True
    )
    otid: Otid | None = None
    approve: bool | None = Field(None, json_schema_extra={"deprecated": True})
    reason: str | None = Field(None, json_schema_extra={"deprecated": True})
    approval_request_id: str | None = Field(
        None, max_length=MAX_TOOL_CALL_ID_CHARS, json_schema_extra={"deprecated": True}
    )


class SentToolReturn(Body):
    """The answer to an approval request whose calls the client has all run."""

    type: Literal["tool_return"]
    tool_returns: list[SentReturn] = Field(max_length=MAX_ANSWERED_CALLS, fail_fast=True)
    otid: Otid | None = None


class ClientToolSpec(Body):
    """A tool that the client runs."""

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    description: str | None = Field(None, max_length=MAX_CLIENT_TOOL_DESCRIPTION_CHARS)
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of its arguments.")


class ClientSkillSpec(Body):
    """A skill that the client has: instructions that the model may ask for."""

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    description: str = Field(max_length=MAX_DESCRIPTION_CHARS)
    location: str = Field(max_length=MAX_SKILL_LOCATION_CHARS, description="Where it is found.")


SentItem = Annotated[
    Annotated[SentMessage, Tag("message")]
    | Annotated[SentApproval, Tag("approval")]
    | Annotated[SentToolReturn, Tag("tool_return")],
    _told("message", approval_request_id="approval", approve="approval"),
]


class _SendBody(Body):
    """What every send has."""

    messages: list[SentItem] | None = Field(
        None, max_length=MAX_SEND_MESSAGES, description="Exactly one of messages and input."
    )
    input: SentContent | None = Field(None, description="Short for one user message.")
    stream_tokens: bool | None = Field(
        False, description="Stream fragments as the model gives them, not whole messages."
    )
    include_pings: bool | None = Field(
        True, description="Send a ping first, and keepalive pings during silence."
    )
    background: bool | None = Field(
        False, description="Let clients resume the run's stream after they lost it."
    )
    max_steps: int | None = Field(50, ge=1, le=MAX_STEPS)
    include_return_message_types: list[MessageType] | None = Field(
        None, max_length=20, description="Only messages of these types are streamed."
    )
    client_tools: list[ClientToolSpec] | None = Field(
        None,
        max_length=MAX_CLIENT_TOOLS,
        description="Tools that the model may call in this turn, and that the client runs.",
    )
    client_skills: list[ClientSkillSpec] | None = Field(
        None,
        max_length=MAX_CLIENT_SKILLS,
        description="Skills that the client has; the system prompt of this turn lists them.",
    )
    override_model: str | None = Field(
        None, max_length=MAX_NAME_CHARS, description="Model handle for this request only."
    )
    override_system: str | None = Field(
        None,
        max_length=MAX_SYSTEM_CHARS,
        validation_alias=AliasChoices("override_system", "system"),
        description="System prompt for this request only; old clients call it `system`.",
    )
    include_compaction_messages: bool | None = Field(
        False, description="Show compactions: an event, then the summary."
    )
    use_assistant_message: bool | None = Field(True, json_schema_extra={"deprecated": True})
    assistant_message_tool_name: str | None = Field(
        "send_message", max_length=MAX_NAME_CHARS, json_schema_extra={"deprecated": True}
    )
    assistant_message_tool_kwarg: str | None = Field(
        "message", max_length=MAX_NAME_CHARS, json_schema_extra={"deprecated": True}
    )


class ConversationSendBody(_SendBody):
    """A send to a conversation."""

    agent_id: str | None = Field(None, description="The agent, on the path `default`.")
    streaming: bool | None = Field(True, description="False: one JSON reply at the end.")


class AgentSendBody(_SendBody):
    """A send to the default conversation of an agent."""

    streaming: bool | None = Field(False, description="True: a stream of server-sent events.")


class AsyncSendBody(_SendBody):
    """A send that is answered with its run, and goes on in the background."""

    callback_url: str | None = Field(
        None,
        max_length=MAX_CALLBACK_URL_CHARS,
        description="Where to POST how the run ended, once it has.",
    )


class StopReasonItem(Answer):
    """Why the run ended."""

    model_config = ConfigDict(extra="allow")

    message_type: Literal["stop_reason"]
    stop_reason: StopReasonName


class UsageItem(Answer):
    """What the run has cost."""

    model_config = ConfigDict(extra="allow")

    message_type: Literal["usage_statistics"]
    completion_tokens: int
    prompt_tokens: int
    total_tokens: int
    step_count: int
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    context_tokens: int | None


class WholeAnswer(Answer):
    """What a send without a stream answers with, for the API's description."""

    messages: list[MessageItem]
    stop_reason: StopReasonItem
    usage: UsageItem
    logprobs: None
    turns: None


class CancelBody(Body):
    """Which runs to cancel; absent: all that are active in the agent's default conversation."""

    run_ids: list[str] | None = Field(None, max_length=100)
