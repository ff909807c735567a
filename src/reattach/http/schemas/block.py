"""Schemas of memory blocks."""

from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from reattach.domain.errors import ValidationFailedError
from reattach.domain.ids import new_block_id
from reattach.domain.limits.requests import MAX_BLOCK_CHARS
from reattach.http.json import Fault, invalid
from reattach.http.schemas.fields import (
    NUMERIC,
    Answer,
    Body,
    Description,
    KeptObject,
    Tags,
    Word,
    given,
    members_of,
)
from reattach.records.base import Block

Label = Annotated[Word, Field(min_length=1, description="Name of the block within its agent.")]
Value = Annotated[str, Field(max_length=MAX_BLOCK_CHARS, description="Content of the block.")]
CharLimit = Annotated[
    int,
    Field(ge=1, le=MAX_BLOCK_CHARS, description="Maximum length of the value, in characters."),
    NUMERIC,
]


class BlockState(Answer):
    """A piece of text in the system prompts of the agents that have it."""

    id: str
    value: str
    limit: int | None = Field(description="Maximum length of the value, in characters.")
    label: str | None
    description: str | None
    read_only: bool
    metadata: dict[str, Any]
    tags: list[str]
    hidden: bool | None
    created_by_id: str | None = None
    last_updated_by_id: str | None = None
    project_id: str | None = None
    template_name: str | None = None
    is_template: bool = False
    template_id: str | None = None
    base_template_id: str | None = None
    deployment_id: str | None = None
    entity_id: str | None = None
    preserve_on_migration: bool = False

    @classmethod
    def of(cls, block: Block) -> Self:
        return cls(**members_of(block, cls))


class _BlockMembers(Body):
    label: Label | None = None
    value: Value | None = None
    limit: CharLimit | None = None
    description: Description | None = None
    read_only: bool | None = None
    hidden: bool | None = None
    metadata: KeptObject | None = None
    tags: Tags | None = None

    def apply(self, block: Block) -> Block:
        """Return the block after the changes. Raises ValidationFailedError if it is too long."""
        changes = dict(given(self))
        for name in ("label", "value"):
            if name in changes and changes[name] is None:
                del changes[name]
        for name, empty in (("read_only", False), ("metadata", {}), ("tags", ())):
            if name in changes:
                changes[name] = changes[name] or empty
        if "tags" in changes:
            changes["tags"] = tuple(changes["tags"])
        after = replace(block, **changes)
        if after.limit is not None and len(after.value) > after.limit:
            raise _does_not_fit(len(after.value), after.limit)
        return after


class BlockCreate(_BlockMembers):
    label: Label
    value: Value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.limit is not None and len(self.value) > self.limit:
            raise ValueError(_too_long(len(self.value), self.limit))
        return self

    def block(self, now: datetime) -> Block:
        return self.apply(Block(new_block_id(), None, "", now, now))


class BlockUpdate(_BlockMembers):
    """Changes of a block: an absent member stays, and null clears one that may be empty."""


def _too_long(chars: int, limit: int) -> str:
    return f"The value has {chars} characters, and the block's limit is {limit}."


def _does_not_fit(chars: int, limit: int) -> ValidationFailedError:
    return invalid([Fault(["body", "value"], _too_long(chars, limit), "string_too_long")])
