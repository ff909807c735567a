"""Errors of a store that lost or damaged data, or did not confirm a write.

They continue the tree of ``errors``, which says how errors are written.
"""

from reattach.domain.errors import ExpiredError, StoreUnavailableError
from reattach.domain.ids import Seq


class EventsLostError(ExpiredError):
    """The store lost written events: those before ``earliest_seq``, or all of them."""

    code = "events_lost"
    prefix = "LOST: "

    def __init__(self, run_id: str, earliest_seq: Seq | None = None) -> None:
        resume = (
            ""
            if earliest_seq is None
            else f"Resume with starting_after={earliest_seq - 1} to get the end of the run. "
        )
        super().__init__(
            f"The store of the event log lost written events of {run_id}.",
            remedy=f"{resume}Read the messages that were saved from the conversation.",
            earliest_seq=earliest_seq,
        )


class CommitUnknownError(StoreUnavailableError):
    """A commit was not confirmed: it may have happened, or may still happen."""


class LogDamagedError(StoreUnavailableError):
    """The store holds a log whose events cannot be read, now or later."""

    code = "log_damaged"
