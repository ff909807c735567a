"""The route that shows the audit log."""

from reattach.http.api.admin.fields import ONE_ORDER, AfterItem, PageLimit, TenantFilter
from reattach.http.api.admin.schemas import AuditItem, AuditPage
from reattach.http.context import AccessDep, ContextDep
from reattach.http.readable import readable_items
from reattach.http.routes import routes

router = routes("operation")


@router.get(
    "/v1/admin/audit",
    dependencies=ONE_ORDER,
    operation_id="admin_list_audit_log",
    summary="List the audit log",
    description="Newest first: keys and tokens that were created and revoked, cancelled runs, and "
    "everything that was deleted, exported or backed up.",
)
async def list_audit_log(
    context: ContextDep,
    access: AccessDep,
    tenant: TenantFilter,
    limit: PageLimit = 100,
    after: AfterItem = None,
) -> AuditPage:
    found = await context.records.audit_log.list(
        tenant, limit=limit + 1, after=after, shows_outsiders=access.is_operator
    )
    items = await readable_items("audit_log", found[:limit], AuditItem.of)
    return AuditPage(items=items, has_more=len(found) > limit)
