"""Why runs are ended from outside, and what their readers are told."""

from dataclasses import dataclass

from reattach.domain.events import Failed, StopReason


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a run is ended from outside."""

    reason: StopReason
    failure: Failed | None = None


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
        "The server process that worked on the run died. What it had produced is kept; "
        "send the message again, with a new OTID, to continue.",
        None,
    ),
)
STORE_FAILED = Ending(
    StopReason.ERROR,
    Failed(
        "internal_error",
        "The server could not write the events of the run. What it had written is kept; "
        "send the message again, with a new OTID, to continue.",
        None,
    ),
)
POWER_LOST = Ending(
    StopReason.ERROR,
    Failed(
        "stream_incomplete",
        "The machine that worked on the run stopped, and the last events of the run may be lost. "
        "The conversation keeps the rest; send the message again, with a new OTID, to continue.",
        None,
    ),
)
LOG_LOST = Ending(
    StopReason.ERROR,
    Failed(
        "internal_error",
        "The store lost events of the run that were written. What was read of it stays true, and "
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
