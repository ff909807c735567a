"""A cache of the contexts of threads, so that a turn does not decode all messages again.

The messages of a thread are only appended, or removed all at once; only the system message changes
in place. So a cached context is still valid if its last message has the same place, whichever
process wrote since, and only the messages after it have to be read.
"""

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from reattach.domain.context import message_tokens, model_messages
from reattach.domain.context_messages import ContextMessages
from reattach.domain.ids import StepId
from reattach.domain.limits import CONTEXT_IDLE_SECONDS, CONTEXT_MESSAGE_BYTES
from reattach.domain.messages import ContentPart, Message, Role, TextPart
from reattach.records.contexts.message_rows import Place


@dataclass(frozen=True, slots=True)
class ThreadContext:
    """The messages in context of a thread."""

    system: Sequence[Message]
    """The system message, if there is one."""
    following: ContextMessages
    """In the order in which a model gets them: the newest summary, the rest."""
    for_model: ContextMessages
    """Those of them that a model gets."""
    counted_tokens: int | None
    """The tokens that the provider counted before the last answer, which is not included."""

    @property
    def messages(self) -> list[Message]:
        """All of them, the system message first."""
        return [*self.system, *self.following]


@dataclass(frozen=True, slots=True)
class CachedContext:
    """The messages in context of a thread up to one of them, except for the system message."""

    messages: ContextMessages
    """In the order in which a model gets them."""
    for_model: ContextMessages
    """Those that a model gets."""
    place: Place
    """The place of the newest of them."""
    step_id: StepId | None
    """The step of the last answer, unless a summary came after it."""
    size_bytes: int
    """An estimate of the memory that they take."""

    @classmethod
    def of(
        cls, messages: Sequence[Message], place: Place, step_id: StepId | None
    ) -> "CachedContext":
        """Return the context of these messages; there is at least one."""
        for_model = ContextMessages(model_messages(messages))
        # Estimated here, in the thread of a transaction, so that the event loop need not do it.
        for_model.total(message_tokens)
        return cls(ContextMessages(messages), for_model, place, step_id, size_bytes(messages))

    def grown_by(self, messages: Sequence[Message], place: Place) -> "CachedContext":
        """Return the context with later messages, none of which is a summary."""
        if not messages:
            return self
        for_model = self.for_model.grown_by(model_messages(messages))
        for_model.total(message_tokens)
        return CachedContext(
            self.messages.grown_by(messages),
            for_model,
            place,
            last_step(messages, self.step_id),
            self.size_bytes + size_bytes(messages),
        )


class Contexts:
    """The most recently used contexts, of at most ``limit_bytes`` together."""

    def __init__(
        self, limit_bytes: int, monotonic_seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit_bytes = limit_bytes
        self._monotonic_seconds = monotonic_seconds
        self._cached: OrderedDict[str, CachedContext] = OrderedDict()
        self._put_at_seconds: dict[str, float] = {}
        self.size_bytes = 0

    def get(self, thread_key: str) -> CachedContext | None:
        cached = self._cached.get(thread_key)
        if cached is not None:
            self._cached.move_to_end(thread_key)
        return cached

    def put(self, thread_key: str, context: CachedContext | None) -> None:
        """Replace the cached context of the thread; None or one over the limit removes it."""
        self._drop(thread_key)
        if context is None or context.size_bytes > self._limit_bytes:
            return
        self._cached[thread_key] = context
        self._put_at_seconds[thread_key] = self._monotonic_seconds()
        self.size_bytes += context.size_bytes
        while self.size_bytes > self._limit_bytes:
            self._drop(next(iter(self._cached)))

    def drop_idle(self) -> None:
        """Drop contexts without a turn for CONTEXT_IDLE_SECONDS, as they may have been deleted."""
        latest = self._monotonic_seconds() - CONTEXT_IDLE_SECONDS
        for key in [key for key, at in self._put_at_seconds.items() if at <= latest]:
            self._drop(key)

    def _drop(self, thread_key: str) -> None:
        dropped = self._cached.pop(thread_key, None)
        if dropped is not None:
            self.size_bytes -= dropped.size_bytes
            del self._put_at_seconds[thread_key]


def last_step(messages: Sequence[Message], before: StepId | None = None) -> StepId | None:
    """Return the step of the last answer, unless a summary came after it."""
    for message in reversed(messages):
        if message.role is Role.SUMMARY:
            return None
        if message.role is Role.ASSISTANT and message.step_id is not None:
            return message.step_id
    return before


def size_bytes(messages: Iterable[Message]) -> int:
    """Estimate the memory that decoded messages take."""
    return sum(CONTEXT_MESSAGE_BYTES + sum(map(_part_bytes, message.parts)) for message in messages)


def _part_bytes(part: ContentPart) -> int:
    if type(part) is TextPart:  # Most parts.
        return sys.getsizeof(part.text)
    return _value_bytes(part)


def _value_bytes(value: object) -> int:
    """Return the memory of a value of a part: of a text, a struct, or a tuple of these."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.astuple(value)
    if isinstance(value, tuple):
        return sys.getsizeof(value) + sum(map(_value_bytes, value))
    return sys.getsizeof(value)
