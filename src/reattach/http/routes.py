"""What the routes of all parts of the API have in common."""

from typing import Any, Final

from fastapi import APIRouter

from reattach.http.body import JsonRoute
from reattach.http.schemas.error import ErrorBody, ValidationErrorBody

_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": ErrorBody, "description": "The request can not be done."},
    422: {"model": ValidationErrorBody, "description": "The request does not fit."},
    "5XX": {"model": ErrorBody, "description": "The server can not do it."},
}


def routes(*tags: str) -> APIRouter:
    """An empty list of routes, which an application takes as they are, so they are built once.

    FastAPI builds those of a router that is included again for each application, at its first
    request: a tenth of a second, and another layer that each request passes.
    """
    return APIRouter(route_class=JsonRoute, tags=[*tags], responses=_ERRORS)
