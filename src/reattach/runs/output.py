"""The output of a run, written in three forms at once: events, the log's frames, and messages."""

from collections.abc import Sequence
from dataclasses import replace

from reattach.domain.clock import Clock
from reattach.domain.events import Event
from reattach.log.base import RunWriter
from reattach.records.runs.hidden_events import HiddenEvent
from reattach.runs.attempts.continuation import Continuation
from reattach.runs.machine import RunMachine
from reattach.runs.representation import Representation
from reattach.runs.transcript import Transcript
from reattach.wire.letta import Encoder, encode, message_type


class RunOutput:
    """The machine of a run, its log and its transcript, in step with each other.

    ``transcript`` has the events of earlier attempts. Set ``writer`` before anything is put.
    """

    def __init__(
        self,
        run_id: str,
        representation: Representation,
        clock: Clock,
        transcript: Transcript | None = None,
    ) -> None:
        self.machine = RunMachine(clock, stream_tokens=representation.stream_tokens)
        self.transcript = transcript or Transcript()
        self.writer: RunWriter
        self._stream_tokens = representation.stream_tokens
        self._hidden_types = representation.hidden_types
        self._clock = clock
        self._run_id = run_id
        self._encoder = Encoder(run_id)
        self.unsaved: list[HiddenEvent] = []
        """Hidden events that the records do not have yet. The log must not get ahead of them."""

    def put(self, events: Sequence[Event]) -> None:
        """Queue visible events for the log, and add them to the transcript.

        Raises:
            LimitExceededError: The log is full. The transcript is not ahead of it.
        """
        self.writer.put(self._frames(events))
        self.record(events)

    def is_hidden(self, event: Event) -> bool:
        """Whether the log does not get the event."""
        return message_type(event) in self._hidden_types

    def hide(self, event: Event) -> None:
        """Add a hidden event to the transcript and to ``unsaved``."""
        after_seq = self.writer.last_seq
        frame = encode(event, after_seq, self._run_id).decode()
        self.unsaved.append(HiddenEvent(after_seq, frame))
        self.record([event])

    async def close(self, terminal: Sequence[Event]) -> None:
        """Append everything that is pending and the terminal group, and close the log."""
        self.record(terminal)
        await self.writer.close(self._frames(terminal))

    def record(self, events: Sequence[Event]) -> None:
        for event in events:
            self.transcript.add(event)

    def go_on(self, continuation: Continuation) -> list[Event]:
        """Continue after an interruption, and return the events to put first.

        Output that was not put before is dropped.
        """
        progress, before = continuation.progress, self.machine.open_step
        if progress.step is not None and before is not None and before.id == progress.step.id:
            progress = replace(progress, step=before)  # It knows the usage so far.
        self.machine = RunMachine(self._clock, stream_tokens=self._stream_tokens, progress=progress)
        returned = [self.machine.on_delta(one) for one in continuation.returns]
        if continuation.closes_step:
            self.machine.close_step()
        return [event for events in returned for event in events]

    def _frames(self, events: Sequence[Event]) -> list[bytes]:
        """Return the frames of the visible events for the log's next seqs."""
        visible = [one for one in events if not self.is_hidden(one)]
        return self._encoder.frames(visible, after_seq=self.writer.last_seq)
