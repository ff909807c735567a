"""The bounds of continuing a run, so that a run that kills its server does not do so for ever."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from reattach.records.base import Attempt, Run


class Interruption(StrEnum):
    """Why an attempt ended before the run."""

    CRASH = "crash"
    """Its owner died, lost its lease, or could not write any more."""
    HANDOVER = "handover"
    """Its owner was being stopped and gave the run up."""
    PROVIDER = "provider"
    """The provider's stream broke, or the provider refused for now."""


@dataclass(frozen=True, slots=True)
class ContinuePolicy:
    """When interrupted runs are continued (P19)."""

    enabled: bool = True
    max_interruptions: int = 5
    """The most without a finished step in between; handovers do not count."""
    max_silent: int = 2
    """The most in a row without any event in between; handovers do not count."""
    max_silent_breaks: int = 3
    """The same for broken streams of a provider."""
    within_seconds: float = 600.0
    """A run that was interrupted longer ago is not continued."""
    may_ask: bool = False
    """Whether a model that cannot continue its text is asked to."""

    def allows(
        self,
        run: Run,
        interruption: Interruption,
        *,
        last_seq: int,
        finished_steps: int,
        now: datetime,
    ) -> bool:
        """Return whether the run may be continued after this interruption.

        ``last_seq`` is the newest event of its log, ``finished_steps`` the number of its finished
        steps.
        """
        if not self.enabled:
            return False
        if run.interrupted_at is not None:
            # An owner notes only now and then that it lives.
            worked_at = [
                run.interrupted_at,
                run.created_at,
                *(one.began_at for one in run.attempts),
            ]
            if (now - max(worked_at)).total_seconds() > self.within_seconds:
                return False
        counted = list(_counted(run.attempts, interruption, last_seq, finished_steps))
        most_silent = self.max_silent
        if interruption is Interruption.PROVIDER:
            most_silent = self.max_silent_breaks
        silent = 0
        for one in reversed(counted):
            if not one.is_silent or one.is_provider is not (interruption is Interruption.PROVIDER):
                break
            silent += 1
        without_progress = 0
        for one in reversed(counted):
            without_progress += 1
            if one.has_progress:
                break
        return silent <= most_silent and without_progress <= self.max_interruptions

    def is_suspect(self, run: Run) -> bool:
        """Whether an interrupted run may have killed its owners: two of them died in a row."""
        if not self.enabled or run.notes.handed_over or not run.attempts:
            return False
        return run.attempts[-1].interruption == Interruption.CRASH


CONTINUES = ContinuePolicy()


@dataclass(frozen=True, slots=True)
class _Interrupted:
    is_provider: bool
    """Whether the stream of the provider broke."""
    is_silent: bool
    """Whether the attempt logged nothing."""
    has_progress: bool
    """Whether the attempt finished a step."""


def _counted(
    attempts: Sequence[Attempt], interruption: Interruption, last_seq: int, finished_steps: int
) -> Sequence[_Interrupted]:
    """Return the interruptions of the run that count, the newest last."""
    # An attempt says how the one before it ended, and the first one has no entry.
    starts = [(1, 0), *((one.first_seq, one.finished_steps) for one in attempts)]
    ends = [
        *((one.interruption, one.after_seq, one.finished_steps) for one in attempts),
        (interruption.value, last_seq, finished_steps),
    ]
    return [
        _Interrupted(why == Interruption.PROVIDER, after_seq < first_seq, steps > steps_before)
        for (first_seq, steps_before), (why, after_seq, steps) in zip(starts, ends, strict=True)
        if why != Interruption.HANDOVER
    ]
