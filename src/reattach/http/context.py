"""The context of an application, and the tenant and rights of a request, as dependencies."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends
from starlette.requests import Request

from reattach.domain.clock import Clock
from reattach.domain.ids import TenantId
from reattach.engine.catalog import Catalog
from reattach.http.findings import Findings
from reattach.http.middleware.access import ACCESS, Access
from reattach.http.middleware.quotas import Quotas
from reattach.http.middleware.tokens import StreamTokens
from reattach.meters.meters import Meters
from reattach.meters.scrape import Scrape
from reattach.records.records import Records
from reattach.runs.translation.translations import Translations
from reattach.settings import Settings
from reattach.telemetry.traces import Traces
from reattach.tools.base import Toolbox
from reattach.tools.connections import McpServers

if TYPE_CHECKING:
    from reattach.runs.reports.reports import Reports
    from reattach.runs.service import RunService


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of one server. Two contexts in one process share nothing."""

    records: Records
    catalog: Catalog
    settings: Settings
    clock: Clock
    runs: "RunService"
    reports: "Reports"
    toolbox: Toolbox = field(default_factory=Toolbox)
    mcp_servers: McpServers | None = None
    meters: Meters = field(default_factory=Meters)
    traces: Traces = field(default_factory=Traces)
    worker: int = 0
    """The slot of this process among those that share its port."""
    scrape: Scrape = field(init=False)
    """The question for the figures of this process, or of all workers of the machine."""

    translations: Translations = field(init=False)
    """The runs that are read in other dialects."""

    def __post_init__(self) -> None:
        translations = Translations(self.runs.follow, self.runs.watch)
        object.__setattr__(self, "translations", translations)
        object.__setattr__(self, "scrape", Scrape(self.meters, str(self.worker)))


async def get_context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


async def stream_tokens(request: Request) -> StreamTokens:
    tokens: StreamTokens = request.app.state.tokens
    return tokens


async def quotas(request: Request) -> Quotas:
    found: Quotas = request.app.state.quotas
    return found


async def access(request: Request) -> Access:
    """Return the rights of the request, which ``auth.Authentication`` determined."""
    found: Access = request.scope[ACCESS]
    return found


async def tenant(request: Request) -> TenantId:
    return (await access(request)).tenant


async def findings_of(request: Request) -> Findings:
    findings: Findings = request.app.state.findings
    return findings


AccessDep = Annotated[Access, Depends(access)]
QuotasDep = Annotated[Quotas, Depends(quotas)]
StreamTokensDep = Annotated[StreamTokens, Depends(stream_tokens)]
ContextDep = Annotated[Context, Depends(get_context)]
FindingsDep = Annotated[Findings, Depends(findings_of)]
TenantDep = Annotated[TenantId, Depends(tenant)]
