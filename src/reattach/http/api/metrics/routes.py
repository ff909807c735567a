"""The metrics of the server, for Prometheus."""

from fastapi import Request, Response

from reattach.domain.errors import NotFoundError
from reattach.http.api.metrics.response import scraped
from reattach.http.context import AccessDep, ContextDep
from reattach.http.routes import routes
from reattach.records.base import KeyScope

router = routes()


# Not in the description of the API: its form is that of Prometheus, and it is not under /v1.
@router.api_route(
    "/metrics", methods=["GET"], operation_id="admin_read_metrics", include_in_schema=False
)
async def read_metrics(request: Request, context: ContextDep, access: AccessDep) -> Response:
    """Return the figures of all workers of this machine."""
    if not access.is_operator:
        raise access.lacks(KeyScope.OPERATOR)
    if not context.meters.enabled:
        raise NotFoundError(
            "This server measures nothing, because REATTACH_METRICS is false.",
            remedy="Unset it, and restart the server.",
        )
    return await scraped(await context.scrape.all(), request)
