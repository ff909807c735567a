"""Bodies of Chat Completions: requests and answers."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from reattach.domain.limits import MAX_TOOL_CALL_ID_CHARS
from reattach.domain.limits.requests import (
    MAX_ANSWERED_CALLS,
    MAX_CHAT_MESSAGES,
    MAX_CLIENT_TOOL_DESCRIPTION_CHARS,
    MAX_CLIENT_TOOLS,
    MAX_MESSAGE_PARTS,
    MAX_NAME_CHARS,
)
from reattach.http.schemas.fields import Answer, Body

Word = Annotated[str, Field(max_length=MAX_NAME_CHARS)]
CallId = Annotated[str, Field(min_length=1, max_length=MAX_TOOL_CALL_ID_CHARS)]

# Requests.


class ChatText(Body):
    type: Literal["text"]
    text: str


class ChatRefusal(Body):
    """A part of an assistant's message, which counts as text."""

    type: Literal["refusal"]
    refusal: str


class ImageUrl(Body):
    url: str = Field(description="A URL, or a data URL with the image in base64.")
    detail: Word | None = None


class ChatImage(Body):
    type: Literal["image_url"]
    image_url: ImageUrl


ChatParts = Annotated[
    list[Annotated[ChatText | ChatRefusal | ChatImage, Field(discriminator="type")]],
    Field(max_length=MAX_MESSAGE_PARTS, fail_fast=True),
]
TextParts = Annotated[
    list[Annotated[ChatText | ChatRefusal, Field(discriminator="type")]],
    Field(max_length=MAX_MESSAGE_PARTS, fail_fast=True),
]


class ChatFunction(Body):
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    arguments: str = Field(description="JSON text.")


class ChatCall(Body):
    """A call of a tool that the client runs."""

    id: CallId
    type: Literal["function"] = "function"
    function: ChatFunction


class ChatInstructions(Body):
    """Instructions for this turn; they follow the system prompt of the agent."""

    role: Literal["system", "developer"]
    content: str | TextParts


class ChatUser(Body):
    role: Literal["user"]
    content: str | ChatParts
    name: Word | None = None


class ChatAssistant(Body):
    """An earlier answer."""

    role: Literal["assistant"]
    content: str | TextParts | None = None
    tool_calls: list[ChatCall] | None = Field(None, max_length=MAX_ANSWERED_CALLS, fail_fast=True)


class ChatReturn(Body):
    """The result of a tool that the client ran."""

    role: Literal["tool"]
    tool_call_id: CallId
    content: str | TextParts


ChatMessage = Annotated[
    ChatInstructions | ChatUser | ChatAssistant | ChatReturn, Field(discriminator="role")
]


class FunctionSpec(Body):
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    description: str | None = Field(None, max_length=MAX_CLIENT_TOOL_DESCRIPTION_CHARS)
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments.")


class ChatTool(Body):
    """A tool that the client runs."""

    type: Literal["function"]
    function: FunctionSpec


class StreamOptions(Body):
    include_usage: bool | None = Field(
        False, description="End the stream with a chunk that has the usage."
    )


class ChatCompletionCreate(Body):
    """A request for a chat completion. Other members, such as those for sampling, are ignored."""

    model: str = Field(max_length=MAX_NAME_CHARS, description="The id or the name of an agent.")
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_CHAT_MESSAGES, fail_fast=True)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    tools: list[ChatTool] | None = Field(
        None,
        max_length=MAX_CLIENT_TOOLS,
        fail_fast=True,
        description="Tools that the model may call in this turn and the client runs.",
    )
    tool_choice: Any = Field(
        None, description="`none` withholds `tools`; the agent decides in all other cases."
    )
    n: Literal[1] | None = Field(None, description="An agent gives one answer.")


# Answers.


class ChatFunctionState(Answer):
    name: str
    arguments: str


class ChatCallState(Answer):
    id: str
    type: Literal["function"]
    function: ChatFunctionState


class ChatAnswer(Answer):
    """The answer of the agent."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = Field("", description="Missing if there is none.")
    tool_calls: list[ChatCallState] = Field([], description="Missing if there are none.")


class ChatChoice(Answer):
    index: Literal[0]
    message: ChatAnswer
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: None


class CachedTokens(Answer):
    cached_tokens: int


class ReasoningTokens(Answer):
    reasoning_tokens: int


class ChatUsage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class ChatCompletion(Answer):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="Seconds since 1970.")
    model: str
    choices: list[ChatChoice] = Field(max_length=1)
    usage: ChatUsage
