"""The output of a run, written in three forms at once: events, the log's frames, and messages."""

from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Final

from reattach.domain.clock import Clock
from reattach.domain.errors import LimitExceededError
from reattach.domain.events import Event
from reattach.domain.limits import DELTA_BYTES, RUN_LOG_BYTES
from reattach.domain.messages import TextPart, part_chars
from reattach.engine.base import Compacted, Delta
from reattach.log.base import RunWriter
from reattach.log.commit_times import CommitTimes, encode_stretch
from reattach.records.base import LogSummary
from reattach.records.runs.hidden_events import HiddenEvent
from reattach.runs.attempts.continuation import Continuation
from reattach.runs.attempts.record import OwnedRun
from reattach.runs.machine import RunMachine
from reattach.runs.representation import Representation
from reattach.runs.transcript import Transcript
from reattach.wire.letta import Encoder, encode, message_type

MAX_UNSAVED_EVENTS: Final = 64
"""The number of hidden events in a row that are kept together."""


class RunOutput:
    """The machine of a run, its log and its transcript, in step with each other.

    The log does not get events of the types that the sender hides; the record keeps them. It has
    them before the log gets a later event, so that both together are the run at any moment.
    ``transcript`` has the events of earlier attempts. Call ``use`` before anything is put.

    Raises, from every method that waits:
        FencedError: The run has another owner.
        StoreUnavailableError: A store does not answer.
    """

    def __init__(
        self,
        record: OwnedRun,
        representation: Representation,
        clock: Clock,
        transcript: Transcript | None = None,
    ) -> None:
        self.machine = RunMachine(clock, stream_tokens=representation.stream_tokens)
        self.transcript = transcript or Transcript()
        self.writer: RunWriter
        self.commit_times = CommitTimes(clock)
        self._record = record
        self._stream_tokens = representation.stream_tokens
        self._hidden_types = representation.hidden_types
        self._shows_texts = "assistant_message" not in self._hidden_types
        self._clock = clock
        self._encoder = Encoder(record.run.id)
        self._held_bytes = 0
        """An estimate of the deltas so far, which pile up in memory without token streaming. Texts
        that the log has as they are count by its size."""
        self._unsaved: list[HiddenEvent] = []
        """Hidden events that the record does not have yet."""

    def use(self, writer: RunWriter) -> None:
        """Write to this log from now on."""
        self.writer = writer
        self.commit_times.begin(writer.last_seq)
        writer.commit_times = self.commit_times

    def log_summary(self) -> LogSummary:
        """Return the facts about the log that its record keeps."""
        writer, stretch = self.writer, self.commit_times.stretch()
        return LogSummary(
            event_count=writer.last_seq + 1 - writer.head.first_seq,
            size_bytes=writer.logged_bytes,
            first_event_at=writer.first_event_at,
            commits=None if stretch is None else encode_stretch(stretch),
        )

    def put_delta(self, delta: Delta) -> Awaitable[None] | None:
        """Put the events of a delta of the engine; return what must be awaited for that, if any.

        Raises:
            LimitExceededError: The log is full, or the answer is too large for memory.
        """
        if type(delta) is TextPart and self._shows_texts and not self._unsaved:
            place = self.machine.place_of_more(delta.text)
            if place is not None:  # Most deltas.
                writer = self.writer
                writer.put_one(self._encoder.text(place, writer.last_seq + 1, delta.text))
                self.transcript.add_piece(place, delta)
                return None
        self._held_bytes += _size_bytes(delta)
        if self._held_bytes > RUN_LOG_BYTES:
            raise LimitExceededError(
                f"The answer exceeds {RUN_LOG_BYTES} bytes, the most that a run may hold."
            )
        return self.put(self.machine.on_delta(delta))

    async def put(self, events: Sequence[Event]) -> None:
        """Add the events to the transcript, and queue the visible ones for the log.

        Raises:
            LimitExceededError: The log is full. The transcript is not ahead of it.
        """
        if not self._unsaved and not any(map(self._is_hidden, events)):
            self._put_visible(events)
            return
        for event in events:
            if self._is_hidden(event):
                await self._hide(event)
            else:
                await self._save()
                self._put_visible([event])

    async def flush(self) -> None:
        """Return when the log and the record have everything that was put."""
        await self._save()
        await self.writer.flush()

    async def close(self, terminal: Sequence[Event]) -> None:
        """Append everything that is pending and ``terminal``, and close the log.

        ``terminal`` may begin with output that the end of the run completed.
        """
        visible = [event for event in terminal if not self._is_hidden(event)]
        for event in terminal:
            if self._is_hidden(event):
                await self._hide(event)
        await self._save()
        self._add(visible)
        await self.writer.close(self._frames(visible))

    async def go_on(self, continuation: Continuation) -> None:
        """Continue after an interruption. Output that was not put before is dropped."""
        progress, before = continuation.progress, self.machine.open_step
        if progress.step is not None and before is not None and before.id == progress.step.id:
            progress = replace(progress, step=before)  # It knows the usage so far.
        self.machine = RunMachine(self._clock, stream_tokens=self._stream_tokens, progress=progress)
        for returned in continuation.returns:
            await self.put(self.machine.on_delta(returned))
        if continuation.closes_step:
            self.machine.close_step()
        await self.flush()

    def _put_visible(self, events: Sequence[Event]) -> None:
        writer = self.writer
        writer.put(self._encoder.frames(events, after_seq=writer.last_seq))
        for event in events:
            self.transcript.add(event)

    async def _hide(self, event: Event) -> None:
        after_seq = self.writer.last_seq
        frame = encode(event, after_seq, self._record.run.id).decode()
        self._unsaved.append(HiddenEvent(after_seq, frame))
        self._add([event])
        if len(self._unsaved) >= MAX_UNSAVED_EVENTS:
            await self._save()

    async def _save(self) -> None:
        """Keep the hidden events, once the log has the visible ones before them."""
        if self._unsaved:
            await self.writer.flush()
            await self._record.keep_hidden(self._unsaved)
            self._unsaved = []

    def _is_hidden(self, event: Event) -> bool:
        return message_type(event) in self._hidden_types

    def _add(self, events: Sequence[Event]) -> None:
        for event in events:
            self.transcript.add(event)

    def _frames(self, visible: Sequence[Event]) -> list[bytes]:
        """Return the frames of the events for the log's next seqs."""
        return self._encoder.frames(visible, after_seq=self.writer.last_seq)


def _size_bytes(delta: Delta) -> int:
    """Estimate the memory of a delta."""
    if isinstance(delta, TextPart):  # Most deltas.
        return DELTA_BYTES + len(delta.text)
    return DELTA_BYTES + part_chars(delta.summary if isinstance(delta, Compacted) else delta)
