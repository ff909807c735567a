"""Schemas of sends to conversations and agents."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from reattach.domain.ids import DIALECT_OTID
from reattach.domain.limits import MAX_TOOL_CALL_ID_CHARS
from reattach.domain.limits.outbound import MAX_CALLBACK_URL_CHARS
from reattach.domain.limits.requests import (
    MAX_ANSWERED_CALLS,
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
)
from reattach.http.schemas.fields import NOT_EMPTY, NUMERIC, Answer, Body, StopReasonName
from reattach.http.schemas.message import MessageItem
from reattach.wire.letta import MessageType


def _of_client(otid: str) -> str:
    if otid.startswith(DIALECT_OTID):
        message = "OTIDs that begin with '{begin}' are the server's own. Choose another one."
        raise PydanticCustomError("reserved", message, {"begin": DIALECT_OTID})
    return otid


Otid = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_OTID_CHARS,
        description="Idempotency key of the message (offline threading id), set by the client.",
    ),
    AfterValidator(_of_client),
    NOT_EMPTY,
]


ToolCallId = Annotated[str, Field(min_length=1, max_length=MAX_TOOL_CALL_ID_CHARS)]


def _by_type(default: str, **members: str) -> Discriminator:
    """Distinguish items by ``type``, and items without it by members that only one kind has."""

    def kind(value: Any) -> str:
        if not isinstance(value, dict):
            return str(getattr(value, "type", None) or default)
        if value.get("type") is not None:
            return str(value["type"])
        return next((members[name] for name in members if name in value), default)

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
"""Nested lists report only their first fault: collecting a hundred thousand takes seconds."""


class SentMessage(Body):
    """A message to the agent."""

    type: Literal["message"] | None = "message"
    role: Literal["user", "system", "assistant"]
    content: SentContent
    name: str | None = Field(None, max_length=MAX_NAME_CHARS)
    otid: Otid | None = None
    sender_id: str | None = Field(None, max_length=MAX_NAME_CHARS)


class SentVerdict(Body):
    """The decision whether a tool call may run."""

    type: Literal["approval"] | None = "approval"
    tool_call_id: ToolCallId
    approve: bool
    reason: str | None = None


Lines = Annotated[list[str], Field(fail_fast=True)]


class SentReturn(Body):
    """The result of a tool that the client ran."""

    type: Literal["tool"] | None = "tool"
    tool_call_id: ToolCallId
    tool_return: SentContent
    status: Literal["success", "error"] = "success"
    stdout: Lines | None = None
    stderr: Lines | None = None


SentDecision = Annotated[
    Annotated[SentVerdict, Tag("approval")] | Annotated[SentReturn, Tag("tool")],
    _by_type("approval", tool_return="tool"),
]


class SentApproval(Body):
    """The response to an approval request: a decision for each pending call.

    Without `approvals`, `approve` and `reason` apply to all of them.
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
    """The response to an approval request if the client ran all its calls."""

    type: Literal["tool_return"]
    tool_returns: list[SentReturn] = Field(max_length=MAX_ANSWERED_CALLS, fail_fast=True)
    otid: Otid | None = None


class ClientToolSpec(Body):
    """A tool that the client runs."""

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    description: str | None = Field(None, max_length=MAX_CLIENT_TOOL_DESCRIPTION_CHARS)
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments.")


class ClientSkillSpec(Body):
    """A skill of the client: instructions that the model may request."""

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    description: str = Field(max_length=MAX_DESCRIPTION_CHARS)
    location: str = Field(max_length=MAX_SKILL_LOCATION_CHARS, description="Path of the skill.")


SentItem = Annotated[
    Annotated[SentMessage, Tag("message")]
    | Annotated[SentApproval, Tag("approval")]
    | Annotated[SentToolReturn, Tag("tool_return")],
    _by_type("message", approval_request_id="approval", approve="approval"),
]


class _SendBody(Body):
    """Members of all sends."""

    messages: list[SentItem] | None = Field(
        None,
        max_length=MAX_SEND_MESSAGES,
        description="Exactly one of `messages` and `input` is required.",
    )
    input: SentContent | None = Field(None, description="Shorthand for one user message.")
    stream_tokens: bool | None = Field(
        False, description="Stream fragments as the model produces them, not whole messages."
    )
    include_pings: bool | None = Field(
        True, description="Send a first ping, and keepalive pings during silence."
    )
    background: bool | None = Field(False, description="Allow clients to resume the run's stream.")
    max_steps: Annotated[int, Field(ge=1, le=MAX_STEPS), NUMERIC] | None = 50
    include_return_message_types: list[MessageType] | None = Field(
        None, max_length=20, description="Stream only messages of these types."
    )
    client_tools: list[ClientToolSpec] | None = Field(
        None,
        max_length=MAX_CLIENT_TOOLS,
        description="Tools that the model may call in this turn and the client runs.",
    )
    client_skills: list[ClientSkillSpec] | None = Field(
        None,
        max_length=MAX_CLIENT_SKILLS,
        description="Skills of the client; the system prompt of this turn lists them.",
    )
    override_model: str | None = Field(
        None, max_length=MAX_NAME_CHARS, description="Model handle, for this request only."
    )
    override_system: str | None = Field(
        None,
        max_length=MAX_SYSTEM_CHARS,
        validation_alias=AliasChoices("override_system", "system"),
        description="System prompt, for this request only; older clients send it as `system`.",
    )
    include_compaction_messages: bool | None = Field(
        False, description="Stream compactions: an event, then the summary."
    )
    use_assistant_message: bool | None = Field(True, json_schema_extra={"deprecated": True})
    assistant_message_tool_name: str | None = Field(
        "send_message", max_length=MAX_NAME_CHARS, json_schema_extra={"deprecated": True}
    )
    assistant_message_tool_kwarg: str | None = Field(
        "message", max_length=MAX_NAME_CHARS, json_schema_extra={"deprecated": True}
    )


class _AnsweredSendBody(_SendBody):
    """A send whose response is the answer, so no callback reports it."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_callback(cls, sent: Any) -> Any:
        if isinstance(sent, dict) and sent.get("callback_url") is not None:
            raise PydanticCustomError(
                "callback_url",
                "This route makes no callbacks. Send 'callback_url' to "
                "POST /v1/agents/{agent_id}/messages/async.",
            )
        return sent


class ConversationSendBody(_AnsweredSendBody):
    """A send to a conversation."""

    agent_id: str | None = Field(None, description="Id of the agent, with the path `default`.")
    streaming: bool | None = Field(True, description="False: one JSON response at the end.")


class AgentSendBody(_AnsweredSendBody):
    """A send to the default conversation of an agent."""

    streaming: bool | None = Field(False, description="True: a stream of server-sent events.")


class AsyncSendBody(_SendBody):
    """A send that returns its run at once, and continues in the background."""

    callback_url: (
        Annotated[str, Field(min_length=1, max_length=MAX_CALLBACK_URL_CHARS), NOT_EMPTY] | None
    ) = Field(None, description="URL that gets a POST with the result when the run has ended.")


class StopReasonItem(Answer):
    """The reason why the run ended."""

    model_config = ConfigDict(extra="allow")

    message_type: Literal["stop_reason"]
    stop_reason: StopReasonName


class UsageItem(Answer):
    """Token usage of the run."""

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
    """The response to a send without streaming, for the API's description."""

    messages: list[MessageItem]
    stop_reason: StopReasonItem
    usage: UsageItem
    logprobs: None
    turns: None


class CancelBody(Body):
    """The runs to cancel; without it, all active runs of the agent's default conversation."""

    run_ids: list[str] | None = Field(None, max_length=100)
