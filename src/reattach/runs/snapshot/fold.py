"""The events of a live run folded into the messages that a snapshot shows."""

from collections.abc import Sequence
from typing import Final

import msgspec

from reattach.domain.ids import Seq
from reattach.domain.messages import HiddenReasoningPart, Message, Role, ToolCallPart
from reattach.log.base import Slice
from reattach.records.base import Run
from reattach.runs.representation import Representation
from reattach.runs.transcript import Transcript
from reattach.wire.decoder import Decoder
from reattach.wire.letta import Json
from reattach.wire.sse import split_frames
from reattach.wire.stored import message_items

_COMPACTED_EVENTS: Final = 4096
"""Events after which their pieces of text are joined: 64 times fewer objects to hold, and joining a
long text again each time stays cheap."""

_FILLER: Final = HiddenReasoningPart("omitted")
"""Stands for a part that the sender hid."""


class Fold:
    """The messages of a run as of event ``seq``; grows with the log.

    It sees the log only, so it has exactly the events that readers get.
    """

    def __init__(self, run: Run) -> None:
        self.seq = Seq(0)
        self._run = run
        self._transcript = Transcript()
        self._decoder = Decoder(run.id)
        self._joined_seq = self.seq
        self.size_bytes = 0
        """The approximate memory of the fold and of its newest snapshot.

        The text is there once joined and once as JSON. A character takes up to four times the
        memory of its UTF-8 if any other one is an emoji.
        """
        self._sent = [item for message in run.input for item in message_items(message)]

    @property
    def run(self) -> Run:
        """The run as it was when the fold began."""
        return self._run

    def add(self, piece: Slice) -> None:
        """Add the events after ``seq``."""
        assert piece.first_seq == self.seq + 1, f"{self._run.id} has a gap after {self.seq}"
        for event in self._decoder.events(split_frames(piece.frames)):
            self._transcript.add(event)
        self.seq = piece.last_seq
        if self.seq - self._joined_seq >= _COMPACTED_EVENTS:
            self._compact()

    def messages(self) -> bytes:
        """Return the items of the messages as a JSON array, the input first."""
        self._compact()
        items = [
            item
            for message in self._transcript.messages(self._run, filler=_FILLER)
            for item in _visible_items(message)
        ]
        encoded = msgspec.json.encode(self._sent + items)
        self.size_bytes = 4 * len(encoded)
        return encoded

    def _compact(self) -> None:
        self._transcript.compact()
        self._joined_seq = self.seq


def _visible_items(message: Message) -> list[Json]:
    """Return the items of a message without those of its fillers."""
    items = message_items(message)
    if message.role is not Role.ASSISTANT or _FILLER not in message.parts:
        return items
    # The items of parts come in their order, and those of calls after them.
    parts = [part for part in message.parts if not isinstance(part, ToolCallPart)]
    kept = [item for item, part in zip(items, parts, strict=False) if part is not _FILLER]
    return kept + items[len(parts) :]


def settled_items(run: Run, messages: Sequence[Message]) -> list[Json]:
    """Return the items of the messages that the records keep, without those that its sender hid."""
    config = run.request_config
    types = config.include_return_message_types
    hidden = Representation(
        message_types=None if types is None else frozenset(types),  # type: ignore[arg-type]
        compaction_messages=config.include_compaction_messages,
    ).hidden_types
    sent = {message.id for message in run.input}
    return [
        item
        for message in messages
        for item in message_items(message)
        if message.id in sent or item["message_type"] not in hidden
    ]
