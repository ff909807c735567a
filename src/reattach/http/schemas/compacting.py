"""Schemas of compaction requests and responses."""

from pydantic import Field

from reattach.http.schemas.fields import Answer, Body
from reattach.http.schemas.settings import CompactionSettings


class CompactBody(Body):
    compaction_settings: CompactionSettings | None = Field(
        None, description="Overrides the agent's own settings."
    )


class ThreadCompactBody(CompactBody):
    agent_id: str | None = Field(None, description="Id of the agent, with the path `default`.")


class Compacted(Answer):
    """The summary that replaces the older messages in the context."""

    summary: str
    num_messages_before: int = Field(description="In the context, including the system prompt.")
    num_messages_after: int
