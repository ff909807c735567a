"""Schemas of OpenAI's Responses API: what clients send, and what they get."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, StrictBool, Tag
from pydantic_core import PydanticCustomError

from reattach.domain.limits import MAX_INTEGER, MAX_TOOL_CALL_ID_CHARS
from reattach.domain.limits.requests import (
    MAX_CLIENT_TOOL_DESCRIPTION_CHARS,
    MAX_CLIENT_TOOLS,
    MAX_ID_CHARS,
    MAX_MESSAGE_PARTS,
    MAX_NAME_CHARS,
    MAX_SYSTEM_CHARS,
)
from reattach.http.schemas.fields import NUMERIC, Answer, Body, KeptObject, Word
from reattach.wire.dialects.openai_items import SERVER_LABEL

MAX_INPUT_ITEMS = 2000
"""Items of one request: clients that keep the conversation themselves send all of it."""

CallId = Annotated[str, Field(min_length=1, max_length=MAX_TOOL_CALL_ID_CHARS + 8)]
Number = Annotated[float, Field(allow_inf_nan=False), NUMERIC]
Count = Annotated[int, Field(ge=0, le=MAX_INTEGER), NUMERIC]


# The input.


class InputText(Body):
    type: Literal["input_text", "output_text", "text"]
    text: str


class InputRefusal(Body):
    type: Literal["refusal"]
    refusal: str


class InputImage(Body):
    """An image by URL, which may be a `data:` URL."""

    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = Field(None, description="Not supported.")
    detail: str | None = Field(None, max_length=MAX_NAME_CHARS)


InputPart = Annotated[InputText | InputRefusal | InputImage, Field(discriminator="type")]
InputParts = Annotated[list[InputPart], Field(max_length=MAX_MESSAGE_PARTS, fail_fast=True)]


class InputMessage(Body):
    type: Literal["message"] | None = "message"
    role: Literal["user", "system", "developer", "assistant"]
    content: str | InputParts


class InputCall(Body):
    """A call of a tool of the client, in a conversation that the client keeps."""

    type: Literal["function_call"]
    call_id: CallId
    name: Word
    arguments: str


class InputReturn(Body):
    """The result of a tool that the client ran."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: str | InputParts


class InputServerCall(Body):
    """A call of a tool of the server, in a conversation that the client keeps."""

    type: Literal["mcp_call"]
    id: CallId
    name: Word
    arguments: str
    output: str | None = None
    error: Any = None


class InputRequest(Body):
    """A request for an approval, in a conversation that the client keeps."""

    type: Literal["mcp_approval_request"]
    id: CallId
    name: Word
    arguments: str


class InputVerdict(Body):
    """The decision whether a call of a tool of the server may run."""

    type: Literal["mcp_approval_response"]
    approval_request_id: CallId
    approve: StrictBool
    reason: str | None = None


class InputReasoning(Body):
    """Reasoning of an earlier response, which is not sent to a model again."""

    type: Literal["reasoning"]


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("type") or "message")
    return str(getattr(value, "type", None) or "message")


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputReturn, Tag("function_call_output")]
    | Annotated[InputServerCall, Tag("mcp_call")]
    | Annotated[InputRequest, Tag("mcp_approval_request")]
    | Annotated[InputVerdict, Tag("mcp_approval_response")]
    | Annotated[InputReasoning, Tag("reasoning")],
    Discriminator(_kind),
]
InputItems = Annotated[list[InputItem], Field(max_length=MAX_INPUT_ITEMS, fail_fast=True)]
Input = Annotated[
    Annotated[str, Tag("text")] | Annotated[InputItems, Tag("items")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "items"),
]
"""Distinguished first, because a fault of one form would be reported for both."""


# Requests.


class FunctionTool(Body):
    """A tool that the client runs."""

    type: Literal["function"]
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    description: str | None = Field(None, max_length=MAX_CLIENT_TOOL_DESCRIPTION_CHARS)
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments.")
    strict: bool | None = None


class ServerTools(Body):
    """The tools of the agent, which the server runs whether a client lists them or not."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["mcp"]
    server_label: Literal["reattach"] = SERVER_LABEL


Tool = Annotated[FunctionTool | ServerTools, Field(discriminator="type")]


class NamedConversation(Body):
    id: str = Field(max_length=MAX_ID_CHARS)


def _plain_text(text: dict[str, Any]) -> dict[str, Any]:
    kind = text.get("format")
    is_text = kind is None or (isinstance(kind, dict) and kind.get("type", "text") == "text")
    if not is_text:
        raise PydanticCustomError(
            "text_format",
            "Agents answer in plain text. Leave out 'text.format', and describe the form of the "
            "answer in 'instructions' or in the tools.",
        )
    return text


class ResponseCreate(Body):
    """A turn of an agent. Members that are not listed here are ignored."""

    model: str | None = Field(
        None,
        max_length=512,
        description="Id or name of the agent. May be left out where the conversation has one.",
    )
    input: Input = Field(description="A text of the user, or items.")
    background: bool | None = Field(
        None, description="True: return at once. Every response can be resumed in any case."
    )
    stream: bool | None = False
    store: bool | None = Field(
        None, description="False leaves a new conversation out of lists; it is kept all the same."
    )
    previous_response_id: str | None = Field(
        None,
        max_length=MAX_ID_CHARS,
        description="Continue after this response; in a fork of its conversation, if the "
        "conversation has gone on since.",
    )
    conversation: Annotated[str, Field(max_length=MAX_ID_CHARS)] | NamedConversation | None = Field(
        None, description="Id of a conversation, or an object with its `id`."
    )
    instructions: str | None = Field(
        None,
        max_length=MAX_SYSTEM_CHARS,
        description="Follow the system prompt of the agent, for this turn only.",
    )
    tools: list[Tool] | None = Field(None, max_length=MAX_CLIENT_TOOLS)
    tool_choice: str | KeptObject | None = None
    parallel_tool_calls: bool | None = None
    metadata: KeptObject | None = None
    include: list[Word] | None = Field(
        None, max_length=100, description="Ignored: everything that there is is included."
    )
    text: Annotated[KeptObject, AfterValidator(_plain_text)] | None = None
    reasoning: KeptObject | None = None
    temperature: Number | None = Field(None, description="Returned, not used: the agent's counts.")
    top_p: Number | None = Field(None, description="Returned, not used: the agent's counts.")
    top_logprobs: Count | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    max_output_tokens: Count | None = Field(
        None, description="Returned, not used: the agent's counts."
    )
    max_tool_calls: Count | None = None
    truncation: Word | None = None
    service_tier: Word | None = None
    safety_identifier: Word | None = None
    prompt_cache_key: Word | None = None


# Answers.


class _Open(Answer):
    model_config = ConfigDict(extra="allow", json_schema_serialization_defaults_required=True)


class ResponseState(_Open):
    """A response: one turn of an agent."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    error: dict[str, Any] | None
    usage: dict[str, Any] | None


class DeletedResponse(Answer):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ItemList(Answer):
    """A page of items. `after` of the next request is `last_id`."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ConversationCreate(Body):
    items: InputItems | None = None
    metadata: KeptObject | None = Field(
        None,
        description="`agent_id` has the id or the name of the agent, which is needed if there are "
        "several. Nothing else is kept.",
    )


class ItemsCreate(Body):
    items: InputItems


class ConversationObject(Answer):
    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: dict[str, Any]


class DeletedConversation(Answer):
    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: Literal[True] = True
