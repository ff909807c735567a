"""Requests of web pages to a server without keys, and to one with keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from reattach.domain.ids import DEFAULT_TENANT
from tests.support.live_server import LiveServer, listening, new_threads

FOREIGN = "https://evil.example"
CROSS_SITE = {
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-Mode": "no-cors",
    "Sec-Fetch-Dest": "image",
}


@pytest.fixture
async def keyless(tmp_path: Path) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path) as live:
        yield live


async def held(live: LiveServer) -> tuple[str, str, str]:
    """An agent, a conversation, and its run, which waits."""
    agent, thread = await new_threads(live)
    return agent, thread, await live.held_run(agent, thread, "[chunks=2]", after=1)


@pytest.mark.promise("S17")
@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "http://localhost:3000"}, True),
        ({"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "cross-site"}, True),
        ({"Origin": "https://[::1]"}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Dest": "document"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}, True),
        ({"Origin": FOREIGN}, False),
        ({"Origin": FOREIGN, "Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://localhost.evil.example"}, False),
        ({"Origin": "http://localhost@evil.example"}, False),
        (CROSS_SITE, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "iframe"}, False),
    ],
    ids=str,
)
async def test_only_pages_of_this_machine_can_do_anything_to_a_server_without_keys(
    keyless: LiveServer, headers: dict[str, str], allowed: bool
) -> None:
    live = keyless
    agent, thread, run = await held(live)
    stream = f"/v1/runs/{run}/stream"
    cancel = f"/v1/conversations/{thread}/cancel"
    async with live.stream(stream, method="GET", headers=headers) as reader:
        assert reader.status_code == (200 if allowed else 401)
        if not allowed:
            error = await reader.error()
            assert error["code"] == "key_required"
            assert "web pages of its own machine" in error["detail"]
            assert "access-control-allow-origin" not in reader.headers
    # Browsers send both without asking first.
    cancelled = await live.client.post(cancel, headers=headers)
    assert cancelled.status_code == (200 if allowed else 401)
    assert (await live.run(run))["status"] == ("cancelled" if allowed else "running")
    live.gates.open(agent)


@pytest.mark.promise("S17")
async def test_a_page_of_the_server_itself_is_allowed_whatever_the_setting_says(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path, cors_origins=()) as live:
        *_, run = await held(live)
        path = f"/v1/runs/{run}"
        own = {"Origin": live.url}
        assert (await live.client.get(path, headers=own)).status_code == 200
        for origin in ("http://localhost:3000", FOREIGN, f"{live.url}0"):
            answer = await live.client.get(path, headers={"Origin": origin})
            assert answer.status_code == 401
        await live.ended(run)


@pytest.mark.promise("S17")
@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        (("http://localhost:3000",), "http://localhost:3000", True),
        (("http://localhost:3000",), "http://localhost:3001", False),
        (("http://[::1]:3000",), "http://[::1]:3000", True),
        (("https://app.example.org",), "https://app.example.org", False),
        (("https://app.example.org", "localhost"), "http://localhost:1", True),
        (("*",), "http://localhost:1", True),
        (("*",), FOREIGN, False),
    ],
    ids=str,
)
async def test_the_setting_replaces_the_pages_that_need_no_key_and_adds_none_of_other_machines(
    tmp_path: Path, origins: tuple[str, ...], origin: str, allowed: bool
) -> None:
    async with listening(tmp_path, cors_origins=origins) as live:
        answer = await live.client.get("/v1/agents/", headers={"Origin": origin})
        assert answer.status_code == (200 if allowed else 401)


@pytest.mark.promise("S17", "S11")
async def test_with_a_key_an_allowed_page_of_another_machine_may_follow_and_read_the_headers(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path, cors_origins=("https://app.example.org",)) as live:
        *_, run = await held(live)
        await live.ended(run)
        path = f"/v1/runs/{run}/stream"
        async with await live.as_tenant(DEFAULT_TENANT) as client:
            allowed, other = [
                await client.get(path, headers={"Origin": origin})
                for origin in ("https://app.example.org", FOREIGN)
            ]
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://app.example.org"
        exposed = allowed.headers["access-control-expose-headers"].lower().split(", ")
        assert {"x-run-id", "x-run-status", "x-stream-starts-after", "retry-after"} <= {*exposed}
        # The key is right, so it is answered, and the browser keeps it from the page.
        assert "access-control-allow-origin" not in other.headers
        preflight = await live.client.options(
            path,
            headers={
                "Origin": "https://app.example.org",
                "Access-Control-Request-Method": "GET",
                "Access-Control-Request-Headers": "authorization,last-event-id",
            },
        )
        assert preflight.status_code == 200
        assert "last-event-id" in preflight.headers["access-control-allow-headers"]
