"""Routes that show the processes of the server, and the results of its checks."""

from typing import Annotated, Literal

from fastapi import Query

from reattach.domain.ids import TenantId
from reattach.http.context import AccessDep, ContextDep, FindingsDep
from reattach.http.routes import routes
from reattach.http.schemas.fields import Answer, UtcTime, Word
from reattach.runs.reports.report import ProcessReport

router = routes("operation")


class LeaseState(Answer):
    seconds: float
    margin_seconds: float | None


class OperationState(Answer):
    operation: str
    count: int
    p50_seconds: float | None
    p99_seconds: float | None


class StoreState(Answer):
    store: Literal["records", "log"]
    backend: Literal["sqlite", "postgresql", "redis", "memory"]
    operations: list[OperationState]


class ProcessState(Answer):
    """A process of the server, as it last reported."""

    id: str
    host: str | None
    pid: int | None
    worker: int | None
    version: str
    started_at: UtcTime
    reported_at: UtcTime
    is_this: bool
    draining: bool
    open_runs: int
    readers: int
    connections: int | None
    memory_bytes: int | None
    event_loop_lag_seconds: float | None
    lease: LeaseState | None
    stores: list[StoreState]
    contradictions: dict[str, int]

    @classmethod
    def of(cls, report: ProcessReport, *, is_this: bool) -> "ProcessState":
        lease = report.lease
        return cls(
            id=report.id,
            host=report.host,
            pid=report.pid,
            worker=report.worker,
            version=report.version,
            started_at=report.started_at,
            reported_at=report.reported_at,
            is_this=is_this,
            draining=report.draining,
            open_runs=report.run_count,
            readers=report.reader_count,
            connections=report.connections,
            memory_bytes=report.memory_bytes,
            event_loop_lag_seconds=report.event_loop_lag_seconds,
            lease=None
            if lease is None
            else LeaseState(seconds=lease.seconds, margin_seconds=lease.margin_seconds),
            stores=[StoreState.model_validate(one, from_attributes=True) for one in report.stores],
            contradictions=dict(report.contradictions),
        )


class ProcessList(Answer):
    items: list[ProcessState]


class Finding(Answer):
    check: str
    level: Literal["ok", "warning", "wrong"]
    ok: bool
    detail: str
    remedy: str


class Contradiction(Answer):
    """A kind of contradiction that the audit of a process has found and mended."""

    process: str
    kind: str
    count: int


class FindingList(Answer):
    items: list[Finding]
    audit: list[Contradiction]
    checked_at: UtcTime | None


@router.get(
    "/v1/admin/processes",
    operation_id="admin_list_processes",
    summary="List the processes of the server",
    description="The process that answers comes first. Each of the others has a second to report; "
    "one that does not is shown as it last did. With the scope `admin` the counts are those of "
    "your tenant, and nothing is said of machines and stores, which all tenants use; with "
    "`operator` they are those of all tenants, or of the one in `tenant`.",
)
async def list_processes(
    context: ContextDep,
    access: AccessDep,
    tenant: Annotated[Word | None, Query(description="Only the runs of this tenant.")] = None,
) -> ProcessList:
    only = access.tenant_filter(None if tenant is None else TenantId(tenant))
    found = await context.reports.gather()
    if only is not None:
        found = [report.for_tenant(only) for report in found]
    own = context.runs.ownership.owner
    return ProcessList(items=[ProcessState.of(one, is_this=one.id == own) for one in found])


@router.get(
    "/v1/admin/findings",
    operation_id="admin_list_findings",
    summary="Check the server",
    description="The results of the checks that `reattach doctor` makes, at most "
    "10 seconds old, and the contradictions between logs and records that the audits have found "
    "and mended since the processes started. Needs the scope `operator`.",
)
async def list_findings(context: ContextDep, findings: FindingsDep) -> FindingList:
    checked = await findings.get()
    processes = await context.reports.gather()
    return FindingList(
        items=[
            Finding(
                check=one.what,
                level=one.level,
                ok=one.level == "ok",
                detail=one.detail,
                remedy=one.remedy,
            )
            for one in checked.diagnostics
        ],
        audit=[
            Contradiction(process=process.id, kind=kind, count=count)
            for process in processes
            for kind, count in process.contradictions.items()
            if count
        ],
        checked_at=checked.at,
    )
