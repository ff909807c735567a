"""Lists that leave out rows with damaged values."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from reattach.records.database.damage import note_row


class _Row(Protocol):
    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=_Row)
Item = TypeVar("Item")


def readable_items(table: str, rows: Iterable[Row], item_of: Callable[[Row], Item]) -> list[Item]:
    """Return the items of the rows; a row that makes no item is logged and left out."""
    items: list[Item] = []
    for row in rows:
        try:
            items.append(item_of(row))
        except Exception as error:  # noqa: BLE001  one damaged row must not break the list
            note_row(table, row.id, f"left out of lists: {type(error).__name__}")
    return items
