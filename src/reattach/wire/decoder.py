"""The events of a run from its frames, the counterpart of ``letta.Encoder``."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from reattach.domain.events import Event, Output
from reattach.domain.ids import Seq
from reattach.domain.messages import Fragment, ReasoningPart, TextPart, ToolCallDelta
from reattach.wire.letta import SEQ_MEMBER, TEXT_MEMBERS, decode, encode
from reattach.wire.template import EMPTY_TEXT, around, decode_text

_NO_FRAME: Final = b"\n"
"""The beginning of no frame."""

_MakePiece = Callable[[str], Fragment]


class Decoder:
    """``letta.decode`` for consecutive frames of one run.

    Consecutive pieces of a text, of reasoning or of the arguments of a call differ only in their
    seq and text, so the rest of the frame is compared with that of the previous one, which takes a
    tenth of the time.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._newest: Output | None = None
        self._make_piece: _MakePiece = TextPart
        self._before_seq = _NO_FRAME
        self._before_text = self._between_texts = self._after_text = b""
        """Frames of calls have their text twice; for others ``_between_texts`` is empty."""

    def events(self, frames: Iterable[bytes]) -> Iterator[Event]:
        """Yield the events of the frames, which follow those of the previous call."""
        for frame in frames:
            text = self.piece(frame)
            if text is None:
                yield self.event(frame)
            else:
                assert self._newest is not None
                yield Output(self._newest.place, (self._make_piece(decode_text(text)),))

    def piece(self, frame: bytes) -> bytes | None:
        """Return the text, as JSON, of a frame that continues the newest event's part.

        None for all other frames, which ``event`` decodes.
        """
        if not frame.startswith(self._before_seq) or not frame.endswith(self._after_text):
            return None
        begin = len(self._before_seq)
        end = frame.find(self._before_text, begin)
        if not frame[begin:end].isdigit():
            return None
        text = frame[end + len(self._before_text) : -len(self._after_text)]
        return self._once(text) if self._between_texts else text

    def _once(self, texts: bytes) -> bytes | None:
        """Return the text that is there twice; None if there are two, or null."""
        text = texts[: (len(texts) - len(self._between_texts)) // 2]
        is_one = text.startswith(b'"') and texts == text + self._between_texts + text
        return text if is_one else None

    def event(self, frame: bytes) -> Event:
        """Return the event of the next frame."""
        event = decode(frame)
        self._prepare(event)
        return event

    def _prepare(self, event: Event) -> None:
        self._newest, self._before_seq = None, _NO_FRAME
        make_piece = _further(event.parts[0]) if isinstance(event, Output) else None
        if make_piece is None:
            return
        assert isinstance(event, Output)
        self._newest, self._make_piece, empty = event, make_piece, make_piece("")
        frame = encode(Output(event.place, (empty,)), Seq(0), self._run_id)
        members = [(name, EMPTY_TEXT) for name in TEXT_MEMBERS[type(empty)]]
        found = around(frame, (SEQ_MEMBER, b"0"), *members)
        self._before_seq, self._before_text, *between, self._after_text = found
        self._between_texts = between[0] if between else b""


def _further(part: Fragment) -> _MakePiece | None:
    """Return what makes a further piece of a part from its text, or None if it is no piece.

    A further piece of reasoning has no signature. The first arguments of a call are no further
    piece, because its name is whole only then.
    """
    match part:
        case TextPart():
            return TextPart
        case ReasoningPart():
            return ReasoningPart
        case ToolCallDelta(call_id, _, arguments, waits) if arguments:
            return lambda text: ToolCallDelta(call_id, None, text, waits)
    return None
