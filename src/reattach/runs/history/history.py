"""Facts about the runs of a process that are kept beside their events."""

from reattach.domain.clock import Clock
from reattach.records.records import Records
from reattach.runs.following.readers import Readers
from reattach.runs.history.cut_offs import CutOffs
from reattach.runs.history.timelines import Timelines
from reattach.runs.open_runs import OpenRuns
from reattach.runs.ownership.lease import Ownership


class History:
    """When events came, and who was cut off."""

    def __init__(
        self,
        records: Records,
        readers: Readers,
        open_runs: OpenRuns,
        ownership: Ownership,
        clock: Clock,
    ) -> None:
        self.timelines = Timelines(records, open_runs.drivers)
        self.cut_offs = CutOffs(records, readers, ownership, clock)
