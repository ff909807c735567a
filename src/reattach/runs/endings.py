"""The reasons for ending a run from outside, with the errors that its readers get."""

from dataclasses import dataclass

from reattach.domain.events import Event, Failed, Stopped, StopReason, Usage


@dataclass(frozen=True, slots=True)
class Ending:
    """A reason for ending a run from outside."""

    reason: StopReason
    failure: Failed | None = None

    def terminal_group(self, usage: Usage) -> list[Event]:
        """Return the last events of a run that ends so."""
        failed = () if self.failure is None else (self.failure,)
        return [Stopped(self.reason), *failed, usage]


CANCELLED = Ending(StopReason.CANCELLED)
DRAINED = Ending(
    StopReason.ERROR,
    Failed(
        "stream_task_cancelled",
        "The server was stopped before the run was done. "
        "Send the message again, with a new OTID, to continue.",
        None,
    ),
)
OWNER_DIED = Ending(
    StopReason.ERROR,
    Failed(
        "stream_incomplete",
        "The server process that drove the run died. Its output until then is kept; "
        "send the message again, with a new OTID, to continue.",
        None,
    ),
)
STORE_FAILED = Ending(
    StopReason.ERROR,
    Failed(
        "internal_error",
        "The server could not write the events of the run. The events until then are kept; "
        "send the message again, with a new OTID, to continue.",
        None,
    ),
)
POWER_LOST = Ending(
    StopReason.ERROR,
    Failed(
        "stream_incomplete",
        "The machine that drove the run stopped, and the last events of the run may be lost. "
        "The conversation keeps the rest; send the message again, with a new OTID, to continue.",
        None,
    ),
)
LOG_LOST = Ending(
    StopReason.ERROR,
    Failed(
        "internal_error",
        "The store lost written events of the run. Events that were read stay valid but "
        "cannot be read again; send the message again, with a new OTID, to continue.",
        None,
    ),
)
UNREADABLE = Ending(
    StopReason.ERROR,
    Failed(
        "internal_error",
        "The end of the run cannot be read. The conversation keeps the part that can be read; send "
        "the message again, with a new OTID, to continue.",
        None,
    ),
)
