"""Stream tokens: the requests that they open, those that they do not, and their end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.domain.ids import DEFAULT_TENANT
from reattach.domain.limits import (
    KEY_CACHE_SECONDS,
    STREAM_TOKEN_SECONDS,
    TOKEN_EXPIRING_SECONDS,
    TOKEN_USES_SECONDS,
)
from reattach.domain.stream_tokens import TokenScope
from reattach.http.middleware import tokens as middleware
from reattach.http.middleware.scopes import OF_EVERY_KEY, OF_TOKENS
from reattach.records.base import KeyScope
from tests.support.asgi_server import OTHER_TENANT
from tests.support.live_server import WAIT_SECONDS, LiveServer, listening, new_threads, to

UNAUTHORIZED = {"detail": "Unauthorized", "code": "unauthorized"}
PING_SECONDS = 0.2


@dataclass
class World:
    """A server with keys of two tenants, and runs that have ended."""

    live: LiveServer
    client: httpx2.AsyncClient
    """With a key of the default tenant."""
    agent: str
    thread: str
    run: str
    """A run of ``thread``."""
    other_thread: str
    other_run: str
    """A run of ``other_thread``, a conversation of the same agent."""
    foreign_run: str
    """A run of another tenant."""

    async def issue(self, **body: Any) -> dict[str, Any]:
        return await issued(self.client, **body)

    def bearing(self, token: str, **headers: str) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            base_url=self.live.url,
            headers={"Authorization": f"Bearer {token}", **headers},
            timeout=WAIT_SECONDS,
            verify=False,
        )


async def issued(client: httpx2.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/tokens", json={"scope": "read", **body})
    assert response.status_code == 200, response.text
    token: dict[str, Any] = response.json()
    return token


async def run_in(client: httpx2.AsyncClient, thread: str, text: str = "[chunks=3]") -> str:
    """The id of a background run that has ended."""
    body = {"input": text, "background": True}
    async with client.stream("POST", to(thread), json=body) as response:
        assert response.status_code == 200
        await response.aread()
        return str(response.headers["x-run-id"])


async def thread_of(client: httpx2.AsyncClient) -> tuple[str, str]:
    agent = (await client.post("/v1/agents/", json={})).json()["id"]
    thread = await client.post(f"/v1/conversations/?agent_id={agent}", json={})
    return agent, thread.json()["id"]


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    directory = tmp_path_factory.mktemp("tokens")
    async with listening(directory, ping_interval_seconds=PING_SECONDS) as live:
        client = await live.as_tenant(DEFAULT_TENANT)
        stranger = await live.as_tenant(OTHER_TENANT)
        async with client, stranger:
            agent, thread = await thread_of(client)
            other = (await client.post(f"/v1/conversations/?agent_id={agent}", json={})).json()
            _, foreign_thread = await thread_of(stranger)
            yield World(
                live,
                client,
                agent,
                thread,
                await run_in(client, thread),
                other["id"],
                await run_in(client, other["id"]),
                await run_in(stranger, foreign_thread),
            )


def paths_of_run(run: str) -> list[str]:
    return [
        f"/v1/runs/{run}/stream",
        f"/v1/runs/{run}/snapshot",
        f"/v1/runs/{run}",
        f"/v1/runs/{run}/messages",
    ]


def paths_of_conversation(thread: str, run: str) -> list[str]:
    return [
        f"/v1/conversations/{thread}/messages",
        f"/v1/conversations/{thread}/stream?run_id={run}",
        f"/v1/conversations/{thread}/snapshot?run_id={run}",
        *paths_of_run(run),
    ]


def runs(*run_ids: str) -> dict[str, Any]:
    return {"runs": [{"run_id": run_id} for run_id in run_ids]}


@pytest.mark.promise("S11")
async def test_a_token_is_issued_with_its_rights_and_never_shown_again(world: World) -> None:
    response = await world.client.post("/v1/tokens", json={"run_id": world.run, "scope": "read"})
    assert response.headers["cache-control"] == "no-store"
    token = response.json()
    assert token["scope"] == ["read"]
    assert (token["run_id"], token["conversation_id"]) == (world.run, None)
    (row,) = [
        row
        for row in (await world.client.get("/v1/tokens", params={"run_id": world.run})).json()
        if row["id"] == token["id"]
    ]
    assert token["token"] not in json.dumps(row)
    assert row["expires_at"] == token["expires_at"]
    both = await world.issue(conversation_id=world.thread, scope=["cancel", "send", "read"])
    assert both["scope"] == ["read", "send", "cancel"]


@pytest.mark.promise("S11", "P11")
async def test_a_read_token_of_a_run_opens_that_run_and_nothing_else(world: World) -> None:
    token = (await world.issue(run_id=world.run))["token"]
    async with world.bearing(token) as page:
        for path in paths_of_run(world.run):
            assert (await page.get(path)).status_code == 200, path
        resumed = await page.post(f"/v1/runs/{world.run}/stream", json={})
        assert resumed.content.endswith(b"data: [DONE]\n\n")
        for path in (
            *paths_of_conversation(world.thread, world.run)[:3],
            *paths_of_conversation(world.other_thread, world.other_run),
            *paths_of_run(world.foreign_run),
            *paths_of_run("run-00000000-0000-4000-8000-000000000000"),
            "/v1/runs/",
            "/v1/agents/",
            f"/v1/agents/{world.agent}",
            f"/v1/conversations/{world.thread}",
            "/v1/tokens",
        ):
            refused = await page.get(path)
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), path
        for path in (
            to(world.thread),
            f"/v1/conversations/{world.thread}/cancel",
            f"/v1/agents/{world.agent}/messages/cancel",
            "/v1/tokens",
            "/v1/agents/",
        ):
            body = None if path.endswith("/cancel") else {"input": "x"}
            assert (await page.post(path, json=body)).status_code == 403, path
        assert (await page.delete(f"/v1/runs/{world.run}")).status_code == 403


@pytest.mark.promise("S11", "P11")
async def test_a_read_token_of_a_conversation_opens_its_runs_and_no_others(world: World) -> None:
    otid = {"messages": [{"role": "user", "content": "x", "otid": "of-another"}]}
    body = {**otid, "background": True}
    await (await world.client.post(to(world.other_thread), json=body)).aread()
    token = (await world.issue(conversation_id=world.thread))["token"]
    async with world.bearing(token) as page:
        for path in paths_of_conversation(world.thread, world.run):
            assert (await page.get(path)).status_code == 200, path
        stream = f"/v1/conversations/{world.thread}/stream"
        snapshot = f"/v1/conversations/{world.thread}/snapshot"
        several = await page.post("/v1/streams", json=runs(world.run))
        assert several.content.count(b"event: done") == 1
        unknown = "run-00000000-0000-4000-8000-000000000000"
        for run in (world.other_run, world.foreign_run, unknown):
            answers = [await page.get(path) for path in paths_of_run(run)]
            answers.append(await page.get(stream, params={"run_id": run}))
            answers.append(await page.get(snapshot, params={"run_id": run}))
            answers.append(await page.post("/v1/streams", json=runs(world.run, run)))
            answers.append(await page.post(stream, json={"run_id": run}))
            answers.append(await page.get(stream, headers={"Last-Event-ID": f"{run}:1"}))
            expected = f"This stream token is only for {world.thread}."
            assert {(one.status_code, one.json()["detail"]) for one in answers} == {(403, expected)}
        for given in ("of-another", "of nobody"):
            missing = await page.post(stream, json={"otid": given})
            assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
            assert f"otid={given}." in missing.json()["detail"]
        for path in paths_of_conversation(world.other_thread, world.run)[:3]:
            assert (await page.get(path)).status_code == 403, path
        default = "/v1/conversations/default/messages"
        assert (await page.get(default, params={"agent_id": world.agent})).status_code == 403


@pytest.mark.promise("P11", "S11")
async def test_a_token_shows_no_system_message_anywhere(world: World) -> None:
    client = world.client
    blocks = [{"label": "persona", "value": "SECRET block"}]
    made = await client.post(
        "/v1/agents/", json={"system": "SECRET prompt", "memory_blocks": blocks}
    )
    agent = made.json()["id"]
    thread = (await client.post(f"/v1/conversations/?agent_id={agent}", json={})).json()["id"]
    sent = [
        {"role": "system", "content": "SECRET instruction"},
        {"role": "user", "content": "[chunks=9] hello"},
    ]
    world.live.gates.hold(agent, 2)
    body = {"messages": sent, "background": True, "stream_tokens": True}
    of_thread = f"/v1/conversations/{thread}"
    async with client.stream("POST", to(thread), json=body) as response:
        run = response.headers["x-run-id"]
        await world.live.gates.reached(agent, 2)
        token = (await world.issue(conversation_id=thread, scope=[*TokenScope]))["token"]
        async with world.bearing(token) as page:
            for path in paths_of_conversation(thread, run):
                if path.partition("?")[0].endswith("/stream"):
                    continue
                assert "SECRET" not in (await page.get(path)).text, path
            for path in (of_thread, f"/v1/runs/{run}"):
                query = {"from": "snapshot", "run_id": run}
                async with page.stream("GET", f"{path}/stream", params=query) as begun:
                    name, data = await Page(begun).next()
                assert (name, "SECRET" in data, "hello" in data) == ("snapshot", False, True)
        world.live.gates.open(agent)
        await response.aread()
    types = [
        {},
        {"include_return_message_types": "system_message"},
        {"order": "asc", "limit": "1"},
        {"order": "asc", "limit": "2"},
        {"limit": "1000"},
    ]
    async with world.bearing(token) as page:
        for path in paths_of_conversation(thread, run):
            for query in types:
                shown = await page.get(path, params={"run_id": run, "from": "snapshot", **query})
                assert (shown.status_code, "SECRET" in shown.text) == (200, False), path
        for path in (f"{of_thread}/messages", f"/v1/runs/{run}/messages"):
            first = await page.get(path, params={"order": "asc", "limit": "1"})
            assert [one["message_type"] for one in first.json()] == ["user_message"]
            after = {"order": "asc", "limit": "1", "after": first.json()[0]["id"]}
            second = await page.get(path, params=after)
            assert [one["message_type"] for one in second.json()] == ["assistant_message"]
    for path in (f"{of_thread}/messages", f"/v1/runs/{run}/snapshot"):
        assert "SECRET" in (await client.get(path)).text


@pytest.mark.promise("P11", "S11")
async def test_the_record_of_a_run_shows_a_token_nothing_of_callbacks(world: World) -> None:
    url = "https://example.invalid/hook?secret=SECRET"
    body = {"messages": [{"role": "user", "content": "hi"}], "callback_url": url}
    path = f"/v1/agents/{world.agent}/messages/async"
    run = (await world.client.post(path, json=body)).json()["id"]
    token = (await world.issue(run_id=run))["token"]
    await (await world.client.post(f"/v1/runs/{run}/stream", json={})).aread()
    whole = (await world.client.get(f"/v1/runs/{run}")).json()
    assert whole["callback_url"] == url
    async with world.bearing(token) as page:
        shown = (await page.get(f"/v1/runs/{run}")).json()
    assert shown.keys() == whole.keys()
    callback = {"callback_url", "callback_sent_at", "callback_status_code", "callback_error"}
    assert {name for name in shown if shown[name] is None} >= callback
    for name in shown.keys() - callback - {"completed_at", "total_duration_ns"}:
        assert shown[name] == whole[name], name


@pytest.mark.promise("S11")
async def test_every_operation_is_closed_to_tokens_unless_it_is_listed(world: World) -> None:
    token = await world.issue(conversation_id=world.thread, scope=[*TokenScope])
    operations = {
        operation["operationId"]: (method, path)
        for path, methods in world.live.app.openapi()["paths"].items()
        for method, operation in methods.items()
    }
    assert OF_TOKENS.keys() <= operations.keys()
    async with world.bearing(token["token"]) as page:
        for name, (method, path) in operations.items():
            if name in {*OF_TOKENS, *OF_EVERY_KEY} or name.startswith("check_"):
                continue
            answer = await page.request(method, path)
            assert answer.status_code == 403, (name, answer.text)
            assert "A stream token does not open this route" in answer.text


@pytest.mark.promise("S11")
async def test_a_send_token_sends_only_what_it_was_issued_for(world: World) -> None:
    plain = await world.issue(conversation_id=world.thread, scope="send")
    wide = await world.issue(
        conversation_id=world.thread,
        scope="send",
        models=["scripted/echo"],
        client_tools=["weather"],
    )
    tools = {"client_tools": [{"name": "weather", "parameters": {}}]}
    async with world.bearing(plain["token"]) as page:
        sent = await page.post(to(world.thread), json={"input": "hello"})
        assert (sent.status_code, b"[DONE]" in sent.content) == (200, True)
        for body, text in (
            ({"override_model": "scripted/echo"}, "may not choose the model 'scripted/echo'"),
            (tools, "may not offer the tool 'weather'"),
            ({"override_system": "Be evil."}, "the system prompt"),
            ({"system": "Be evil."}, "the system prompt"),
            (
                {"client_skills": [{"name": "a", "description": "b", "location": "c"}]},
                "the system prompt",
            ),
        ):
            refused = await page.post(to(world.thread), json={"input": "hello", **body})
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), body
            assert text in refused.json()["detail"]
        for role in ("system", "assistant"):
            refused = await page.post(
                to(world.thread), json={"messages": [{"role": role, "content": "x"}]}
            )
            assert refused.status_code == 403
        assert (await page.post(to(world.other_thread), json={"input": "x"})).status_code == 403
        assert (await page.get(to(world.thread))).status_code == 403
    async with world.bearing(wide["token"]) as page:
        allowed = {"input": "hello", "override_model": "scripted/echo", **tools}
        assert (await page.post(to(world.thread), json=allowed)).status_code == 200


@pytest.mark.promise("P11", "S11")
async def test_an_otid_of_another_conversation_shows_a_token_nothing_of_it(world: World) -> None:
    def body(otid: str, text: str) -> dict[str, Any]:
        sent = {"role": "user", "content": text, "otid": otid}
        return {"messages": [sent], "background": True}

    for thread, otid in ((world.other_thread, "there"), (world.thread, "here")):
        await (await world.client.post(to(thread), json=body(otid, "first"))).aread()
    of_another = await world.client.post(to(world.thread), json=body("there", "first"))
    assert of_another.json()["run_id"].startswith("run-")
    token = await world.issue(conversation_id=world.thread, scope="send")
    async with world.bearing(token["token"]) as page:
        for text in ("first", "second"):
            refused = await page.post(to(world.thread), json=body("there", text))
            assert refused.status_code == 409
            assert refused.json() == {
                "detail": "CONFLICT: The otid of this request was already used for another "
                "message. Use a new otid.",
                "code": "otid_conflict",
            }
        refused = await page.post(to(world.thread), json=body("here", "second"))
        assert (refused.status_code, refused.json()["code"]) == (409, "otid_conflict")
        assert await run_of_otid(world, "here") == refused.json()["run_id"]


async def run_of_otid(world: World, otid: str) -> str:
    path = f"/v1/conversations/{world.thread}/stream"
    resumed = await world.client.post(path, json={"otid": otid})
    return str(resumed.headers["x-run-id"])


@pytest.mark.promise("P6")
async def test_a_run_is_cancelled_by_its_id_alone(world: World) -> None:
    live, client = world.live, world.client
    agent, thread = await thread_of(client)
    live.gates.hold(agent, 2)
    body = {"input": "[chunks=9]", "background": True, "stream_tokens": True}
    async with client.stream("POST", to(thread), json=body) as response:
        path = f"/v1/runs/{response.headers['x-run-id']}"
        await live.gates.reached(agent, 2)
        assert (await client.post(f"{path}/cancel", json={"run_ids": []})).status_code == 422
        for _ in range(2):
            cancelled = await client.post(f"{path}/cancel")
            assert cancelled.json() == {response.headers["x-run-id"]: "cancelled"}
        await response.aread()
    assert (await client.get(path)).json()["stop_reason"] == "cancelled"
    for wrong, status in (
        ("run-00000000-0000-4000-8000-000000000000", 404),
        (world.foreign_run, 404),
    ):
        assert (await client.post(f"/v1/runs/{wrong}/cancel")).status_code == status
    malformed = await client.post("/v1/runs/x/cancel")
    assert malformed.status_code == (await client.get("/v1/runs/x")).status_code


@pytest.mark.promise("S11")
@pytest.mark.parametrize("of_run", [True, False])
async def test_a_cancel_token_cancels_its_run_and_no_other(world: World, of_run: bool) -> None:
    live, client = world.live, world.client
    agent, thread = await thread_of(client)
    live.gates.hold(agent, 2)
    body = {"input": "[chunks=9]", "background": True, "stream_tokens": True}
    async with client.stream("POST", to(thread), json=body) as response:
        run = response.headers["x-run-id"]
        subject = {"run_id": run} if of_run else {"conversation_id": thread}
        token = await world.issue(**subject, scope="cancel")
        cancel = f"/v1/agents/{agent}/messages/cancel"
        async with world.bearing(token["token"]) as page:
            wrongs: list[Any] = [None, {}, {"run_ids": []}, {"run_ids": [run, world.run]}]
            for wrong in wrongs:
                assert (await page.post(cancel, json=wrong)).status_code == 403
            elsewhere = cancel.replace(agent, world.agent)
            assert (await page.post(elsewhere, json={"run_ids": [run]})).status_code == 409
            assert (await page.get(f"/v1/runs/{run}/messages")).status_code == 403
            for other in (world.run, world.foreign_run, "run-x"):
                assert (await page.post(f"/v1/runs/{other}/cancel")).status_code == 403
            if of_run:
                cancelled = await page.post(f"/v1/runs/{run}/cancel")
            else:
                cancelled = await page.post(f"/v1/conversations/{thread}/cancel")
            assert (cancelled.status_code, cancelled.json()) == (200, {run: "cancelled"})
            for again in (
                await page.post(f"/v1/runs/{run}/cancel"),
                await page.post(cancel, json={"run_ids": [run]}),
            ):
                assert (again.status_code, again.json()) == (200, {run: "cancelled"})
        await response.aread()


@pytest.mark.promise("S11")
async def test_the_query_may_have_a_token_only_where_an_event_source_needs_it(
    world: World,
) -> None:
    token = (await world.issue(conversation_id=world.thread))["token"]
    async with httpx2.AsyncClient(base_url=world.live.url, verify=False) as page:
        for path in (
            f"/v1/runs/{world.run}/stream?",
            f"/v1/conversations/{world.thread}/stream?run_id={world.run}",
            f"/v1/runs/{world.run}/snapshot?",
            f"/v1/conversations/{world.thread}/snapshot?run_id={world.run}",
        ):
            opened = await page.get(f"{path}&token={token}")
            assert opened.status_code == 200, opened.text
        run = f"/v1/runs/{world.run}"
        for path in (run, f"{run}/messages", f"/v1/conversations/{world.thread}/messages"):
            refused = await page.get(path, params={"token": token})
            assert (refused.status_code, refused.json()) == (401, UNAUTHORIZED)
        refused = await page.post(f"{run}/stream", params={"token": token}, json={})
        assert refused.status_code == 401
        basic = {"Authorization": "Basic dTpw"}  # Of a proxy, which the page cannot leave out.
        assert (await page.get(f"{run}/stream?token={token}", headers=basic)).status_code == 200
        key = {"Authorization": "Bearer rk_wrong"}
        assert (await page.get(f"{run}/stream?token={token}", headers=key)).status_code == 401


@pytest.mark.promise("S11")
async def test_all_faults_of_a_token_get_one_answer(world: World, log_lines: list[Any]) -> None:
    token = (await world.issue(run_id=world.run))["token"]
    bound = (await world.issue(run_id=world.run, origin="https://App.example.com/"))["token"]
    path = f"/v1/runs/{world.run}"
    revoked = await world.issue(run_id=world.run)
    await world.client.delete(f"/v1/tokens/{revoked['id']}")
    world.live.clock.skipped_seconds += KEY_CACHE_SECONDS
    expired = await world.issue(run_id=world.run, expires_in_seconds=1)
    world.live.clock.skipped_seconds += 1
    elsewhere = {"Origin": "https://evil.example.com"}
    for text, headers in (
        (token[:-1], {}),
        (f"{token}x", {}),
        (token.replace("rt1.", "rt1.x"), {}),
        ("rt1.", {}),
        ("rt1." + "x" * 10_000, {}),
        (revoked["token"], {}),
        (expired["token"], {}),
        (bound, elsewhere),
        (bound, {"Sec-Fetch-Site": "cross-site"}),
    ):
        async with world.bearing(text, **headers) as page:
            refused = await page.get(path)
        assert (refused.status_code, refused.json()) == (401, UNAUTHORIZED)
    for headers in ({"Origin": "https://app.example.com"}, {}):
        async with world.bearing(bound, **headers) as page:
            assert (await page.get(path)).status_code == 200
    async with world.bearing(token, **elsewhere) as page:
        assert (await page.get(path)).status_code == 200
    said = json.dumps(log_lines, default=str)
    assert "a stream token" in said
    for secret in (token, bound, revoked["token"]):
        assert secret.rpartition(".")[2] not in said


@pytest.mark.promise("S11")
async def test_a_request_without_an_origin_may_come_from_no_page_of_another_origin(
    world: World,
) -> None:
    own = f"{world.live.url}/"
    behind_a_proxy = own.replace("http:", "https:")
    path = f"/v1/runs/{world.run}"
    for origin, site, status in (
        (own, "same-origin", 200),
        (behind_a_proxy, "same-origin", 200),
        ("https://app.example.com", "same-origin", 401),
        (own, "same-site", 401),
        ("https://app.example.com", "same-site", 401),
        (own, "cross-site", 401),
        (own, "of the future", 401),
        ("https://app.example.com", "none", 200),
    ):
        token = (await world.issue(run_id=world.run, origin=origin))["token"]
        async with world.bearing(token, **{"Sec-Fetch-Site": site}) as page:
            assert (await page.get(path)).status_code == status, (origin, site)
            away = {"Host": "other.example:1"}
            elsewhere = (await page.get(path, headers=away)).status_code
            assert elsewhere == (401 if site == "same-origin" else status)
            named = await page.get(path, headers={"Origin": origin.rstrip("/")})
            assert named.status_code == 200


@pytest.mark.promise("S11")
async def test_a_token_gets_no_rights_that_its_key_lacks(world: World) -> None:
    keys = world.live.context.records.keys
    ends_at = world.live.clock.now()
    reading, secret = await keys.create(
        DEFAULT_TENANT,
        "reads",
        scopes=[KeyScope.READ],
        expires_at=ends_at.replace(year=ends_at.year + 1),
    )
    _, hour = await keys.create(
        DEFAULT_TENANT, "short", expires_at=ends_at.replace(microsecond=0) + _seconds(60)
    )
    async with world.bearing(secret) as client, world.bearing(hour) as short:
        token = await issued(client, run_id=world.run)
        for scope in ("cancel", ["read", "cancel"]):
            refused = await client.post("/v1/tokens", json={"run_id": world.run, "scope": scope})
            assert (refused.status_code, refused.json()["missing_scope"]) == (403, "send")
        assert (await client.delete(f"/v1/tokens/{token['id']}")).status_code == 403
        capped = await issued(short, run_id=world.run, expires_in_seconds=3600)
        assert capped["expires_at"] < _text(ends_at + _seconds(62))
    async with world.bearing(token["token"]) as page:
        assert (await page.get(f"/v1/runs/{world.run}")).status_code == 200
        await keys.revoke(reading.id)
        world.live.clock.skipped_seconds += KEY_CACHE_SECONDS
        assert (await page.get(f"/v1/runs/{world.run}")).status_code == 401


@pytest.mark.promise("S11", "P11")
async def test_a_token_is_issued_only_for_what_its_tenant_has(world: World) -> None:
    for body, status in (
        ({"run_id": world.foreign_run}, 404),
        ({"run_id": "run-00000000-0000-4000-8000-000000000000"}, 404),
        ({"conversation_id": "conv-00000000-0000-4000-8000-000000000000"}, 404),
        ({}, 422),
        ({"run_id": world.run, "conversation_id": world.thread}, 422),
        ({"run_id": world.run, "scope": "send"}, 422),
        ({"run_id": world.run, "scope": []}, 422),
        ({"run_id": world.run, "scope": "admin"}, 422),
        ({"run_id": world.run, "expires_in_seconds": 0}, 422),
        ({"run_id": world.run, "expires_in_seconds": 86_401}, 422),
        ({"run_id": world.run, "origin": "*"}, 422),
        ({"run_id": world.run, "models": ["scripted/echo"]}, 422),
        ({"conversation_id": world.thread, "scope": "send", "models": ["x" * 200] * 20}, 413),
    ):
        refused = await world.client.post("/v1/tokens", json={"scope": "read", **body})
        assert refused.status_code == status, (body, refused.text)


@pytest.mark.promise("S11")
async def test_a_token_is_not_issued_with_a_member_that_is_unknown(world: World) -> None:
    wrong = {"expires_in": 5, "origins": ["https://a.example"], "ttl": 5}
    body = {"run_id": world.run, "scope": "read", **wrong}
    before = await world.client.get("/v1/tokens", params={"run_id": world.run})
    refused = await world.client.post("/v1/tokens", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "validation_error")
    said = {fault["loc"][-1]: fault["msg"] for fault in refused.json()["errors"]}
    assert said == {
        "expires_in": "It is unknown. Did you mean 'expires_in_seconds'?",
        "origins": "It is unknown. Did you mean 'origin'?",
        "ttl": "It is unknown. The members are run_id, conversation_id, scope, "
        "expires_in_seconds, origin, models, client_tools.",
    }
    after = await world.client.get("/v1/tokens", params={"run_id": world.run})
    assert after.json() == before.json()


@pytest.mark.promise("S11")
async def test_no_error_repeats_a_part_of_a_token(world: World) -> None:
    token = (await world.issue(run_id=world.run))["token"]
    long, run = token + "A" * 5000, f"/v1/runs/{world.run}"
    claims = token.split(".")[2][:8]
    for path in (
        f"{run}/stream?token={long}",
        f"{run}/stream?last_event_id={token[:90]}",
        f"{run}/stream?pings={token}",
        f"{run}/stream?{token}=1&starting_after=x",
        f"/v1/conversations/{world.thread}/stream?run_id={token[:90]}",
        f"/v1/conversations/{world.thread}/stream?otid={token[:200]}",
        f"/v1/runs/{token[:90]}",
        f"/v1/agents/{token}",
    ):
        refused = await world.client.get(path)
        assert 400 <= refused.status_code < 500, refused.text
        assert "rt1." not in refused.text, refused.text
        assert claims not in refused.text, refused.text


@pytest.mark.promise("S11", "P11")
async def test_tokens_are_revoked_by_id_or_by_what_they_are_for(world: World) -> None:
    one, two = await world.issue(run_id=world.run), await world.issue(run_id=world.run)
    talk = await world.issue(conversation_id=world.other_thread)
    stranger = await world.live.as_tenant(OTHER_TENANT)
    async with stranger:
        assert (await stranger.delete(f"/v1/tokens/{one['id']}")).status_code == 404
        revoked = await stranger.delete("/v1/tokens", params={"run_id": world.run})
        assert revoked.json() == {"revoked": 0}
        assert (await stranger.get("/v1/tokens")).json() == []
    assert (await world.client.delete("/v1/tokens")).status_code == 422
    assert (await world.client.delete(f"/v1/tokens/{one['id']}")).status_code == 200
    await world.client.delete("/v1/tokens", params={"run_id": world.run})
    revoked = await world.client.delete(
        "/v1/tokens", params={"conversation_id": world.other_thread}
    )
    assert revoked.json() == {"revoked": 1}
    world.live.clock.skipped_seconds += KEY_CACHE_SECONDS
    for token, run in ((one, world.run), (two, world.run), (talk, world.other_run)):
        async with world.bearing(token["token"]) as page:
            assert (await page.get(f"/v1/runs/{run}")).status_code == 401


async def test_the_uses_of_a_token_are_counted_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "TOKEN_USES_SECONDS", TOKEN_USES_SECONDS / 50)
    token = await world.issue(run_id=world.run)
    async with world.bearing(token["token"]) as page:
        for _ in range(3):
            assert (await page.get(f"/v1/runs/{world.run}")).status_code == 200
        await page.post(f"/v1/runs/{world.run}/stream", json={})
    async with asyncio.timeout(WAIT_SECONDS):
        uses = 0
        while uses < 4:
            rows = (await world.client.get("/v1/tokens", params={"run_id": world.run})).json()
            (row,) = [row for row in rows if row["id"] == token["id"]]
            uses = row["uses"]
    assert uses == 4
    assert row["last_used_at"] is not None


# Open streams.


@asynccontextmanager
async def held_run(live: LiveServer, client: httpx2.AsyncClient) -> AsyncIterator[tuple[str, str]]:
    """A run that waits after its second delta, and its agent."""
    agent, thread = await thread_of(client)
    live.gates.hold(agent, 2)
    body = {"input": "[chunks=9]", "background": True, "stream_tokens": True}
    async with client.stream("POST", to(thread), json=body) as response:
        await live.gates.reached(agent, 2)
        yield response.headers["x-run-id"], agent
        live.gates.open(agent)
        await response.aread()


class Page:
    """An ``EventSource`` that keeps the names of its frames."""

    def __init__(self, response: httpx2.Response) -> None:
        self._chunks = response.aiter_raw()
        self._buffer = b""
        self.last_id = ""

    async def next(self) -> tuple[str, Any]:
        """The name and the data of the next frame. Raises EOFError, TransportError."""
        async with asyncio.timeout(WAIT_SECONDS):
            while b"\n\n" not in self._buffer:
                try:
                    self._buffer += await anext(self._chunks)
                except StopAsyncIteration:
                    raise EOFError from None
        raw, _, self._buffer = self._buffer.partition(b"\n\n")
        lines = [line for line in raw.decode().split("\n") if not line.startswith((":", "retry"))]
        fields = dict(line.split(": ", 1) for line in lines)
        self.last_id = fields.get("id", self.last_id)
        return fields.get("event", "message"), fields.get("data")

    async def is_cut(self) -> bool:
        """Read until the connection is dropped; False if the body ends properly."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    await self.next()
        except EOFError:
            return False
        except httpx2.TransportError:
            return True

    async def until(self, name: str) -> Any:
        async with asyncio.timeout(WAIT_SECONDS):
            found, data = await self.next()
            while found != name:
                found, data = await self.next()
        return json.loads(data)


@pytest.mark.promise("S11")
@pytest.mark.parametrize("in_query", [True, False])
async def test_a_page_gets_an_event_before_its_token_expires_and_when_it_has(
    world: World, in_query: bool
) -> None:
    live = world.live
    async with held_run(live, world.client) as (run, agent):
        token = await world.issue(run_id=run)
        path = f"/v1/runs/{run}/stream"
        query = {"token": token["token"]} if in_query else {}
        bearer = {} if in_query else {"Authorization": f"Bearer {token['token']}"}
        async with httpx2.AsyncClient(base_url=live.url, verify=False) as client:
            async with client.stream("GET", path, params=query, headers=bearer) as response:
                page = Page(response)
                assert (await page.next())[0] == "message"
                early = STREAM_TOKEN_SECONDS - TOKEN_EXPIRING_SECONDS + 1
                live.clock.skipped_seconds += early
                expiring = await page.until("expiring")
                assert _moment(expiring["expires_at"]) == _moment(token["expires_at"])
                live.gates.hold(agent, 4)
                assert (await page.next())[0] == "message"
                live.clock.skipped_seconds += TOKEN_EXPIRING_SECONDS
                expired = await page.until("expired")
                assert expired == expiring
                with pytest.raises(EOFError):
                    await page.next()
            at = {"Last-Event-ID": page.last_id, **bearer}
            again = await client.get(path, params=query, headers=at)
            if in_query:
                assert (again.status_code, again.content) == (204, b"")
            else:
                assert (again.status_code, again.json()) == (401, UNAUTHORIZED)
            stopped = 204 if in_query else 401
            for more in ({}, {"starting_after": 1}, {"last_event_id": ""}):
                for empty in ({}, {"Last-Event-ID": ""}):
                    again = await client.get(path, params=query | more, headers=bearer | empty)
                    assert again.status_code == stopped
            snapshot = path.replace("/stream", "/snapshot")
            assert (await client.get(snapshot, params=query, headers=at)).status_code == 401
            fresh = await world.issue(run_id=run)
            live.gates.open(agent)
            rest = await client.get(
                path, params={"token": fresh["token"]}, headers={"Last-Event-ID": page.last_id}
            )
            assert rest.content.count(b"event: done") == 1


@pytest.mark.promise("S11")
async def test_a_page_learns_that_its_token_has_expired_though_the_watch_of_keys_finds_it_first(
    world: World,
) -> None:
    live = world.live
    async with held_run(live, world.client) as (run, _):
        token = await world.issue(run_id=run)
        path, expiring = f"/v1/runs/{run}/stream", live.context.runs.watch._expiring
        async with (
            world.bearing(token["token"]) as client,
            client.stream("GET", path) as response,
        ):
            page = Page(response)
            await page.next()
            live.clock.skipped_seconds += STREAM_TOKEN_SECONDS + 1
            for reader in expiring:  # Before the next round of their own timer.
                reader.revoke()
            expired = await page.until("expired")
            assert _moment(expired["expires_at"]) == _moment(token["expires_at"])
            with pytest.raises(EOFError):
                await page.next()


@pytest.mark.promise("S11")
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_open_stream_is_cut_off_when_its_token_is_revoked(
    world: World, method: str
) -> None:
    live = world.live
    async with held_run(live, world.client) as (run, _):
        token, kept_token = await world.issue(run_id=run), await world.issue(run_id=run)
        path = f"/v1/runs/{run}/stream"
        body: Any = None if method == "GET" else {}
        async with (
            world.bearing(token["token"]) as client,
            world.bearing(kept_token["token"]) as other,
            client.stream(method, path, json=body) as response,
            other.stream(method, path, json=body) as kept,
        ):
            page, second = Page(response), Page(kept)
            await page.next()
            await second.next()
            await world.client.delete(f"/v1/tokens/{token['id']}")
            assert await page.is_cut()
            await second.next()


@pytest.mark.promise("S11", "P11")
@pytest.mark.parametrize("of_run", [True, False])
async def test_an_open_stream_is_cut_off_when_its_conversation_is_deleted(
    world: World, of_run: bool
) -> None:
    async with held_run(world.live, world.client) as (run, _):
        record = (await world.client.get(f"/v1/runs/{run}")).json()
        thread = record["conversation_id"]
        subject = {"run_id": run} if of_run else {"conversation_id": thread}
        token = await world.issue(**subject)
        path = f"/v1/runs/{run}/stream"
        async with (
            world.bearing(token["token"]) as client,
            client.stream("GET", path) as response,
            world.client.stream("GET", path) as of_key,
        ):
            page, kept = Page(response), Page(of_key)
            await page.next()
            await kept.next()
            assert (await world.client.delete(f"/v1/conversations/{thread}")).is_success
            assert await page.is_cut()
            world.live.clock.skipped_seconds += KEY_CACHE_SECONDS
            assert (await client.get(f"/v1/runs/{run}")).status_code == 401
            await kept.next()  # The run goes on, and API keys may follow it.
        refused = await world.client.post("/v1/tokens", json={"scope": "read", **subject})
        assert (refused.status_code, refused.json()["code"]) == (404, "not_found")


@pytest.mark.promise("S11")
async def test_a_post_is_cut_off_when_its_token_expires(world: World) -> None:
    async with held_run(world.live, world.client) as (run, _):
        token = await world.issue(run_id=run)
        async with (
            world.bearing(token["token"]) as client,
            client.stream("POST", f"/v1/runs/{run}/stream", json={}) as response,
        ):
            page = Page(response)
            await page.next()
            world.live.clock.skipped_seconds += STREAM_TOKEN_SECONDS + 10
            assert await page.is_cut()


# Settings.


@pytest.mark.promise("S11")
async def test_the_settings_may_have_the_keys_and_may_refuse_tokens_in_queries(
    tmp_path: Path,
) -> None:
    old, new = "o" * 32, "n" * 32

    async def answers(token: str, run: str, **settings: Any) -> list[int]:
        async with listening(tmp_path, **settings) as live:
            bearer = {"Authorization": f"Bearer {token}"}
            path = f"/v1/runs/{run}/stream"
            return [
                (await live.client.get(path, headers=bearer)).status_code,
                (await live.client.get(path, params={"token": token})).status_code,
            ]

    async with listening(tmp_path, token_keys=(old,)) as live:
        _, thread = await new_threads(live)
        run = await run_in(live.client, thread)
        token = (await issued(live.client, run_id=run))["token"]
        assert live.rows()["signing_keys"] == 0
        # Even on a server without API keys, which is open, a token opens no more than it says.
        async with httpx2.AsyncClient(base_url=live.url, verify=False) as page:
            bearer = {"Authorization": f"Bearer {token}"}
            assert (await page.get("/v1/agents/", headers=bearer)).status_code == 403
            refused = await page.get("/v1/agents/", headers={"Authorization": f"Bearer {token}x"})
            assert (refused.status_code, refused.json()) == (401, UNAUTHORIZED)
    assert await answers(token, run, token_keys=(new, old)) == [200, 200]
    assert await answers(token, run, token_keys=(new,)) == [401, 401]
    refusing = {"token_keys": (old,), "tokens_in_query": False, "require_key": True}
    assert await answers(token, run, **refusing) == [200, 401]


def _seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def _text(moment: datetime) -> str:
    return str(moment.isoformat().replace("+00:00", "Z"))


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
