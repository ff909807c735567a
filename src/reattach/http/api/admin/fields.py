"""Query parameters and types that the routes of operators share."""

from typing import Annotated, Final

from fastapi import Depends, Query
from starlette.requests import Request

from reattach.domain.ids import TENANT_PATTERN, TenantId
from reattach.domain.limits.requests import MAX_ID_CHARS, MAX_PAGE_ITEMS
from reattach.http.context import AccessDep
from reattach.http.json import Fault, invalid

AfterItem = Annotated[
    str | None,
    Query(min_length=1, max_length=MAX_ID_CHARS, description="Id of the last item received."),
]
PageLimit = Annotated[int, Query(ge=1, le=MAX_PAGE_ITEMS, description="Maximum number of items.")]
TenantQuery = Annotated[
    str | None,
    Query(
        pattern=TENANT_PATTERN,
        max_length=MAX_ID_CHARS,
        description="Only this tenant. Another one than that of the key needs `operator`.",
    ),
]


async def _tenant_filter(access: AccessDep, tenant: TenantQuery = None) -> TenantId | None:
    return access.tenant_filter(None if tenant is None else TenantId(tenant))


async def _one_order(request: Request) -> None:
    """Refuse the parameters of other lists, which these would otherwise ignore silently."""
    for name in ("order", "ascending", "before"):
        if name in request.query_params:
            text = "This list has one order, and goes on with `after`. Omit this parameter."
            raise invalid([Fault(["query", name], text, "unsupported")])


ONE_ORDER: Final = (Depends(_one_order),)
"""The dependencies of a list that has one order."""

TenantFilter = Annotated[TenantId | None, Depends(_tenant_filter)]
"""The tenant to which a request is limited; None for an operator who asked for all."""
