"""The step from the frames of a log to those of a dialect."""

from reattach.domain.ids import Seq
from reattach.log.base import Slice
from reattach.wire.decoder import Decoder
from reattach.wire.dialects.dialect import Dialect, Fold, RunFacts
from reattach.wire.sse import split_frames


class Translator:
    """Translates the log of one run, from its first event on.

    ``seq`` is the last event that was translated.
    """

    def __init__(self, dialect: Dialect, facts: RunFacts) -> None:
        self.seq = Seq(0)
        self._fold = dialect.fold(facts)
        self._decoder = Decoder(facts.run_id)
        self._has_begun = False

    @property
    def size_bytes(self) -> int:
        """The approximate memory of its state."""
        return self._fold.size_bytes

    @property
    def fold(self) -> Fold:
        """The state of the dialect at ``seq``."""
        return self._fold

    def begin(self) -> list[bytes]:
        """Return the frames before the first event, the first time; later none."""
        if self._has_begun:
            return []
        self._has_begun = True
        return list(self._fold.begin())

    def translate(self, piece: Slice) -> list[bytes]:
        """Return the frames that the next events of the log add."""
        assert piece.first_seq == self.seq + 1, f"There is a gap after event {self.seq}."
        frames = [] if self._has_begun else self.begin()
        fold, decoder = self._fold, self._decoder
        is_one = piece.first_seq == piece.last_seq  # As most slices of a live run are.
        for frame in [piece.frames] if is_one else split_frames(piece.frames):
            text = decoder.piece(frame)
            if text is None:
                frames.extend(fold.add(decoder.event(frame)))
            elif further := fold.add_piece(text):
                frames.append(further)
        self.seq = piece.last_seq
        return frames
