"""Lists of rows of which some may be damaged."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from reattach.records.database.damage import note_row


class _Row(Protocol):
    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=_Row)
Item = TypeVar("Item")


def readable_items(table: str, rows: Iterable[Row], item_of: Callable[[Row], Item]) -> list[Item]:
    """The items of the rows. A row whose stored values make no item is left out, and logged."""
    items: list[Item] = []
    for row in rows:
        try:
            items.append(item_of(row))
        except Exception as error:  # noqa: BLE001  one row must not take the list with it
            note_row(table, row.id, f"left out of lists: {type(error).__name__}")
    return items
