"""The form in which a run's sender wants its events."""

from dataclasses import dataclass
from typing import get_args

from reattach.wire.letta import MessageType

_ALL_TYPES = frozenset(get_args(MessageType))
_COMPACTION_TYPES = frozenset({"event_message", "summary_message"})


@dataclass(frozen=True, slots=True)
class Representation:
    """The representation of a run that its sender asked for."""

    stream_tokens: bool = False
    include_pings: bool = True
    message_types: frozenset[MessageType] | None = None
    """Only messages of these types are logged; None: all."""
    compaction_messages: bool = False
    """Whether events of compactions are logged."""

    @property
    def hidden_types(self) -> frozenset[str]:
        """The types of messages that are not logged."""
        types = self.message_types
        hidden = frozenset() if types is None else _ALL_TYPES - types
        return hidden if self.compaction_messages else hidden | _COMPACTION_TYPES
