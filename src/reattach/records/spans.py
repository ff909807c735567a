"""Spans of messages, by statements that are prepared for each form of a span."""

from collections.abc import Callable
from typing import Any, cast

from sqlalchemy import Column, Connection, Integer, Select, bindparam, func

from reattach.domain.ids import MessageId
from reattach.domain.messages import Message
from reattach.records import lookup
from reattach.records.base import Span
from reattach.records.contexts.message_rows import PlacedMessages
from reattach.records.database import schema
from reattach.records.database.prepared import PreparedStatement, Values
from reattach.records.paging import PageSizes


class MessageSpans:
    """Spans of the messages of a query."""

    def __init__(self, messages: Select[Any], position: Column[Any]) -> None:
        """``messages`` have no order; ``position`` gives them one."""
        has_position = "position" in messages.selected_columns
        self._messages = (
            messages if has_position else messages.add_columns(position.label("position"))
        )
        self._position = position
        self._prepared: dict[tuple[bool, bool, bool], tuple[PageSizes, PlacedMessages]] = {}

    def read(
        self,
        connection: Connection,
        values: Values,
        span: Span,
        position_of: Callable[[MessageId], int | None],
    ) -> list[Message]:
        """Return the messages of the span that fit in a page together, at least one.

        ``position_of`` returns the position of a cursor. A cursor without one is ignored.
        """
        before = None if span.before is None else position_of(span.before)
        after = None if span.after is None else position_of(span.after)
        only_one = (before is None) is not (after is None)
        oldest_first = after is not None if only_one else span.ascending
        form = (before is not None, after is not None, oldest_first)
        if form not in self._prepared:  # There are eight forms at most.
            statement = self._statement(*form)
            self._prepared[form] = PageSizes(statement), PlacedMessages(statement)
        sizes, messages = self._prepared[form]
        asked = {**values, "before_position": before, "after_position": after, "limit": span.limit}
        count = sizes.count(connection, asked)
        found = [one.message for one in messages.read(connection, {**asked, "limit": count})]
        return found if oldest_first is span.ascending else found[::-1]

    def _statement(self, has_before: bool, has_after: bool, oldest_first: bool) -> Select[Any]:
        messages, position = self._messages, self._position
        if has_before:
            messages = messages.where(position < bindparam("before_position"))
        if has_after:
            messages = messages.where(position > bindparam("after_position"))
        order = position.asc() if oldest_first else position.desc()
        return messages.order_by(order).limit(bindparam("limit", type_=Integer))


class ByOrdinal:
    """Spans of messages in the order in which they were stored."""

    def __init__(self, messages: Select[Any]) -> None:
        ordinal = schema.messages.c.ordinal
        self._spans = MessageSpans(messages, ordinal)
        self._ordinal = PreparedStatement(
            messages.with_only_columns(func.max(ordinal)).where(
                schema.messages.c.id == bindparam("message_id")
            )
        )

    def read(
        self, connection: Connection, values: Values, span: Span, *, ignores_unknown: bool = False
    ) -> list[Message]:
        """Return the messages of the span. Raises NotFoundError for an unknown cursor."""

        def ordinal_of(message_id: MessageId) -> int | None:
            found = self._ordinal.value(connection, {**values, "message_id": message_id})
            if found is None and not ignores_unknown:
                raise lookup.not_found(schema.messages, message_id)
            return cast("int | None", found)

        return self._spans.read(connection, values, span, ordinal_of)
