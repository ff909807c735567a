"""Field types of requests and responses, with their limits."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Annotated, Any, Final, Literal

from fastapi import Path, Query
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from reattach.domain.clock import utc_text
from reattach.domain.ids import (
    AGENT_PATTERN,
    BLOCK_PATTERN,
    CONVERSATION_PATH_PATTERN,
    CONVERSATION_PATTERN,
    MCP_SERVER_PATTERN,
    MESSAGE_PATTERN,
    STREAM_TOKEN_PATTERN,
    TOOL_PATTERN,
    AgentId,
    BlockId,
    ConversationId,
    MessageId,
)
from reattach.domain.limits import MAX_INTEGER, MAX_VALIDATION_ERRORS
from reattach.domain.limits.requests import (
    MAX_CONTEXT_TOKENS,
    MAX_DESCRIPTION_CHARS,
    MAX_ID_CHARS,
    MAX_KEPT_JSON_BYTES,
    MAX_NAME_CHARS,
    MAX_PAGE_ITEMS,
    MAX_QUERY_CHARS,
    MAX_QUERY_VALUES,
    MAX_SYSTEM_CHARS,
    MAX_TAGS,
)
from reattach.http.json import Fault, invalid

# Validators are built when they are first used: building all of them takes a sixth of a start.


class Answer(BaseModel):
    """A response. A member without a value is sent as null."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True, defer_build=True)


class Body(BaseModel):
    """A request body. Unknown members are ignored."""

    model_config = ConfigDict(extra="ignore", defer_build=True)


class StrictBody(Body):
    """A request body. Unknown members are refused, because a misspelled limit would be no limit."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, given: Any) -> Any:
        known = [*cls.model_fields]
        names = [name for name in (given if isinstance(given, dict) else ()) if name not in known]
        faults = [
            Fault(
                ["body", str(name)[:MAX_NAME_CHARS]], _unknown(str(name), known), "extra_forbidden"
            )
            for name in names[:MAX_VALIDATION_ERRORS]
        ]
        if faults:
            raise invalid(faults, omitted=len(names) - len(faults))
        return given


def _unknown(name: str, known: list[str]) -> str:
    near = get_close_matches(name[:MAX_NAME_CHARS], known, n=1)
    if near:
        return f"It is unknown. Did you mean '{near[0]}'?"
    return f"It is unknown. The members are {', '.join(known)}."


# Members.


def kept_json(value: Any) -> Any:
    if len(json.dumps(value)) > MAX_KEPT_JSON_BYTES:
        raise ValueError(f"The value is larger than {MAX_KEPT_JSON_BYTES} bytes as JSON.")
    return value


def _in_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("The time is outside the years 1 to 9999 in UTC.") from None


def _only_numbers(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        raise PydanticKnownError("float_type")
    return value


def _no_empty_text(value: Any) -> Any:
    if value == "":
        raise PydanticCustomError("empty", "It is empty. Leave it out or send null instead.")
    return value


NUMERIC: Final = BeforeValidator(_only_numbers)
"""The last annotation of a number, because Pydantic takes true as 1 and "1_0" as 10."""

NOT_EMPTY: Final = BeforeValidator(_no_empty_text)
"""The last annotation of a text of which an empty one must not pass for an absent one."""

KeptObject = Annotated[dict[str, Any], AfterValidator(kept_json)]
"""A JSON object that is stored and returned unchanged."""

KeptList = Annotated[list[dict[str, Any]], Field(fail_fast=True), AfterValidator(kept_json)]

UtcTime = Annotated[
    datetime,
    PlainSerializer(
        lambda at: utc_text(at, "microseconds"),
        return_type=str,
        when_used="json",
    ),
    Field(json_schema_extra={"format": "date-time"}),
]
"""An instant, sent in UTC with microseconds and ``Z``."""


def shown_time(at: datetime | None) -> datetime | str | None:
    """Return a time in UTC, whose JSON has microseconds; msgspec leaves out those that are zero."""
    return at if at is None or at.microsecond else utc_text(at, "microseconds")


GivenTime = Annotated[AwareDatetime, AfterValidator(_in_utc)]

Word = Annotated[str, Field(max_length=MAX_NAME_CHARS)]
Description = Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS)]
SystemText = Annotated[str, Field(max_length=MAX_SYSTEM_CHARS)]
Handle = Annotated[
    str,
    Field(
        max_length=MAX_NAME_CHARS,
        description="Handle of a model, `provider/name`; see `GET /v1/models/`.",
    ),
]
Tags = Annotated[list[Word], Field(max_length=MAX_TAGS)]
ContextTokens = Annotated[int, Field(ge=1, le=MAX_CONTEXT_TOKENS), NUMERIC]
Count = Annotated[int, Field(ge=0, le=MAX_INTEGER), NUMERIC]

StopReasonName = Literal[
    "end_turn",
    "error",
    "llm_api_error",
    "invalid_llm_response",
    "invalid_tool_call",
    "max_steps",
    "max_tokens_exceeded",
    "no_tool_call",
    "tool_rule",
    "cancelled",
    "insufficient_credits",
    "requires_approval",
    "context_window_overflow_in_system_prompt",
]

# Paths.

_UUID_CHARS: Final = 36


def _id_path(prefix: str, pattern: str, noun: str) -> Any:
    return Path(
        pattern=pattern,
        max_length=len(prefix) + _UUID_CHARS,
        description=f"Id of the {noun}, `{prefix}<uuid4>`.",
    )


AgentPath = Annotated[AgentId, _id_path("agent-", AGENT_PATTERN, "agent")]
BlockPath = Annotated[BlockId, _id_path("block-", BLOCK_PATTERN, "block")]
ConversationPath = Annotated[
    ConversationId, _id_path("conv-", CONVERSATION_PATTERN, "conversation")
]
ToolPath = Annotated[str, _id_path("tool-", TOOL_PATTERN, "tool")]
StreamTokenPath = Annotated[str, _id_path("token-", STREAM_TOKEN_PATTERN, "token")]
McpServerPath = Annotated[str, _id_path("mcp_server-", MCP_SERVER_PATTERN, "MCP server")]
MessagePath = Annotated[MessageId, _id_path("message-", MESSAGE_PATTERN, "message")]
ThreadPath = Annotated[
    str,
    Path(
        pattern=CONVERSATION_PATH_PATTERN,
        max_length=len("agent-") + _UUID_CHARS,
        description="Id of a conversation, `default` together with `agent_id`, or (deprecated) the "
        "id of an agent for its default conversation.",
    ),
]

# Queries.

QueryText = Annotated[str | None, Query(max_length=MAX_QUERY_CHARS)]
QueryPart = Annotated[
    str | None,
    Query(max_length=MAX_QUERY_CHARS, description="Substring to search for; case-insensitive."),
]
QueryAgent = Annotated[AgentId | None, Query(pattern=AGENT_PATTERN, description="Id of an agent.")]
NobodyHas = Annotated[
    str | None, Query(max_length=MAX_ID_CHARS, description="Not supported: matches nothing.")
]
QueryTexts = Annotated[
    list[Annotated[str, Field(max_length=MAX_NAME_CHARS)]] | None,
    Query(max_length=MAX_QUERY_VALUES),
]
OrderParam = Annotated[
    Literal["asc", "desc"], Query(description="`asc`: oldest first, `desc`: newest first.")
]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE_ITEMS, description="Maximum number of items.")]


def members_of(row: object, schema: type[BaseModel]) -> dict[str, Any]:
    """Return the attributes of the row that are members of the schema, by name."""
    common = _COMMON.get((type(row), schema))
    if common is None:
        common = tuple(name for name in schema.model_fields if hasattr(row, name))
        _COMMON[type(row), schema] = common
    return {name: getattr(row, name) for name in common}


_COMMON: Final[dict[tuple[type, type[BaseModel]], tuple[str, ...]]] = {}
"""The names of the members that rows of a type have, by that type and the schema."""


def given(body: BaseModel) -> Mapping[str, Any]:
    """Return the members that the client sent, including null, by name."""
    return {name: getattr(body, name) for name in body.model_fields_set}
