"""The events of a run from its frames, the counterpart of ``letta.Encoder``."""

from collections.abc import Iterable, Iterator
from typing import Final

from reattach.domain.events import Event, Output
from reattach.domain.ids import Seq
from reattach.domain.messages import ReasoningPart, TextPart
from reattach.wire.letta import SEQ_MEMBER, decode, encode
from reattach.wire.template import EMPTY_TEXT, around, decode_text

_Piece = type[TextPart] | type[ReasoningPart]
_MEMBERS: Final[dict[_Piece, bytes]] = {TextPart: b'"content":', ReasoningPart: b'"reasoning":'}

_NO_FRAME: Final = b"\n"
"""The beginning of no frame."""


class Decoder:
    """``letta.decode`` for consecutive frames of one run.

    Consecutive pieces of text or reasoning differ only in their seq and text, so the rest of the
    frame is compared with that of the previous one, which takes a tenth of the time.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._newest: Output | None = None
        self._piece: _Piece = TextPart
        self._before_seq = _NO_FRAME
        self._before_text = self._after_text = b""

    def events(self, frames: Iterable[bytes]) -> Iterator[Event]:
        """Yield the events of the frames, which follow those of the previous call."""
        for frame in frames:
            text = self.piece(frame)
            if text is None:
                yield self.event(frame)
            else:
                assert self._newest is not None
                yield Output(self._newest.place, (self._piece(decode_text(text)),))

    def piece(self, frame: bytes) -> bytes | None:
        """Return the text, as JSON, of a frame that continues the newest event's part.

        None for all other frames, which ``event`` decodes. A piece of reasoning has no signature.
        """
        if not frame.startswith(self._before_seq) or not frame.endswith(self._after_text):
            return None
        begin = len(self._before_seq)
        end = frame.find(self._before_text, begin)
        if not frame[begin:end].isdigit():
            return None
        return frame[end + len(self._before_text) : -len(self._after_text)]

    def event(self, frame: bytes) -> Event:
        """Return the event of the next frame."""
        event = decode(frame)
        self._prepare(event)
        return event

    def _prepare(self, event: Event) -> None:
        self._newest, self._before_seq = None, _NO_FRAME
        piece = type(event.parts[0]) if isinstance(event, Output) else None
        if piece is not TextPart and piece is not ReasoningPart:
            return
        assert isinstance(event, Output)
        self._newest, self._piece = event, piece
        frame = encode(Output(event.place, (piece(""),)), Seq(0), self._run_id)
        self._before_seq, self._before_text, self._after_text = around(
            frame, (SEQ_MEMBER, b"0"), (_MEMBERS[piece], EMPTY_TEXT)
        )
