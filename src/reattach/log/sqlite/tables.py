"""The tables of the SQLite log, and the SQL statements on those of folded runs.

The journal (``journal.py``) has the most recent changes of all runs, in order. The other tables
have the folded runs: one row per run, and its frames in chunks. Functions take a connection, leave
transactions to the caller, and may run in any thread.
"""

import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import structlog

from reattach.domain.errors import StartupError
from reattach.domain.ids import Seq, Token
from reattach.log.frames import pack_numbers, unpack_numbers
from reattach.log.sqlite.journal import HIGHEST_NUMBER, HIGHEST_SEQ
from reattach.log.tail import Slice, Tail

logger = structlog.get_logger(__name__)

Durability = Literal["process", "power"]
Connect = Callable[[str], sqlite3.Connection]

BUSY_TIMEOUT_SECONDS: Final = 5.0
"""The wait for another connection's write transaction, which takes milliseconds."""

TRUNCATE_WAIT_SECONDS: Final = 0.05
"""The wait for readers when the WAL is emptied. They take milliseconds."""

LAYOUT: Final = 1
_ALL: Final = 2**63 - 1
SWEEP_CHUNKS: Final = 16
"""Chunks deleted per transaction: about a millisecond of work at 64 KiB each."""

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS log_meta (
    key TEXT PRIMARY KEY, value INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS log_journal (
    id INTEGER PRIMARY KEY, batch BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS log_run (
    number INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, token INTEGER NOT NULL,
    first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, closed INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS log_run_open ON log_run (number) WHERE closed = 0;
CREATE TABLE IF NOT EXISTS log_chunk (
    id INTEGER PRIMARY KEY, number INTEGER NOT NULL, first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL, ends BLOB NOT NULL, frames BLOB NOT NULL,
    UNIQUE (number, first_seq)
);
CREATE TABLE IF NOT EXISTS log_garbage (
    number INTEGER PRIMARY KEY, before_seq INTEGER NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run's row: its state up to the last fold."""

    number: int
    run_id: str
    token: Token
    first_seq: Seq
    last_seq: Seq
    closed: bool


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive frames of one run, joined. ``ends`` are offsets into ``frames``."""

    first_seq: Seq
    last_seq: Seq
    ends: "array[int]"
    frames: bytes


def default_connect(path: str) -> sqlite3.Connection:
    return sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
    )


def prepare(connection: sqlite3.Connection, durability: Durability) -> None:
    """Configure a connection.

    Automatic checkpoints are off, because ``folding`` makes them when they disturb least. Deleted
    content is overwritten, including on pages that become free.

    Raises:
        StartupError: The file does not support WAL mode.
    """
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StartupError(
            f"The event log needs SQLite's WAL mode, and its file is in mode {mode}.",
            remedy="Use a data directory on a local disk.",
        )
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("PRAGMA secure_delete = ON")
    set_synchronous(connection, durability)


def set_synchronous(connection: sqlite3.Connection, durability: Durability) -> None:
    level = "FULL" if durability == "power" else "NORMAL"
    connection.execute(f"PRAGMA synchronous = {level}")


def create(connection: sqlite3.Connection) -> None:
    """Create the missing tables.

    Raises:
        StartupError: Another version of Reattach made the tables.
    """
    for statement in _TABLES.strip().split(";\n"):
        connection.execute(statement)
    connection.execute("INSERT OR IGNORE INTO log_meta VALUES ('layout', ?)", (LAYOUT,))
    (layout,) = connection.execute("SELECT value FROM log_meta WHERE key = 'layout'").fetchone()
    if layout != LAYOUT:
        raise StartupError(
            f"The event log has layout {layout}, and this version of Reattach reads only layout "
            f"{LAYOUT}.",
            remedy="Start the version that wrote it, or use another data directory.",
        )


def mark_uncertain(connection: sqlite3.Connection, before_number: int) -> None:
    """Mark the open runs with lower numbers as having possibly lost their last events."""
    connection.execute(
        "INSERT OR REPLACE INTO log_meta VALUES ('uncertain_before', ?)", (before_number,)
    )


def uncertain_before(connection: sqlite3.Connection) -> int:
    """Return the number below which open runs may have lost their last events; 0 for none.

    If the number is damaged, every open run may have.
    """
    found = connection.execute(
        "SELECT CASE typeof(value) WHEN 'integer' THEN value END FROM log_meta"
        " WHERE key = 'uncertain_before'"
    ).fetchone()
    if found is None:
        return 0
    if found[0] is None:
        logger.warning("event log row damaged", table="log_meta", row="uncertain_before")
        return _ALL
    return int(found[0])


def checkpoint(connection: sqlite3.Connection) -> tuple[int, bool]:
    """Copy as much of the WAL into the database as possible without blocking anybody.

    Return the bytes of the WAL's content, whatever the size of its file, and whether all of it was
    copied.
    """
    (_, pages, copied) = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    return int(pages * page_bytes), copied == pages


def restart_wal(connection: sqlite3.Connection) -> bool:
    """Copy the whole WAL into the database, so that the next write begins at its start.

    Much faster than ``truncate_wal``, but the file keeps its content until that is overwritten.
    Return False if readers prevent it.
    """
    return _empty_wal(connection, "RESTART")


def truncate_wal(connection: sqlite3.Connection) -> bool:
    """Copy the whole WAL into the database and truncate it; return False if readers prevent it."""
    return _empty_wal(connection, "TRUNCATE")


def _empty_wal(connection: sqlite3.Connection, mode: Literal["RESTART", "TRUNCATE"]) -> bool:
    """Wait for readers for at most TRUNCATE_WAIT_SECONDS, because appends wait meanwhile."""
    (usual_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {int(TRUNCATE_WAIT_SECONDS * 1000)}")
    try:
        (is_busy, *_) = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {usual_ms}")
    return not is_busy


def wal_bytes(file: str) -> int:
    """Return the size of the WAL of the database ``file``."""
    try:
        return Path(f"{file}-wal").stat().st_size
    except FileNotFoundError:
        return 0


def delete_run(connection: sqlite3.Connection, number: int) -> None:
    """Delete the run's row, and mark its chunks for ``sweep``."""
    deleted = connection.execute("DELETE FROM log_run WHERE number = ?", (number,))
    if deleted.rowcount:
        connection.execute("INSERT OR REPLACE INTO log_garbage VALUES (?, ?)", (number, _ALL))


_FOLD_RUNS: Final = (
    "INSERT INTO log_run VALUES {places} ON CONFLICT (number) DO UPDATE SET"
    " run_id = excluded.run_id, token = excluded.token, first_seq = excluded.first_seq,"
    " last_seq = excluded.last_seq, closed = excluded.closed"
)
_FOLD_CHUNKS: Final = (
    "INSERT INTO log_chunk (number, first_seq, last_seq, ends, frames) VALUES {places}"
)


def fold(connection: sqlite3.Connection, runs: Sequence[tuple[StoredRun, Sequence[Chunk]]]) -> None:
    """Write the rows of runs and their new chunks.

    All rows are one statement and all chunks another, because between two statements the writer's
    thread may wait for the event loop's thread.
    """
    try:
        _insert(connection, runs)
    except sqlite3.IntegrityError:
        _make_way(connection, runs)
        _insert(connection, runs)
    for run, _ in runs:
        if run.first_seq > 1:
            connection.execute(
                "INSERT OR REPLACE INTO log_garbage SELECT ?, ? WHERE EXISTS"
                " (SELECT 1 FROM log_chunk WHERE number = ? AND last_seq < ?)",
                (run.number, run.first_seq, run.number, run.first_seq),
            )


def _insert(
    connection: sqlite3.Connection, runs: Sequence[tuple[StoredRun, Sequence[Chunk]]]
) -> None:
    connection.execute(
        _FOLD_RUNS.format(places=_places(len(runs), 6)),
        [value for run, _ in runs for value in astuple(run)],
    )
    chunks = [
        (run.number, chunk.first_seq, chunk.last_seq, pack_numbers(chunk.ends), chunk.frames)
        for run, its_chunks in runs
        for chunk in its_chunks
    ]
    if chunks:
        connection.execute(
            _FOLD_CHUNKS.format(places=_places(len(chunks), 5)),
            [value for chunk in chunks for value in chunk],
        )


def _make_way(
    connection: sqlite3.Connection, runs: Sequence[tuple[StoredRun, Sequence[Chunk]]]
) -> None:
    """Delete damaged rows that have the id of one of the runs or the place of one of the chunks."""
    for run, chunks in runs:
        others = connection.execute(
            "SELECT number FROM log_run WHERE run_id = ? AND number != ?", (run.run_id, run.number)
        ).fetchall()
        for (number,) in others:
            delete_run(connection, number)
        if chunks:
            connection.execute(
                "DELETE FROM log_chunk WHERE number = ? AND first_seq >= ?",
                (run.number, chunks[0].first_seq),
            )


def _places(rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return ", ".join([row] * rows)


def sweep(connection: sqlite3.Connection) -> bool:
    """Delete some unreachable chunks, and return whether there was anything to delete."""
    found = connection.execute("SELECT number, before_seq FROM log_garbage LIMIT 1").fetchone()
    if found is None:
        return False
    deleted = connection.execute(
        "DELETE FROM log_chunk WHERE id IN (SELECT id FROM log_chunk"
        " WHERE number = ? AND (last_seq < ? OR ?) ORDER BY first_seq LIMIT ?)",
        (*found, found[1] == _ALL, SWEEP_CHUNKS),
    )
    if deleted.rowcount < SWEEP_CHUNKS:
        connection.execute("DELETE FROM log_garbage WHERE number = ? AND before_seq = ?", found)
    return True


_RUN: Final = (
    "SELECT number, CASE typeof(run_id) WHEN 'text' THEN CAST(run_id AS BLOB) END,"
    " CASE typeof(token) WHEN 'integer' THEN token END,"
    " CASE typeof(first_seq) WHEN 'integer' THEN first_seq END,"
    " CASE typeof(last_seq) WHEN 'integer' THEN last_seq END,"
    " CASE typeof(closed) WHEN 'integer' THEN closed END FROM log_run "
)
"""Values of another type are NULL, because some of them cannot even be fetched."""


def run_by_id(connection: sqlite3.Connection, run_id: str) -> StoredRun | None:
    """Return the run, or None if it has no row or a damaged one."""
    return next(_stored_runs(connection.execute(_RUN + "WHERE run_id = ?", (run_id,))), None)


def run_by_number(connection: sqlite3.Connection, number: int) -> StoredRun | None:
    """Return the run, or None if it has no row or a damaged one."""
    return next(_stored_runs(connection.execute(_RUN + "WHERE number = ?", (number,))), None)


def number_of(connection: sqlite3.Connection, run_id: str) -> int | None:
    """Return the number of the run's row, even if other values of the row are damaged."""
    found = connection.execute(
        "SELECT number FROM log_run WHERE run_id = ? AND number BETWEEN 1 AND ?",
        (run_id, HIGHEST_NUMBER),
    ).fetchone()
    return None if found is None else int(found[0])


def open_runs(connection: sqlite3.Connection) -> list[StoredRun]:
    return list(_stored_runs(connection.execute(_RUN + "WHERE closed = 0 ORDER BY number")))


def runs_after(connection: sqlite3.Connection, *, number: int, limit: int) -> list[StoredRun]:
    """Return the runs with higher numbers than ``number``, in ascending order."""
    rows = connection.execute(_RUN + "WHERE number > ? ORDER BY number", (number,))
    try:
        return list(islice(_stored_runs(rows), limit))
    finally:
        rows.close()


def _stored_runs(rows: Iterable[tuple[Any, ...]]) -> Iterator[StoredRun]:
    """Yield the runs of ``rows``. A damaged row is logged and otherwise treated as missing."""
    for number, run_id, token, first_seq, last_seq, closed in rows:
        try:
            run = StoredRun(number, run_id.decode(), token, first_seq, last_seq, bool(closed))
            is_whole = (
                1 <= number <= HIGHEST_NUMBER
                and 0 <= token <= HIGHEST_SEQ
                and 1 <= first_seq <= last_seq + 1 <= HIGHEST_SEQ
                and closed in {0, 1}
            )
        except (AttributeError, TypeError, UnicodeDecodeError):
            is_whole = False
        if is_whole:
            yield run
        else:
            name = None if run_id is None else run_id[:100].decode(errors="replace")
            logger.warning("event log row damaged", table="log_run", row=number, run_id=name)


def highest_number(connection: sqlite3.Connection) -> int:
    """Return the highest run number in the tables of folded runs; 0 for none."""
    (number,) = connection.execute(
        "SELECT max("
        "coalesce((SELECT max(number) FROM log_run WHERE number <= :bound), 0),"
        " coalesce((SELECT max(number) FROM log_garbage WHERE number <= :bound), 0), 0)",
        {"bound": HIGHEST_NUMBER},
    ).fetchone()
    return int(number)


_CHUNK: Final = (
    "SELECT CASE typeof(first_seq) WHEN 'integer' THEN first_seq END,"
    " CASE typeof(last_seq) WHEN 'integer' THEN last_seq END,"
    " CASE typeof(ends) WHEN 'blob' THEN ends END,"
    " CASE typeof(frames) WHEN 'blob' THEN frames END"
    " FROM log_chunk WHERE number = ? AND first_seq "
)
"""Values of another type are NULL."""

_FROM: Final = (
    ">= (SELECT max(first_seq) FROM log_chunk WHERE number = ? AND first_seq <= ?)"
    " ORDER BY first_seq"
)
"""The chunk with a given frame and those after it, as the end of ``_CHUNK``."""

_ENOUGH: Final = 0.75
"""The part of its most bytes at which a chunk is a whole slice, and the next one is not read for
the few frames that would still fit."""


_SIZE: Final = "SELECT sum(length(frames)) FROM log_chunk WHERE number = ?"
"""It reads no frames: SQLite knows the length of a value without its bytes."""


def read_slice(
    connection: sqlite3.Connection, number: int, after_seq: Seq, *, max_bytes: int, max_events: int
) -> Slice | None:
    """Return the frames from ``after_seq + 1`` on in the chunks, within the bounds of ``Log.read``.

    None if the chunks do not contain that frame, or the chunk with it is damaged.
    """
    for row in connection.execute(_CHUNK + "= ?", (number, after_seq + 1)).fetchall():
        chunk = _whole_chunk(*row)
        if (
            chunk is not None
            and _ENOUGH * max_bytes <= len(chunk.frames) <= max_bytes
            and len(chunk.ends) <= max_events
        ):
            return Slice(chunk.first_seq, chunk.last_seq, chunk.frames)
    tail = load_tail(connection, number, after_seq, max_bytes=max_bytes, max_events=max_events)
    if tail is None:
        return None
    return tail.slice(after_seq, max_bytes=max_bytes, max_events=max_events)


def load_tail(
    connection: sqlite3.Connection, number: int, after_seq: Seq, *, max_bytes: int, max_events: int
) -> Tail | None:
    """Return a tail with the frames from ``after_seq + 1`` on, enough for a slice of these bounds.

    None if the chunks do not contain that frame, or the chunk with it is damaged.
    """
    rows = connection.execute(_CHUNK + _FROM, (number, number, after_seq + 1))
    tail: Tail | None = None
    for row in rows:
        chunk = _whole_chunk(*row)
        if chunk is None:
            break
        first_seq = chunk.first_seq
        if tail is None:
            tail = Tail(first_seq)
        elif first_seq != tail.last_seq + 1:
            break
        tail.extend_joined(chunk.frames, chunk.ends)
        if after_seq < tail.last_seq:
            tail.trim(after_seq + 1)
            if tail.size_bytes >= max_bytes or tail.last_seq - after_seq >= max_events:
                break
    rows.close()
    return tail if tail is not None and tail.first_seq == after_seq + 1 else None


def load_run(
    connection: sqlite3.Connection, number: int, first_seq: Seq, last_seq: Seq, max_bytes: int
) -> Tail | None:
    """Return a tail with exactly these frames.

    None if they are larger than ``max_bytes``, or if they are not exactly those in the chunks.
    """
    (size_bytes,) = connection.execute(_SIZE, (number,)).fetchone()
    if size_bytes is None or size_bytes > max_bytes:
        return None
    tail = load_tail(
        connection, number, Seq(first_seq - 1), max_bytes=max_bytes + 1, max_events=last_seq + 1
    )
    return tail if tail is not None and tail.last_seq == last_seq else None


def _whole_chunk(
    first_seq: Seq | None, last_seq: Seq | None, lengths: bytes | None, frames: bytes | None
) -> Chunk | None:
    """Return the chunk, or None if its values are damaged: they contradict each other."""
    if first_seq is None or last_seq is None or lengths is None or frames is None:
        return None
    if not lengths or len(lengths) % 4:
        return None
    ends = unpack_numbers(lengths)
    is_whole = (
        first_seq >= 1
        and len(ends) == last_seq + 1 - first_seq
        and ends[-1] == len(frames)
        and (listed := ends.tolist()) == sorted(listed)  # Sorting what is sorted costs least.
    )
    return Chunk(first_seq, last_seq, ends, frames) if is_whole else None
