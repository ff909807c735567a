"""The system prompt for the model: the agent's own text, then its memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol, TypeVar

from reattach.domain.ids import new_message_id
from reattach.domain.markup import escape, quoted
from reattach.domain.messages import Message, Role, TextPart

DEFAULT_SYSTEM: Final = (
    "You are a helpful assistant with a memory that lasts. "
    "Your memory blocks hold what you know about yourself and the person you talk with."
)
"""The system prompt of an agent that was created without one."""


class MemoryBlock(Protocol):
    """The members of a memory block that the prompt shows."""

    @property
    def label(self) -> str | None: ...

    @property
    def description(self) -> str | None: ...

    @property
    def value(self) -> str: ...

    @property
    def limit(self) -> int | None:
        """In characters."""

    @property
    def read_only(self) -> bool: ...


SomeBlock = TypeVar("SomeBlock", bound=MemoryBlock)


@dataclass(frozen=True, slots=True)
class Skill:
    """Instructions of a client that the model may request."""

    name: str
    description: str
    location: str
    """The client's own reference to it, such as a path."""


def with_skills(system: str, skills: Iterable[Skill]) -> str:
    """Return ``system`` followed by the list of the skills, or unchanged if there are none.

    The same arguments always give the same text, so that providers can cache the prompt.
    """
    rendered = "\n".join(
        f"<skill name={quoted(one.name)} location={quoted(one.location)}>\n"
        f"{escape(one.description)}\n</skill>"
        for one in skills
    )
    if not rendered:
        return system
    listed = f"<available_skills>\n{rendered}\n</available_skills>"
    return f"{system}\n\n{listed}" if system else listed


def compile_system(
    system: str,
    blocks: Iterable[MemoryBlock],
    *,
    agent_id: str,
    conversation_id: str | None,
    recompiled_at: datetime,
) -> str:
    """Return ``system``, the blocks in their order, and the ids of the agent and conversation.

    None is the agent's default conversation. The same arguments always give the same text, without
    the present time, so that providers can cache the prompt. Values of blocks are escaped, so that
    none can end its block and begin another.
    """
    rendered = "\n".join(_block(block) for block in blocks)
    memory = f"<memory_blocks>\n{rendered}\n</memory_blocks>" if rendered else ""
    place = (
        f"<memory_metadata>\n- AGENT_ID: {agent_id}\n"
        f"- CONVERSATION_ID: {conversation_id or 'default'}\n"
        f"- System prompt last recompiled: {recompiled_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC\n"
        "</memory_metadata>"
    )
    return "\n\n".join(part for part in (system, memory, place) if part)


def blocks_in(shared: Sequence[SomeBlock], isolated: Sequence[SomeBlock]) -> list[SomeBlock]:
    """Return the blocks of a conversation: its own replace the agent's of the same label."""
    own = {block.label: block for block in isolated}
    blocks = [own.pop(block.label, block) for block in shared]
    return [*blocks, *own.values()]


def _block(block: MemoryBlock) -> str:
    attributes = [f"label={quoted(block.label or '')}"]
    if block.description:
        attributes.append(f"description={quoted(block.description)}")
    if block.limit is not None:
        attributes.append(f'chars_limit="{block.limit}"')
    if block.read_only:
        attributes.append('read_only="true"')
    return f"<block {' '.join(attributes)}>\n{escape(block.value)}\n</block>"


def system_message(text: str, at: datetime) -> Message:
    """Return the first message of a thread: the system prompt at that time."""
    return Message(id=new_message_id(), role=Role.SYSTEM, parts=(TextPart(text),), created_at=at)
