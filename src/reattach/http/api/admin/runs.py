"""Routes that list runs with their figures, and show everything about one."""

from typing import Annotated, Literal

from fastapi import Depends, Query
from starlette.requests import Request
from starlette.responses import Response

from reattach.domain.events import RunStatus
from reattach.domain.ids import CONVERSATION_PATTERN, ConversationId
from reattach.domain.limits.requests import MAX_NAME_CHARS, MAX_QUERY_CHARS, MAX_QUERY_VALUES
from reattach.http.api.admin.fields import ONE_ORDER, AfterItem, PageLimit, TenantFilter
from reattach.http.api.admin.run_states import RunList, RunReport, run_item
from reattach.http.api.runs import RunPath
from reattach.http.context import ContextDep
from reattach.http.json import JsonResponse
from reattach.http.readable import readable_items
from reattach.http.routes import routes
from reattach.http.schemas.fields import QueryAgent
from reattach.records.runs.lists.overview import RunFilter
from reattach.runs.inspection.details import look_into
from reattach.runs.inspection.live import LiveFigures
from reattach.runs.inspection.scan import Scans
from reattach.runs.service import parse_run_id

router = routes("operation")

Statuses = Annotated[
    list[Literal["created", "running", "completed", "failed", "cancelled"]] | None,
    Query(alias="status", max_length=MAX_QUERY_VALUES, description="Only these; may be repeated."),
]
ModelQuery = Annotated[
    str | None, Query(max_length=MAX_NAME_CHARS, description="Only runs with this model.")
]
ConversationQuery = Annotated[
    ConversationId | None,
    Query(pattern=CONVERSATION_PATTERN, description="Only runs of this conversation."),
]
TextQuery = Annotated[
    str | None,
    Query(
        max_length=MAX_QUERY_CHARS,
        description="A part of the id of the run, its agent or its conversation, or of the first "
        "500 characters that were sent. Like `model`, it is looked for among the newest 20,000 "
        "runs that match the other filters.",
    ),
]


@router.get(
    "/v1/admin/runs",
    dependencies=ONE_ORDER,
    operation_id="admin_list_runs",
    summary="List runs with their figures",
    description="Newest first, with the events, rates and readers that all processes report. With "
    "a key that lacks `operator`, only those of its own tenant.",
    response_model=RunList,
)
async def list_runs(
    context: ContextDep,
    tenant: TenantFilter,
    statuses: Statuses = None,
    model: ModelQuery = None,
    agent_id: QueryAgent = None,
    conversation_id: ConversationQuery = None,
    query: TextQuery = None,
    limit: PageLimit = 100,
    after: AfterItem = None,
) -> Response:
    wanted = RunFilter(
        tenant=tenant,
        statuses={RunStatus(name) for name in statuses or ()},
        agent_id=agent_id,
        conversation_id=conversation_id,
        model=model or None,
        text=(query or "").strip() or None,
    )
    found = await context.records.overview.look(wanted, tenant=tenant, limit=limit + 1, after=after)
    live = LiveFigures.of(await context.reports.gather())
    items = await readable_items("runs", found.lines[:limit], lambda line: run_item(line, live))
    listed = {"items": items, "active": found.active, "total": found.total}
    return JsonResponse({**listed, "has_more": len(found.lines) > limit})


async def _scans(request: Request) -> Scans:
    found: Scans = request.app.state.scans
    return found


@router.get(
    "/v1/admin/runs/{run_id}",
    operation_id="admin_retrieve_run",
    summary="Show everything about a run",
    description="Its attempts and owners, the calls of the model and of tools, the readers at "
    "present, those that were cut off, and the condition of its log.",
)
async def show_run(
    run_id: RunPath,
    context: ContextDep,
    tenant: TenantFilter,
    scans: Annotated[Scans, Depends(_scans)],
) -> RunReport:
    details = await look_into(context.runs, context.records, scans, tenant, parse_run_id(run_id))
    return RunReport.of_details(details, LiveFigures.of(await context.reports.gather()))
