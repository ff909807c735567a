"""Schemas of AG-UI and of CopilotKit's runtime: what clients send, and what they get."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from reattach.domain.limits import MAX_TOOL_CALL_ID_CHARS
from reattach.domain.limits.requests import (
    MAX_ANSWERED_CALLS,
    MAX_CLIENT_TOOL_DESCRIPTION_CHARS,
    MAX_CLIENT_TOOLS,
    MAX_DESCRIPTION_CHARS,
    MAX_NAME_CHARS,
    MAX_SYSTEM_CHARS,
)
from reattach.http.schemas.fields import Answer, Body

MAX_HISTORY_MESSAGES = 2000
"""Messages of one request: clients send the whole conversation each time."""

MAX_CONTEXTS = 1000

ClientId = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
"""An id that a client makes; most use UUIDs."""

CallId = Annotated[str, Field(min_length=1, max_length=MAX_TOOL_CALL_ID_CHARS)]


class _Camel(Body):
    model_config = ConfigDict(extra="ignore", alias_generator=to_camel, populate_by_name=True)


class ClientMessage(_Camel):
    """A message of the history. Members that are not listed are kept as they are."""

    model_config = ConfigDict(extra="allow", alias_generator=to_camel, populate_by_name=True)

    id: Annotated[str, Field(min_length=1, max_length=2 * MAX_NAME_CHARS)]
    role: Literal["user", "assistant", "system", "developer", "tool", "reasoning", "activity"]
    content: (
        str | Annotated[list[dict[str, Any]], Field(fail_fast=True)] | dict[str, Any] | None
    ) = Field(
        None,
        description="A text; messages of users may have parts instead, of the types `text` and "
        "`image`.",
    )
    tool_call_id: CallId | None = None
    error: str | None = None

    @property
    def as_sent(self) -> dict[str, Any]:
        """The message without members that are null, which clients refuse."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)


class FrontendTool(Body):
    """A tool that the client runs."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
    description: str = Field("", max_length=MAX_CLIENT_TOOL_DESCRIPTION_CHARS)
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema.")


class ContextItem(Body):
    """A fact about the application for this run."""

    description: str = Field("", max_length=MAX_DESCRIPTION_CHARS)
    value: str = Field(max_length=MAX_SYSTEM_CHARS)


class ResumeEntry(_Camel):
    """An answer to an interrupt."""

    interrupt_id: CallId
    status: Literal["resolved", "cancelled"]
    payload: Any = Field(
        None,
        description="With `resolved`: `{approved: boolean, reason?: string}`. `cancelled` denies "
        "the call.",
    )


class RunInput(_Camel):
    """A request for a run. `threadId` and `runId` are the client's; both equal are a repetition."""

    thread_id: ClientId
    run_id: ClientId
    protocol_version: str | None = Field(None, max_length=MAX_NAME_CHARS)
    parent_run_id: ClientId | None = None
    messages: list[ClientMessage] = Field(
        max_length=MAX_HISTORY_MESSAGES,
        description="The conversation as the client has it. The server takes the new messages.",
    )
    tools: list[FrontendTool] | None = Field(None, max_length=MAX_CLIENT_TOOLS)
    context: list[ContextItem] | None = Field(None, max_length=MAX_CONTEXTS)
    resume: list[ResumeEntry] | None = Field(None, max_length=MAX_ANSWERED_CALLS)


class StopBody(_Camel):
    """A request to stop a run."""

    run_id: ClientId | None = None


class Stopped(Answer):
    """Whether a run was active."""

    stopped: bool


class AgentInfo(Answer):
    name: str
    description: str
    className: str = "HttpAgent"  # noqa: N815  the client's name


class RuntimeInfo(Answer):
    """The agents, by their ids."""

    version: str
    mode: Literal["sse"] = "sse"
    agents: dict[str, AgentInfo]
    audioFileTranscriptionEnabled: bool = False  # noqa: N815  the client's name
