"""The bytes of runs as Reattach sends them, the same for every server."""

import re
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from reattach.domain.events import Event, Output, Place, Stopped, StopReason, Usage
from reattach.domain.ids import Seq, new_message_id, new_run_id, new_step_id
from reattach.domain.messages import TextPart
from reattach.wire import letta
from reattach.wire.sse import DONE, split_frames

TERMINAL_EVENTS = 2
"""The terminal group has a stop reason and a usage."""

UNSTAMPED = "0 0 "


def stamped(due_ns: int) -> str:
    """Write the text of an event: the times when it was due and when it was yielded."""
    return f"{due_ns} {time.monotonic_ns()} "


class FrameMaker:
    """Encodes the frames of one run in order. A text event has 350 to 390 bytes."""

    def __init__(self) -> None:
        self._run_id = new_run_id()
        self._place = Place(new_message_id(), new_step_id(), 0, datetime.now(UTC))
        self.last_seq = 0

    def text(self, content: str = UNSTAMPED) -> bytes:
        return self._next(Output(self._place, (TextPart(content),)))

    def terminal(self) -> bytes:
        """Encode the two frames of the terminal group."""
        return self._next(Stopped(StopReason.END_TURN)) + self._next(Usage(step_count=1))

    def _next(self, event: Event) -> bytes:
        self.last_seq += 1
        return letta.encode(event, Seq(self.last_seq), self._run_id)


@dataclass(frozen=True, slots=True)
class EndedRun:
    """All frames of a run as one body with ``[DONE]``, and the end offset of each event."""

    frames: bytes
    ends: "array[int]"

    def begin_after(self, cursor: int) -> int:
        return self.ends[min(cursor, len(self.ends)) - 1] if cursor else 0


def ended_frames(events: int) -> list[bytes]:
    """Encode a run of this many text events and a terminal group."""
    maker = FrameMaker()
    return [*(maker.text() for _ in range(events)), *split_frames(maker.terminal())]


def ended_run(events: int) -> EndedRun:
    frames = ended_frames(events)
    ends, end = array("Q"), 0
    for frame in frames:
        end += len(frame)
        ends.append(end)
    return EndedRun(b"".join(frames) + DONE, ends)


def templates() -> Mapping[str, str]:
    """Encode templates of frames for other languages, which replace SEQ and TEXT."""
    text, *terminal = [frame.decode() for frame in ended_frames(1)]
    pattern = re.compile(r'"seq_id":\d+')
    frames = [pattern.sub('"seq_id":SEQ', frame) for frame in (text, *terminal)]
    return {
        "text": frames[0].replace('"content":"0 0 "', '"content":"TEXT"'),
        "terminal": "".join(frames[1:]),
    }
