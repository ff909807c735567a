"""Routes for the records of runs; ``resuming`` has their streams."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import Path, Query, Response
from pydantic import Field

from reattach.domain.errors import InvalidArgumentError
from reattach.domain.events import RunStatus, StopReason, Usage
from reattach.domain.ids import (
    AGENT_PATTERN,
    CONVERSATION_OR_DEFAULT_PATTERN,
    AgentId,
    ConversationId,
)
from reattach.domain.limits.requests import MAX_ID_CHARS, MAX_PAGE_ITEMS, MAX_QUERY_VALUES
from reattach.domain.messages import Message, Role
from reattach.http.api.messages import OldestSpan, items_response
from reattach.http.context import AccessDep, ContextDep, TenantDep
from reattach.http.json import JsonResponse, list_response
from reattach.http.paging import NewestPage
from reattach.http.readable import readable_items
from reattach.http.routes import routes
from reattach.http.schemas.fields import QueryAgent, QueryTexts, StopReasonName
from reattach.http.schemas.message import MessageItem
from reattach.http.schemas.run import (
    RunMetrics,
    RunState,
    RunUsage,
    StepState,
    run_state,
    run_states,
)
from reattach.records.base import Page, Run, Span
from reattach.records.runs.lists.pages import run_filters
from reattach.runs.service import parse_run_id

router = routes("runs")

RunPath = Annotated[str, Path(max_length=MAX_ID_CHARS, description="Id of the run, `run-<uuid4>`.")]
AgentIds = Annotated[
    list[Annotated[AgentId, Field(pattern=AGENT_PATTERN)]] | None,
    Query(max_length=MAX_QUERY_VALUES, deprecated=True),
]
ConversationQuery = Annotated[
    ConversationId | None,
    Query(
        pattern=CONVERSATION_OR_DEFAULT_PATTERN,
        description="Only runs of this conversation; `default` is the default conversation.",
    ),
]


@router.get(
    "/v1/runs/",
    operation_id="list_runs",
    summary="List runs",
    response_model=list[RunState],
)
async def list_runs(
    context: ContextDep,
    tenant: TenantDep,
    page: NewestPage,
    agent_id: QueryAgent = None,
    agent_ids: AgentIds = None,
    statuses: QueryTexts = None,
    background: bool | None = None,
    stop_reason: StopReasonName | None = None,
    conversation_id: ConversationQuery = None,
    active: Annotated[bool, Query(description="Only runs that have not ended.")] = False,
    order_by: Annotated[Literal["created_at"], Query()] = "created_at",  # noqa: ARG001
) -> Response:
    filters = run_filters(
        agent_ids={*(agent_ids or ()), *([agent_id] if agent_id else ())},
        statuses=_statuses(statuses or ()),
        background=background,
        stop_reason=None if stop_reason is None else StopReason(stop_reason),
        conversation_id=conversation_id,
        active_only=active,
    )
    runs = await context.records.run_summaries.list(tenant, page, filters)
    return await list_response(runs, run_states)


@router.get(
    "/v1/runs/active",
    operation_id="list_active_runs",
    summary="List the runs that have not ended",
    response_model=list[RunState],
    deprecated=True,
)
async def list_active_runs(
    context: ContextDep,
    tenant: TenantDep,
    agent_id: QueryAgent = None,
    agent_ids: AgentIds = None,
    background: bool | None = None,
) -> Response:
    page = Page(limit=MAX_PAGE_ITEMS, ascending=False)
    return await list_runs(
        context, tenant, page, agent_id, agent_ids, background=background, active=True
    )


@router.get(
    "/v1/runs/{run_id}",
    operation_id="retrieve_run",
    summary="Retrieve a run",
    description="A stream token gets null for everything about callbacks.",
    response_model=RunState,
)
async def retrieve_run(run_id: RunPath, context: ContextDep, access: AccessDep) -> Response:
    run = await context.records.run_summaries.get(access.tenant, parse_run_id(run_id))
    return JsonResponse(run_state(run, for_token=access.claims is not None))


@router.delete(
    "/v1/runs/{run_id}",
    operation_id="delete_run",
    summary="Delete a run",
    description="Deletes its events; its messages stay in the conversation. An active run gets "
    "409.",
)
async def delete_run(run_id: RunPath, context: ContextDep, access: AccessDep) -> None:
    run = await context.runs.by_id(access.tenant, run_id)
    await context.records.runs.delete(access.tenant, run.id, by=access.actor)
    await context.runs.delete_logs([run.id])
    await context.records.runs.mark_log_deleted([run.id], context.clock.now())


@router.get(
    "/v1/runs/{run_id}/messages",
    operation_id="list_messages_for_run",
    summary="List the messages of a run",
    description="The messages that were sent, then the agent's. A stream token gets them without "
    "system messages.",
    response_model=list[MessageItem],
)
async def list_run_messages(
    run_id: RunPath, context: ContextDep, access: AccessDep, span: OldestSpan
) -> Response:
    tenant, system_too = access.tenant, access.shows_system_messages
    run = await context.runs.by_id(tenant, run_id)
    messages = context.records.messages
    if not await messages.of_run(tenant, run.id, Span(1, ascending=True)):
        return await items_response(_input_span(run, span, system_too=system_too))
    return await items_response(await messages.of_run(tenant, run.id, span, system_too=system_too))


@router.get(
    "/v1/runs/{run_id}/usage",
    operation_id="retrieve_usage_for_run",
    summary="Retrieve the usage of a run",
)
async def retrieve_usage(run_id: RunPath, context: ContextDep, tenant: TenantDep) -> RunUsage:
    run = await context.runs.by_id(tenant, run_id)
    return RunUsage.of(run.usage or Usage())


@router.get(
    "/v1/runs/{run_id}/steps", operation_id="list_steps_for_run", summary="List the steps of a run"
)
async def list_steps(
    run_id: RunPath, context: ContextDep, tenant: TenantDep, page: NewestPage
) -> list[StepState]:
    run = await context.runs.by_id(tenant, run_id)
    steps = await context.records.runs.steps(tenant, run.id, page)
    models = {model.handle: model for model in context.catalog.models()}
    return await readable_items(
        "steps", steps, lambda step: StepState.of(step, tenant, models.get(step.model or ""))
    )


@router.get(
    "/v1/runs/{run_id}/metrics",
    operation_id="retrieve_metrics_for_run",
    summary="Retrieve how long a run took",
)
async def retrieve_metrics(run_id: RunPath, context: ContextDep, tenant: TenantDep) -> RunMetrics:
    return RunMetrics.of(await context.runs.by_id(tenant, run_id))


def _statuses(names: list[str] | tuple[str, ...]) -> set[RunStatus]:
    try:
        return {RunStatus(name) for name in names}
    except ValueError:
        known = ", ".join(RunStatus)
        wrong = next(name for name in names if name not in set(RunStatus))
        raise InvalidArgumentError(
            f"'{wrong[:100]}' is not the status of a run.", remedy=f"Use one of {known}."
        ) from None


def _input_span(run: Run, span: Span, *, system_too: bool) -> Sequence[Message]:
    """Return the sent messages, for a run that has stored none in its conversation."""
    sent = [one for one in run.input if system_too or one.role is not Role.SYSTEM]
    places = {message.id: place for place, message in enumerate(sent)}
    # An unknown cursor is ignored, as it is for stored messages.
    first = 0 if span.after not in places else places[span.after] + 1
    end = len(sent) if span.before not in places else places[span.before]
    found = sent[first:end]
    found = found[: span.limit] if span.goes_to_newer else found[len(found) - span.limit :]
    return found if span.ascending else found[::-1]
