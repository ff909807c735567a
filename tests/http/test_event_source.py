"""Streams by GET, in the form that the ``EventSource`` of a browser reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.domain.errors import StoreUnavailableError
from reattach.domain.ids import DEFAULT_TENANT, RunId, new_conversation_id, new_run_id, new_uuid
from reattach.domain.limits import KEY_CACHE_SECONDS
from reattach.wire.event_source import RETRY_MS
from tests.support.event_stream import EventStream
from tests.support.in_process_readers import Reader, a_thousand_of_each, assert_whole
from tests.support.live_server import (
    Frame,
    LiveServer,
    joined,
    kinds,
    listening,
    message_body,
    new_threads,
    to,
)
from tests.support.stores import stores_in

TEXT = "[think=1][chunks=5][unicode]"


async def ended_run(live: LiveServer, text: str = TEXT) -> tuple[str, str, list[Frame]]:
    """A conversation, its run, which has ended, and the frames of the run with ``[DONE]``."""
    agent, thread = await new_threads(live)
    live.gates.open(agent)
    run = await live.background_run(thread, text)
    return thread, run, await live.streamed(f"/v1/runs/{run}/stream")


def paths_of(thread: str, run: str) -> dict[str, str]:
    """Both addresses of a run, each with the beginning of its ids."""
    return {f"/v1/runs/{run}/stream": "", f"/v1/conversations/{thread}/stream": f"{run}:"}


def position(last_id: str) -> dict[str, Any]:
    """Options of a request of an ``EventSource`` that reconnects."""
    return {"method": "GET", "headers": {"Last-Event-ID": last_id}}


# Ids.


@pytest.mark.promise("S12", "P1", "P4")
async def test_every_frame_has_its_position_as_its_id_and_the_first_one_the_pause(
    live: LiveServer,
) -> None:
    thread, run, whole = await ended_run(live)
    for path, prefix in paths_of(thread, run).items():
        response = await live.client.get(path, params={"run_id": run})
        ids = [f"id: {prefix}{seq}\n".encode() for seq in range(1, len(whole))]
        expected = b"".join(id_ + frame.raw for id_, frame in zip(ids, whole, strict=False))
        done = f"event: done\nid: {prefix}{len(whole) - 1}-done\n".encode() + whole[-1].raw
        assert response.content == b"retry: 1000\n" + expected + done
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-store, no-transform"
        assert response.headers["x-run-id"] == run
        assert response.headers["x-run-status"] == "completed"
        assert response.headers["x-stream-starts-after"] == "0"


@pytest.mark.promise("S13", "P4")
@pytest.mark.parametrize("text", [TEXT, "[chunks=2][fail=1]"])
async def test_a_client_that_reconnects_with_any_id_gets_the_rest_and_then_no_content(
    live: LiveServer, text: str
) -> None:
    thread, run, whole = await ended_run(live, text)
    last = len(whole) - 1
    for path, own in paths_of(thread, run).items():
        for prefix in {own, f"{run}:"}:  # Both addresses know the long form.
            for seq in range(last + 1):
                async with live.stream(path, **position(f"{prefix}{seq}")) as stream:
                    assert stream.headers["x-stream-starts-after"] == str(seq)
                    assert joined(await stream.rest()) == joined(whole[seq:])
                    assert stream.ids is not None
                    assert stream.ids.last_id == f"{own}{last}-done"
            over = await live.client.get(path, headers={"Last-Event-ID": f"{prefix}{last}-done"})
            assert (over.status_code, over.content) == (204, b"")
            assert over.headers["cache-control"] == "no-store"


@pytest.mark.promise("S13", "P4")
async def test_a_short_id_is_a_position_in_the_run_that_the_request_names(
    live: LiveServer,
) -> None:
    thread, run, whole = await ended_run(live)
    path = f"/v1/conversations/{thread}/stream"
    async with live.stream(path, {"run_id": run}, **position("3")) as stream:
        assert joined(await stream.rest()) == joined(whole[3:])
    last = {"run_id": run, "last_event_id": f"{len(whole) - 1}-done"}
    assert (await live.client.get(path, params=last)).status_code == 204


@pytest.mark.promise("S13")
async def test_the_header_wins_over_the_query_and_both_over_starting_after(
    live: LiveServer,
) -> None:
    _, run, whole = await ended_run(live)
    path = f"/v1/runs/{run}/stream"
    query = {"starting_after": 1, "last_event_id": "2"}
    for more, cursor in (({}, 2), (position("4"), 4), ({"headers": {"Last-Event-ID": ""}}, 2)):
        async with live.stream(path, query, **{"method": "GET", **more}) as stream:
            assert joined(await stream.rest()) == joined(whole[cursor:])


@pytest.mark.promise("S13", "P5")
async def test_a_client_of_a_conversation_stays_with_its_run_when_the_next_one_begins(
    live: LiveServer,
) -> None:
    agent, thread = await new_threads(live)
    first = await live.held_run(agent, thread, "[chunks=4]", after=2)
    path = f"/v1/conversations/{thread}/stream"
    async with live.stream(path, method="GET") as stream:
        got = [await stream.next() for _ in range(3)]
        assert stream.ids is not None
        last_id = stream.ids.last_id
    await live.ended(first)
    second = await live.held_run(agent, thread, "[chunks=4]", after=2)
    async with live.stream(path, **position(last_id)) as stream:
        assert stream.run_id == first
        got += await stream.rest()
        assert stream.ids is not None
        last_id = stream.ids.last_id
    assert joined(got) == joined(await live.streamed(f"/v1/runs/{first}/stream"))
    assert (await live.client.get(path, headers={"Last-Event-ID": last_id})).status_code == 204
    async with live.stream(path, method="GET") as stream:
        assert stream.run_id == second
    await live.ended(second)


@pytest.mark.promise("S13")
async def test_a_position_after_the_end_of_an_open_run_is_only_a_cursor(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    run = await live.held_run(agent, thread, "[chunks=4]", after=2)
    path = f"/v1/runs/{run}/stream"
    async with live.stream(path, **position("3-done")) as stream:
        assert stream.headers["x-stream-starts-after"] == "3"
        live.gates.open(agent)
        assert joined(await stream.rest()) == joined((await live.streamed(path))[3:])


@pytest.mark.promise("S13", "P5")
async def test_a_number_is_no_position_in_whichever_run_is_active(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    first = await live.background_run(thread, TEXT, otid="first")
    await live.ended(first)
    second = await live.held_run(agent, thread, "[chunks=20]", after=15)
    path = f"/v1/conversations/{thread}/stream"
    requests: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (query, position(last_id))
        for last_id in ("8", "0", "8-done")
        for query in ({}, {"last_event_id": f"{second}:8"}, {"from": "snapshot"})
    ]
    for query, options in [*requests, ({"last_event_id": "8"}, {"method": "GET"})]:
        async with live.stream(path, query, **options) as stream:
            assert stream.status_code == 400
            assert (await stream.error())["code"] == "event_id_without_run"
    # The caller chose this one, and these name the run.
    async with live.stream(path, {"starting_after": 3}, method="GET") as stream:
        assert stream.run_id == second
    async with live.stream(path, {"otid": "first"}, **position("2")) as stream:
        assert (stream.run_id, stream.headers["x-stream-starts-after"]) == (first, "2")
    async with live.stream(f"/v1/runs/{second}/stream", **position("2")) as stream:
        assert stream.headers["x-stream-starts-after"] == "2"
    await live.ended(second)


@pytest.mark.promise("S13", "P4", "P5")
async def test_only_the_id_of_the_end_itself_stops_a_page(live: LiveServer) -> None:
    thread, run, whole = await ended_run(live)
    last = len(whole) - 1
    for path, own in paths_of(thread, run).items():
        for prefix in {own, f"{run}:"}:
            for seq in (0, 3, last - 1, last + 1, 9999):
                async with live.stream(path, **position(f"{prefix}{seq}-done")) as stream:
                    assert stream.headers["x-stream-starts-after"] == str(min(seq, last))
                    assert joined(await stream.rest()) == joined(whole[min(seq, last) :])
                    assert stream.ids is not None
                    assert stream.ids.last_id == f"{own}{last}-done"
    # A page that saw the end is not disturbed when the log is gone.
    await live.context.runs.delete_logs([run])
    await live.context.records.runs.mark_log_deleted([RunId(run)], live.clock.now())
    path = f"/v1/runs/{run}/stream"
    over = await live.client.get(path, headers={"Last-Event-ID": f"{last}-done"})
    assert over.status_code == 204
    gone = await live.client.get(path, headers={"Last-Event-ID": f"{last}"})
    assert gone.status_code == 410


@pytest.mark.promise("S13")
async def test_a_request_with_two_ids_is_refused(live: LiveServer) -> None:
    thread, run, _ = await ended_run(live, "[chunks=1]")
    for path, own in paths_of(thread, run).items():
        for second in ("3", "x", ""):
            two = [("Last-Event-ID", f"{own}3"), ("Last-Event-ID", second)]
            query = [("last_event_id", f"{own}3"), ("last_event_id", second)]
            for request in ({"headers": two}, {"params": query}):
                refused = await live.client.get(path, **request)  # type: ignore[arg-type]
                assert (refused.status_code, refused.json()["code"]) == (400, "invalid_argument")
                assert "more than one" in refused.json()["detail"]


@pytest.mark.promise("S13")
@pytest.mark.parametrize(
    "last_id", ["x", "-1", "1.5", "5-end", "run-1:5", ":5", "9" * 17, "5 ", "5:5", "\xb2"]
)
async def test_another_id_is_refused(live: LiveServer, last_id: str) -> None:
    _, run, _ = await ended_run(live, "[chunks=1]")
    path = f"/v1/runs/{run}/stream"
    headers = {"Last-Event-ID": last_id.encode("latin-1")}
    for place, request in (
        ("header.last-event-id", {"headers": headers}),
        ("query.last_event_id", {"params": {"last_event_id": last_id}}),
    ):
        if place.startswith("header") and last_id != last_id.strip():
            continue  # HTTP removes the spaces around a value.
        answer = await live.client.get(path, **request)
        assert answer.status_code == 422, answer.text
        assert answer.json()["detail"].startswith(f"{place}: It is not an id of an event")


@pytest.mark.promise("S13", "P5")
async def test_a_position_in_another_run_is_refused(live: LiveServer) -> None:
    thread, run, _ = await ended_run(live, "[chunks=1]")
    _, other, _ = await ended_run(live, "[chunks=1]")
    for path, query in (
        (f"/v1/runs/{run}/stream", {}),
        (f"/v1/conversations/{thread}/stream", {"run_id": run}),
    ):
        headers = {"Last-Event-ID": f"{other}:1"}
        answer = await live.client.get(path, params=query, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")
        assert other in answer.json()["detail"]


# Which run, and refusals: as by POST.


@pytest.mark.promise("S1", "S2", "S3", "S4", "S5")
async def test_a_get_finds_the_run_that_a_post_finds(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    otid = new_uuid()
    ended = await live.background_run(thread, "hi", otid=otid)
    await live.ended(ended)
    named = await live.held_run(agent, thread, "[chunks=4]", after=2)
    default = await live.held_run(agent, "default", "[chunks=4]", after=2, agent_id=agent)
    for place, query, expected in (
        (thread, {}, named),
        ("default", {"agent_id": agent}, default),
        (agent, {}, default),
        (thread, {"run_id": ended}, ended),
        (thread, {"otid": otid}, ended),
        (thread, {"otid": otid, "run_id": named}, named),
    ):
        path = f"/v1/conversations/{place}/stream"
        for method in ("POST", "GET"):
            async with live.stream(path, query, method=method) as stream:
                assert stream.status_code == 200
                assert stream.run_id == expected
                assert ("deprecation" in stream.headers) == (place == agent)
    live.gates.open(agent)
    await live.ended(named)
    await live.ended(default)


@pytest.mark.promise("S10", "S14")
async def test_a_get_is_refused_with_the_errors_of_a_post(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    live.gates.open(agent)
    async with live.stream(to(thread), message_body("hi", background=False)) as sent:
        foreground = sent.run_id
    await live.ended(foreground)
    run = await live.held_run(agent, thread, "[chunks=2]", after=1)
    statuses = []
    for path, query in (
        (f"/v1/conversations/{thread}/stream", {"starting_after": 99}),
        (f"/v1/conversations/{thread}/stream", {"starting_after": "x"}),
        (f"/v1/conversations/{thread}/stream", {"starting_after": "1_0"}),
        (f"/v1/conversations/{thread}/stream", {"run_id": ""}),
        (f"/v1/conversations/{thread}/stream", {"run_id": foreground}),
        (f"/v1/conversations/{thread}/stream", {"run_id": "run-1"}),
        (f"/v1/conversations/{thread}/stream", {"run_id": new_run_id()}),
        (f"/v1/conversations/{thread}/stream", {"otid": new_uuid()}),
        (f"/v1/conversations/{new_conversation_id()}/stream", {}),
        ("/v1/conversations/conv-1/stream", {}),
        (f"/v1/runs/{foreground}/stream", {}),
        (f"/v1/runs/{new_run_id()}/stream", {}),
        ("/v1/runs/nonsense/stream", {}),
    ):
        posted = await live.client.post(path, json=query)
        got = await live.client.get(path, params=query)
        assert got.status_code == posted.status_code
        assert got.json()["detail"] == posted.json()["detail"].replace("body.", "query.")
        statuses.append(got.status_code)
    assert set(statuses) == {400, 404, 409, 422}
    await live.ended(run)


# Keepalives.


@pytest.fixture
async def quick_pings(tmp_path: Path) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path, ping_interval_seconds=0.05) as live:
        yield live


@pytest.mark.promise("S15", "P1")
@pytest.mark.parametrize("query", [{}, {"pings": "comment"}, {"include_pings": "false"}], ids=str)
async def test_keepalives_are_comments_unless_events_are_asked_for(
    quick_pings: LiveServer, query: dict[str, str]
) -> None:
    live = quick_pings
    agent, thread = await new_threads(live)
    run = await live.held_run(agent, thread, "[chunks=2]", after=1)
    form, body = EventStream(), b""
    async with (
        asyncio.timeout(20),
        live.client.stream("GET", f"/v1/runs/{run}/stream", params=query) as response,
        live.client.stream("GET", f"/v1/runs/{run}/stream") as commented,
    ):
        keepalives = EventStream()
        async for data in commented.aiter_raw():
            keepalives.feed(data)
            if keepalives.comments == 3:
                live.gates.open(agent)
        async for data in response.aiter_raw():
            body += form.feed(data)
    assert body == joined(await live.streamed(f"/v1/runs/{run}/stream"))
    assert (form.comments > 0) == ("include_pings" not in query)
    assert form.retry_ms == RETRY_MS


# Errors that pass.


async def assert_comes_back(
    live: LiveServer, path: str, status: int, client: httpx2.AsyncClient | None = None
) -> None:
    """A POST gets the status with the time to wait; a GET a stream that says the time and ends."""
    client = client or live.client
    posted = await client.post(path, json={})
    got = await client.get(path, headers={"Origin": "http://localhost:3000"})
    assert posted.status_code == status
    assert got.status_code == 200
    assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert got.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "retry-after" not in got.headers
    comment, retry = got.content.decode().split("\n", 1)
    assert comment == f": {posted.text}"
    assert retry == f"retry: {int(posted.headers['retry-after']) * 1000}\n\n"


@pytest.mark.promise("S14")
async def test_an_error_that_passes_is_a_stream_that_says_when_to_come_back(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run, _ = await ended_run(live, "[chunks=1]")

    async def unavailable(*_: object) -> None:
        raise StoreUnavailableError("The records do not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(live.context.records.runs, "target", unavailable)
        patch.setattr(live.context.records.known_targets, "find", lambda *_: None)
        await assert_comes_back(live, f"/v1/runs/{run}/stream", 503)
    assert (await live.client.get(f"/v1/runs/{run}/stream")).content.endswith(b"[DONE]\n\n")


@pytest.mark.promise("S14", "P12")
async def test_a_page_beyond_a_quota_comes_back(tmp_path: Path) -> None:
    async with listening(tmp_path, quota_streams=1) as live:
        agent, _ = await new_threads(live)
        live.gates.hold(agent, 1)
        made = await live.made(f"/v1/agents/{agent}/messages/async", {"input": "[chunks=2]"})
        path = f"/v1/runs/{made['id']}/stream"
        async with live.stream(path, method="GET") as stream:
            await stream.next()
            await assert_comes_back(live, path, 429)
        live.gates.open(agent)


@pytest.mark.promise("S14", "P15")
async def test_the_body_ends_with_a_pause_when_another_process_drives_the_run(
    tmp_path: Path,
) -> None:
    async with stores_in(tmp_path) as stores:
        service = stores.service()
        run = await service.send(stores.send(await stores.conversation(), "[hang=2]"))
        async with (
            Reader(service, run, by_get=True) as page,
            Reader(service, run) as other,
        ):
            for reader in (page, other):
                await reader.until_seq(2)
            service.watch.release()
            for reader in (page, other):
                await reader.to_end()
            assert (page.whole, page.received.done, page.aborted) == (True, False, False)
            assert (other.whole, other.received.done, other.aborted) == (False, False, True)
            assert page.ids is not None
            assert page.ids.last_id == "2"
        assert await service.cancel([run]) == {run.id: "cancelled"}


@pytest.mark.promise("S14", "P5", "S11")
async def test_a_page_whose_access_ends_sees_a_lost_connection_and_then_a_final_error(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path, ping_interval_seconds=0.1) as live:
        agent, thread = await new_threads(live)
        run = await live.held_run(agent, thread, "[chunks=2]", after=1)
        path = f"/v1/runs/{run}/stream"
        async with live.stream(path, method="GET") as stream:
            await stream.next()
            await live.context.records.keys.create(DEFAULT_TENANT, "first")  # It closes the server.
            live.clock.skipped_seconds += KEY_CACHE_SECONDS
            with pytest.raises(httpx2.TransportError):
                await stream.rest()
        refused = await live.client.get(path, headers={"Last-Event-ID": "1"})
        assert refused.status_code == 401
        live.gates.open(agent)


# Sends.


@pytest.mark.promise("S16", "P8", "P9")
@pytest.mark.parametrize("last_id", ["5", "run-1:5-done", ""])
async def test_a_send_with_a_last_event_id_starts_no_run(live: LiveServer, last_id: str) -> None:
    agent, thread = await new_threads(live)
    live.gates.open(agent)
    otid = new_uuid()
    known = await live.background_run(thread, "hi", otid=otid)
    await live.ended(known)
    before = live.rows()
    for path in (
        to(thread),
        f"/v1/agents/{agent}/messages",
        f"/v1/agents/{agent}/messages/stream",
        f"/v1/agents/{agent}/messages/async",
    ):
        for body in ({"input": "again"}, message_body("hi", otid=otid, background=True)):
            answer = await live.client.post(path, json=body, headers={"Last-Event-ID": last_id})
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")
            assert "GET /v1/conversations/{conversation_id}/stream" in answer.json()["detail"]
    assert live.rows() == before


# Many readers.


@pytest.mark.promise("P13", "P2", "P4", "P12")
async def test_a_thousand_pages_and_sdks_that_wait_have_no_tasks_and_get_each_event_once(
    tmp_path: Path,
) -> None:
    async with stores_in(tmp_path) as stores:
        service = stores.service()
        run = await service.send(stores.send(await stores.conversation(), "[hang=2]"))
        async with a_thousand_of_each(service, run) as readers:
            await service.cancel([run])
            await assert_whole(readers, await stores.frames(run))


@pytest.mark.promise("S12")
async def test_frames_and_ids_are_the_same_however_the_events_came(live: LiveServer) -> None:
    """P4 per form: a reader that followed live has the bytes of one that replays."""
    agent, thread = await new_threads(live)
    run = await live.held_run(agent, thread, "[chunks=6][unicode]", after=1)
    path = f"/v1/conversations/{thread}/stream"
    async with (
        asyncio.timeout(20),
        live.client.stream("GET", path) as one,
        live.client.stream("GET", path) as two,
    ):
        live.gates.open(agent)
        followed = [b"".join([data async for data in reader.aiter_raw()]) for reader in (one, two)]
    replayed = await live.client.get(path, params={"run_id": run})
    assert followed == [replayed.content] * 2
    assert kinds(await live.streamed(path, {"run_id": run}, method="GET"))[-1] == "[DONE]"
