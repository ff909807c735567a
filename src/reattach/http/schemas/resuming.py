"""What a resume asks for."""

from typing import Annotated

from pydantic import Field

from reattach.domain.limits import MAX_CURSOR, MAX_ID_CHARS, MAX_OTID_CHARS, MAX_POLL_SECONDS
from reattach.http.schemas.fields import Body


class ResumeBody(Body):
    """Which run to follow, and from where.

    Everything is optional: the default is the run that is active in the conversation, from its
    start.
    """

    agent_id: str | None = Field(
        None, max_length=MAX_ID_CHARS, description="The agent, on the path `default`."
    )
    run_id: str | None = Field(
        None, max_length=MAX_ID_CHARS, description="The run; skips every other look-up."
    )
    otid: str | None = Field(
        None,
        max_length=MAX_OTID_CHARS,
        description="The OTID of a message that made the run; run_id wins over it.",
    )
    starting_after: Annotated[int, Field(ge=-MAX_CURSOR, le=MAX_CURSOR)] = Field(
        0, description="The last seq_id that the client has; 0 or less: from the start."
    )
    include_pings: bool | None = Field(
        True, description="Send keepalive pings during silence. Null counts as false."
    )
    poll_interval: float | None = Field(
        0.1,
        ge=-MAX_POLL_SECONDS,
        le=MAX_POLL_SECONDS,
        allow_inf_nan=False,
        description=(
            "Seconds between looks for new events. Only a hint: events are pushed, and a reader "
            "that was not woken is looked after once a second, whatever this says."
        ),
    )
    batch_size: int | None = Field(
        100,
        ge=-MAX_CURSOR,
        le=MAX_CURSOR,
        description=(
            "The most events of one write of a replay, if it is given; less than 1 counts as 1. "
            "Only a hint: it changes no event and no order."
        ),
    )
