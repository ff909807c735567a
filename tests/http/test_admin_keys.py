"""API keys over HTTP, and the audit log of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.domain.ids import DEFAULT_TENANT, TenantId
from reattach.domain.limits import KEY_CACHE_SECONDS
from reattach.records.base import KeyScope
from tests.support.asgi_server import OTHER_TENANT, Server, serving

KEYS = "/v1/admin/keys"
AUDIT = "/v1/admin/audit"


@dataclass
class Clients:
    """Clients of one server, each with a key of its own."""

    server: Server

    async def key(
        self,
        *scopes: str,
        tenant: TenantId = DEFAULT_TENANT,
        expires_at: datetime | None = None,
    ) -> httpx2.AsyncClient:
        _, secret = await self.server.context.records.keys.create(
            tenant,
            f"{tenant[4:8]} {' '.join(scopes)}",
            scopes=[KeyScope(one) for one in scopes],
            expires_at=expires_at,
        )
        self.server.clock.skipped_seconds += KEY_CACHE_SECONDS
        return self.with_secret(secret)

    def with_secret(self, secret: str) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            transport=httpx2.ASGITransport(self.server.app),
            base_url="http://localhost",
            headers={"Authorization": f"Bearer {secret}"},
        )


@pytest.fixture(scope="module")
async def clients(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Clients]:
    async with serving(tmp_path_factory.mktemp("keys")) as server:
        yield Clients(server)


async def made(client: httpx2.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post(KEYS, json={"name": "app", **body})
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    key: dict[str, Any] = response.json()
    return key


async def audited(client: httpx2.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    response = await client.get(AUDIT, params=query)
    assert response.status_code == 200, response.text
    items: list[dict[str, Any]] = response.json()["items"]
    return items


async def test_an_open_server_makes_its_first_key_and_requires_one_from_then_on(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        key = await made(server.client)
        server.clock.skipped_seconds += KEY_CACHE_SECONDS

        assert (await server.client.get(KEYS)).status_code == 401
        keyed = Clients(server).with_secret(key["secret"])
        listed = (await keyed.get(KEYS)).json()
        assert [one["id"] for one in listed["items"]] == [key["id"]]
        assert (key["tenant"], key["state"]) == (DEFAULT_TENANT, "active")
        assert key["scopes"] == ["admin", "read", "send"]
        assert key["secret"] not in (await keyed.get(KEYS)).text
        [entry] = await audited(keyed)
        assert (entry["action"], entry["subject"]) == ("key.created", key["id"])
        assert entry["actor"] == {"kind": "open", "id": None, "name": None}


async def test_a_key_that_is_revoked_over_http_stops_working(clients: Clients) -> None:
    admin = await clients.key("admin", "read", "send")
    key = await made(admin, scopes=["read"])
    reader = clients.with_secret(key["secret"])
    assert (await reader.get("/v1/agents/")).status_code == 200

    for _ in range(2):
        revoked = (await admin.delete(f"{KEYS}/{key['id']}")).json()
        assert revoked["state"] == "revoked"

    clients.server.clock.skipped_seconds += KEY_CACHE_SECONDS
    assert (await reader.get("/v1/agents/")).status_code == 401
    acts = [entry["action"] for entry in await audited(admin) if entry["subject"] == key["id"]]
    assert acts == ["key.revoked", "key.created"]


@pytest.mark.parametrize(
    ("own", "wanted", "missing"),
    [
        (["admin", "read"], ["read", "send"], "send"),
        (["admin", "read"], None, "send"),
        (["admin", "read", "send"], ["operator"], "operator"),
        (["operator"], ["admin"], "admin"),
    ],
)
async def test_a_key_gives_no_scope_that_it_lacks(
    clients: Clients, own: Sequence[str], wanted: Sequence[str] | None, missing: str
) -> None:
    client = await clients.key(*own)
    before = (await client.get(KEYS)).json()

    refused = await client.post(KEYS, json={"name": "more", "scopes": wanted})

    assert (refused.status_code, refused.json()["missing_scope"]) == (403, missing)
    assert (await client.get(KEYS)).json()["items"][0]["id"] == before["items"][0]["id"]


@pytest.mark.parametrize("scopes", [["read"], ["send"], []])
async def test_a_key_without_admin_or_operator_is_refused(
    clients: Clients, scopes: Sequence[str]
) -> None:
    client = await clients.key(*scopes)
    for path in (KEYS, AUDIT, "/v1/admin/tenants"):
        assert (await client.get(path)).status_code == 403
    assert (await client.post(KEYS, json={"name": "app", "scopes": ["read"]})).status_code == 403


async def test_a_key_that_expires_makes_none_that_expires_later(clients: Clients) -> None:
    expires_at = datetime.now(UTC) + timedelta(days=365)
    client = await clients.key("admin", "read", "send", expires_at=expires_at)
    later, sooner = expires_at + timedelta(days=1), expires_at - timedelta(days=1)

    keys = [
        await made(client),
        await made(client, expires_at=later.isoformat()),
        await made(client, expires_at=sooner.isoformat()),
    ]

    assert [datetime.fromisoformat(key["expires_at"]) for key in keys] == [
        expires_at,
        expires_at,
        sooner,
    ]


@pytest.mark.promise("P12")
async def test_a_tenant_sees_and_changes_only_its_own_keys(clients: Clients) -> None:
    ours = await clients.key("admin", "read", "send")
    theirs = await clients.key("admin", "read", "send", tenant=OTHER_TENANT)
    key = await made(theirs)

    assert {one["tenant"] for one in (await ours.get(KEYS)).json()["items"]} == {DEFAULT_TENANT}
    assert (await ours.delete(f"{KEYS}/{key['id']}")).status_code == 404
    assert (await ours.get(KEYS, params={"after": key["id"]})).status_code == 404
    for path in (KEYS, AUDIT):
        assert (await ours.get(path, params={"tenant": OTHER_TENANT})).status_code == 403
        assert OTHER_TENANT not in (await ours.get(path)).text
    body = {"name": "app", "tenant": OTHER_TENANT}
    assert (await ours.post(KEYS, json=body)).status_code == 403
    assert (await ours.post(KEYS, json=body | {"tenant": "new"})).status_code == 403
    still = (await theirs.get(KEYS)).json()["items"]
    assert [one["state"] for one in still if one["id"] == key["id"]] == ["active"]


async def test_an_operator_manages_the_keys_of_all_tenants_unseen(clients: Clients) -> None:
    operator = await clients.key("operator", "admin", "read", "send")
    theirs = await clients.key("admin", "read", "send", tenant=OTHER_TENANT)
    key = await made(operator, tenant=OTHER_TENANT)
    fresh = await made(operator, tenant="new")
    assert fresh["tenant"].startswith("org-")

    assert (await operator.delete(f"{KEYS}/{key['id']}")).status_code == 200

    tenants = {one["tenant"] for one in (await operator.get(KEYS)).json()["items"]}
    assert {DEFAULT_TENANT, OTHER_TENANT, fresh["tenant"]} <= tenants
    listed = (await operator.get(KEYS, params={"tenant": OTHER_TENANT})).json()["items"]
    assert {one["tenant"] for one in listed} == {OTHER_TENANT}
    seen = await audited(operator, tenant=OTHER_TENANT, limit=1)
    assert (seen[0]["action"], seen[0]["actor"]["kind"]) == ("key.revoked", "key")
    assert seen[0]["actor"]["name"]
    [shown] = await audited(theirs, limit=1)
    assert shown == seen[0] | {"actor": {"kind": "key", "id": None, "name": None}}


async def test_an_admin_of_its_tenant_cannot_revoke_an_operator(clients: Clients) -> None:
    operator = await clients.key("operator")
    key = (await made(operator, scopes=["operator"]))["id"]
    admin = await clients.key("admin", "read", "send")

    refused = await admin.delete(f"{KEYS}/{key}")

    assert (refused.status_code, refused.json()["missing_scope"]) == (403, "operator")


async def test_pages_of_keys_and_of_the_audit_log_have_every_item_once(clients: Clients) -> None:
    tenant = TenantId("org-22222222-2222-4222-8222-222222222222")
    admin = await clients.key("admin", "read", "send", tenant=tenant)
    names = [f"app {number}" for number in range(5)]
    for name in names:
        await made(admin, name=name)

    for path in (KEYS, AUDIT):
        seen: list[str] = []
        query: dict[str, Any] = {"limit": 2}
        while True:
            page = (await admin.get(path, params=query)).json()
            assert len(page["items"]) <= 2
            seen += [(one.get("detail") or one)["name"] for one in page["items"]]
            if not page["has_more"]:
                break
            query["after"] = page["items"][-1]["id"]
        assert seen[: len(names)] == names[::-1]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "a\tb"},
        {"name": "app", "scopes": []},
        {"name": "app", "scopes": ["all"]},
        {"name": "app", "tenant": ""},
        {"name": "app", "scope": ["read"]},
        {"name": "app", "tenant": "two words"},
        {"name": "app", "expires_at": "2020-01-01T00:00:00Z"},
        {"name": "app", "expires_at": "2099-01-01T00:00:00"},
    ],
)
async def test_a_bad_key_is_refused_and_not_made(clients: Clients, body: dict[str, Any]) -> None:
    operator = await clients.key("operator", "admin", "read", "send")
    before = (await operator.get(KEYS, params={"limit": 1})).json()

    refused = await operator.post(KEYS, json=body)

    assert (refused.status_code, refused.json()["code"]) == (422, "validation_error")
    assert (await operator.get(KEYS, params={"limit": 1})).json()["items"][0]["id"] == (
        before["items"][0]["id"]
    )
    assert (await operator.get(KEYS, params={"limit": 0})).status_code == 422


async def test_what_clients_delete_and_cancel_is_in_the_audit_log_with_their_key_or_token(
    clients: Clients,
) -> None:
    tenant = TenantId("org-33333333-3333-4333-8333-333333333333")
    keyed = await clients.key("admin", "read", "send", tenant=tenant)

    async def posted(path: str, body: Any) -> Any:
        response = await keyed.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    agent = (await posted("/v1/agents/", {"model": "scripted/echo"}))["id"]
    conversation = (await posted(f"/v1/conversations/?agent_id={agent}", {}))["id"]
    other = (await posted(f"/v1/conversations/?agent_id={agent}", {}))["id"]
    sent = {"messages": [{"role": "user", "content": "[hang=60]"}]}
    run = (await posted(f"/v1/agents/{agent}/messages/async", sent))["id"]
    token = await posted("/v1/tokens", {"run_id": run, "scope": "cancel"})
    page = clients.with_secret(token["token"])
    for _ in range(2):
        assert (await page.post(f"/v1/runs/{run}/cancel")).status_code == 200
    assert (await keyed.delete(f"/v1/tokens/{token['id']}")).status_code == 200
    assert (await keyed.delete(f"/v1/runs/{run}")).status_code == 200
    assert (await keyed.delete(f"/v1/conversations/{other}")).status_code == 200
    assert (await keyed.delete(f"/v1/conversations/{other}")).status_code == 404
    assert (await keyed.delete(f"/v1/agents/{agent}")).status_code == 200

    entries = (await audited(keyed))[::-1]

    assert [(one["action"], one["subject"], one["actor"]["kind"]) for one in entries] == [
        ("token.issued", token["id"], "key"),
        ("run.cancelled", run, "token"),
        ("token.revoked", token["id"], "key"),
        ("run.deleted", run, "key"),
        ("conversation.deleted", other, "key"),
        ("agent.deleted", agent, "key"),
    ]
    assert entries[1]["actor"] == {"kind": "token", "id": token["id"], "name": None}
    assert {one["tenant"] for one in entries} == {tenant}
    assert entries[0]["detail"]["run_id"] == run
    assert conversation not in str(entries)
