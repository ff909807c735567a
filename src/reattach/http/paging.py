"""Pages of lists, as clients ask for them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Literal, TypeVar

from fastapi import Depends, Query

from reattach.domain.errors import NotFoundError
from reattach.domain.limits.requests import MAX_ID_CHARS
from reattach.http.schemas.fields import Limit, OrderParam
from reattach.records.base import Page

After = Annotated[
    str | None,
    Query(max_length=MAX_ID_CHARS, description="Id of an item; returns the items after it."),
]
Before = Annotated[
    str | None,
    Query(max_length=MAX_ID_CHARS, description="Id of an item; returns the items before it."),
]
Ascending = Annotated[
    bool | None, Query(deprecated=True, description="Overrides `order`; use that instead.")
]


def page_query(*, limit: int, order: Literal["asc", "desc"]) -> Callable[..., Awaitable[Page]]:
    """Return a dependency that reads a page from the query, with these defaults."""
    default_limit, default_order = limit, order

    async def page(
        after: After = None,
        before: Before = None,
        limit: Limit = default_limit,
        order: OrderParam = default_order,
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

Item = TypeVar("Item")


def page_of(
    items: Sequence[Item], page: Page, id_of: Callable[[Item], str], noun: str
) -> list[Item]:
    """Return the page of a complete list, which is in ascending order.

    Raises NotFoundError if a cursor is not the id of an item.
    """
    ordered = list(items if page.ascending else reversed(items))
    places = {id_of(item): place for place, item in enumerate(ordered)}
    for cursor in (page.after, page.before):
        if cursor is not None and cursor not in places:
            raise NotFoundError(f"{noun} not found with id={cursor}")
    first = 0 if page.after is None else places[page.after] + 1
    end = len(ordered) if page.before is None else places[page.before]
    if page.before is not None and page.after is None:
        return ordered[max(0, end - page.limit) : end]
    return ordered[first:end][: page.limit]
