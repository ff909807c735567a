"""Routes that stream at set times, and say how requests arrived.

They change nothing and show nothing of any run. A client chooses the id of its probe, so it can use
several processes behind one address without their knowing of each other.
"""

import hashlib
from typing import Annotated, Final

from fastapi import Depends, Query, Request, Response

from reattach import __version__
from reattach.domain.errors import NotFoundError, UnavailableError
from reattach.domain.ids import PROBE_PATTERN
from reattach.domain.limits.requests import MAX_PROBE_SECONDS
from reattach.http.api.probe.probes import Probes
from reattach.http.api.probe.schemas import (
    ProbeErrorBody,
    ProbeRequest,
    ProbeState,
    ProbeStreamBody,
    ProbeStreamState,
    ProbeUpload,
    ProbeUploadBody,
)
from reattach.http.api.probe.stream import ProbeResponse
from reattach.http.context import AccessDep, ContextDep, TenantDep
from reattach.http.routes import routes

router = routes("operation")

ERROR_TEXTS: Final = {
    404: "This is the answer 404 of a probe.",
    503: "This is the answer 503 of a probe.",
}
ERROR_RETRY_SECONDS: Final = 7

_SHOWN: Final = frozenset(
    {"accept-encoding", "content-type", "host", "last-event-id", "via", "x-forwarded-proto"}
)
_SHOWN_CHARS: Final = 200
_MOST_NAMES: Final = 100


async def _probes(request: Request) -> Probes:
    probes: Probes = request.app.state.probes
    return probes


ProbesDep = Annotated[Probes, Depends(_probes)]
ProbeQuery = Annotated[str, Query(pattern=PROBE_PATTERN, description="The id of the probe.")]
ProbeQueryOrNone = Annotated[
    str | None, Query(pattern=PROBE_PATTERN, description="The probe whose streams to show.")
]


@router.get(
    "/v1/admin/probe",
    operation_id="admin_retrieve_probe",
    summary="See a request as it arrives",
    description="Returns how this request arrived at the server, and the streams of a probe.",
)
async def retrieve_probe(
    request: Request,
    context: ContextDep,
    tenant: TenantDep,
    probes: ProbesDep,
    probe: ProbeQueryOrNone = None,
) -> ProbeState:
    found = probes.find(tenant, probe)
    streams = None
    if found is not None:
        streams = [
            ProbeStreamState(
                stream=one.name,
                frames=one.frames,
                end=one.end,
                ended_after_seconds=one.ended_after_seconds,
                client_closed=one.client_closed,
            )
            for one in found.streams.values()
        ]
    return ProbeState(
        version=__version__,
        process=context.runs.ownership.owner,
        ping_interval_seconds=context.settings.ping_interval_seconds,
        max_seconds=MAX_PROBE_SECONDS,
        request=_seen(request),
        streams=streams,
    )


@router.delete(
    "/v1/admin/probe",
    operation_id="admin_end_probe",
    summary="End a probe",
    description="Cuts off its open streams, if the process that answers has any.",
)
async def end_probe(tenant: TenantDep, probes: ProbesDep, probe: ProbeQuery) -> None:
    probes.end(tenant, probe)


@router.post(
    "/v1/admin/probe/stream",
    operation_id="admin_stream_probe",
    summary="Stream frames at set times",
    description="Each frame has its number and the seconds since the head, by the server's clock. "
    f"A tenant has one probe at a time, for at most {MAX_PROBE_SECONDS:g} seconds.",
    responses={200: {"content": {"text/event-stream": {"schema": {}}}, "description": "Frames."}},
)
async def stream_probe(
    body: ProbeStreamBody, context: ContextDep, tenant: TenantDep, probes: ProbesDep
) -> Response:
    probe = probes.enter(tenant, body.probe)
    return ProbeResponse(probe, body, context.clock, context.settings.stall_seconds)


@router.post(
    "/v1/admin/probe/upload",
    operation_id="admin_upload_probe",
    summary="Send a large body",
)
async def upload_probe(body: ProbeUploadBody, access: AccessDep) -> ProbeUpload:  # noqa: ARG001
    return ProbeUpload(received_bytes=len(body.padding))


@router.post(
    "/v1/admin/probe/error",
    operation_id="admin_fail_probe",
    summary="Get an error",
    description="Answers with the error 404 or 503, so that a client sees whether it arrives "
    "unchanged.",
)
async def fail_probe(body: ProbeErrorBody) -> None:
    if body.status == 404:
        raise NotFoundError(ERROR_TEXTS[404])
    raise UnavailableError(ERROR_TEXTS[503], retry_after_seconds=ERROR_RETRY_SECONDS)


def _seen(request: Request) -> ProbeRequest:
    headers = request.headers
    authorization = headers.get("authorization")
    digest = None
    if authorization is not None:
        digest = hashlib.sha256(authorization.encode("utf-8", "surrogateescape")).hexdigest()
    return ProbeRequest(
        http_version=request.scope["http_version"],
        header_names=sorted({name[:_SHOWN_CHARS] for name in headers})[:_MOST_NAMES],
        headers={name: headers[name][:_SHOWN_CHARS] for name in _SHOWN if name in headers},
        authorization_sha256=digest,
    )
