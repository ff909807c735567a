"""A new run, with the context of its thread that its admission has read."""

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Connection

from reattach.domain.approvals import PendingApproval
from reattach.records import threads
from reattach.records.base import Run, RunKnown, Thread
from reattach.records.contexts.contexts import CachedContext, Contexts, ThreadContext
from reattach.records.database.prepared import Steps


@dataclass(frozen=True, slots=True)
class RunCreated:
    run: Run
    context: ThreadContext | None = field(default=None, compare=False)
    """The context of its thread, unless it is long: see ``Messages.context``."""


class AdmittedContext:
    """Reads the context of a thread in the transaction that admits a run, unless it is long.

    Once the run is admitted, no other one can add to the thread.
    """

    def __init__(self, contexts: Contexts, thread: Thread) -> None:
        self._contexts = contexts
        self._thread = thread
        self._cached = contexts.get(thread.key)
        self._has_read = False
        self._found: tuple[ThreadContext, CachedContext | None] | None = None

    def admit(
        self, connection: Connection, admit: Callable[[Connection], Steps[RunCreated | RunKnown]]
    ) -> Steps[RunCreated | RunKnown]:
        """Call ``admit`` and return its result; read the context if it has created the run."""
        self._has_read = False
        outcome = yield from admit(connection)
        if isinstance(outcome, RunCreated):
            yield from self.read(connection)
        return outcome

    def read(self, connection: Connection) -> Steps[None]:
        """Read the context if that takes few messages and was not done in this transaction."""
        if not self._has_read:
            self._found = yield from threads.context(
                connection, self._thread, self._cached, in_one_piece=True
            )
            self._has_read = True

    def pending(self, connection: Connection) -> Steps[PendingApproval | None]:
        """Return the approval request without an answer of the thread, whose run is admitted."""
        yield from self.read(connection)
        context = None if self._found is None else self._found[0]
        return (yield from threads.pending_after(connection, self._thread, context))

    def added_to(self, outcome: RunCreated | RunKnown) -> RunCreated | RunKnown:
        """Return the outcome of the committed transaction with the context, if that was read."""
        if isinstance(outcome, RunKnown) or self._found is None:
            return outcome
        context, kept = self._found
        self._contexts.put(self._thread.key, kept)
        return RunCreated(outcome.run, context)
