"""The routes with which ``reattach doctor --through`` examines the path to the server."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.domain.ids import DEFAULT_TENANT, new_uuid
from reattach.domain.limits.requests import MAX_PROBE_SECONDS, MAX_PROBE_STREAMS
from reattach.records.base import KeyScope
from tests.support.asgi_server import OTHER_TENANT, Server
from tests.support.live_server import WAIT_SECONDS, LiveServer, listening

STREAM = "/v1/admin/probe/stream"


def new_probe() -> str:
    return f"probe-{new_uuid()}"


async def state(live: LiveServer, probe: str) -> list[dict[str, Any]] | None:
    response = await live.client.get("/v1/admin/probe", params={"probe": probe})
    assert response.status_code == 200, response.text
    streams: list[dict[str, Any]] | None = response.json()["streams"]
    return streams


async def ended(live: LiveServer, probe: str) -> list[dict[str, Any]]:
    """The streams of the probe once all have ended."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            streams = await state(live, probe)
            if streams and all(one["end"] for one in streams):
                return streams
            await asyncio.sleep(0.01)


def frames_of(content: bytes) -> list[dict[str, Any]]:
    frames = content.split(b"\n\n")
    assert frames.pop() == b""
    return [json.loads(one.removeprefix(b"data: ")) for one in frames]


async def test_frames_come_at_the_times_that_were_asked_for(live: LiveServer) -> None:
    probe = new_probe()
    asked = {
        "probe": probe, "stream": "spacing", "first_seconds": 0.05, "frames": 5,
        "interval_seconds": 0.04, "silence_seconds": 0.06, "burst_bytes": 70_000,
    }  # fmt: skip
    response = await live.client.post(STREAM, json=asked)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-run-id"] == probe
    frames = frames_of(response.content)
    assert [frame["number"] for frame in frames] == [1, 2, 3, 4, 5, 6]
    at = [frame["at_seconds"] for frame in frames]
    assert at[0] >= 0.05
    for number in range(5):
        assert at[number] >= at[0] + number * 0.04 - 0.001
    assert at[5] >= at[4] + 0.06 - 0.001
    assert len(frames[5]["padding"]) == 70_000
    [stream] = await ended(live, probe)
    assert (stream["stream"], stream["frames"], stream["end"]) == ("spacing", 6, "finished")


async def test_a_broken_end_leaves_the_body_incomplete(live: LiveServer) -> None:
    probe = new_probe()
    with pytest.raises(httpx2.RemoteProtocolError):
        await live.client.post(STREAM, json={"probe": probe, "end": "broken"})
    [stream] = await ended(live, probe)
    assert stream["end"] == "broken"


async def test_the_server_says_when_a_client_has_left_during_silence(live: LiveServer) -> None:
    probe = new_probe()
    asked = {"probe": probe, "silence_seconds": 100}
    async with live.client.stream("POST", STREAM, json=asked) as response:
        pieces = response.aiter_raw()
        await anext(pieces)
        assert [one["client_closed"] for one in await state(live, probe) or ()] == [False]
    async with asyncio.timeout(WAIT_SECONDS):
        while not all(one["client_closed"] for one in await state(live, probe) or ()):
            await asyncio.sleep(0.01)
    # Nobody reads its stream any longer, so another probe need not wait for its end.
    other = await live.client.post(STREAM, json={"probe": new_probe()})
    assert other.status_code == 200
    assert await state(live, probe) is None


async def test_an_ended_probe_cuts_off_its_streams_and_is_forgotten(live: LiveServer) -> None:
    probe = new_probe()
    async with live.client.stream(
        "POST", STREAM, json={"probe": probe, "silence_seconds": 100}
    ) as response:
        pieces = response.aiter_raw()
        await anext(pieces)
        gone = await live.client.delete("/v1/admin/probe", params={"probe": probe})
        assert gone.status_code == 200
        with pytest.raises(httpx2.RemoteProtocolError):
            await anext(pieces)
    assert await state(live, probe) is None


async def test_a_tenant_has_one_probe_at_a_time_and_another_tenant_has_its_own(
    tmp_path: Path,
) -> None:
    first, second = new_probe(), new_probe()
    keep = {"silence_seconds": 100}
    async with AsyncExitStack() as stack:
        live = await stack.enter_async_context(listening(tmp_path))
        other = await stack.enter_async_context(await live.as_tenant(OTHER_TENANT))
        mine = await stack.enter_async_context(await live.as_tenant(DEFAULT_TENANT))
        opening = mine.stream("POST", STREAM, json={"probe": first, **keep})
        one = await stack.enter_async_context(opening)
        assert one.status_code == 200
        refused = await mine.post(STREAM, json={"probe": second})
        assert refused.status_code == 409
        assert "Another probe of this tenant is running" in refused.json()["detail"]
        assert (await other.post(STREAM, json={"probe": second})).status_code == 200
        seen = await other.get("/v1/admin/probe", params={"probe": first})
        assert seen.json()["streams"] is None
        await other.delete("/v1/admin/probe", params={"probe": first})
        seen = await mine.get("/v1/admin/probe", params={"probe": first})
        assert [stream["end"] for stream in seen.json()["streams"]] == [None]
        await mine.delete("/v1/admin/probe", params={"probe": first})
        assert (await mine.post(STREAM, json={"probe": second})).status_code == 200


async def test_a_probe_has_bounded_streams_and_a_bounded_time(server: Server) -> None:
    probe = new_probe()
    for number in range(MAX_PROBE_STREAMS):
        asked = {"probe": probe, "stream": f"s{number}", "frames": 0}
        assert (await server.client.post(STREAM, json=asked)).status_code == 200
    again = await server.client.post(STREAM, json={"probe": probe, "stream": "s1"})
    assert again.status_code == 409
    assert "already has a stream 's1'" in again.json()["detail"]
    more = await server.client.post(STREAM, json={"probe": probe, "stream": "more"})
    assert more.status_code == 409
    assert f"at most {MAX_PROBE_STREAMS} streams" in more.json()["detail"]
    server.clock.skipped_seconds += MAX_PROBE_SECONDS
    late = await server.client.post(STREAM, json={"probe": probe, "stream": "late"})
    assert late.status_code == 409
    assert "This probe has ended" in late.json()["detail"]
    assert (await server.client.post(STREAM, json={"probe": new_probe()})).status_code == 200


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "probe"),
        ({"probe": "x"}, "probe"),
        ({"frames": 2001}, "2000"),
        ({"frames": True}, "frames"),
        ({"interval_seconds": -1}, "interval_seconds"),
        ({"burst_bytes": 10_000_000}, "burst_bytes"),
        ({"stream": "A b"}, "stream"),
        ({"frames": 2000, "interval_seconds": 0.1}, "would take 199.9 seconds; at most 180"),
        ({"first_seconds": 100, "silence_seconds": 81}, "would take 181 seconds"),
        ({"end": "never"}, "end"),
    ],
)
async def test_a_stream_beyond_the_bounds_is_refused(
    shared_server: Server, wrong: dict[str, Any], said: str
) -> None:
    body = {"probe": new_probe(), **wrong} if wrong else {}
    response = await shared_server.client.post(STREAM, json=body)
    assert response.status_code == 422
    assert said in response.json()["detail"]


async def test_a_request_is_described_as_it_arrived_and_no_secret_is_shown(
    shared_server: Server,
) -> None:
    headers = {"Authorization": "Bearer sesame", "Last-Event-ID": "7", "Cookie": "a=sesame"}
    response = await shared_server.client.get("/v1/admin/probe", headers=headers)
    assert response.status_code == 200
    assert "sesame" not in response.text
    answer = response.json()
    assert answer["streams"] is None
    assert answer["ping_interval_seconds"] == 15
    request = answer["request"]
    assert request["headers"]["last-event-id"] == "7"
    assert request["authorization_sha256"] == hashlib.sha256(b"Bearer sesame").hexdigest()
    assert {"authorization", "cookie", "host", "last-event-id"} <= {*request["header_names"]}


async def test_uploads_and_errors_are_answered_as_all_others_are(shared_server: Server) -> None:
    client, probe = shared_server.client, new_probe()
    sent = await client.post("/v1/admin/probe/upload", json={"probe": probe, "padding": "x" * 999})
    assert sent.json() == {"received_bytes": 999}
    for status, code in ((404, "not_found"), (503, "unavailable")):
        response = await client.post(
            "/v1/admin/probe/error", json={"probe": probe, "status": status}
        )
        assert response.status_code == status
        assert response.json() == {
            "detail": f"This is the answer {status} of a probe.",
            "code": code,
        }
        assert response.headers.get("retry-after") == (None if status == 404 else "7")


@pytest.mark.parametrize("scope", [KeyScope.READ, KeyScope.SEND])
async def test_a_key_without_the_scope_admin_opens_no_route_of_probes(
    server: Server, scope: KeyScope
) -> None:
    _, secret = await server.context.records.keys.create(DEFAULT_TENANT, "key", scopes=(scope,))
    server.client.headers["Authorization"] = f"Bearer {secret}"
    server.clock.skipped_seconds += 60
    for method, path in (
        ("GET", "/v1/admin/probe"),
        ("DELETE", f"/v1/admin/probe?probe={new_probe()}"),
        ("POST", STREAM),
        ("POST", "/v1/admin/probe/upload"),
        ("POST", "/v1/admin/probe/error"),
    ):
        response = await server.client.request(method, path)
        assert response.status_code == 403, path
        assert response.json()["missing_scope"] == "admin"


async def test_a_401_says_whether_credentials_arrived(server: Server) -> None:
    await server.context.records.keys.create(DEFAULT_TENANT, "key")
    server.clock.skipped_seconds += 60
    none = await server.client.get("/v1/admin/probe")
    assert (none.status_code, none.headers["www-authenticate"]) == (401, "Bearer")
    wrong = await server.client.get("/v1/admin/probe", headers={"Authorization": "Bearer wrong"})
    assert wrong.headers["www-authenticate"] == 'Bearer error="invalid_token"'
