"""Probes: whether the server is alive, and whether it accepts new runs."""

from typing import Literal

from fastapi import Response

from reattach import __version__
from reattach.http.context import ContextDep
from reattach.http.json import JsonResponse
from reattach.http.routes import routes
from reattach.http.schemas.fields import Answer

router = routes("health")


class Health(Answer):
    version: str
    status: Literal["ok"]


class Readiness(Answer):
    version: str
    status: Literal["ok", "draining"]


@router.get("/v1/health/", operation_id="check_health", summary="Is the server alive?")
async def health() -> Health:
    return Health(version=__version__, status="ok")


@router.get(
    "/v1/ready/",
    operation_id="check_readiness",
    summary="Does the server accept new runs?",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "The server is draining."}},
)
async def ready(context: ContextDep) -> Response:
    if context.runs.draining:
        body = {"version": __version__, "status": "draining"}
        return JsonResponse(body, status_code=503, headers={"Retry-After": "2"})
    return JsonResponse({"version": __version__, "status": "ok"})


# Not all probes follow redirects, and some send HEAD.
for path, methods in (("", ["GET", "HEAD"]), ("/", ["HEAD"])):
    router.add_api_route(f"/v1/health{path}", health, methods=methods, include_in_schema=False)
    router.add_api_route(
        f"/v1/ready{path}", ready, methods=methods, include_in_schema=False, response_model=None
    )
