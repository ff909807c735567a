"""Errors of stores that lost or damaged what they held, or do not say whether they have it.

They continue the tree of ``errors``, which says how errors are written.
"""

from reattach.domain.errors import ExpiredError, StoreUnavailableError


class EventsLostError(ExpiredError):
    """The store lost events that were written, those before ``earliest_seq`` or all of them."""

    code = "events_lost"

    def __init__(self, run_id: str, earliest_seq: int | None = None) -> None:
        more = (
            ""
            if earliest_seq is None
            else f" Resume with starting_after={earliest_seq - 1} to get the end of the run."
        )
        super().__init__("", earliest_seq=earliest_seq)
        self.detail = (
            f"LOST: The store of the event log lost events of {run_id} that were written.{more} "
            "The messages that were kept are in the conversation; read them there."
        )
        self.args = (self.detail,)


class CommitUnknownError(StoreUnavailableError):
    """A commit was not confirmed: it may have happened, or may happen later."""


class LogDamagedError(StoreUnavailableError):
    """Events that the log should have cannot be read from its store, now or later."""

    code = "log_damaged"
