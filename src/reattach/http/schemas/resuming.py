"""Schema of resume requests."""

from typing import Annotated, Literal

from pydantic import Field

from reattach.domain.limits import MAX_CURSOR
from reattach.domain.limits.requests import (
    MAX_EVENT_ID_CHARS,
    MAX_ID_CHARS,
    MAX_OTID_CHARS,
    MAX_POLL_SECONDS,
)
from reattach.http.schemas.fields import NOT_EMPTY, NUMERIC, Body

Cursor = Annotated[int, Field(ge=-MAX_CURSOR, le=MAX_CURSOR), NUMERIC]
PollSeconds = Annotated[
    float, Field(ge=-MAX_POLL_SECONDS, le=MAX_POLL_SECONDS, allow_inf_nan=False), NUMERIC
]


class ResumeBody(Body):
    """The run to follow, and the cursor to start after.

    All members are optional: the default is the active run of the conversation, from its start.
    """

    agent_id: str | None = Field(
        None, max_length=MAX_ID_CHARS, description="Id of the agent, with the path `default`."
    )
    run_id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS), NOT_EMPTY] | None = Field(
        None, description="Id of the run; overrides all other look-ups."
    )
    otid: Annotated[str, Field(min_length=1, max_length=MAX_OTID_CHARS), NOT_EMPTY] | None = Field(
        None, description="OTID of a message that started the run; ignored if `run_id` is set."
    )
    starting_after: Cursor = Field(
        0, description="Last seq_id that the client received; 0 or less: from the start."
    )
    include_pings: bool | None = Field(
        True, description="Send keepalive pings during silence. Null means false."
    )
    poll_interval: PollSeconds | None = Field(
        0.1,
        description=(
            "Seconds between polls for new events. Only a hint: events are pushed, and the server "
            "checks once a second for readers that were not notified."
        ),
    )
    batch_size: Cursor | None = Field(
        100,
        description=(
            "Maximum number of events per write of a replay; values below 1 mean 1. Only a hint: "
            "events and their order do not change."
        ),
    )


class StreamQuery(ResumeBody):
    """The members of a resume's body as query parameters, and those of an ``EventSource``."""

    last_event_id: str | None = Field(
        None,
        max_length=MAX_EVENT_ID_CHARS,
        description="As the header `Last-Event-ID`, which overrides it.",
    )
    pings: Literal["comment", "event"] = Field(
        "comment",
        description="Form of keepalives: comments, which pages do not see, or `event: ping`.",
    )
