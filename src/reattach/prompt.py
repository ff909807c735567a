"""The system prompt as the model gets it: the agent's own text, then its memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol
from xml.sax.saxutils import quoteattr

from reattach.ids import new_message_id
from reattach.messages import Message, Role, TextPart

DEFAULT_SYSTEM: Final = (
    "You are a helpful assistant with a memory that lasts. "
    "What you know about yourself and the person you talk with stands in your memory blocks."
)
"""The system prompt of an agent that was made without one."""


class MemoryBlock(Protocol):
    """What the prompt shows of a memory block."""

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


@dataclass(frozen=True, slots=True)
class Skill:
    """Instructions that a client has, and that the model may ask for."""

    name: str
    description: str
    location: str
    """Where the client finds it, such as a path."""


def with_skills(system: str, skills: Iterable[Skill]) -> str:
    """``system`` followed by the list of the skills in their order; ``system`` if there are none.

    The same arguments always give the same text, so that providers can cache the prompt.
    """
    rendered = "\n".join(
        f"<skill name={quoteattr(one.name)} location={quoteattr(one.location)}>\n"
        f"{one.description}\n</skill>"
        for one in skills
    )
    if not rendered:
        return system
    listed = f"<available_skills>\n{rendered}\n</available_skills>"
    return f"{system}\n\n{listed}" if system else listed


def compile_system(system: str, blocks: Iterable[MemoryBlock]) -> str:
    """``system`` followed by the blocks in their order; ``system`` alone if there are none.

    The same arguments always give the same text, so that providers can cache the prompt.
    """
    rendered = "\n".join(_block(block) for block in blocks)
    if not rendered:
        return system
    memory = f"<memory_blocks>\n{rendered}\n</memory_blocks>"
    return f"{system}\n\n{memory}" if system else memory


def _block(block: MemoryBlock) -> str:
    attributes = [f"label={quoteattr(block.label or '')}"]
    if block.description:
        attributes.append(f"description={quoteattr(block.description)}")
    if block.limit is not None:
        attributes.append(f'chars_limit="{block.limit}"')
    if block.read_only:
        attributes.append('read_only="true"')
    return f"<block {' '.join(attributes)}>\n{block.value}\n</block>"


def system_message(system: str, blocks: Iterable[MemoryBlock], at: datetime) -> Message:
    """The message that begins a thread: the system prompt as it is at that time."""
    text = compile_system(system, blocks)
    return Message(id=new_message_id(), role=Role.SYSTEM, parts=(TextPart(text),), created_at=at)
