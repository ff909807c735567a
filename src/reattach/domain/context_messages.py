"""The messages in context as a sequence whose memory the turns of a conversation share.

A conversation only grows, and every turn needs all of it. So each turn gets a view of one list, and
the view of the next turn costs the messages that are new, not those that are there.
"""

import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from operator import eq
from typing import overload

from typing_extensions import override

from reattach.domain.messages import Message, Role, ToolCallPart, ToolReturnPart

Measure = Callable[[Message], int]
"""A size of a message: a function of a module, because its totals are kept with the messages."""


class _Shared:
    """A list of messages that is only added to, with facts that are derived once for each.

    Transactions add to it in their threads, so changes hold the lock.
    """

    __slots__ = ("call_places", "calls_until", "lock", "messages", "totals")

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self.lock = threading.Lock()
        self.totals: dict[Measure, array[int]] = {}
        """At index n the sum of a measure over the first n messages, as far as it was needed."""
        self.call_places: dict[str, int] = {}
        """The index of the first message with a call's id, among the first ``calls_until``."""
        self.calls_until = 0

    def totals_until(self, measure: Measure, length: int) -> Sequence[int]:
        """Return the totals of a measure, at least as far as ``length``."""
        totals = self.totals.get(measure)
        if totals is None or len(totals) <= length:
            with self.lock:
                totals = self.totals.setdefault(measure, array("q", [0]))
                total = totals[-1]
                for message in self.messages[len(totals) - 1 : length]:
                    total += measure(message)
                    totals.append(total)
        return totals

    def place_of_call(self, call_id: str, length: int) -> int | None:
        """Return the index of a message with a call or return of that id, if there is one."""
        with self.lock:
            for index in range(self.calls_until, length):
                for found in call_ids(self.messages[index]):
                    self.call_places.setdefault(found, index)
            self.calls_until = max(self.calls_until, length)
        return self.call_places.get(call_id)


class ContextMessages(Sequence[Message]):
    """An immutable sequence of messages, oldest first.

    It consists of the summary in front, if there is one, of a shared list up to some length, and
    of a few messages of its own.
    """

    __slots__ = ("_after", "_before", "_length", "_shared")

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        shared = list(messages)
        summaries = 1 if shared and shared[0].role is Role.SUMMARY else 0
        self._before: tuple[Message, ...] = tuple(shared[:summaries])
        del shared[:summaries]
        self._shared = _Shared(shared)
        self._length = len(shared)
        self._after: tuple[Message, ...] = ()

    @classmethod
    def of(cls, messages: Sequence[Message]) -> "ContextMessages":
        """Return the messages as such a sequence, unchanged if they are one."""
        return messages if isinstance(messages, ContextMessages) else cls(messages)

    def grown_by(self, messages: Sequence[Message]) -> "ContextMessages":
        """Return the sequence with stored messages at its end, which its successors share.

        Costs the added messages; all of them if another sequence has grown from this one.
        """
        shared = self._shared
        with shared.lock:
            is_newest = not self._after and len(shared.messages) == self._length
            if is_newest:
                shared.messages.extend(messages)
        if not is_newest:
            return ContextMessages([*self, *messages])
        return self._view(self._before, self._length + len(messages), ())

    def followed_by(self, messages: Iterable[Message]) -> "ContextMessages":
        """Return the sequence with messages of its own at its end. Costs those of its own."""
        return self._view(self._before, self._length, (*self._after, *messages))

    def with_summary_as(self, convert: Callable[[Message], Message]) -> "ContextMessages":
        """Return the sequence with the summary in front converted."""
        return self._view(tuple(map(convert, self._before)), self._length, self._after)

    def _view(
        self, before: tuple[Message, ...], length: int, after: tuple[Message, ...]
    ) -> "ContextMessages":
        view = ContextMessages.__new__(ContextMessages)
        view._shared, view._before, view._length, view._after = self._shared, before, length, after
        return view

    def total(self, measure: Measure, start: int = 0) -> int:
        """Return the sum of a measure over the messages from the index ``start`` on.

        Costs the messages that were not measured before.
        """
        first = len(self._before)
        totals = self._shared.totals_until(measure, self._length)
        shared_start = min(max(start - first, 0), self._length)
        own = (
            *self._before[start:],
            *self._after[max(start - first - self._length, 0) :],
        )
        return totals[self._length] - totals[shared_start] + sum(map(measure, own))

    def has_call(self, call_id: str) -> bool:
        """Whether a message has a call, or the return of a call, with that id."""
        place = self._shared.place_of_call(call_id, self._length)
        if place is not None and place < self._length:
            return True
        own = chain(self._before, self._after)
        return any(call_id in call_ids(message) for message in own)

    @override
    def __len__(self) -> int:
        return len(self._before) + self._length + len(self._after)

    @override
    def __iter__(self) -> Iterator[Message]:
        return chain(self._before, islice(self._shared.messages, self._length), self._after)

    @overload
    def __getitem__(self, index: int) -> Message: ...

    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...

    @override
    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        length = len(self)
        if isinstance(index, slice):
            return [self._at(place) for place in range(*index.indices(length))]
        place = index + length if index < 0 else index
        if not 0 <= place < length:
            raise IndexError(f"{index} is beyond the {length} messages")
        return self._at(place)

    def _at(self, place: int) -> Message:
        first = len(self._before)
        if place < first:
            return self._before[place]
        if place < first + self._length:
            return self._shared.messages[place - first]
        return self._after[place - first - self._length]

    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    @override
    def __repr__(self) -> str:
        return f"ContextMessages({list(self)!r})"


def call_ids(message: Message) -> list[str]:
    """Return the ids of the calls and returns in a message."""
    return [
        part.tool_call_id
        for part in message.parts
        if isinstance(part, ToolCallPart | ToolReturnPart)
    ]
