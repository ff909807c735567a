"""Schemas of requests to follow runs, and of snapshots."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from reattach.domain.limits import MAX_CURSOR, MAX_STREAM_TOKEN_CHARS
from reattach.domain.limits.requests import (
    MAX_EVENT_ID_CHARS,
    MAX_FOLLOWED_RUNS,
    MAX_ID_CHARS,
    MAX_OTID_CHARS,
    MAX_POLL_SECONDS,
)
from reattach.http.schemas.fields import NOT_EMPTY, NUMERIC, Answer, Body, StopReasonName
from reattach.http.schemas.message import MessageItem

Cursor = Annotated[int, Field(ge=-MAX_CURSOR, le=MAX_CURSOR), NUMERIC]
PollSeconds = Annotated[
    float, Field(ge=-MAX_POLL_SECONDS, le=MAX_POLL_SECONDS, allow_inf_nan=False), NUMERIC
]


class RunPlace(Body):
    """The run of a conversation: by default the active one."""

    agent_id: str | None = Field(
        None, max_length=MAX_ID_CHARS, description="Id of the agent, with the path `default`."
    )
    run_id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS), NOT_EMPTY] | None = Field(
        None, description="Id of the run; overrides all other look-ups."
    )
    otid: Annotated[str, Field(min_length=1, max_length=MAX_OTID_CHARS), NOT_EMPTY] | None = Field(
        None, description="OTID of a message that started the run; ignored if `run_id` is set."
    )


class ResumeBody(RunPlace):
    """The run to follow, and the cursor to start after.

    All members are optional: the default is the active run of the conversation, from its start.
    """

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
    begin: Literal["snapshot"] | None = Field(
        None,
        alias="from",
        description=(
            "`snapshot`: begin with the messages so far, as `event: snapshot`, and go on with the "
            "events after them. A client that reconnects with an id does not get it again."
        ),
    )
    token: str | None = Field(
        None,
        max_length=MAX_STREAM_TOKEN_CHARS,
        description="A stream token, for clients that cannot send `Authorization`, which overrides "
        "it.",
    )


class FollowedRun(Body):
    """A run to follow, and the cursor to start after."""

    run_id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS), NOT_EMPTY]
    starting_after: Cursor = Field(
        0, description="Seq of the last event that the client has; 0 or less: from the start."
    )


class FollowBody(Body):
    """The runs to follow over one connection."""

    runs: list[FollowedRun] = Field(
        min_length=1, max_length=MAX_FOLLOWED_RUNS, description="The runs, each once."
    )
    pings: Literal["comment", "event"] | None = Field(
        None,
        description=(
            "The form of the keepalives that are sent during silence: comments, or events `ping`. "
            "Null means comments."
        ),
    )

    @field_validator("runs")
    @classmethod
    def _has_each_once(cls, runs: list[FollowedRun]) -> list[FollowedRun]:
        if len({one.run_id for one in runs}) < len(runs):
            raise ValueError("A run is named twice. Name each run once.")
        return runs


class SnapshotState(Answer):
    """The messages of a run as of one of its events."""

    run_id: str
    conversation_id: str | None = Field(description="Null in the agent's default conversation.")
    status: Literal["created", "running", "completed", "failed", "cancelled"]
    stop_reason: StopReasonName | None
    seq: int = Field(
        ge=0,
        description=(
            "The number of the newest event that the messages contain. Follow the run with "
            "`starting_after` set to it to get all later ones."
        ),
    )
    messages: list[MessageItem] = Field(
        description="The messages that were sent, then the agent's, as in lists of messages."
    )
