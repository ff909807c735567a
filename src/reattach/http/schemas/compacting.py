"""Requests for compaction, and their answer."""

from pydantic import Field

from reattach.http.schemas.fields import Answer, Body
from reattach.http.schemas.settings import CompactionSettings


class CompactBody(Body):
    compaction_settings: CompactionSettings | None = Field(
        None, description="Instead of what the agent's own say."
    )


class ThreadCompactBody(CompactBody):
    agent_id: str | None = Field(None, description="The agent, on the path `default`.")


class Compacted(Answer):
    """What stands for the older messages from now on."""

    summary: str
    num_messages_before: int = Field(description="That a model was told, the system prompt too.")
    num_messages_after: int
