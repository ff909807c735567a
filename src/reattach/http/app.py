"""The ASGI application: its routes, its middleware, and the API's description."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override

from reattach import __version__
from reattach.domain.errors import ReattachError
from reattach.domain.limits import KEY_CACHE_SECONDS, MAX_REQUEST_BYTES
from reattach.http.api import (
    agent_blocks,
    agents,
    blocks,
    conversations,
    health,
    mcp_servers,
    messages,
    models,
    not_offered,
    resuming,
    runs,
    sending,
    tools,
)
from reattach.http.api import compaction as compacting
from reattach.http.api.inspection import events as run_events
from reattach.http.api.metrics import routes as metrics_api
from reattach.http.api.probe.probes import Probes
from reattach.http.api.tokens import routes as tokens_api
from reattach.http.context import Context
from reattach.http.dialects.ai_sdk.replays import Replays
from reattach.http.dialects.errors import DialectErrors
from reattach.http.dialects.registry import (
    error_bodies_of,
    late_routes_of,
    routes_of,
    tags_of,
)
from reattach.http.dialects.sending import DialectSends
from reattach.http.errors import (
    UnknownErrors,
    on_disconnect,
    on_framework_error,
    on_invalid_request,
    on_reattach_error,
)
from reattach.http.fast_path import FastPath
from reattach.http.findings import Checks, Findings
from reattach.http.front import landing, server
from reattach.http.instant import InstantResumes
from reattach.http.json import JsonResponse
from reattach.http.middleware.access_log import AccessLog
from reattach.http.middleware.auth import OPEN_PATHS, Authentication, Authenticator
from reattach.http.middleware.body_limit import BodyLimit
from reattach.http.middleware.loopback import is_loopback
from reattach.http.middleware.pages import Cors, Pages
from reattach.http.middleware.parse_queue import ParseQueue
from reattach.http.middleware.quotas import Bounds, Quotas
from reattach.http.middleware.tokens import StreamTokens
from reattach.http.middleware.tracing import Tracing
from reattach.http.routes import built_routes
from reattach.http.routing.index import RouteIndex
from reattach.http.routing.late import LateRoutes
from reattach.http.stream.retried import RetriedStreams
from reattach.runs.inspection.scan import Scans
from reattach.single_flight import SingleFlight

DESCRIPTION: Final = """\
The Letta API, with streams that survive broken connections: every event of a run has a number in
the run's log, and a client that reconnects with the last number it received gets exactly the
events after it.

Errors are JSON objects with a `detail` for people and a stable `code` for programs.
"""

TAGS: Final = [
    {"name": "conversations", "description": "Message threads with an agent, and their streams."},
    {"name": "agents", "description": "System prompt, memory, model, and a default conversation."},
    {"name": "runs", "description": "Turns of agents, active and ended, and their streams."},
    {"name": "messages", "description": "Stored messages, by id."},
    {"name": "blocks", "description": "Pieces of memory, which agents can share."},
    {"name": "tools", "description": "Functions that the server runs when a model calls them."},
    {"name": "models", "description": "Models that agents can use."},
    {"name": "tokens", "description": "Rights on one run or conversation, for web pages."},
    {"name": "server", "description": "The server itself, as the holder of a key sees it."},
    {"name": "operation", "description": "For operators: tenants, keys, the path to the server."},
    {"name": "health", "description": "For health probes; no key required."},
]

_NO_TELEMETRY: Final[TelemetryConfig] = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
"""FastAPI's own spans last as long as a stream, and have the messages of refused requests."""

NO_SCHEMA: Final[dict[str, Any]] = {"schema": {}}

_ERROR_HANDLERS: Final[dict[Any, Any]] = {
    ReattachError: on_reattach_error,
    RequestValidationError: on_invalid_request,
    HTTPException: on_framework_error,
    ClientDisconnect: on_disconnect,
}

_PARTS: Final = (
    landing,
    health,
    metrics_api,
    server,
    models,
    agents,
    agent_blocks,
    blocks,
    tools,
    mcp_servers,
    conversations,
    compacting,
    messages,
    sending,
    resuming,
    runs,
    run_events,
    tokens_api,
    not_offered,
)

_OF_OPERATORS: Final = LateRoutes(
    ("/v1/admin/",),
    "reattach.http.api.probe.routes",
    "reattach.http.api.admin.tenants",
    "reattach.http.api.admin.keys",
    "reattach.http.api.admin.runs",
    "reattach.http.api.admin.audit_log",
    "reattach.http.api.admin.processes",
)


class Api(FastAPI):
    """FastAPI with the fast path, the access log and the traces in front of the routes.

    Its description has the API keys.
    """

    fast_path: FastPath | None = None

    instant: InstantResumes | None = None
    """Answers resumes before they reach the application. None if its requests are observed, or if
    the records are no file."""

    late: Sequence[LateRoutes] = ()
    """Routes that are imported by the first request for them."""

    outer: ASGIApp | None = None
    """The access log and the traces around ``answer``, if they are on."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.outer or self.answer)(scope, receive, send)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer on the fast path, or through the middleware and the routes."""
        if self.fast_path is not None and scope["type"] == "http":
            remaining = await self.fast_path.try_answer(scope, receive, send)
            if remaining is None:
                return
            receive = remaining
        await super().__call__(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Return the routes in all middleware, without what FastAPI adds for features not used."""
        handlers: dict[Any, Any] = dict(self.exception_handlers)
        routed = AsyncExitStackMiddleware(RouteIndex(self.router, self.late))
        app: ASGIApp = ExceptionMiddleware(routed, handlers=handlers)
        for middleware, arguments, options in reversed(self.user_middleware):
            app = middleware(app, *arguments, **options)
        return app

    @override
    def setup(self) -> None:
        """Add the route of the description. FastAPI's own would make it in the event loop."""
        descriptions: SingleFlight[None, dict[str, Any]] = SingleFlight("API description")

        async def describe(request: Request) -> Response:
            # It takes half a second, which live streams must not wait for.
            make = partial(asyncio.to_thread, self.openapi)
            described = self.openapi_schema or await descriptions.do(None, make)
            mounted_at = request.scope.get("root_path", "").rstrip("/")
            if mounted_at:
                described = {**described, "servers": [{"url": mounted_at}]}
            return JsonResponse(described)

        self.add_route("/openapi.json", describe, include_in_schema=False)

    def all_routes(self) -> list[BaseRoute]:
        """Return all routes, and import those that no request has asked for yet."""
        late = [route for one in self.late for route in one.load()]
        return [*(route for route in self.routes if route not in late), *late]

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            schema = get_openapi(
                title=self.title,
                version=self.version,
                description=self.description,
                routes=built_routes(self.all_routes()),
                tags=self.openapi_tags,
            )
            schema.setdefault("components", {})["securitySchemes"] = {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, or for some operations a stream token.",
                }
            }
            schema["security"] = [{"key": []}]
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    if path in OPEN_PATHS:
                        operation["security"] = []
                    answers = operation["responses"]["200"].get("content", {})
                    if "text/event-stream" in answers and answers["application/json"] == NO_SCHEMA:
                        del answers["application/json"]  # FastAPI adds it to every response.
            self.openapi_schema = schema
        return self.openapi_schema


def create_app(context: Context, *, open_to_all: bool = False, checks: Checks | None = None) -> Api:
    """Return the ASGI application over the parts of a server, which it neither opens nor closes.

    It has no lifespan of its own and can be mounted into another application. As long as no API key
    exists, it serves only its own machine, or everyone with ``open_to_all``. ``checks`` are what
    operators see as the findings of the server.
    """
    settings = context.settings
    quotas = _quotas_of(context)
    pages = Pages(settings.cors_origins)
    tokens = StreamTokens(
        context.records,
        context.clock,
        given_keys=[key.get_secret_value() for key in settings.token_keys],
        allows_query=settings.tokens_in_query,
    )
    authenticator = _authenticator_of(context, open_to_all, pages, quotas, tokens)
    app = Api(
        title="Reattach",
        version=__version__,
        description=DESCRIPTION,
        openapi_tags=[*TAGS, *tags_of(settings.dialects)],
        docs_url=None,
        redoc_url=None,
        telemetry=_NO_TELEMETRY,
        routes=[
            *(route for part in _PARTS for route in part.router.routes),
            *routes_of(settings.dialects),
        ],
        middleware=[
            Middleware(Cors, **pages.cors),
            Middleware(DialectErrors, bodies=error_bodies_of(settings.dialects)),
            Middleware(RetriedStreams),
            Middleware(UnknownErrors),
            Middleware(Authentication, authenticator=authenticator),
            Middleware(
                BodyLimit,
                max_bytes=MAX_REQUEST_BYTES,
                quotas=quotas,
                parse_queue=ParseQueue(),
            ),
        ],
        exception_handlers=_ERROR_HANDLERS,
    )
    app.late = [_OF_OPERATORS, *late_routes_of(settings.dialects)]
    app.state.authenticator = authenticator
    app.state.probes = Probes(context.clock)
    app.state.context, app.state.tokens, app.state.quotas = context, tokens, quotas
    app.state.scans = Scans()
    app.state.findings = Findings(checks, context.clock)
    app.state.dialect_sends, app.state.ai_sdk_replays = DialectSends(context), Replays()
    app.outer = _observed(app.answer, context)
    is_observed = app.outer != app.answer
    app.fast_path = FastPath(context, authenticator, is_observed=is_observed)
    if not is_observed and not context.records.shared:
        app.instant = InstantResumes(context, authenticator)
    return app


def _authenticator_of(
    context: Context,
    open_to_all: bool,
    pages: Pages,
    quotas: Quotas,
    tokens: StreamTokens,
) -> Authenticator:
    settings = context.settings
    return Authenticator(
        context.records.keys,
        context.clock,
        may_be_open=is_loopback(settings.host) and not settings.require_key,
        open_to_all=open_to_all and not settings.require_key,
        pages=pages,
        quotas=quotas,
        tokens=tokens,
        watch_seconds=min(KEY_CACHE_SECONDS, settings.ping_interval_seconds),
    )


def _observed(app: ASGIApp, context: Context) -> ASGIApp:
    """Return the application with those of the access log and the traces that are on."""
    if context.settings.access_log:
        app = AccessLog(app)
    return Tracing(app, context.traces) if context.traces.is_on else app


def _quotas_of(context: Context) -> Quotas:
    settings = context.settings
    return Quotas(
        Bounds(
            runs=settings.quota_runs,
            streams=settings.quota_streams,
            requests_per_second=settings.quota_requests_per_second,
            body_bytes=settings.quota_body_mib * 1024 * 1024,
            body_bytes_per_minute=settings.quota_body_mib_per_minute * 1024 * 1024,
        ),
        context.clock,
        refused=context.meters.refused,
    )
