"""The response to a scrape, and an application for a port that serves nothing else."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from reattach.domain.errors import UnavailableError
from reattach.meters.exposition import expose
from reattach.meters.scrape import Workers


async def scraped(workers: Workers, request: Request) -> Response:
    """Return the figures of the workers in the form that the request asks for."""
    exposed = await asyncio.to_thread(
        expose,
        workers,
        accept=request.headers.get("accept", ""),
        accept_encoding=request.headers.get("accept-encoding", ""),
    )
    return Response(exposed.body, headers=dict(exposed.headers))


def metrics_app(ask_all: Callable[[], Awaitable[Workers]]) -> Starlette:
    """Return an application that shows the figures at ``/metrics``, to everyone, and no more."""

    async def read(request: Request) -> Response:
        try:
            workers = await ask_all()
        except UnavailableError as error:
            return PlainTextResponse(error.detail, status_code=503)
        return await scraped(workers, request)

    async def other(request: Request) -> Response:  # noqa: ARG001
        return PlainTextResponse("This port serves only GET /metrics.\n", status_code=404)

    routes = [Route("/metrics", read, methods=["GET"]), Route("/{path:path}", other)]
    return Starlette(routes=routes)
