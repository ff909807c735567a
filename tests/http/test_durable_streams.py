"""The log of a run as a Durable Stream, read by plain requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.domain.ids import DEFAULT_TENANT, Seq, TenantId, new_run_id
from reattach.domain.limits import KEY_CACHE_SECONDS
from reattach.http.dialects.durable_streams import events, reading
from reattach.wire.dialects.durable_streams import cursor_text, offset_text
from tests.support.live_server import WAIT_SECONDS, LiveServer, listening, new_threads

TEXT = "[think=1][chunks=4][unicode]"
ORIGIN = "http://localhost:5173"


def at(seq: int) -> str:
    return f"{seq:016}"


async def ended_run(live: LiveServer, text: str = TEXT) -> tuple[str, list[dict[str, Any]]]:
    """The path of the log of a run that has ended, and its events."""
    agent, thread = await new_threads(live)
    live.gates.open(agent)
    run = await live.background_run(thread, text)
    frames = await live.streamed(f"/v1/runs/{run}/stream")
    return f"/v1/runs/{run}/log", [frame.event for frame in frames[:-1]]


async def held_log(live: LiveServer, *, after: int = 2) -> tuple[str, str]:
    """The paths of the log of a run that waits, and of the run."""
    agent, thread = await new_threads(live)
    run = await live.held_run(agent, thread, "[chunks=5]", after=after)
    return f"/v1/runs/{run}/log", run


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[LiveServer]:
    """A server whose first key closes it to all other requests."""
    async with listening(tmp_path, ping_interval_seconds=0.2) as live:
        yield live


async def read(server: LiveServer, path: str, **query: Any) -> httpx2.Response:
    return await server.client.get(path, params=query)


class Events:
    """An event stream that is being read."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._chunks = response.aiter_raw()
        self._buffer = b""

    async def next(self) -> tuple[str, Any]:
        """The name and the JSON of the next event. Raises EOFError when the body has ended."""
        async with asyncio.timeout(WAIT_SECONDS):
            while b"\n\n" not in self._buffer:
                try:
                    self._buffer += await anext(self._chunks)
                except StopAsyncIteration:
                    rest = self._buffer.splitlines()  # Comments may come between frames.
                    assert all(line.startswith(b":") for line in rest)
                    raise EOFError from None
        raw, _, self._buffer = self._buffer.partition(b"\n\n")
        lines = [line for line in raw.decode().split("\n") if not line.startswith(":")]
        name, data = lines
        return name.removeprefix("event: "), json.loads(data.removeprefix("data:"))

    async def rest(self) -> list[tuple[str, Any]]:
        found = []
        while True:
            try:
                found.append(await self.next())
            except EOFError:
                return found


# Catching up.


async def test_every_offset_of_an_ended_run_gives_the_rest_of_its_events_and_closes(
    live: LiveServer,
) -> None:
    for text in (TEXT, "[chunks=2][fail=1]"):
        path, whole = await ended_run(live, text)
        for seq in range(len(whole) + 1):
            response = await read(live, path, offset=at(seq) if seq else "-1")
            assert response.json() == whole[seq:]
            assert response.headers["content-type"] == "application/json"
            assert response.headers["stream-next-offset"] == at(len(whole))
            assert response.headers["stream-up-to-date"] == "true"
            assert response.headers["stream-closed"] == "true"
            assert response.headers["cache-control"] == "private, no-cache"
        assert (await read(live, path)).json() == whole
        past = await read(live, path, offset=at(len(whole) + 9))
        assert (past.json(), past.headers["stream-closed"]) == ([], "true")


async def test_a_long_log_comes_in_several_bodies_of_whole_events(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BODY_BYTES", 1)
    monkeypatch.setattr("reattach.runs.inspection.frames.REPLAY_SLICE_BYTES", 600)
    path, whole = await ended_run(live, "[chunks=12]")
    found: list[Any] = []
    offset, bodies = "-1", 0
    while True:
        response = await read(live, path, offset=offset)
        found += response.json()
        bodies += 1
        offset = response.headers["stream-next-offset"]
        assert offset == at(len(found))
        if "stream-up-to-date" in response.headers:
            break
        assert "stream-closed" not in response.headers
    assert found == whole
    assert bodies > 2


async def test_a_body_that_the_client_has_is_not_sent_again_until_the_log_changes(
    live: LiveServer,
) -> None:
    path, run = await held_log(live)
    first = await read(live, path)
    tag = {"If-None-Match": f'"other", W/{first.headers["etag"]}'}
    same = await live.client.get(path, headers=tag)
    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["stream-next-offset"] == first.headers["stream-next-offset"]
    await live.ended(run)
    changed = await live.client.get(path, headers=tag)
    assert changed.status_code == 200
    assert changed.json()[: len(first.json())] == first.json()
    at_end = at(len(changed.json()))
    assert (await read(live, path, offset=at_end)).headers["etag"].endswith(':c"')


async def test_the_end_of_a_log_is_shown_without_its_events(live: LiveServer) -> None:
    path, run = await held_log(live)
    for closed in (False, True):
        if closed:
            await live.ended(run)
        length = len((await read(live, path)).json())
        head = await live.client.head(path)
        now = await read(live, path, offset="now")
        assert (head.content, now.json()) == (b"", [])
        for response in (head, now):
            assert response.headers["stream-next-offset"] == at(length)
            assert response.headers["cache-control"] == "no-store"
            assert response.headers["content-type"] == "application/json"
            assert ("stream-closed" in response.headers) is closed
        assert "etag" not in now.headers


# Waiting.


async def test_a_long_poll_gets_what_is_there_and_then_waits_for_more_and_for_the_end(
    live: LiveServer,
) -> None:
    path, run = await held_log(live)
    first = await read(live, path, offset="-1", live="long-poll")
    assert first.status_code == 200
    assert "stream-closed" not in first.headers
    offset, cursor = first.headers["stream-next-offset"], first.headers["stream-cursor"]
    waiting = asyncio.create_task(read(live, path, offset=offset, live="long-poll", cursor=cursor))
    async with asyncio.timeout(WAIT_SECONDS):
        while not len(live.context.runs.readers):
            await asyncio.sleep(0)
    await live.ended(run)
    found = first.json()
    second = await waiting
    while True:
        found += second.json()
        assert int(second.headers["stream-cursor"]) > int(cursor)
        cursor = second.headers["stream-cursor"]
        if "stream-closed" in second.headers:
            break
        offset = second.headers["stream-next-offset"]
        second = await read(live, path, offset=offset, live="long-poll", cursor=cursor)
    assert found == (await read(live, path)).json()
    end = await read(live, path, offset=at(len(found)), live="long-poll")
    assert (end.status_code, end.headers["stream-closed"]) == (204, "true")


async def test_a_long_poll_without_events_says_so_and_leaves_no_reader(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "POLL_SECONDS", 0.01)
    path, run = await held_log(live)
    response = await read(live, path, offset="now", live="long-poll")
    assert (response.status_code, response.headers["stream-up-to-date"]) == (204, "true")
    assert "stream-closed" not in response.headers
    assert response.headers["stream-next-offset"] == at(len((await read(live, path)).json()))
    assert len(live.context.runs.readers) == 0
    await live.ended(run)


async def test_a_long_poll_ends_when_its_client_leaves(live: LiveServer) -> None:
    path, run = await held_log(live)
    waiting = asyncio.create_task(read(live, path, offset="now", live="long-poll"))
    readers = live.context.runs.readers
    async with asyncio.timeout(WAIT_SECONDS):
        while not len(readers):
            await asyncio.sleep(0)
        waiting.cancel()
        while len(readers):
            await asyncio.sleep(0)
    await live.ended(run)


# Event streams.


async def test_an_event_stream_has_every_event_once_with_offsets_and_ends_with_the_closure(
    live: LiveServer,
) -> None:
    path, run = await held_log(live)
    query = {"offset": "-1", "live": "sse"}
    async with live.client.stream("GET", path, params=query) as response:
        assert response.headers["content-type"] == "text/event-stream"
        stream = Events(response)
        found = [await stream.next(), await stream.next()]
        assert [name for name, _ in found] == ["data", "control"]
        assert found[1][1]["upToDate"] is True
        await live.ended(run)
        found += await stream.rest()
    count = 0
    for name, data in found:
        if name == "data":
            count += len(data)
        else:
            assert data["streamNextOffset"] == at(count)
    assert found[-1] == (
        "control",
        {"streamNextOffset": at(count), "upToDate": True, "streamClosed": True},
    )
    whole = (await read(live, path)).json()
    assert [one for name, data in found if name == "data" for one in data] == whole


async def test_an_event_stream_from_any_offset_of_an_ended_run_has_the_rest(
    live: LiveServer,
) -> None:
    path, whole = await ended_run(live)
    for seq in range(len(whole) + 1):
        response = await read(live, path, offset=at(seq), live="sse")
        data = [line for line in response.text.split("\n") if line.startswith("data:[")]
        assert [one for line in data for one in json.loads(line[5:])] == whole[seq:]
        assert response.text.endswith(f'{{"streamNextOffset":"{at(len(whole))}",'
                                      '"upToDate":true,"streamClosed":true}\n\n')  # fmt: skip


async def test_an_event_stream_at_the_tail_begins_with_a_control_event(live: LiveServer) -> None:
    path, run = await held_log(live)
    length = len((await read(live, path)).json())
    query = {"offset": "now", "live": "sse", "cursor": "99999999999"}
    async with live.client.stream("GET", path, params=query) as response:
        name, control = await Events(response).next()
    assert (name, control) == (
        "control",
        {"streamNextOffset": at(length), "streamCursor": "100000000000", "upToDate": True},
    )
    await live.ended(run)


async def test_an_old_event_stream_ends_properly_so_that_its_client_asks_again(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "EVENTS_SECONDS", 0.05)
    path, run = await held_log(live)
    response = await read(live, path, offset="-1", live="sse")
    assert "streamClosed" not in response.text
    assert response.text.endswith("\n\n")
    assert "event: control" in response.text.split("\n\n")[-2]
    await live.ended(run)


async def test_a_server_that_drains_ends_the_body_properly_after_a_control_event(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path) as live:
        path, _ = await held_log(live)
        query = {"offset": "-1", "live": "sse"}
        async with live.client.stream("GET", path, params=query) as response:
            stream = Events(response)
            found = [await stream.next(), await stream.next()]
            waiting = asyncio.create_task(read(live, path, offset="now", live="long-poll"))
            async with asyncio.timeout(WAIT_SECONDS):
                while len(live.context.runs.readers) < 2:
                    await asyncio.sleep(0)
            live.context.runs.watch.release()
            found += await stream.rest()
        assert [name for name, _ in found] == ["data", "control"]
        assert "streamClosed" not in found[-1][1]
        polled = await waiting
        assert (polled.status_code, "stream-closed" in polled.headers) == (204, False)


async def test_a_reader_whose_key_is_revoked_is_refused_at_its_next_request(
    keyed: LiveServer,
) -> None:
    path, _ = await held_log(keyed)
    key, secret = await keyed.context.records.keys.create(DEFAULT_TENANT, "page")
    keyed.clock.skipped_seconds += KEY_CACHE_SECONDS
    headers = {"Authorization": f"Bearer {secret}"}
    query = {"offset": "-1", "live": "sse"}
    async with keyed.client.stream("GET", path, params=query, headers=headers) as response:
        stream = Events(response)
        assert [(await stream.next())[0] for _ in range(2)] == ["data", "control"]
        await keyed.context.records.keys.revoke(key.id)
        keyed.clock.skipped_seconds += KEY_CACHE_SECONDS
        assert await stream.rest() == []  # The body has its proper end.
    refused = await keyed.client.get(path, params=query, headers=headers)
    assert refused.status_code == 401


# Refusals.


@pytest.mark.parametrize(
    "query",
    [
        "offset=",
        "offset=7",
        "offset=-2",
        "offset=00000000000000001",
        "offset=000000000000000x",
        "offset=" + "9" * 2000,
        "offset=-1&offset=now",
        "live=sse",
        "live=long-poll",
        "offset=-1&live=websocket",
    ],
)
async def test_a_read_that_the_protocol_does_not_have_is_refused_with_400(
    live: LiveServer, query: str
) -> None:
    refused = await live.client.get(f"/v1/runs/{new_run_id()}/log?{query}")
    assert refused.status_code == 400
    assert refused.json()["code"] == "invalid_argument"
    assert len(refused.text) < 1000


async def test_offsets_beyond_an_open_log_and_before_what_is_kept_are_refused(
    live: LiveServer,
) -> None:
    path, run = await held_log(live)
    for mode in ({}, {"live": "sse"}, {"live": "long-poll"}):
        ahead = await read(live, path, offset=at(500), **mode)
        assert (ahead.status_code, ahead.json()["code"]) == (409, "cursor_ahead")
    ahead = await read(live, path, offset=at(500))
    assert f"offset={at(500)} is past" in ahead.json()["detail"]
    await live.ended(run)
    await live.context.runs.log.trim(run, Seq(3))
    for mode in ({}, {"live": "sse"}, {"live": "long-poll"}):
        gone = await read(live, path, offset=at(1), **mode)
        assert (gone.status_code, gone.json()["earliest_seq"]) == (410, 3)
        assert (await read(live, path, offset=at(2), **mode)).status_code == 200


async def test_a_log_is_only_read(live: LiveServer) -> None:
    path, _ = await ended_run(live)
    for method in ("PUT", "POST", "DELETE", "PATCH"):
        assert (await live.client.request(method, path)).status_code == 405


async def test_a_foreground_run_and_an_unknown_one_have_no_log_here(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    live.gates.open(agent)
    await live.send(thread, "hi")
    (run,) = await live.run_ids(conversation_id=thread)
    for method in ("GET", "HEAD"):
        refused = await live.client.request(method, f"/v1/runs/{run}/log")
        assert refused.status_code == 400
        refused = await live.client.request(method, f"/v1/runs/{new_run_id()}/log")
        assert refused.status_code == 404


# Pages, tokens and tenants.


async def test_a_page_of_another_origin_may_read_the_headers_of_the_protocol(
    live: LiveServer,
) -> None:
    path, _ = await ended_run(live)
    response = await live.client.get(path, headers={"Origin": ORIGIN})
    exposed = {
        one.strip().lower() for one in response.headers["access-control-expose-headers"].split(",")
    }
    named = {name for name in response.headers if name.startswith("stream-")}
    assert {*named, "stream-cursor", "etag"} <= exposed
    assert response.headers["x-content-type-options"] == "nosniff"
    preflight = await live.client.options(
        path,
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "HEAD",
            "Access-Control-Request-Headers": "authorization,if-none-match",
        },
    )
    assert preflight.status_code == 200


async def test_a_stream_token_in_the_query_opens_its_run_and_no_tenant_sees_another_s(
    keyed: LiveServer,
) -> None:
    path, whole = await ended_run(keyed)
    other, _ = await ended_run(keyed)
    run = path.split("/")[3]
    async with await keyed.as_tenant(DEFAULT_TENANT) as owner:
        issued = await owner.post("/v1/tokens", json={"run_id": run, "scope": "read"})
        assert issued.status_code == 200, issued.text
        token = issued.json()["token"]
    for method in ("GET", "HEAD"):
        response = await keyed.client.request(method, path, params={"token": token})
        assert response.status_code == 200
    assert (await read(keyed, path, token=token)).json() == whole
    streamed = await read(keyed, path, token=token, offset="-1", live="sse")
    assert streamed.status_code == 200
    assert (await read(keyed, other, token=token)).status_code == 403
    assert (await read(keyed, path)).status_code == 401
    async with await keyed.as_tenant(TenantId("tenant-b")) as stranger:
        for method in ("GET", "HEAD"):
            assert (await stranger.request(method, path)).status_code == 404


def test_a_cursor_counts_intervals_and_exceeds_the_clients_own() -> None:
    moment = datetime(2024, 10, 9, 0, 1, 1, tzinfo=UTC)
    assert cursor_text(moment, None) == "3"
    assert cursor_text(moment, "2") == "3"
    assert cursor_text(moment, "3") == "4"
    assert cursor_text(moment, "x") == cursor_text(moment, "9" * 30) == "3"
    assert offset_text(Seq(7)) < offset_text(Seq(10))
