"""The route that lists tenants with their use."""

from reattach.http.api.admin.fields import ONE_ORDER, AfterItem, PageLimit, TenantFilter
from reattach.http.api.admin.schemas import QuotaUse, TenantList, TenantUse
from reattach.http.context import Context, ContextDep, QuotasDep
from reattach.http.middleware.quotas import Quotas
from reattach.http.routes import routes
from reattach.http.schemas.fields import members_of
from reattach.records.tenants.use import Use

router = routes("operation")


@router.get(
    "/v1/admin/tenants",
    dependencies=ONE_ORDER,
    operation_id="admin_list_tenants",
    summary="List tenants with their use",
    description="In the order of their ids. With a key that lacks `operator`, only its own tenant.",
)
async def list_tenants(
    context: ContextDep,
    quotas: QuotasDep,
    tenant: TenantFilter,
    limit: PageLimit = 100,
    after: AfterItem = None,
) -> TenantList:
    tenants = context.records.tenants
    if tenant is not None:
        return TenantList(items=[_item(context, quotas, await tenants.use(tenant))], has_more=False)
    found = await tenants.list(limit=limit + 1, after=after or "")
    items = [_item(context, quotas, use) for use in found[:limit]]
    return TenantList(items=items, has_more=len(found) > limit)


def _item(context: Context, quotas: Quotas, use: Use) -> TenantUse:
    states = quotas.states(use.tenant, context.runs.open_runs.count_of(use.tenant))
    shown = [QuotaUse(name=one.name, used=one.used, limit=one.limit) for one in states]
    return TenantUse(**members_of(use, TenantUse), quotas=shown)
