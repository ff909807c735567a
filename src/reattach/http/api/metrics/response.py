"""The response to a scrape, and an application for a port that serves nothing else."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from reattach.domain.errors import ForeignPageError, UnavailableError
from reattach.http.middleware.loopback import is_loopback_host
from reattach.http.middleware.pages import Pages
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


def metrics_app(ask_all: Callable[[], Awaitable[Workers]], *, is_local: bool) -> Starlette:
    """Return an application that shows the figures at ``/metrics`` without a key, and no more.

    With ``is_local`` it refuses other host names than loopback names and all foreign web pages:
    a page whose name was rebound to this machine could otherwise read the figures.
    """

    async def read(request: Request) -> Response:
        try:
            workers = await ask_all()
        except UnavailableError as error:
            return PlainTextResponse(error.detail, status_code=503)
        return await scraped(workers, request)

    async def other(request: Request) -> Response:  # noqa: ARG001
        return PlainTextResponse("This port serves only GET /metrics.\n", status_code=404)

    routes = [Route("/metrics", read, methods=["GET"]), Route("/{path:path}", other)]
    return Starlette(routes=routes, middleware=[Middleware(_OnlyLocal)] if is_local else [])


class _OnlyLocal:
    """Refuses requests that a web page of elsewhere may have sent through a browser here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._pages = Pages(None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._refusal(dict(scope["headers"])) or self._app
        await answer(scope, receive, send)

    def _refusal(self, headers: Mapping[bytes, bytes]) -> Response | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if not is_loopback_host(host):
            fact = f"This port accepts only loopback host names and not '{host[:100]}'."
            return PlainTextResponse(f"{fact} {_REMEDY}\n", status_code=421)
        try:
            self._pages.require_local(headers)
        except ForeignPageError:
            fact = "This port accepts no requests of web pages of other machines."
            return PlainTextResponse(f"{fact} {_REMEDY}\n", status_code=403)
        return None


_REMEDY: Final = (
    "Use http://localhost, or set REATTACH_METRICS_HOST to the address at which others may read "
    "the metrics."
)
