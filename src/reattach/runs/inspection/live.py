"""Figures of open runs and their readers, from the reports of all processes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reattach.domain.ids import RunId
from reattach.runs.following.readers import Reader
from reattach.runs.reports.report import OpenRunReport, ProcessReport


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """The present state of open runs, as far as the reports list them."""

    runs: Mapping[RunId, OpenRunReport]
    readers: Mapping[RunId, int]
    """The number of readers of each run that has any, in all processes."""
    workers: Mapping[str, int | None]
    """The slot of each process among those that share its port, by its id as an owner."""
    listed_readers: Sequence[tuple[str, Reader]]
    """Readers with the process that serves each."""

    @classmethod
    def of(cls, reports: Sequence[ProcessReport]) -> "LiveFigures":
        """Return the figures of the reports."""
        readers: Counter[RunId] = Counter()
        for report in reports:
            counted = {run.run_id: run.readers for run in report.runs}
            listed = Counter(reader.run_id for reader in report.readers)
            for run_id in counted.keys() | listed.keys():
                readers[run_id] += max(counted.get(run_id, 0), listed[run_id])
        return cls(
            {run.run_id: run for report in reports for run in report.runs},
            readers,
            {report.id: report.worker for report in reports},
            [(report.id, reader) for report in reports for reader in report.readers],
        )
