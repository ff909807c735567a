"""Reading the state of a SQLite log when its file is opened."""

import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import structlog

from reattach.domain.errors import StartupError
from reattach.log.sqlite import journal, tables
from reattach.log.sqlite.journal import Change, Create, Delete, unpack
from reattach.log.sqlite.run_state import RunState
from reattach.log.tail import Tail

logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class RecoveredState:
    """The runs that are open or not yet folded, and the extent of the journal."""

    runs: dict[int, RunState] = field(default_factory=dict)
    next_number: int = 1
    first_row: int = 1
    row_sizes: list[int] = field(default_factory=list)
    """The sizes of consecutive rows in bytes."""


def recover(connection: sqlite3.Connection, *, after_power_cut: bool = False) -> RecoveredState:
    """Replay the journal over the folded runs and return the result.

    The file is only read, except with ``after_power_cut``: then a mark is written by which this and
    every later start treats the tails of the runs that are open now as uncertain, until they end.
    """
    found = RecoveredState(next_number=tables.highest_number(connection) + 1)
    for stored in tables.open_runs(connection):
        run = RunState.from_stored(stored)  # Its chunks are read on demand.
        found.runs[run.number] = run
    for row, batch in journal.rows(connection):
        if not found.row_sizes:
            found.first_row = row
        lost_rows = row - found.first_row - len(found.row_sizes)
        found.row_sizes += [0] * lost_rows + [len(batch)]
        for change in _readable_changes(row, batch):
            found.next_number = max(found.next_number, change.number + 1)
            _replay(connection, found.runs, row, change)
    if after_power_cut:
        tables.mark_uncertain(connection, found.next_number)
    uncertain_before = tables.uncertain_before(connection)
    for run in found.runs.values():
        run.revert()
        run.tail_uncertain = run.number < uncertain_before and not run.tail.closed
    return found


def _readable_changes(row: int, batch: bytes) -> Iterator[Change]:
    """Yield the changes of a row up to the first damaged one.

    The missing changes are gaps in the logs of some runs, which continue after them.
    """
    try:
        yield from unpack(batch)
    except (StartupError, struct.error, ValueError) as error:
        logger.error("event log row damaged", row=row, reason=str(error))  # noqa: TRY400


def _replay(
    connection: sqlite3.Connection, runs: dict[int, RunState], row: int, change: Change
) -> None:
    if isinstance(change, Delete):
        runs.pop(change.number, None)
        return
    run = runs.get(change.number)
    if run is None:
        stored = tables.run_by_number(connection, change.number)
        if stored is not None:
            run = RunState.from_stored(stored)
        elif isinstance(change, Create):
            run = RunState(change.number, change.run_id, change.token, Tail(change.first_seq))
        else:
            return  # A later change deletes the run, or its row is damaged and it is lost.
        runs[change.number] = run
    if run.apply(change):
        run.note_row(row)
