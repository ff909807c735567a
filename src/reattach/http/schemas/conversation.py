"""Schemas of conversations."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import Field

from reattach.domain.ids import AgentId, new_conversation_id
from reattach.domain.limits.requests import MAX_AGENT_BLOCKS
from reattach.http.schemas.fields import (
    Answer,
    Body,
    ContextTokens,
    Description,
    GivenTime,
    Handle,
    UtcTime,
    Word,
    given,
    members_of,
)
from reattach.http.schemas.settings import ModelSettings
from reattach.records.base import Conversation


class ConversationState(Answer):
    """A message thread with an agent, beside its default conversation."""

    id: str
    agent_id: str
    summary: str | None
    description: str | None
    model: str | None = Field(description="Overrides the agent's model, `provider/name`.")
    model_settings: dict[str, Any] | None
    context_window_limit: int | None = Field(description="In tokens.")
    in_context_message_ids: list[str] = Field(description="Ids of its messages, oldest first.")
    isolated_block_ids: list[str] = Field(description="Its own copies of blocks of the agent.")
    archived: bool
    archived_at: UtcTime | None
    hidden: bool | None
    last_message_at: UtcTime | None
    created_at: UtcTime
    updated_at: UtcTime
    created_by_id: str | None = None
    last_updated_by_id: str | None = None

    @classmethod
    def of(cls, conversation: Conversation, message_ids: Sequence[str]) -> Self:
        return cls(
            **members_of(conversation, cls),
            in_context_message_ids=list(message_ids),
            isolated_block_ids=[block.id for block in conversation.isolated_blocks],
            archived=conversation.archived_at is not None,
        )


class _ConversationMembers(Body):
    summary: Description | None = None
    description: Description | None = None
    model: Handle | None = None
    model_settings: ModelSettings | None = None
    context_window_limit: ContextTokens | None = None
    hidden: bool | None = None

    def _changes(self) -> dict[str, Any]:
        changes = dict(given(self))
        if self.model_settings is not None:
            changes["model_settings"] = self.model_settings.kept()
        return changes


class ConversationCreate(_ConversationMembers):
    isolated_block_labels: Annotated[list[Word], Field(max_length=MAX_AGENT_BLOCKS)] | None = None

    def conversation(self, agent_id: AgentId, now: datetime) -> Conversation:
        changes = self._changes()
        changes.pop("isolated_block_labels", None)  # The caller copies the agent's blocks.
        return Conversation(new_conversation_id(), agent_id, now, now, **changes)


class ConversationUpdate(_ConversationMembers):
    """Changes of a conversation: an absent member stays, and null clears one."""

    archived: bool | None = None
    last_message_at: GivenTime | None = None

    def apply(self, conversation: Conversation, now: datetime) -> Conversation:
        """Return the conversation after the changes."""
        changes = self._changes()
        if "archived" in changes:
            changes["archived_at"] = now if changes.pop("archived") else None
        return replace(conversation, **changes)
