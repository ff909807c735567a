"""Lists that leave out rows with damaged values."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from reattach.http.routing.operations import MAX_INLINE_ITEMS
from reattach.records.database.damage import note_row


class _Row(Protocol):
    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=_Row)
Item = TypeVar("Item")


async def readable_items(
    table: str, rows: Sequence[Row], item_of: Callable[[Row], Item]
) -> list[Item]:
    """Return the items of the rows; a row that makes no item is logged and left out.

    The items of long lists are made in a thread.
    """
    if len(rows) <= MAX_INLINE_ITEMS:
        return _items(table, rows, item_of)
    return await asyncio.to_thread(_items, table, rows, item_of)


def _items(table: str, rows: Iterable[Row], item_of: Callable[[Row], Item]) -> list[Item]:
    items: list[Item] = []
    for row in rows:
        try:
            items.append(item_of(row))
        except Exception as error:  # noqa: BLE001  one damaged row must not break the list
            note_row(table, row.id, f"left out of lists: {type(error).__name__}")
    return items
