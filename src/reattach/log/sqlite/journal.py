"""The SQLite log's journal: its binary format and its table.

Changes of runs are joined into batches in their order; a batch is one row and one commit. Replaying
a change that is already applied has no effect, so rows may stay after their changes were folded.

A change is a head of fixed size and a body. It refers to its run by a number that is never reused;
only the change that creates a run has the run's id.
"""

import sqlite3
import struct
from collections.abc import Iterator, Sequence
from typing import Final

import structlog
from msgspec import Struct

from reattach.domain.errors import StartupError
from reattach.domain.ids import FIRST_SEQ, Seq, Token
from reattach.log.frames import pack_numbers, unpack_numbers

logger = structlog.get_logger(__name__)

_HEAD: Final = struct.Struct("<BxHIqq")
"""Kind, run id length or close flag, frame count, run number, token or seq."""

_SINGLE_HEAD: Final = struct.Struct(_HEAD.format + "I")
"""The head of an append of one frame, with the length of that frame."""

_CREATE: Final = 1
_TAKE_OVER: Final = 2
_APPEND: Final = 3
_TRIM: Final = 4
_DELETE: Final = 5
_SKIP: Final = 6
_CREATE_AT: Final = 7

_SEQ: Final = struct.Struct("<q")

HIGHEST_NUMBER: Final = 2**32 - 2**20
"""Higher run numbers count as damaged. 2^20 numbers stay free in case a damaged one lies just
below."""

HIGHEST_SEQ: Final = 2**48
"""A higher seq, token or row is damaged."""

_LONGEST_GAP: Final = 2**20
"""Rows between the middle row of the table and any other. The table has far fewer rows."""


class Create(Struct, frozen=True, gc=False):
    number: int
    token: Token
    run_id: str
    first_seq: Seq = FIRST_SEQ


class TakeOver(Struct, frozen=True, gc=False):
    number: int
    token: Token


class Append(Struct, frozen=True, gc=False):
    number: int
    first_seq: Seq
    frames: Sequence[bytes]
    close: bool


class Trim(Struct, frozen=True, gc=False):
    number: int
    first_seq: Seq


class Delete(Struct, frozen=True, gc=False):
    number: int


class Skip(Struct, frozen=True, gc=False):
    """The owner drops all frames and continues at ``first_seq``."""

    number: int
    token: Token
    first_seq: Seq


Change = Create | TakeOver | Append | Trim | Delete | Skip


def pack(change: Change) -> bytes:
    """Return the bytes of one change. Joined changes are a batch."""
    if isinstance(change, Append):  # Nearly all changes. A match would unpack every member of it.
        frames = change.frames
        if len(frames) == 1:
            (frame,) = frames
            head = _SINGLE_HEAD.pack(
                _APPEND, change.close, 1, change.number, change.first_seq, len(frame)
            )
            return head + frame
        head = _HEAD.pack(_APPEND, change.close, len(frames), change.number, change.first_seq)
        return b"".join((head, pack_numbers([len(frame) for frame in frames]), *frames))
    match change:
        case Create(number, token, run_id, first_seq):
            name = run_id.encode()
            if first_seq == 1:
                return _HEAD.pack(_CREATE, len(name), 0, number, token) + name
            head = _HEAD.pack(_CREATE_AT, len(name), 0, number, token)
            return head + name + _SEQ.pack(first_seq)
        case TakeOver(number, token):
            return _HEAD.pack(_TAKE_OVER, 0, 0, number, token)
        case Trim(number, first_seq):
            return _HEAD.pack(_TRIM, 0, 0, number, first_seq)
        case Delete(number):
            return _HEAD.pack(_DELETE, 0, 0, number, 0)
        case Skip(number, token, first_seq):
            return _HEAD.pack(_SKIP, 0, 0, number, token) + _SEQ.pack(first_seq)


def unpack(batch: bytes) -> Iterator[Change]:
    """Yield the changes of a batch in order.

    Raises:
        StartupError: A change has an unknown kind.
        ValueError, struct.error: A change is damaged.
    """
    at = 0
    while at < len(batch):
        kind, small, count, number, value = _HEAD.unpack_from(batch, at)
        at += _HEAD.size
        first_seq = value
        if kind == _APPEND:
            frames: list[bytes] = []
            lengths = unpack_numbers(batch[at : at + 4 * count])
            at += 4 * count
            for length in lengths:
                frames.append(batch[at : at + length])
                at += length
            change: Change = Append(number, value, frames, bool(small))
        elif kind == _CREATE:
            change = Create(number, value, batch[at : at + small].decode())
            at += small
        elif kind == _CREATE_AT:
            (first_seq,) = _SEQ.unpack_from(batch, at + small)
            change = Create(number, value, batch[at : at + small].decode(), first_seq)
            at += small + _SEQ.size
        elif kind == _SKIP:
            (first_seq,) = _SEQ.unpack_from(batch, at)
            change = Skip(number, value, first_seq)
            at += _SEQ.size
        elif kind == _TAKE_OVER:
            change = TakeOver(number, value)
        elif kind == _TRIM:
            change = Trim(number, value)
        elif kind == _DELETE:
            change = Delete(number)
        else:
            raise StartupError(
                f"The event log has a change of kind {kind}, unknown to this version of Reattach.",
                remedy="Start the version that wrote it, or restore the database from a backup.",
            )
        if at > len(batch):
            raise ValueError("The last change is cut off.")
        if not (
            1 <= number <= HIGHEST_NUMBER
            and 0 <= value <= HIGHEST_SEQ
            and 0 <= first_seq <= HIGHEST_SEQ
        ):
            raise ValueError(
                f"A change has the impossible number {number}, {value} or {first_seq}."
            )
        yield change


# The table. Transactions are left to the caller.


def insert_row(connection: sqlite3.Connection, row: int, batch: bytes) -> None:
    connection.execute("INSERT INTO log_journal VALUES (?, ?)", (row, batch))


def rows(connection: sqlite3.Connection) -> Iterator[tuple[int, bytes]]:
    """Yield the rows of the journal in order, except those with a damaged id.

    Ids are consecutive, so an id that is far from the middle one is damaged.
    """
    positive = "FROM log_journal WHERE id BETWEEN 1 AND ?"
    (count,) = connection.execute(f"SELECT count(*) {positive}", (HIGHEST_SEQ,)).fetchone()
    if count:
        (middle,) = connection.execute(
            f"SELECT id {positive} ORDER BY id LIMIT 1 OFFSET ?", (HIGHEST_SEQ, (count - 1) // 2)
        ).fetchone()
        bounds = (max(middle - _LONGEST_GAP, 1), middle + _LONGEST_GAP)
    else:
        bounds = (1, 0)
    outside = "SELECT id FROM log_journal WHERE id NOT BETWEEN ? AND ? ORDER BY id"
    for (row,) in connection.execute(outside, bounds):
        logger.warning("event log row has a damaged id", table="log_journal", row=row)
    yield from connection.execute(
        "SELECT id, CAST(batch AS BLOB) FROM log_journal WHERE id BETWEEN ? AND ? ORDER BY id",
        bounds,
    )


def prune(connection: sqlite3.Connection, before_row: int) -> None:
    """Delete the rows before ``before_row``."""
    connection.execute("DELETE FROM log_journal WHERE id < ?", (before_row,))
