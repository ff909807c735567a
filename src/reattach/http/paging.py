"""Which stretch of a list is asked for."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

from fastapi import Depends, Query

from reattach.http.schemas.fields import Limit, Order
from reattach.limits import MAX_ID_CHARS
from reattach.records.base import Page

After = Annotated[
    str | None,
    Query(max_length=MAX_ID_CHARS, description="An item's id: what follows it in the order."),
]
Before = Annotated[
    str | None,
    Query(max_length=MAX_ID_CHARS, description="An item's id: what precedes it in the order."),
]
Ascending = Annotated[
    bool | None, Query(deprecated=True, description="Instead of `order`, which it overrides.")
]


def page_query(*, limit: int, order: Literal["asc", "desc"]) -> Callable[..., Awaitable[Page]]:
    """A dependency that reads a page from the query, with these defaults."""
    default_limit, default_order = limit, order

    async def page(
        after: After = None,
        before: Before = None,
        limit: Limit = default_limit,
        order: Order = default_order,
        ascending: Ascending = None,
    ) -> Page:
        upwards = order == "asc" if ascending is None else ascending
        return Page(limit=limit, ascending=upwards, after=after or None, before=before or None)

    return page


NewestPage = Annotated[Page, Depends(page_query(limit=100, order="desc"))]
"""100 items, the newest first."""

ShortPage = Annotated[Page, Depends(page_query(limit=50, order="desc"))]
"""50 items, the newest first."""

OldestPage = Annotated[Page, Depends(page_query(limit=50, order="asc"))]
"""50 items, the oldest first."""
