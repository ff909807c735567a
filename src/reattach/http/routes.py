"""Routers and request checks that all parts of the API share."""

import re
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from functools import cached_property
from typing import Any, Final, get_type_hints

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override

from reattach.domain.errors import UnsupportedBodyError
from reattach.domain.limits.requests import MAX_QUERY_PARAMETERS
from reattach.http.json import (
    NUL,
    PARSE_QUEUE,
    Fault,
    ParseQueue,
    invalid,
    is_small,
    parse,
)
from reattach.http.middleware.access import ACCESS, Access
from reattach.http.middleware.scopes import scope_of
from reattach.http.routing.operations import Operation
from reattach.http.schemas.error import ErrorBody, ValidationErrorBody

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be fulfilled."},
    422: {"model": ValidationErrorBody, "description": "The request is not valid."},
    "5XX": {"model": ErrorBody, "description": "The server failed or is unavailable."},
}


def routes(*tags: str, error: type[BaseModel] | None = None) -> "Router":
    """Return an empty router whose routes every application reuses, so that they are built once.

    ``error`` describes the bodies of errors in a dialect that has its own.

    FastAPI rebuilds the routes of an included router for each application, at its first request;
    that takes a tenth of a second and adds a layer to each request.
    """
    responses = _ERRORS
    if error is not None:
        responses = {status: {**one, "model": error} for status, one in _ERRORS.items()}
    return Router(route_class=JsonRoute, tags=[*tags], responses=responses)


class Router(APIRouter):
    """A router whose routes are built when they are first used.

    Building a route takes milliseconds, for its validators and the schemas of its responses. All of
    them together would take a quarter of a server's start.
    """

    @override
    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        def build() -> APIRoute:
            _complete_models(endpoint)
            builder = APIRouter(
                route_class=self.route_class, tags=self.tags, responses=self.responses
            )
            builder.add_api_route(path, endpoint, **options)
            (route,) = builder.routes
            assert isinstance(route, APIRoute)
            return route

        self.routes.append(DeferredRoute(path, endpoint, options["methods"], build))


def _complete_models(endpoint: Callable[..., Any]) -> None:
    """Build the models of a request's body.

    FastAPI silences a warning of Pydantic only where validators are built at once.
    """
    for kind in get_type_hints(endpoint).values():
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind.model_config["defer_build"] = False
            kind.model_rebuild()


class DeferredRoute(Route):
    """A path and its methods, whose route is built at the first request."""

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        methods: Collection[str],
        build: Callable[[], APIRoute],
    ) -> None:
        super().__init__(path, endpoint)
        self.methods = set(methods)  # Without the HEAD that Starlette adds to every GET.
        self._build = build

    @cached_property
    def built(self) -> APIRoute:
        """The route itself."""
        return self._build()

    @override
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.built.handle(scope, receive, send)


def built_routes(routes: Sequence[BaseRoute]) -> list[BaseRoute]:
    """Return the routes, each built, for the description of the API."""
    return [one.built if isinstance(one, DeferredRoute) else one for one in routes]


class JsonRoute(APIRoute):
    """A route that checks the scope, query, path and body before its parameters are parsed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        operation = Operation.of(self)
        if operation is not None:
            self.app = _answering(self._checked(operation.answer))

    def get_route_handler(self) -> Callable[[Request], Any]:
        return self._checked(super().get_route_handler())

    def _checked(self, handle: Callable[[Request], Awaitable[Response]]) -> Handler:
        scope = scope_of(self.methods or (), self.operation_id)
        reads_body = self.body_field is not None
        in_query = frozenset(one.alias for one in self.dependant.query_params)

        async def check_then_handle(request: Request) -> Response:
            access: Access | None = request.scope.get(ACCESS)
            if access is not None and scope is not None:
                await access.require_operation(self.operation_id, scope, request.path_params)
            refuse_long_query(request)
            refuse_nul_outside_body(request)
            if request.method in {"POST", "PUT", "PATCH"}:
                request = _JsonRequest(request.scope, request.receive)
                await request.prepare()
                if not reads_body:
                    refuse_unread_body(await request.json(), in_query)
            return await handle(request)

        return check_then_handle


def _answering(handle: Handler) -> ASGIApp:
    """Return an ASGI application for a handler with no dependencies that have to be closed."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        response = await handle(Request(scope, receive, send))
        await response(scope, receive, send)

    return answer


class _JsonRequest(Request):
    _parsed: Any = None

    async def prepare(self) -> None:
        """Read and parse the body now, because FastAPI would wrap errors of ``json``."""
        body = await self.body()
        if body:
            _refuse_other_types(self)
            if is_small(body):
                self._parsed = parse(body)
            else:
                queue: ParseQueue = self.scope[PARSE_QUEUE]
                self._parsed = await queue.parse(self.scope, body)

    async def json(self) -> Any:
        return self._parsed


def refuse_long_query(request: Request) -> None:
    """Count the query parameters before they are decoded. Raises ValidationFailedError."""
    count = request.scope.get("query_string", b"").count(b"&") + 1
    if count > MAX_QUERY_PARAMETERS:
        message = f"The query has {count} parameters; at most {MAX_QUERY_PARAMETERS} are allowed."
        raise invalid([Fault(["query"], message, "too_many_parameters")])


def refuse_nul_outside_body(request: Request) -> None:
    """Refuse NUL in the path and the query, because databases cannot store it.

    Raises ValidationFailedError.
    """
    path = [Fault(["path", name], NUL, "string_nul") for name, value in
            request.path_params.items() if "\0" in str(value)]  # fmt: skip
    if not path and not _NUL_IN_QUERY.search(request.scope.get("query_string", b"")):
        return
    query = [Fault(["query", name.replace("\0", "?")], NUL, "string_nul") for name, value in
             request.query_params.multi_items() if "\0" in name + value]  # fmt: skip
    if path or query:
        raise invalid([*path, *query])


_NUL_IN_QUERY: Final = re.compile(rb"%00|\0")
_READ_ELSEWHERE: Final = {"run_ids": "to POST /v1/agents/{agent_id}/messages/cancel"}


def refuse_unread_body(body: Any, in_query: Collection[str]) -> None:
    """Refuse a body that says something to a route that reads none.

    Raises ValidationFailedError.
    """
    if body is None or body == {}:
        return
    faults = []
    for name in body if isinstance(body, dict) else ():
        place = "in the query" if name in in_query else _READ_ELSEWHERE.get(name)
        if place is not None:
            message = f"This route reads no body. Send '{name}' {place}."
            faults.append(Fault(["body", name], message, "body_not_read"))
    message = "This route reads no body. Send the request without one."
    raise invalid(faults or [Fault(["body"], message, "body_not_read")])


def _refuse_other_types(request: Request) -> None:
    """Refuse a body that its headers do not call JSON in UTF-8.

    Raises:
        UnsupportedBodyError: It is compressed, or in another encoding.
        ValidationFailedError: It has another type.
    """
    coding = request.headers.get("content-encoding", "")
    if coding.strip().lower() not in {"", "identity"}:
        raise UnsupportedBodyError(
            f"The body has the content coding '{coding[:_SHOWN_CHARS]}'.",
            remedy="Send it uncompressed and without 'Content-Encoding'.",
        )
    essence, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    essence = essence.strip()
    is_json = essence.startswith("application/") and essence.endswith("+json")
    if essence != "application/json" and not is_json:
        message = "Send a JSON body with the header 'Content-Type: application/json'."
        raise invalid([Fault(["header", "content-type"], message, "content_type")])
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        charset = value.strip().strip('"')
        if name.strip() == "charset" and charset not in _READABLE:
            raise UnsupportedBodyError(
                f"The body has the charset '{charset[:_SHOWN_CHARS]}', and JSON is UTF-8.",
                remedy="Send UTF-8 with 'Content-Type: application/json'.",
            )


_READABLE: Final = frozenset({"utf-8", "utf8", "us-ascii"})
_SHOWN_CHARS: Final = 60
