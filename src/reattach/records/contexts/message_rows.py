"""Rows of messages, decoded.

A model gets all messages in context, so their rows are decoded straight from their stored form. One
value that is not as it was written makes the column types decode all of them: slower, but they put
a placeholder for what is damaged.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Select, type_coerce
from sqlalchemy.types import NullType

from reattach.domain.ids import MessageId
from reattach.domain.messages import (
    ApprovalPart,
    ContentPart,
    Message,
    Role,
    SummaryPart,
    ToolReturnPart,
)
from reattach.records.database.columns import moment_of
from reattach.records.database.damage import UNREADABLE, note_row
from reattach.records.database.prepared import PreparedStatement, Row, Steps, Values, take_steps

PIECE_ROWS: Final = 256
"""Rows that are read at once. A driver may decode them all before anything else can run."""

_FIELDS: Final = Message.__struct_fields__
_KINDS: Final[Mapping[Role | None, tuple[type, ...]]] = {
    Role.TOOL: (ToolReturnPart,),
    Role.APPROVAL: (ApprovalPart, ToolReturnPart),
    Role.SUMMARY: (SummaryPart,),
}
"""The types of the first part of messages with these roles."""

_ROLES: Final = {role.value: role for role in Role}
_PARTS: Final = msgspec.json.Decoder(tuple[ContentPart, ...])
_TEXT_TYPES: Final = frozenset({str, type(None)})

Place = tuple[int, MessageId]
"""The position of a message in a thread, and its id: a thread has at most one message for each."""


class Placed(NamedTuple):
    """A message with its position in a thread."""

    position: int
    message: Message

    @property
    def place(self) -> Place:
        return self.position, self.message.id


class PlacedMessages:
    """A query for messages of a thread, with a column ``position``."""

    def __init__(self, statement: Select[Any]) -> None:
        self._typed = PreparedStatement(statement)
        columns: list[Any] = [
            type_coerce(statement.selected_columns[name], NullType).label(name)
            for name in ("position", *_FIELDS)
        ]
        self.stored: Final = PreparedStatement(statement.with_only_columns(*columns))

    def read(self, connection: Connection, values: Values) -> list[Placed]:
        """Return the messages in the order of the query."""
        return take_steps(connection, self.reading(connection, values))

    def reading(self, connection: Connection, values: Values) -> Steps[list[Placed]]:
        """Do the same in steps."""
        (rows,) = yield [(self.stored, values)]
        return self.decoded(connection, values, rows)

    def decoded(
        self, connection: Connection, values: Values, rows: Sequence[Sequence[Any]]
    ) -> list[Placed]:
        """Return the messages of the rows that the statement ``stored`` returned."""
        try:
            return [_placed(row) for row in rows]
        except _DamagedError:
            typed = self._typed.mappings(connection, values)
            return [Placed(row["position"], message_of(row)) for row in typed]


class _DamagedError(Exception):
    """A stored value is not as it was written."""


def _placed(row: Sequence[Any]) -> Placed:
    """Return the message of stored values. Raises _DamagedError."""
    position, message_id, role, parts, created_at, *texts = row
    try:
        name, otid, sender_id, run_id, step_id = texts
        message = Message(
            id=message_id,
            role=_ROLES[role],
            parts=_PARTS.decode(parts),
            created_at=moment_of(created_at),
            name=name,
            otid=otid,
            sender_id=sender_id,
            run_id=run_id,
            step_id=step_id,
        )
    except Exception as error:
        raise _DamagedError from error
    is_text = type(message_id) is str and _TEXT_TYPES.issuperset(map(type, texts))
    kinds = _KINDS.get(message.role)
    if (
        not is_text
        or type(position) is not int
        or (kinds and not _begins_with(message.parts, kinds))
    ):
        raise _DamagedError
    return Placed(position, message)


def message_of(row: Row) -> Message:
    """Return the message of the row; a placeholder if the row is damaged."""
    role, parts = row["role"], row["parts"]
    kinds = _KINDS.get(role)
    if parts is UNREADABLE or role is None or (kinds and not _begins_with(parts, kinds)):
        return _unreadable(row)
    return Message(**{name: row[name] for name in _FIELDS})


def _begins_with(parts: Sequence[ContentPart], kinds: tuple[type, ...]) -> bool:
    return bool(parts) and isinstance(parts[0], kinds)


def _unreadable(row: Row) -> Message:
    """Return a text message that says so, with the role of the row if it is known."""
    note_row("messages", row["id"], "its role and parts cannot be read together")
    role = row["role"] if row["role"] in {Role.SYSTEM, Role.USER} else Role.ASSISTANT
    values = {name: row[name] for name in _FIELDS}
    return Message(**{**values, "role": role, "parts": UNREADABLE, "step_id": None})
