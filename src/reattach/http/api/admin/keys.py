"""Routes that list, create and revoke API keys."""

from typing import Annotated

from fastapi import Path, Response

from reattach.domain.ids import KEY_PATTERN, TenantId, new_tenant_id
from reattach.http.api.admin.fields import ONE_ORDER, AfterItem, PageLimit, TenantFilter
from reattach.http.api.admin.schemas import NEW_TENANT, CreatedKey, KeyList, KeyState, NewKey
from reattach.http.context import AccessDep, ContextDep
from reattach.http.json import Fault, invalid
from reattach.http.middleware.access import Access
from reattach.http.readable import readable_items
from reattach.http.routes import routes
from reattach.records.base import ALL_SCOPES, KeyScope

router = routes("operation")

KeyPath = Annotated[
    str, Path(pattern=KEY_PATTERN, max_length=64, description="Id of the key, `key-<uuid4>`.")
]


@router.get(
    "/v1/admin/keys",
    dependencies=ONE_ORDER,
    operation_id="admin_list_keys",
    summary="List API keys",
    description="Newest first, with those that were revoked or have expired, without secrets.",
)
async def list_keys(
    context: ContextDep, tenant: TenantFilter, limit: PageLimit = 100, after: AfterItem = None
) -> KeyList:
    found = await context.records.keys.page(tenant, limit=limit + 1, after=after)
    now = context.clock.now()
    items = await readable_items("api_keys", found[:limit], lambda key: KeyState.of(key, now))
    return KeyList(items=items, has_more=len(found) > limit)


@router.post(
    "/v1/admin/keys",
    operation_id="admin_create_key",
    summary="Create an API key",
    description="Returns the secret, which the server does not keep. The first key closes a server "
    "that was open without keys.",
)
async def create_key(
    body: NewKey, context: ContextDep, access: AccessDep, response: Response
) -> CreatedKey:
    scopes = frozenset(body.scopes or ALL_SCOPES)
    for scope in KeyScope:
        if scope in scopes:
            access.require(scope)
    now, expires_at = context.clock.now(), body.expires_at
    if expires_at is not None and expires_at <= now:
        raise invalid([Fault(["body", "expires_at"], "The time has passed.", "past")])
    if access.expires_at is not None:
        expires_at = min(expires_at or access.expires_at, access.expires_at)
    key, secret = await context.records.keys.create(
        _owner(access, body), body.name, scopes=scopes, expires_at=expires_at, by=access.actor
    )
    response.headers["cache-control"] = "no-store"
    return CreatedKey.of(key, now, secret=secret)


def _owner(access: Access, body: NewKey) -> TenantId:
    """Return the tenant of the new key. Raises ForbiddenError."""
    if body.tenant is None:
        return access.tenant
    tenant = new_tenant_id() if body.tenant == NEW_TENANT else TenantId(body.tenant)
    access.tenant_filter(tenant)
    return tenant


@router.delete(
    "/v1/admin/keys/{key_id}",
    operation_id="admin_revoke_key",
    summary="Revoke an API key",
    description="It stops working within 5 s on every server, with the stream tokens that it "
    "issued, and its open streams end. Revoking it again changes nothing.",
)
async def revoke_key(key_id: KeyPath, context: ContextDep, access: AccessDep) -> KeyState:
    keys, tenant = context.records.keys, access.tenant_filter()
    key = await keys.get(tenant, key_id)
    if KeyScope.OPERATOR in key.scopes and not access.is_operator:
        raise access.lacks(KeyScope.OPERATOR)
    await keys.revoke(key_id, tenant=tenant, by=access.actor)
    return KeyState.of(await keys.get(tenant, key_id), context.clock.now())
