"""A cache of the contexts of threads, so that a turn does not decode all messages again.

The messages of a thread are only appended, or removed all at once; only the system message changes
in place. So a cached context is still valid if its last message has the same place, whichever
process wrote since, and only the messages after it have to be read.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from reattach.domain.ids import MessageId, StepId
from reattach.domain.limits import CONTEXT_MESSAGE_BYTES
from reattach.domain.messages import Message, part_chars


@dataclass(frozen=True, slots=True)
class CachedContext:
    """The messages in context of a thread up to one of them, except for the system message."""

    messages: tuple[Message, ...]
    """In the order in which a model gets them."""
    place: tuple[int, MessageId]
    """The position of the last of them in the thread, and its id."""
    step_id: StepId | None
    """The step of the last answer, unless a summary came after it."""
    size_bytes: int
    """An estimate of the memory that they take."""


class Contexts:
    """The most recently used contexts, of at most ``limit_bytes`` together."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._cached: OrderedDict[str, CachedContext] = OrderedDict()
        self.size_bytes = 0

    def get(self, thread_key: str) -> CachedContext | None:
        cached = self._cached.get(thread_key)
        if cached is not None:
            self._cached.move_to_end(thread_key)
        return cached

    def put(self, thread_key: str, context: CachedContext | None) -> None:
        """Replace the cached context of the thread; None or one over the limit removes it."""
        old = self._cached.pop(thread_key, None)
        self.size_bytes -= 0 if old is None else old.size_bytes
        if context is None or context.size_bytes > self._limit_bytes:
            return
        self._cached[thread_key] = context
        self.size_bytes += context.size_bytes
        while self.size_bytes > self._limit_bytes:
            _, dropped = self._cached.popitem(last=False)
            self.size_bytes -= dropped.size_bytes


def size_bytes(messages: Iterable[Message]) -> int:
    """Estimate the memory that decoded messages take."""
    return sum(
        CONTEXT_MESSAGE_BYTES + sum(part_chars(part) for part in message.parts)
        for message in messages
    )
