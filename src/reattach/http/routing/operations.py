"""Operations: their arguments from a request, and the response from their result.

FastAPI works out at every request how each parameter is found, and takes several times as long as
the operation itself. Here that is worked out once, from FastAPI's own description of the operation
(``Dependant``). Values are checked by the same validators, and errors are the same.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from inspect import iscoroutinefunction
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from fastapi import params
from fastapi.dependencies.models import Dependant
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

MAX_INLINE_ITEMS: Final = 50
"""Models in a list that are made and encoded in the event loop, in some milliseconds."""

Errors = list[Any]
"""The faults of a request, as Pydantic describes them."""


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation, and how requests become its arguments."""

    route: APIRoute
    function: "_Function"
    body: "_Body | None"

    @classmethod
    def of(cls, route: APIRoute) -> "Operation | None":
        """Return the operation of the route; None if only FastAPI can answer its requests."""
        function = _Function.of(route.dependant)
        body = _Body.of(route)
        if function is None or (route.body_field and body is None):
            return None
        return cls(route, function, body)

    async def answer(self, request: Request) -> Response:
        """Call the operation and return its response.

        Raises:
            RequestValidationError: A parameter or the body is missing or not valid.
        """
        errors: Errors = []
        arguments = await self.function.arguments(request, {}, errors)
        if self.body is not None:
            arguments[self.body.name] = await self.body.read(request, errors)
        if errors:
            has_body = self.body is not None and await request.body()
            raise RequestValidationError(errors, body=await request.json() if has_body else None)
        result = await self.function.call(**arguments)
        if isinstance(result, Response):
            return result
        field = self.route.response_field
        if field is None:
            return JSONResponse(jsonable_encoder(result), self.route.status_code or 200)
        if isinstance(result, list) and len(result) > MAX_INLINE_ITEMS:
            body = await asyncio.to_thread(self._encoded, field, result)
        else:
            body = self._encoded(field, result)
        return Response(body, self.route.status_code or 200, media_type="application/json")

    def _encoded(self, field: Any, result: Any) -> bytes:
        # Of results with another type than the operation's, FastAPI makes that type.
        value, faults = field.validate(result, {}, loc=("response",))
        if faults:
            raise TypeError(f"{self.route.operation_id} returned another type: {faults[0]}")
        body: bytes = field.serialize_json(value)
        return body


@dataclass(frozen=True, slots=True)
class _Body:
    """The body of a request, one JSON value."""

    name: str
    """The name of the argument."""
    is_required: bool
    default: Any
    validate: Callable[..., tuple[Any, Sequence[Any]]]

    @classmethod
    def of(cls, route: APIRoute) -> "_Body | None":
        """Return the body of the route; None if it has none, or one that only FastAPI reads."""
        fields = route.dependant.body_params
        if len(fields) != 1 or route.body_field is not fields[0]:
            return None
        info = fields[0].field_info
        if type(info) is not params.Body or info.validate_default:
            return None
        default = None if info.is_required() else fields[0].default
        return cls(fields[0].name, info.is_required(), default, fields[0].validate)

    async def read(self, request: Request, errors: Errors) -> Any:
        """Return the value of the body, and add its faults to ``errors``."""
        if not await request.body():
            if self.is_required:
                errors.append(_missing(["body"]))
            return deepcopy(self.default)
        value, faults = self.validate(await request.json(), {}, loc=("body",))
        errors.extend(faults)
        return value


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter in the path, the query or the headers of a request."""

    name: str
    """The name of the argument."""
    alias: str
    place: tuple[str, str]
    is_list: bool
    is_required: bool
    default: Any
    validate: Callable[..., tuple[Any, Sequence[Any]]]

    @classmethod
    def of(cls, field: Any) -> "_Parameter | None":
        """Return the parameter of a field; None if it needs more than is known here."""
        info = field.field_info
        is_known = isinstance(info, _KINDS) and not info.validate_default
        if not is_known or _has_members(info.annotation):
            return None
        return cls(
            name=field.name,
            alias=field.alias,
            place=(info.in_.value, field.alias),
            is_list=_is_list(info.annotation),
            is_required=info.is_required(),
            default=None if info.is_required() else field.default,
            validate=field.validate,
        )

    def value(self, given: Mapping[str, Any], errors: Errors) -> Any:
        """Return the value of the parameter, and add its faults to ``errors``."""
        found = given.get(self.alias)
        if found is None:
            if self.is_required:
                errors.append(_missing(list(self.place)))
            return deepcopy(self.default)
        if self.is_list and isinstance(given, QueryParams | Headers):
            found = given.getlist(self.alias)
        value, faults = self.validate(found, {}, loc=self.place)
        errors.extend(faults)
        return value


_KINDS: Final = (params.Path, params.Query, params.Header)


def _missing(place: list[str]) -> dict[str, Any]:
    return {"type": "missing", "loc": place, "msg": "Field required", "input": None}


_NO_QUERY: Final = QueryParams("")


@dataclass(frozen=True, slots=True)
class _Function:
    """The function of an operation, or one on which others depend."""

    call: Callable[..., Awaitable[Any]]
    name: str | None
    """The argument that gets its result; None for one that only checks the request."""
    request_argument: str | None
    path: tuple[_Parameter, ...]
    query: tuple[_Parameter, ...]
    headers: tuple[_Parameter, ...]
    dependencies: tuple["_Function", ...]

    @classmethod
    def of(cls, dependant: Dependant) -> "_Function | None":
        """Return the function; None if it needs more of a request than is known here."""
        path = tuple(_Parameter.of(field) for field in dependant.path_params)
        query = tuple(_Parameter.of(field) for field in dependant.query_params)
        headers = tuple(_Parameter.of(field) for field in dependant.header_params)
        dependencies = tuple(cls.of(one) for one in dependant.dependencies)
        if any(getattr(dependant, name) for name in _UNKNOWN) or None in (
            *path, *query, *headers, *dependencies,
        ) or not iscoroutinefunction(dependant.call) or not dependant.use_cache:  # fmt: skip
            return None
        return cls(dependant.call, dependant.name, dependant.request_param_name,
                   path, query, headers, dependencies)  # type: ignore[arg-type]  # fmt: skip

    async def arguments(
        self, request: Request, known: dict[Callable[..., Any], Any], errors: Errors
    ) -> dict[str, Any]:
        """Return the arguments for the request, and add its faults to ``errors``.

        ``known`` are the results of the dependencies that were called for the request.
        """
        arguments: dict[str, Any] = {}
        for one in self.dependencies:
            if one.call not in known:
                faults: Errors = []
                needed = await one.arguments(request, known, faults)
                if faults:
                    errors.extend(faults)
                    continue
                known[one.call] = await one.call(**needed)
            if one.name is not None:
                arguments[one.name] = known[one.call]
        for parameter in self.path:
            arguments[parameter.name] = parameter.value(request.path_params, errors)
        if self.query:
            given = request.query_params if request.scope.get("query_string") else _NO_QUERY
            for parameter in self.query:
                arguments[parameter.name] = parameter.value(given, errors)
        for parameter in self.headers:
            arguments[parameter.name] = parameter.value(request.headers, errors)
        if self.request_argument is not None:
            arguments[self.request_argument] = request
        return arguments


_UNKNOWN: Final = (
    "cookie_params",
    "websocket_param_name",
    "http_connection_param_name",
    "response_param_name",
    "background_tasks_param_name",
    "security_scopes_param_name",
    "own_oauth_scopes",
    "parent_oauth_scopes",
)
"""Members of a ``Dependant`` with needs that only FastAPI fulfils."""


def _is_list(annotation: Any) -> bool:
    options = get_args(annotation) if get_origin(annotation) in _UNIONS else (annotation,)
    return any(get_origin(option) in _LISTS or option in _LISTS for option in options)


def _has_members(annotation: Any) -> bool:
    """Return whether the parameter is a model, whose members are parameters."""
    options = get_args(annotation) if get_origin(annotation) in _UNIONS else (annotation,)
    return any(hasattr(option, "model_fields") for option in options)


_UNIONS: Final = (Union, UnionType)
_LISTS: Final = (list, tuple, set, frozenset, Sequence)
