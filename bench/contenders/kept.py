"""A data directory with many runs: copies of the rows of a server's own runs, under new ids.

A server takes milliseconds for a run, and a copy takes a tenth of one. The copies are in the order,
the sizes and the tables of real runs, so a server finds, reads and adds to them as to its own.
"""

import re
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from bench.measuring.load import SpoiledError
from reattach.domain import ids

FOLD_SECONDS: Final = 20.0
"""The longest that a server takes to move its ended runs out of the journal of the log."""

_MADE: Final[Mapping[tuple[str, str], Callable[[], str]]] = {
    ("conversations", "id"): ids.new_conversation_id,
    ("runs", "id"): ids.new_run_id,
    ("run_otids", "otid"): ids.new_rising_uuid,
    ("messages", "id"): ids.new_message_id,
    ("steps", "id"): ids.new_step_id,
}
"""The columns of ids, and how a server makes them."""

_IN_CONVERSATIONS: Final = "thread_key LIKE 'conv-%'"
_TABLES: Final = {
    "conversations": "1",
    "messages": f"id IN (SELECT message_id FROM thread_messages WHERE {_IN_CONVERSATIONS})",
    "thread_messages": _IN_CONVERSATIONS,
    "runs": "1",
    "steps": "1",
    "run_otids": "1",
    "run_timelines": "1",
}
"""The tables of the records with rows for each run, and which rows are those of conversations."""

_UUID: Final = re.compile(ids.UUID4)
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}")
_STEM_CHARS: Final = 34
"""The characters of a UUID without its last byte, which numbers a part of a message in OTIDs."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one table, in the order in which they were written."""

    table: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def column(self, name: str) -> list[Any]:
        at = self.columns.index(name)
        return [row[at] for row in self.rows]


@dataclass(frozen=True, slots=True)
class _Copy:
    """The changes of one copy: the new stems of ids, and the time by which it is older."""

    stems: Mapping[str, str]
    older: timedelta

    def of(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return self._with_new_ids(value.decode("latin-1")).encode("latin-1")
        if not isinstance(value, str):
            return value
        if _MOMENT.fullmatch(value):
            return (datetime.fromisoformat(value) - self.older).isoformat(" ", "microseconds")
        return self._with_new_ids(value)

    def _with_new_ids(self, text: str) -> str:
        return _UUID.sub(lambda found: self._new_id(found[0]), text)

    def _new_id(self, old: str) -> str:
        stem = old[:_STEM_CHARS]
        return self.stems.get(stem, stem) + old[_STEM_CHARS:]


def wait_until_folded(directory: Path, runs: int) -> None:
    """Wait until a server has moved so many ended runs out of the journal of its log.

    Raises:
        SpoiledError: That takes longer than FOLD_SECONDS.
    """
    deadline = time.monotonic() + FOLD_SECONDS
    with closing(sqlite3.connect(directory / "events.db")) as events:
        while True:
            (folded,) = events.execute("SELECT count(*) FROM log_run WHERE closed").fetchone()
            if folded == runs:
                return
            if time.monotonic() > deadline:
                raise SpoiledError(f"{folded} of {runs} runs are folded after {FOLD_SECONDS} s")
            time.sleep(0.05)


def copy_runs(directory: Path, runs: int) -> None:
    """Copy the runs of a stopped server again and again until it has so many, or a few more."""
    with (
        closing(sqlite3.connect(directory / "records.db")) as records,
        closing(sqlite3.connect(directory / "events.db")) as events,
    ):
        for connection in (records, events):
            # Nothing of this needs to survive a crash, and the pages of all indexes fit.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA cache_size = -262144")
        of_records = [_rows(records, name, where) for name, where in _TABLES.items()]
        of_log = [_rows(events, name, "1") for name in ("log_run", "log_chunk")]
        moments = _moments(of_records)
        span = max(moments) - min(moments) + timedelta(milliseconds=1)
        copies = max(-(-runs // len(moments)) - 1, 0)
        for number in range(1, copies + 1):
            copy = _Copy(_new_stems(of_records), span * (copies + 1 - number))
            with records, events:
                _write(records, of_records, copy, 0)
                _write(events, of_log, copy, number * len(moments))
        for connection in (records, events):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _rows(connection: sqlite3.Connection, table: str, where: str) -> _Rows:
    columns = [str(column[1]) for column in connection.execute(f"PRAGMA table_info({table})")]
    # New rows get their own of these numbers, as the rows of later runs do.
    own = next((name for name in ("ordinal", "id") if name in columns[:1]), "")
    kept = [name for name in columns if name != own]
    listed = ", ".join(f'"{name}"' for name in kept)
    rows = connection.execute(f"SELECT {listed} FROM {table} WHERE {where} ORDER BY rowid")
    return _Rows(table, kept, rows.fetchall())


def _moments(tables: Sequence[_Rows]) -> list[datetime]:
    runs = next(rows for rows in tables if rows.table == "runs")
    return [datetime.fromisoformat(text) for text in runs.column("created_at")]


def _new_stems(tables: Sequence[_Rows]) -> dict[str, str]:
    """Make new ids, as a server does, and return their stems by those of the old ones."""
    stems = {}
    for rows in tables:
        for (table, column), make in _MADE.items():
            if table == rows.table:
                for old in rows.column(column):
                    stems[_stem(old)] = _stem(make())
    return stems


def _stem(text: str) -> str:
    found = _UUID.search(text)
    if found is None:
        raise SpoiledError(f"{text} is no id of this server")
    return found[0][:_STEM_CHARS]


def _write(
    connection: sqlite3.Connection, tables: Sequence[_Rows], copy: _Copy, numbers: int
) -> None:
    """Insert the copied rows. ``numbers`` is added to the numbers of runs in the log."""
    for rows in tables:
        listed = ", ".join(f'"{name}"' for name in rows.columns)
        places = ", ".join("?" * len(rows.columns))
        at = rows.columns.index("number") if "number" in rows.columns else -1
        values = [
            [
                value + numbers if column == at else copy.of(value)
                for column, value in enumerate(row)
            ]
            for row in rows.rows
        ]
        connection.executemany(f"INSERT INTO {rows.table} ({listed}) VALUES ({places})", values)
