"""Schema of message list items, for the API's description; ``wire.letta`` creates them."""

from pydantic import ConfigDict, Field

from reattach.http.schemas.fields import Answer
from reattach.wire.letta import MessageType


class MessageItem(Answer):
    """A stored message or a part of one; parts of a message follow each other."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(description="Id of the stored message, shared by its items.")
    date: str = Field(json_schema_extra={"format": "date-time"})
    message_type: MessageType
    name: str | None = None
    otid: str | None = None
    sender_id: str | None = None
    step_id: str | None = None
    is_err: bool | None = None
    seq_id: int | None = Field(None, description="Null in lists: only events have numbers.")
    run_id: str | None = None
