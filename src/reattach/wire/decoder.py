"""The events of a run from its frames, the counterpart of ``letta.Encoder``."""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from reattach.domain.events import Event, Output
from reattach.domain.ids import Seq
from reattach.domain.messages import ReasoningPart, TextPart
from reattach.wire.letta import decode, encode

_text: Final = msgspec.json.Decoder(str).decode

_Piece = type[TextPart] | type[ReasoningPart]
_MEMBERS: Final[dict[_Piece, bytes]] = {TextPart: b'"content":', ReasoningPart: b'"reasoning":'}


class Decoder:
    """``letta.decode`` for consecutive frames of one run.

    Consecutive pieces of text or reasoning differ only in their seq and text, so the rest of the
    frame is compared with that of the previous one, which takes a tenth of the time.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._newest: Output | None = None
        self._piece: _Piece = TextPart
        self._before_seq = self._before_text = self._after_text = b""

    def events(self, frames: Iterable[bytes]) -> Iterator[Event]:
        """Yield the events of the frames, which follow those of the previous call."""
        for frame in frames:
            event: Event | None = self._continuation(frame)
            if event is None:
                event = decode(frame)
                self._prepare(event)
            yield event

    def _continuation(self, frame: bytes) -> Output | None:
        """Return the event if it continues the part of the previous one, or else None."""
        if (
            self._newest is None
            or not frame.startswith(self._before_seq)
            or not frame.endswith(self._after_text)
        ):
            return None
        after_seq = frame.find(self._before_text, len(self._before_seq))
        if not frame[len(self._before_seq) : after_seq].isdigit():
            return None
        text = frame[after_seq + len(self._before_text) : -len(self._after_text)]
        return Output(self._newest.place, (self._piece(_text(text)),))

    def _prepare(self, event: Event) -> None:
        self._newest = None
        piece = type(event.parts[0]) if isinstance(event, Output) else None
        if piece is not TextPart and piece is not ReasoningPart:
            return
        assert isinstance(event, Output)
        self._newest, self._piece = event, piece
        frame = encode(Output(event.place, (piece(""),)), Seq(0), self._run_id)
        before, name, after = frame.partition(b'"seq_id":')  # Quotes in a text are escaped.
        self._before_seq = before + name
        member = _MEMBERS[piece]
        before, name, after = after.removeprefix(b"0").partition(member)
        self._before_text = before + name
        self._after_text = after.removeprefix(b'""')
