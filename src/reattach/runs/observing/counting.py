"""Counts of runs and their attempts, for the metrics."""

from typing_extensions import override

from reattach.meters.meters import Meters
from reattach.records.base import Run, Settlement
from reattach.runs.observing.observer import ObservedAttempt, RunObserver, Takeover


class RunCounts(RunObserver):
    """Counts the runs of a process in its meters."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters

    @override
    def run_ended(self, run: Run, settlement: Settlement) -> None:
        meters = self._meters
        model = meters.model_label(run.model)
        meters.runs_ended.add(settlement.status.value, model)
        lasted = settlement.completed_at - run.created_at
        meters.run_duration.of(model).observe(max(lasted.total_seconds(), 0.0))

    @override
    def run_taken_over(self, takeover: Takeover) -> None:
        self._meters.takeovers.add("continued" if takeover.continues else "ended")

    @override
    def attempt_began(self, attempt: ObservedAttempt) -> None:
        if attempt.interruption is not None and attempt.way is not None:
            self._meters.continuations.add(attempt.interruption.value, attempt.way)

    @override
    def first_output(self, attempt: ObservedAttempt, seconds: float) -> None:
        model = self._meters.model_label(attempt.run.model)
        self._meters.time_to_first_event.of(model).observe(seconds)
