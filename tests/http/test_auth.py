from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.types import ASGIApp

from reattach.domain.errors import StoreUnavailableError, UnauthorizedError
from reattach.domain.ids import DEFAULT_TENANT, TenantId
from reattach.domain.limits import (
    AUDIT_LINES_PER_MINUTE,
    KEY_CACHE_ENTRIES,
    KEY_CACHE_SECONDS,
    KEY_USE_SECONDS,
    MAX_API_KEY_CHARS,
)
from reattach.http.middleware.auth import OPEN_PATHS, Authenticator
from reattach.http.middleware.loopback import is_loopback
from reattach.http.middleware.scopes import FOLLOWING, SENDING, scope_of
from reattach.records.base import ApiKey, KeyScope
from reattach.records.keys import Keys
from tests.support.asgi_server import OTHER_TENANT, Server, TestClock, serving, with_key

UNAUTHORIZED = {"detail": "Unauthorized", "code": "unauthorized"}


@pytest.mark.promise("S11")
async def test_without_any_key_a_loopback_server_is_open_to_any_token_and_none(
    server: Server,
) -> None:
    for headers in ({}, {"Authorization": "Bearer anything"}):
        response = await server.client.get("/v1/agents/", headers=headers)
        assert response.status_code == 200


@pytest.mark.promise("S11")
async def test_a_server_that_others_can_reach_is_never_open(tmp_path: Path) -> None:
    async with serving(tmp_path, host="0.0.0.0") as server:
        assert (await server.client.get("/v1/agents/")).status_code == 401
        assert (await server.client.get("/v1/health/")).status_code == 200


@pytest.mark.promise("S11")
async def test_a_server_that_requires_keys_and_has_none_names_the_command(tmp_path: Path) -> None:
    """D2: the refusal says how to make the first key, and no longer once there is one."""
    async with serving(tmp_path, require_key=True) as server:
        for headers in ({}, {"Authorization": "Bearer anything"}):
            refused = await server.client.get("/v1/agents/", headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (401, "key_required")
            assert "`reattach keys create NAME`" in refused.json()["detail"]
        await with_key(server)
        server.clock.skipped_seconds += KEY_CACHE_SECONDS
        refused = await server.client.get("/v1/agents/")
        assert (refused.status_code, refused.json()) == (401, UNAUTHORIZED)


def members_of(response: httpx2.Response) -> dict[str, Any]:
    """The members of an error, in whatever form its dialect has them."""
    if response.request.method == "HEAD":
        return {"code": UNAUTHORIZED["code"]} if response.status_code == 401 else {}
    members: dict[str, Any] = response.json()
    wrapped = members.get("error")
    return wrapped if isinstance(wrapped, dict) and "detail" not in members else members


@pytest.mark.promise("S11")
async def test_with_a_key_every_route_but_the_probes_and_the_description_needs_one(
    server: Server,
) -> None:
    client = await with_key(server)
    open_paths = {"/v1/health", "/v1/health/", "/v1/ready", "/v1/ready/", "/openapi.json"}
    for path in open_paths:
        assert (await server.client.get(path)).status_code == 200
    operations = [
        (method, path)
        for path, methods in server.app.openapi()["paths"].items()
        for method in methods
        if path not in open_paths
    ]
    assert len(operations) > 30
    for method, path in [*operations, ("get", "/v1/tools/"), ("get", "/nowhere")]:
        response = await server.client.request(method, path)
        error = members_of(response)
        assert (response.status_code, error["code"]) == (401, "unauthorized"), (method, path)
        if path.startswith("/ai-sdk/"):
            assert error["detail"].startswith("Unauthorized: the API key or the token is missing")
        elif not path.startswith("/openai/") and method != "head":
            assert error == UNAUTHORIZED
    assert (await client.get("/v1/agents/")).status_code == 200


@pytest.mark.promise("S11")
@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Bearer wrong", "Basic {key}", "{key}", "Bearer {key}x",
     "Bearer x {key}", "Bearer " + "x" * 100_000, "Bearer caf\xe9"],
)  # fmt: skip
async def test_anything_but_a_key_is_refused_alike(server: Server, value: str) -> None:
    client = await with_key(server)
    key = client.headers["authorization"].removeprefix("Bearer ")
    value = value.replace("{key}", key)
    headers = [(b"Authorization", value.encode("latin-1"))]
    response = await server.client.get("/v1/agents/", headers=headers)
    assert (response.status_code, response.json()) == (401, UNAUTHORIZED)
    no_password = await server.client.get(
        "/v1/agents/", headers={"X-BARE-PASSWORD": f"password {key}"}
    )
    assert no_password.status_code == 401


async def test_the_scheme_is_read_in_any_case(server: Server) -> None:
    client = await with_key(server)
    key = client.headers["authorization"].removeprefix("Bearer ")
    response = await server.client.get("/v1/agents/", headers={"Authorization": f"bearer {key}"})
    assert response.status_code == 200


@pytest.mark.promise("S11")
async def test_a_key_opens_its_tenant_and_no_other(server: Server) -> None:
    own, other = await with_key(server), await with_key(server, OTHER_TENANT)
    made = (await own.post("/v1/agents/", json={})).json()
    assert [one["id"] for one in (await own.get("/v1/agents/")).json()] == [made["id"]]
    assert (await other.get("/v1/agents/")).json() == []


@pytest.mark.promise("S11")
async def test_a_revoked_key_stops_working_within_seconds_and_leaves_the_server_closed(
    server: Server,
) -> None:
    client = await with_key(server)
    assert (await client.get("/v1/agents/")).status_code == 200
    [key] = await server.context.records.keys.list(None)
    await server.context.records.keys.revoke(key.id)
    server.clock.skipped_seconds += KEY_CACHE_SECONDS
    assert (await client.get("/v1/agents/")).status_code == 401
    assert (await server.client.get("/v1/agents/")).status_code == 401


class CountedKeys(Keys):
    """Keys that count their look-ups."""

    def __init__(self, clock: TestClock, *secrets: str) -> None:  # of no database
        self.used: list[str] = []
        self.secrets = set(secrets)
        self.look_ups = 0
        self.clock = clock
        self.broken = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def find(self, secret: str) -> ApiKey | None:
        self.look_ups += 1
        await self.may_answer.wait()
        if self.broken:
            raise StoreUnavailableError("broken")
        if secret not in self.secrets:
            return None
        return ApiKey(f"key-{secret}", TenantId(f"org-{secret}"), "n", "p", self.clock.now())

    async def mark_used(self, key_ids: Sequence[str], at: datetime) -> None:
        self.used += key_ids

    async def exist(self) -> bool:
        if not self.secrets:
            self.look_ups += 1
        await self.may_answer.wait()
        return bool(self.secrets)


LOCAL = {
    "type": "http",
    "method": "GET",
    "path": "/v1/agents/",
    "client": ("127.0.0.1", 50_000),
    "server": ("127.0.0.1", 8283),
}


async def tenant_of(authenticator: Authenticator, secret: str | None = None) -> TenantId:
    """Ask from this machine."""
    headers = {b"host": b"localhost"}
    if secret is not None:
        headers[b"authorization"] = f"Bearer {secret}".encode()
    return (await authenticator.access(LOCAL, headers)).tenant


async def refused(authenticator: Authenticator, secret: str) -> bool:
    try:
        await tenant_of(authenticator, secret)
    except UnauthorizedError:
        return True
    return False


async def test_a_look_up_is_remembered_for_a_time_and_no_longer() -> None:
    clock = TestClock()
    keys = CountedKeys(clock, "good")
    authenticator = Authenticator(keys, clock, may_be_open=False)
    for _ in range(3):
        assert await tenant_of(authenticator, "good") == "org-good"
        assert await refused(authenticator, "bad")
    assert keys.look_ups == 2
    clock.skipped_seconds += KEY_CACHE_SECONDS
    keys.secrets = {"bad"}
    assert await refused(authenticator, "good")
    assert await tenant_of(authenticator, "bad") == "org-bad"
    assert keys.look_ups == 4


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_crowd_is_looked_up_once_and_let_in_at_once(*, is_open: bool) -> None:
    clock = TestClock()
    keys = CountedKeys(clock, *(() if is_open else ("good",)))
    authenticator = Authenticator(keys, clock, may_be_open=is_open)
    keys.may_answer.clear()
    crowd = [asyncio.create_task(tenant_of(authenticator, "good")) for _ in range(100)]
    await asyncio.sleep(0)
    crowd[0].cancel()
    keys.may_answer.set()
    async with asyncio.timeout(5):
        tenants = await asyncio.gather(*crowd, return_exceptions=True)
    assert isinstance(tenants[0], asyncio.CancelledError)
    assert set(tenants[1:]) == {DEFAULT_TENANT if is_open else "org-good"}
    assert keys.look_ups == 1


async def test_failed_key_look_ups_are_not_cached() -> None:
    clock = TestClock()
    keys = CountedKeys(clock, "good")
    keys.broken = True
    authenticator = Authenticator(keys, clock, may_be_open=False)
    crowd = [tenant_of(authenticator, "good") for _ in range(3)]
    for answer in await asyncio.gather(*crowd, return_exceptions=True):
        assert isinstance(answer, StoreUnavailableError)
    keys.broken = False
    assert await tenant_of(authenticator, "good") == "org-good"


async def test_no_number_of_guesses_drives_out_a_key_that_works() -> None:
    clock = TestClock()
    keys = CountedKeys(clock, "good")
    authenticator = Authenticator(keys, clock, may_be_open=False)
    await tenant_of(authenticator, "good")
    for number in range(KEY_CACHE_ENTRIES + 10):
        assert await refused(authenticator, f"guess {number}")
    looked_up = keys.look_ups
    await tenant_of(authenticator, "good")
    assert keys.look_ups == looked_up
    assert await refused(authenticator, "x" * (MAX_API_KEY_CHARS + 1))
    assert keys.look_ups == looked_up


async def test_an_open_server_closes_with_its_first_key_and_stays_so() -> None:
    clock = TestClock()
    keys = CountedKeys(clock)
    authenticator = Authenticator(keys, clock, may_be_open=True)
    assert await tenant_of(authenticator) == DEFAULT_TENANT
    keys.secrets = {"good"}
    clock.skipped_seconds += KEY_CACHE_SECONDS
    assert await refused(authenticator, "bad")
    keys.secrets = set()
    clock.skipped_seconds += KEY_CACHE_SECONDS
    assert await refused(authenticator, "bad")


async def test_an_unavailable_store_gets_503_for_every_key(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await with_key(server)
    keys = CountedKeys(server.clock, "good")
    keys.broken = True
    monkeypatch.setattr(server.context.records.keys, "find", keys.find)
    response = await client.get("/v1/agents/")
    assert response.status_code == 503
    assert response.json() == {"detail": "broken", "code": "store_unavailable"}
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True),
     ("localhost", True), ("::ffff:127.0.0.1", True), ("::ffff:10.0.0.1", False),
     ("localhost.example", False), ("testclient", False), ("0.0.0.0", False),
     ("::", False), ("10.0.0.1", False),
     ("example.org", False), ("", False)],
)  # fmt: skip
def test_an_address_is_known_to_be_of_this_machine_or_not(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.promise("S11")
@pytest.mark.parametrize("host", ["rebound.example", "rebound.example:8283", "192.0.2.7", ""])
async def test_an_open_server_answers_to_no_name_but_this_machines_own(
    server: Server, host: str
) -> None:
    refused = await server.client.get("/v1/agents/", headers={"Host": host})

    assert (refused.status_code, refused.json()["code"]) == (421, "misdirected")
    assert "reattach keys create" in refused.json()["detail"]


@pytest.mark.promise("S11")
@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8283", "127.0.0.1:1", "[::1]:8283", "app.localhost"]
)
async def test_an_open_server_answers_to_every_name_of_this_machine(
    server: Server, host: str
) -> None:
    assert (await server.client.get("/v1/agents/", headers={"Host": host})).status_code == 200


@pytest.mark.promise("S11")
async def test_a_server_with_keys_answers_to_any_name(server: Server) -> None:
    client = await with_key(server)

    answered = await client.get("/v1/agents/", headers={"Host": "agents.example"})

    assert answered.status_code == 200


def asking(
    app: ASGIApp, *, client: str | None = "127.0.0.1", url: str = "http://localhost", **headers: str
) -> httpx2.AsyncClient:
    """A client at an address, whose connection ends at the host of the URL."""
    ends = httpx2.ASGITransport(app, client=(client, 50_000) if client else None)  # type: ignore[arg-type]
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.AsyncClient(transport=ends, base_url=url, headers=named, follow_redirects=True)


FORWARDED = [
    {"Forwarded": "for=192.0.2.7"},
    {"X_Forwarded_For": "192.0.2.7"},
    {"X_Forwarded_For": "127.0.0.1"},
    {"x_forwarded_proto": "https"},
    {"X_FORWARDED_HOST": "agents.example"},
    {"X_Forwarded_Anything": ""},
    {"X_Real_IP": "127.0.0.1"},
    {"Via": "1.1 proxy"},
    {"CF_Connecting_IP": "192.0.2.7"},
    {"Fly_Client_IP": "192.0.2.7"},
    {"X_Envoy_External_Address": "192.0.2.7"},
    {"X_ProxyUser_Ip": "192.0.2.7"},
    {"Forwarded_For": "192.0.2.7"},
    {"CDN_Loop": "cdn.example"},
]


@pytest.mark.promise("S11")
@pytest.mark.parametrize("headers", FORWARDED, ids=str)
async def test_an_open_server_refuses_forwarded_requests(
    server: Server, headers: dict[str, str]
) -> None:
    """D2: a proxy in front of a server without keys does not open it to strangers."""
    async with asking(server.app, **headers) as client:
        refused = await client.get("/v1/agents/")
        resumed = await client.post("/v1/conversations/default/stream", json={})
        assert (await client.get("/v1/health/")).status_code == 200
    assert (refused.status_code, refused.json()["code"]) == (401, "key_required")
    assert "reattach keys create NAME" in refused.json()["detail"]
    assert resumed.json() == refused.json()


@pytest.mark.promise("S11")
@pytest.mark.parametrize(
    ("client", "url"),
    [
        ("192.0.2.7", "http://localhost"),
        ("::ffff:192.0.2.7", "http://localhost"),
        ("testclient", "http://localhost"),
        (None, "http://localhost"),
        ("127.0.0.1", "http://10.0.0.1"),
    ],
)
async def test_an_open_server_refuses_connections_that_leave_this_machine(
    server: Server, client: str | None, url: str
) -> None:
    """D2: the name in the Host header alone opens nothing."""
    async with asking(server.app, client=client, url=url, Host="localhost") as http:
        refused = await http.get("/v1/agents/")
    assert (refused.status_code, refused.json()["code"]) == (401, "key_required")


@pytest.mark.promise("S11")
async def test_with_a_key_a_request_may_have_been_passed_on(server: Server) -> None:
    """D2: once there is a key, the key decides."""
    authorization = (await with_key(server)).headers["authorization"]
    headers = {"X_Forwarded_For": "192.0.2.7", "Authorization": authorization}
    async with asking(server.app, client="10.0.0.1", **headers) as client:
        assert (await client.get("/v1/agents/")).status_code == 200


@pytest.mark.promise("S11")
async def test_a_server_that_requires_a_key_refuses_this_machine_too(tmp_path: Path) -> None:
    """D2: with require_key nothing is answered until a key exists."""
    async with serving(tmp_path, require_key=True) as server:
        refused = await server.client.get("/v1/agents/")
        assert (refused.status_code, refused.json()["code"]) == (401, "key_required")
        assert (await server.client.get("/v1/health/")).status_code == 200
        client = await with_key(server)
        assert (await client.get("/v1/agents/")).status_code == 200


def scopes_needed(server: Server) -> dict[tuple[str, str], KeyScope | None]:
    """The scope that each operation of the API's description needs."""
    return {
        (method, path): scope_of([method.upper()], operation["operationId"])
        for path, methods in server.app.openapi()["paths"].items()
        for method, operation in methods.items()
        if path not in OPEN_PATHS
    }


async def scoped(server: Server, *scopes: KeyScope) -> httpx2.AsyncClient:
    """A client whose key has these scopes."""
    client = await with_key(server)
    keys = server.context.records.keys
    _, secret = await keys.create(DEFAULT_TENANT, "scoped", scopes=scopes)
    client.headers["Authorization"] = f"Bearer {secret}"
    return client


@pytest.mark.promise("S11")
@pytest.mark.parametrize("scope", list(KeyScope))
async def test_a_key_with_one_scope_allows_only_operations_of_that_scope(
    server: Server, scope: KeyScope
) -> None:
    """D13: every operation needs the scope that the table says, whatever the request has in it."""
    client = await scoped(server, scope)
    for (method, path), needed in scopes_needed(server).items():
        bodies: list[Any] = [{}, None, [1]]
        for body in bodies:
            response = await client.request(method, path, json=body)
            place = (method, path, response.text)
            may = needed in (None, scope) or (scope is KeyScope.OPERATOR and "/v1/admin/" in path)
            assert (response.status_code == 403) is not may, place
            if not may and method != "head":
                error = members_of(response)
                assert (error["code"], error["missing_scope"]) == ("forbidden", needed), place
                assert f"'{needed}'" in (error.get("detail") or error["message"])


async def test_the_scopes_of_operations_follow_from_their_methods(server: Server) -> None:
    """D13: reading needs read, deleting needs admin, and listed operations exist."""
    needed = scopes_needed(server)
    for (method, path), scope in needed.items():
        if scope is None:
            assert (method, path) == ("get", "/v1/server")
            continue
        assert (
            (method not in {"get", "head"})
            or scope is KeyScope.READ
            or path.startswith("/v1/admin/")
        )
        cancels = path.startswith("/ai-sdk/")
        assert (method != "delete") or cancels or scope is KeyScope.ADMIN
    operations = {
        operation["operationId"]
        for methods in server.app.openapi()["paths"].values()
        for operation in methods.values()
    }
    assert operations >= SENDING | FOLLOWING


@pytest.mark.promise("S11")
async def test_an_expired_key_opens_nothing_at_once(server: Server) -> None:
    """D13: a key stops working when it expires, also while its look-up is remembered."""
    client = await with_key(server)
    keys = server.context.records.keys
    soon = server.clock.now() + timedelta(seconds=KEY_CACHE_SECONDS / 2)
    _, secret = await keys.create(DEFAULT_TENANT, "short", expires_at=soon)
    client.headers["Authorization"] = f"Bearer {secret}"
    assert (await client.get("/v1/agents/")).status_code == 200
    server.clock.skipped_seconds += KEY_CACHE_SECONDS / 2
    refused = await client.get("/v1/agents/")
    assert (refused.status_code, refused.json()) == (401, UNAUTHORIZED)


async def noted(server: Server) -> datetime | None:
    """The last use of the newest key, once it is written."""
    async with asyncio.timeout(10):
        while (at := (await server.context.records.keys.list(None))[-1].last_used_at) is None:
            await asyncio.sleep(0.01)
    return at


async def test_the_last_use_of_a_key_is_remembered(server: Server) -> None:
    """D13: last_used_at is written."""
    client = await with_key(server)
    before = server.clock.now()
    assert (await client.get("/v1/agents/")).status_code == 200
    at = await noted(server)
    assert at is not None
    assert before <= at <= server.clock.now()


async def test_the_use_of_a_key_is_written_once_a_minute_however_much_it_is_used() -> None:
    """D13: a write for each request would make requests dearer."""
    clock = TestClock()
    keys = CountedKeys(clock, "good", "other")
    authenticator = Authenticator(keys, clock, may_be_open=False)
    for _ in range(12):
        for secret in "good", "other":
            await tenant_of(authenticator, secret)
            await asyncio.sleep(0)
        clock.skipped_seconds += KEY_USE_SECONDS / 12
    assert sorted(keys.used) == ["key-good", "key-other"]
    await tenant_of(authenticator, "good")
    await asyncio.sleep(0)
    assert keys.used.count("key-good") == 2


async def test_a_refused_key_leaves_a_line_with_its_prefix_and_where_it_came_from(
    server: Server, log_lines: list[Any]
) -> None:
    """D13: refused keys are logged without secrets."""
    client = await with_key(server)
    ours = "rk_" + "abcdefgh" * 6
    for authorization in (f"Bearer {ours}", "Bearer hunter2\x1b[0m", "Basic aHVudGVyMg==", ""):
        client.headers["Authorization"] = authorization
        assert (await client.get("/v1/agents/")).status_code == 401
    lines = [line for line in log_lines if line["event"] == "key refused"]
    assert [line["key"] for line in lines] == [
        "rk_abcde…", "not a Reattach key", "not a Reattach key", "none"
    ]  # fmt: skip
    assert {line["peer"] for line in lines} == {"127.0.0.1"}
    assert {line["path"] for line in lines} == {"/v1/agents/"}
    assert ours not in str(log_lines)
    assert "hunter2" not in str(log_lines)


async def test_a_flood_of_refused_keys_does_not_fill_the_log(
    server: Server, log_lines: list[Any]
) -> None:
    """D13: beyond a few lines a minute, refusals are counted."""
    await with_key(server)
    for number in range(AUDIT_LINES_PER_MINUTE * 3):
        headers = {"Authorization": f"Bearer {number}"}
        assert (await server.client.get("/v1/agents/", headers=headers)).status_code == 401
    assert [line["event"] for line in log_lines].count("key refused") == AUDIT_LINES_PER_MINUTE
    server.clock.skipped_seconds += 60
    await server.client.get("/v1/agents/")
    assert [line["times"] for line in log_lines if "times" in line] == [AUDIT_LINES_PER_MINUTE * 2]
    assert [line["event"] for line in log_lines].count("key refused") == AUDIT_LINES_PER_MINUTE + 1
