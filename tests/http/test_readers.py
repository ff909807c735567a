"""The readers of runs, and the reasons why some were cut off, as a process knows them."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from reattach.domain.ids import DEFAULT_TENANT
from reattach.http.client_name import MAX_CLIENT_CHARS, client_of
from reattach.runs.following.readers import CutOff, CutReason, Reader, Readers, Transport
from tests.support.live_server import LiveServer, listening, new_threads
from tests.support.stores import eventually

PING_SECONDS = 0.2
NAMED = {"User-Agent": "phone/3.1 (a comment)"}


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path, ping_interval_seconds=PING_SECONDS) as live:
        yield live


async def held(live: LiveServer) -> str:
    """A run that stops after three deltas."""
    agent, thread = await new_threads(live)
    return await live.held_run(agent, thread, "[chunks=1000]", after=3, stream_tokens=True)


def has_all(readers: Readers) -> bool:
    """Whether there is one reader, which was sent every event."""
    found = list(readers)
    return len(found) == 1 and found[0].cursor > 0 and found[0].lag_events == 0


def readers_of(live: LiveServer, run_id: str) -> list[Reader]:
    return live.context.runs.readers.of_run(run_id)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_reader_is_known_by_its_program_and_position_until_it_leaves(
    live: LiveServer, method: str
) -> None:
    run_id = await held(live)
    readers = live.context.runs.readers
    path = f"/v1/runs/{run_id}/stream"
    async with live.stream(path, {}, method=method, headers=NAMED) as stream:
        first = await stream.next()
        await eventually(lambda: has_all(readers))
        (reader,) = readers_of(live, run_id)
        assert first.kind
        assert reader == Reader(
            run_id=reader.run_id,
            tenant=DEFAULT_TENANT,
            transport=Transport(method.lower()),
            client="phone/3.1",
            since=reader.since,
            cursor=reader.last_seq,
            last_seq=reader.last_seq,
        )
        assert reader.lag_events == 0
        assert len(readers) == 1
    await eventually(lambda: len(readers) == 0)
    assert readers_of(live, run_id) == []


async def test_each_run_of_a_response_with_many_has_a_reader(live: LiveServer) -> None:
    run_ids = [await held(live), await held(live)]
    readers = live.context.runs.readers
    cursors = [{"run_id": run_id, "starting_after": 0} for run_id in run_ids]
    async with live.stream("/v1/streams", {"runs": cursors}, headers=NAMED):
        await eventually(lambda: {one.run_id for one in readers} == set(run_ids))
        assert {one.transport for one in readers} == {Transport.MANY}
        assert {one.client for one in readers} == {"phone/3.1"}
    await eventually(lambda: len(readers) == 0)


@pytest.mark.parametrize("many", [False, True])
async def test_a_reader_that_is_cut_off_is_reported_once_with_its_reason(
    live: LiveServer, many: bool
) -> None:
    cuts: list[CutOff] = []
    live.context.runs.readers.on_cut(cuts.append)
    run_id = await held(live)
    key, secret = await live.context.records.keys.create(DEFAULT_TENANT, "one")
    headers = {**NAMED, "Authorization": f"Bearer {secret}"}
    path, body = f"/v1/runs/{run_id}/stream", {}
    if many:
        path = "/v1/streams"
        body = {"runs": [{"run_id": run_id, "starting_after": 0}]}
    async with live.stream(path, body, headers=headers):
        await eventually(lambda: has_all(live.context.runs.readers))
        await live.context.records.keys.revoke(key.id)
        await eventually(lambda: bool(cuts))
        await eventually(lambda: len(live.context.runs.readers) == 0)
    (cut,) = cuts
    assert (cut.run_id, cut.reason, cut.client) == (run_id, CutReason.REVOKED, "phone/3.1")
    assert cut.cursor > 0
    assert cut.transport is (Transport.MANY if many else Transport.POST)


def name(user_agent: str) -> str:
    scope: dict[str, Any] = {"headers": [(b"user-agent", user_agent.encode("utf-8"))]}
    return client_of(scope)


@pytest.mark.parametrize(
    ("user_agent", "shown"),
    [
        ("", ""),
        ("letta-client/1.12.1", "letta-client/1.12.1"),
        ("AsyncLetta/Python 1.12.1", "AsyncLetta/Python"),
        ("curl/8.5.0", "curl/8.5.0"),
        ("Mozilla/5.0 (X11; Linux) AppleWebKit/537.36 Chrome/147.0 Safari/537.36", "Chrome 147"),
        ("Mozilla/5.0 (X11) AppleWebKit/537.36 Chrome/147.0 Safari/537.36 Edg/147.1", "Edge 147"),
        ("Mozilla/5.0 (Macintosh) AppleWebKit/605 Version/18.1 Safari/605.1", "Safari 605"),
        ("Mozilla/5.0 (Windows NT 10.0; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox 140"),
        ("Mozilla/5.0 (nothing known)", "Mozilla/5.0"),
        ("x" * 5_000, "x" * MAX_CLIENT_CHARS),
        ("bad\x1b[31mname\u202e", "bad[31mname"),
    ],
)
def test_the_name_of_a_client_is_short_and_printable(user_agent: str, shown: str) -> None:
    assert name(user_agent) == shown


def test_names_of_clients_keep_little_memory_however_long_their_headers_are() -> None:
    tracemalloc.start()
    for number in range(300):
        assert name(f"{number}/1 {'x' * 50_000}") == f"{number}/1"
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept_bytes < 1_000_000


def test_a_client_without_a_name_has_an_empty_one() -> None:
    assert client_of({"headers": []}) == ""


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("ends", ["expires", "is revoked"])
async def test_the_reason_says_whether_a_token_expired_or_was_revoked(
    live: LiveServer, ends: str, many: bool
) -> None:
    cuts: list[CutOff] = []
    live.context.runs.readers.on_cut(cuts.append)
    run_id = await held(live)
    asked = {"run_id": run_id, "scope": "read", "expires_in_seconds": 300}
    token = (await live.client.post("/v1/tokens", json=asked)).json()
    headers = {"Authorization": f"Bearer {token['token']}"}
    path, body = f"/v1/runs/{run_id}/stream", {}
    if many:
        path = "/v1/streams"
        body = {"runs": [{"run_id": run_id, "starting_after": 0}]}
    async with live.stream(path, body, headers=headers):
        await eventually(lambda: has_all(live.context.runs.readers))
        if ends == "expires":
            live.clock.skipped_seconds += 301
        else:
            await live.context.records.tokens.revoke(DEFAULT_TENANT, token["id"])
        await eventually(lambda: bool(cuts))
    (cut,) = cuts
    expected = CutReason.TOKEN_EXPIRED if ends == "expires" else CutReason.REVOKED
    assert cut.reason is expected
