"""Routes that resume a run's stream, by run id, by OTID, or by conversation."""

from functools import cache
from typing import Annotated

import structlog
from fastapi import Path, Response

from reattach.domain.errors import InvalidArgumentError
from reattach.domain.ids import AgentId, ConversationId, TenantId
from reattach.domain.limits import REPLAY_SLICE_EVENTS
from reattach.domain.limits.requests import MAX_ID_CHARS
from reattach.http.api.sending import STREAM_RESPONSES, deprecated_path
from reattach.http.context import Context, ContextDep, TenantDep
from reattach.http.routes import routes
from reattach.http.schemas.fields import ThreadPath
from reattach.http.schemas.resuming import ResumeBody
from reattach.http.stream.response import RunStream
from reattach.records.base import Thread
from reattach.runs.follow import Target

logger = structlog.get_logger(__name__)

router = routes()


@router.post(
    "/v1/conversations/{conversation_id}/stream",
    tags=["conversations"],
    operation_id="retrieve_conversation_stream",
    summary="Resume a run's stream",
    description=(
        "Streams the events of a background run after `starting_after`, then live events until "
        "its end. The run is named by `run_id`, otherwise by `otid`; otherwise it is the active "
        "run of the conversation. Never starts a run."
    ),
    responses=STREAM_RESPONSES,
)
async def resume_conversation(
    conversation_id: ThreadPath,
    context: ContextDep,
    tenant: TenantDep,
    body: ResumeBody | None = None,
) -> Response:
    return await conversation_stream(context, tenant, conversation_id, body or ResumeBody())


@router.post(
    "/v1/runs/{run_id}/stream",
    tags=["runs"],
    operation_id="retrieve_run_stream",
    summary="Resume the stream of one run",
    description="Like the stream of a conversation; ignores `run_id`, `otid` and `agent_id`.",
    responses=STREAM_RESPONSES,
)
async def resume_run(
    run_id: Annotated[str, Path(max_length=MAX_ID_CHARS)],
    context: ContextDep,
    tenant: TenantDep,
    body: ResumeBody | None = None,
) -> Response:
    return await run_stream(context, tenant, run_id, body or ResumeBody())


async def conversation_stream(
    context: Context, tenant: TenantId, conversation_id: str, body: ResumeBody
) -> RunStream:
    """Return the response to a resume in a conversation. Raises ReattachError."""
    target = await _find(context, tenant, conversation_id, body)
    deprecated = conversation_id.startswith("agent-")
    if deprecated:
        _warn_about_agent_path()
    return _stream(context, target, body, deprecated_path("stream") if deprecated else None)


async def run_stream(
    context: Context, tenant: TenantId, run_id: str, body: ResumeBody
) -> RunStream:
    """Return the response to a resume of one run. Raises ReattachError."""
    return _stream(context, await context.runs.target(tenant, run_id), body)


async def _find(context: Context, tenant: TenantId, path_id: str, body: ResumeBody) -> Target:
    """Find the run by run_id, then by otid, then as the active one."""
    if body.run_id is not None:
        return await context.runs.target(tenant, body.run_id)
    if body.otid is not None:
        return await context.runs.target_by_otid(tenant, body.otid)
    return await context.runs.active(tenant, _thread(path_id, body.agent_id))


def _thread(path_id: str, agent_id: str | None) -> Thread:
    """Return the named thread; one that does not exist is reported as having no active run."""
    if path_id.startswith("conv-"):
        return Thread(AgentId(""), ConversationId(path_id))
    return Thread(AgentId(path_id if path_id.startswith("agent-") else agent_id or ""), None)


def _stream(
    context: Context, target: Target, body: ResumeBody, headers: dict[str, str] | None = None
) -> RunStream:
    if not target.background:
        raise InvalidArgumentError(
            "Run was not created in background mode, so it cannot be retrieved."
        )
    hint = body.batch_size if "batch_size" in body.model_fields_set else None
    return RunStream(
        context.runs,
        target,
        context.clock,
        cursor=body.starting_after,
        max_events=REPLAY_SLICE_EVENTS if hint is None else hint,
        include_pings=bool(body.include_pings),
        stall_seconds=context.settings.stall_seconds,
        headers=headers,
    )


@cache  # once per process
def _warn_about_agent_path() -> None:
    logger.warning(
        "deprecated path used",
        path="/v1/conversations/agent-…/stream",
        instead="/v1/conversations/default/stream with agent_id",
    )
