"""Many runs over one connection: each gets what its own stream has, whatever the others do."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2
import pytest

from reattach.domain.errors import (
    LogLostError,
    LogNotFoundError,
    ReattachError,
    StoreUnavailableError,
    TrimmedError,
)
from reattach.domain.ids import DEFAULT_TENANT, Seq, new_run_id
from reattach.domain.limits import REPLAY_SLICE_BYTES
from reattach.http.stream.body import CONNECTION_EXTENSION
from reattach.log.base import Slice
from reattach.runs.following.follow import Following
from reattach.wire.sse import DONE
from tests.support.asgi_server import OTHER_TENANT
from tests.support.live_server import (
    WAIT_SECONDS,
    LiveServer,
    hold_settlements,
    joined,
    listening,
    new_threads,
    posted_directly,
)

pytestmark = pytest.mark.promise("P21")

PATH = "/v1/streams"
_FRAME = re.compile(
    rb"(?:event: (?P<event>done|run_error|ping)\n)?"
    rb"(?:id: (?P<run>[^:\n]+):(?P<seq>\d+)(?P<end>-done)?\n)?"
    rb"(?P<frame>(?:event: error\n)?data: (?P<data>.*)\n\n)",
)


@dataclass
class Page:
    """A page that shows many runs: it keeps a cursor for each, and checks all that arrives."""

    cursors: dict[str, int]
    frames: dict[str, list[bytes]] = field(default_factory=dict)
    errors: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    order: list[tuple[str, int]] = field(default_factory=list)
    """The runs of the frames in the order of their arrival, each with its bytes."""
    pings: list[bytes] = field(default_factory=list)
    rest: bytes = b""

    @property
    def body(self) -> dict[str, Any]:
        """The request for the runs that have not ended."""
        left = self.cursors.keys() - self.done - self.errors.keys()
        return {
            "runs": [
                {"run_id": run_id, "starting_after": self.cursors[run_id]}
                for run_id in sorted(left)
            ]
        }

    def feed(self, data: bytes) -> None:
        self.rest += data
        while True:
            end = b"\n" if self.rest.startswith(b":") else b"\n\n"
            raw, found, rest = self.rest.partition(end)
            if not found:
                return
            self.rest = rest
            self._take(raw + end)

    def _take(self, raw: bytes) -> None:
        if raw.startswith(b":"):
            self.pings.append(raw)
            return
        match = _FRAME.fullmatch(raw)
        assert match, raw
        event, run_id = match["event"], (match["run"] or b"").decode()
        if event == b"ping":
            self.pings.append(raw)
        elif event == b"run_error":
            assert match["run"] is None
            error = json.loads(match["data"])
            run_id = error["run_id"]
            assert run_id not in self.errors.keys() | self.done
            self.errors[run_id] = error
        elif event == b"done":
            assert match["end"] == b"-done"
            assert int(match["seq"]) == self.cursors[run_id]
            assert match["data"] == b"[DONE]"
            assert run_id not in self.errors.keys() | self.done
            self.done.add(run_id)
        else:
            assert int(match["seq"]) == self.cursors[run_id] + 1, raw
            assert run_id not in self.errors.keys() | self.done
            self.cursors[run_id] += 1
            self.frames.setdefault(run_id, []).append(match["frame"])
            self.order.append((run_id, len(raw)))


@asynccontextmanager
async def following(
    live: LiveServer, body: Any, client: Any = None
) -> AsyncIterator[AsyncIterator[bytes]]:
    async with live.stream(PATH, body, client=client) as stream:
        assert stream.status_code == 200, await stream.error()
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        yield stream._chunks


async def read(page: Page, chunks: AsyncIterator[bytes]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        async for chunk in chunks:
            page.feed(chunk)
    assert page.rest == b""


async def own_frames(live: LiveServer, run_id: str, after: int = 0) -> list[bytes]:
    body = {"starting_after": after}
    frames = [frame.raw for frame in await live.streamed(f"/v1/runs/{run_id}/stream", body)]
    assert frames.pop() == DONE
    return frames


async def ended_run(live: LiveServer, message: str, /, **body: Any) -> str:
    agent, thread = await new_threads(live)
    live.gates.open(agent)
    run_id = await live.background_run(thread, message, **body)
    await live.ended(run_id)
    return run_id


async def trimmed(live: LiveServer) -> str:
    run_id = await ended_run(live, "[chunks=9]")
    await live.context.runs.log.trim(run_id, Seq(5))
    return run_id


async def foreground(live: LiveServer) -> str:
    agent, thread = await new_threads(live)
    live.gates.open(agent)
    frames = await live.streamed(f"/v1/conversations/{thread}/messages", {"input": "hello"})
    return str(frames[0].event["run_id"])


@dataclass
class Runs:
    """Runs of every kind, and what following them has to give."""

    live: LiveServer
    choose: random.Random
    frames: dict[str, list[bytes]]
    """The events of ended runs."""
    unfollowable: dict[str, int]
    """The statuses of runs that cannot be followed."""
    trimmed: str
    """An ended run whose first kept event is the fifth."""
    agents: dict[str, str] = field(default_factory=dict)
    """The agents of the runs that are held."""

    async def page(self) -> Page:
        """A page with some of them, each from a random cursor."""
        choose, self.agents = self.choose, {}
        for _ in range(choose.randint(0, 3)):
            agent, thread = await new_threads(self.live)
            message = f"[chunks={choose.randint(2, 30)}]"
            self.agents[await self.live.held_run(agent, thread, message, after=1)] = agent
        ended = choose.sample(list(self.frames), choose.randint(1, 4))
        cursors = {one: choose.randint(0, len(self.frames[one]) + 2) for one in ended}
        cursors |= {one: choose.choice([0, 1, 2]) for one in self.agents}
        cursors |= dict.fromkeys(choose.sample(list(self.unfollowable), 2), 0)
        return Page(cursors | {self.trimmed: choose.choice([0, 3, 4, 7])})

    async def end_later(self) -> None:
        """Let the held runs end one after another, each some ticks later; cancel some of them."""
        for run_id, agent in self.choose.sample(list(self.agents.items()), len(self.agents)):
            for _ in range(self.choose.choice([0, 10, 100])):
                await asyncio.sleep(0)
            if self.choose.random() < 0.3:
                path, body = f"/v1/agents/{agent}/messages/cancel", {"run_ids": [run_id]}
                assert (await self.live.client.post(path, json=body)).status_code == 200
            self.live.gates.open(agent)

    async def expected(self, cursors: Mapping[str, int]) -> dict[str, list[bytes] | int]:
        """The frames that each run has after its cursor, or the status of its error."""
        held = {one: await own_frames(self.live, one) for one in self.agents}
        gone = {self.trimmed: 410} if cursors[self.trimmed] < 4 else {}
        statuses = self.unfollowable | gone
        whole = self.frames | held | {self.trimmed: await own_frames(self.live, self.trimmed, 4)}
        return {
            one: statuses[one]
            if one in statuses
            else whole[one][max(cursor - (4 if one == self.trimmed else 0), 0) :]
            for one, cursor in cursors.items()
        }


async def read_with_cuts(runs: Runs, page: Page) -> None:
    """Read the page to its end over connections that are cut after some bytes."""
    ending = asyncio.create_task(runs.end_later())
    while page.body["runs"]:
        left = runs.choose.choice([10, 300, 3000, 100_000, 10**9])
        async with following(runs.live, page.body) as chunks, asyncio.timeout(WAIT_SECONDS):
            async for chunk in chunks:
                page.feed(chunk[:left])
                left -= len(chunk)
                if left <= 0:
                    break
        page.rest = b""
    await ending


@pytest.mark.promise("P4", "P5")
async def test_random_runs_cursors_ends_errors_and_cuts_give_each_run_its_own_stream(
    live: LiveServer,
) -> None:
    scripts = ["[chunks=40]", "[think=9][chunks=9]", "[unicode]", "[fail=3]", "[fail=0]"]
    ended = [await ended_run(live, one) for one in [*scripts, "[size=70000][chunks=3]"]]
    runs = Runs(
        live,
        random.Random(20261129),
        {run_id: await own_frames(live, run_id) for run_id in ended},
        {new_run_id(): 404, "nonsense": 400, await foreground(live): 400},
        await trimmed(live),
    )
    for _ in range(12):
        page = await runs.page()
        first = dict(page.cursors)
        for run_id in page.cursors.keys() & runs.frames.keys():  # A cursor past the end is the end.
            page.cursors[run_id] = min(page.cursors[run_id], len(runs.frames[run_id]))
        await read_with_cuts(runs, page)
        for run_id in runs.agents:
            await live.ended(run_id)
        assert await runs.expected(first) == {
            run_id: page.frames.get(run_id, [])
            if run_id in page.done
            else page.errors[run_id]["status"]
            for run_id in first
        }
        assert all(isinstance(error["detail"], str) for error in page.errors.values())


async def test_a_cursor_past_the_end_of_an_ended_run_gets_its_end(live: LiveServer) -> None:
    run_id = await ended_run(live, "[chunks=3]")
    body = {"runs": [{"run_id": run_id, "starting_after": 10_000}]}
    async with live.stream(PATH, body) as stream:
        frames = await stream.rest()
    last = len(await own_frames(live, run_id))
    assert joined(frames) == f"event: done\nid: {run_id}:{last}-done\ndata: [DONE]\n\n".encode()


@pytest.mark.promise("P5")
async def test_a_cursor_past_the_events_of_an_open_run_is_an_error_of_that_run(
    live: LiveServer,
) -> None:
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[chunks=3]", after=2)
    page = Page({run_id: 10_000})
    async with following(live, page.body) as chunks:
        await read(page, chunks)
    error = page.errors[run_id]
    assert (error["status"], error["code"], error["last_seq"]) == (409, "cursor_ahead", 3)
    live.gates.open(agent)


@pytest.mark.promise("P3")
async def test_the_body_ends_when_all_runs_have_ended_and_not_before(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    other, elsewhere = await new_threads(live)
    one = await live.held_run(agent, thread, "[chunks=3]", after=1)
    two = await live.held_run(other, elsewhere, "[chunks=3]", after=1)
    page = Page({one: 0, two: 0})
    async with following(live, page.body) as chunks:
        async with asyncio.timeout(WAIT_SECONDS):
            while len(page.frames) < 2:
                page.feed(await anext(chunks))
            live.gates.open(agent)
            while one not in page.done:
                page.feed(await anext(chunks))
            assert two not in page.done
            live.gates.open(other)
        await read(page, chunks)
    assert page.done == {one, two}
    for run_id in (one, two):
        assert page.frames[run_id] == await own_frames(live, run_id)


@pytest.mark.promise("P3")
async def test_the_end_of_a_run_waits_for_its_record_and_delays_no_other_run(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[chunks=3]", after=2)
    other, elsewhere = await new_threads(live)
    still_open = await live.held_run(other, elsewhere, "[chunks=3]", after=2)
    ended = await ended_run(live, "[chunks=5]")
    settlements = hold_settlements(live, monkeypatch)
    page = Page({run_id: 0, ended: 0, still_open: 0})
    runs = live.context.runs
    with patch.object(runs, "is_settled_in_time", wraps=runs.is_settled_in_time) as waits:
        live.gates.open(agent)
        await asyncio.wait_for(settlements.reached.wait(), WAIT_SECONDS)
        async with following(live, page.body) as chunks:
            async with asyncio.timeout(WAIT_SECONDS):
                while ended not in page.done:
                    page.feed(await anext(chunks))
            for reader in live.context.runs.watch._readers:  # As its timer does for slow ones.
                reader.wake()
            assert (await live.run(ended))["status"] == "completed"
            assert waits.call_count == 1
            shown = [json.loads(one.partition(b"data: ")[2]) for one in page.frames.get(run_id, [])]
            assert "stop_reason" not in {one["message_type"] for one in shown}
            settlements.go_on.set()
            async with asyncio.timeout(WAIT_SECONDS):
                while run_id not in page.done:
                    page.feed(await anext(chunks))
            live.gates.open(other)
            await read(page, chunks)
    assert page.frames[run_id] == await own_frames(live, run_id)
    assert page.done == {run_id, ended, still_open}


@pytest.mark.promise("P12")
async def test_runs_get_equal_bytes_while_all_have_some(live: LiveServer) -> None:
    sizes = {"small": "[size=40][chunks=600]", "large": "[size=30000][chunks=20]"}
    runs = {name: await ended_run(live, message) for name, message in sizes.items()}
    many = [await ended_run(live, "[size=400][chunks=300]") for _ in range(3)]
    page = Page(dict.fromkeys([*runs.values(), *many], 0))
    async with following(live, page.body) as chunks:
        await read(page, chunks)
    totals = dict.fromkeys(page.cursors, 0)
    left = {run_id: sum(map(len, page.frames[run_id])) for run_id in page.cursors}
    most = max(size for _, size in page.order) + REPLAY_SLICE_BYTES * 2
    for run_id, size in page.order:
        totals[run_id] += size
        unfinished = [totals[one] for one in totals if totals[one] < left[one]]
        if len(unfinished) > 1:
            assert max(unfinished) - min(unfinished) <= most


class _Unread:
    """A lent connection whose client reads nothing."""

    stalled = False

    def __init__(self) -> None:
        self.left: Any = None
        self.aborted = asyncio.Event()
        self.written_bytes = 0

    async def begin(self, send: Any, start: Any) -> None:
        await send(start)

    def detach(self) -> None: ...

    def flush(self) -> None: ...

    def is_writable(self) -> bool:
        return False

    def on_writable(self, call: Any) -> None: ...

    def on_disconnect(self, call: Any) -> None:
        self.left = call

    def write(self, body: bytes) -> None:
        self.written_bytes += len(body)

    def abort(self) -> None:
        self.aborted.set()


@pytest.mark.promise("P12")
async def test_a_reader_that_reads_nothing_holds_one_write_however_many_runs_it_follows(
    live: LiveServer,
) -> None:
    run_ids = [await ended_run(live, "[size=2000][chunks=40]") for _ in range(20)]
    connection, read_bytes = _Unread(), 0
    read = Following.read

    async def counted(following: Following) -> Slice:
        nonlocal read_bytes
        piece = await read(following)
        read_bytes += len(piece.frames)
        return piece

    body = {"runs": [{"run_id": run_id} for run_id in run_ids]}
    with patch.object(Following, "read", counted):
        lent = {"extensions": {CONNECTION_EXTENSION: connection}}
        sent = await posted_directly(live.app, PATH, json.dumps(body).encode(), more=lent)
        assert sent[0]["status"] == 200
        tasks = [task for task in asyncio.all_tasks() if task.get_name() == "many runs"]
        for _ in range(50):
            await live.run(run_ids[0])
        assert 0 < read_bytes < REPLAY_SLICE_BYTES * 3
    assert connection.written_bytes == 0
    connection.stalled = True  # The watch of connections drops it.
    connection.left()
    await asyncio.wait(tasks, timeout=WAIT_SECONDS)
    assert connection.aborted.is_set()
    assert not live.context.runs.watch._readers


@pytest.mark.promise("P13")
@pytest.mark.parametrize("form", [None, "comment", "event"])
async def test_silent_runs_cost_the_stores_nothing_and_the_connection_gets_keepalives(
    tmp_path: Path, form: str | None
) -> None:
    async with listening(tmp_path, ping_interval_seconds=0.2) as live:
        runs = {}
        for _ in range(3):
            agent, thread = await new_threads(live)
            runs[await live.held_run(agent, thread, "[chunks=3]", after=2)] = agent
        page = Page(dict.fromkeys(runs, 0))
        body = page.body | ({} if form is None else {"pings": form})
        async with following(live, body) as chunks:
            async with asyncio.timeout(WAIT_SECONDS):
                while len(page.order) < 3 * 3:
                    page.feed(await anext(chunks))
                refused = StoreUnavailableError("A store was asked.")
                log, targets = live.context.runs.log, live.context.records.runs
                with (
                    patch.object(log, "read", side_effect=refused),
                    patch.object(log, "head", side_effect=refused),
                    patch.object(targets, "target", side_effect=refused),
                    patch.object(targets, "get", side_effect=refused),
                ):
                    while len(page.pings) < 3:
                        page.feed(await anext(chunks))
            for agent in runs.values():
                live.gates.open(agent)
            await read(page, chunks)
        assert page.done == runs.keys()
        assert not page.errors
        if form == "event":
            ping = json.loads(page.pings[0].partition(b"data: ")[2])
            assert (ping["message_type"], ping["run_id"], ping["seq_id"]) == ("ping", None, None)
        else:
            assert {*page.pings} == {b": keepalive\n"}


@pytest.mark.promise("P15")
async def test_a_server_that_stops_says_of_each_open_run_that_it_goes_on_elsewhere(
    tmp_path: Path,
) -> None:
    ended = None
    async with listening(tmp_path) as live:
        agent, thread = await new_threads(live)
        run_id = await live.held_run(agent, thread, "[chunks=3]", after=1)
        ended = await ended_run(live, "[chunks=3]")
        page = Page({run_id: 0, ended: 0})
        async with following(live, page.body) as chunks:
            async with asyncio.timeout(WAIT_SECONDS):
                while not (page.frames.get(run_id) and ended in page.done):
                    page.feed(await anext(chunks))
            live.context.runs.watch.release()  # As a drain does for runs that go on elsewhere.
            await read(page, chunks)
        assert page.errors[run_id]["status"] == 503
        assert page.errors[run_id]["code"] == "store_unavailable"
        assert page.errors[run_id]["retry_after_seconds"] >= 1


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    "failure",
    [
        StoreUnavailableError("The log cannot be read."),
        LogLostError(new_run_id(), Seq(3)),
        LogNotFoundError("The log was deleted."),
    ],
    ids=lambda failure: failure.code,
)
async def test_a_log_that_fails_in_mid_stream_ends_its_run_and_no_other(
    live: LiveServer, failure: ReattachError
) -> None:
    agent, thread = await new_threads(live)
    other, elsewhere = await new_threads(live)
    lost = await live.held_run(agent, thread, "[chunks=3]", after=2)
    whole = await live.held_run(other, elsewhere, "[chunks=3]", after=2)
    page = Page({lost: 0, whole: 0})
    async with following(live, page.body) as chunks:
        async with asyncio.timeout(WAIT_SECONDS):
            while len(page.order) < 6:
                page.feed(await anext(chunks))
            async with live.context.runs.log.follow(lost) as tail:
                tail.fail(failure)
            while lost not in page.errors:
                page.feed(await anext(chunks))
        live.gates.open(other)
        await read(page, chunks)
    assert page.errors[lost]["status"] == 503
    assert page.errors[lost]["retry_after_seconds"] >= 1
    assert page.done == {whole}
    # The run is no worse off for a snapshot.
    response = await live.client.get(f"/v1/runs/{lost}/snapshot")
    assert response.status_code == 503
    live.gates.open(agent)


@pytest.mark.promise("P5", "P14")
@pytest.mark.parametrize(
    "failure",
    [LogNotFoundError("The log was deleted."), TrimmedError(new_run_id(), Seq(5))],
    ids=lambda failure: failure.code,
)
async def test_a_log_that_is_deleted_while_it_is_read_from_the_store_ends_its_run_and_no_other(
    live: LiveServer, failure: ReattachError
) -> None:
    lost, whole = [await ended_run(live, "[chunks=3]") for _ in range(2)]
    log = live.context.runs.log
    read_stored, read_now = log.read, Following.read_now

    async def read_if_kept(run_id: str, after_seq: Seq, **bounds: int) -> Slice:
        if run_id == lost:
            raise failure
        return await read_stored(run_id, after_seq, **bounds)

    def read_if_in_memory(following: Following) -> Slice | None:
        return None if following.run_id == lost else read_now(following)

    page = Page({lost: 0, whole: 0})
    with (
        patch.object(log, "read", read_if_kept),
        patch.object(Following, "read_now", read_if_in_memory),
    ):
        async with following(live, page.body) as chunks:
            await read(page, chunks)
    assert (page.errors[lost]["status"], page.done) == (503, {whole})
    assert page.errors[lost]["retry_after_seconds"] >= 1
    with patch.object(log, "read", read_if_kept):
        response = await live.client.get(f"/v1/runs/{lost}/frames")
    assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")


@pytest.mark.promise("P11", "S11")
async def test_a_key_follows_the_runs_of_its_tenant_and_is_cut_off_when_revoked(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path, ping_interval_seconds=0.2) as live:
        agent, thread = await new_threads(live)
        run_id = await live.held_run(agent, thread, "[chunks=3]", after=2)
        ours = await live.as_tenant(DEFAULT_TENANT)
        theirs = await live.as_tenant(OTHER_TENANT)
        unknown = new_run_id()
        async with ours, theirs:
            page = Page({run_id: 0, unknown: 0})
            async with following(live, page.body, theirs) as chunks:
                await read(page, chunks)
            assert not page.frames
            details = {one: page.errors[one].pop("detail") for one in page.cursors}
            assert details[run_id].replace(run_id, unknown) == details[unknown]
            assert page.errors[run_id] == page.errors[unknown] | {"run_id": run_id}
            page = Page({run_id: 0})
            async with following(live, page.body, ours) as chunks:
                async with asyncio.timeout(WAIT_SECONDS):
                    while not page.frames.get(run_id):
                        page.feed(await anext(chunks))
                await _revoke_all(live)
                with pytest.raises(httpx2.TransportError):
                    await read(page, chunks)
            assert not page.done | page.errors.keys()


async def _revoke_all(live: LiveServer) -> None:
    keys = live.context.records.keys
    for key in await keys.list(None):
        await keys.revoke(key.id)


@pytest.mark.promise("P12")
async def test_each_run_counts_as_a_stream_of_the_tenant_until_it_ends(tmp_path: Path) -> None:
    async with listening(tmp_path, quota_streams=3) as live:
        agent, thread = await new_threads(live)
        held = await live.held_run(agent, thread, "[chunks=3]", after=2)
        ended = [await ended_run(live, "[chunks=3]") for _ in range(3)]
        too_many = {"runs": [{"run_id": one} for one in (held, *ended)]}
        async with live.stream(PATH, too_many) as stream:
            assert stream.status_code == 429
            assert (await stream.error())["code"] == "quota_exceeded"
        page = Page({held: 0, ended[0]: 0, ended[1]: 0})
        async with following(live, page.body) as chunks:
            async with asyncio.timeout(WAIT_SECONDS):
                while len(page.done) < 2:
                    page.feed(await anext(chunks))
            second = Page({ended[2]: 0, ended[0]: 0})
            async with following(live, second.body) as others:
                await read(second, others)
            assert len(second.done) == 2
            live.gates.open(agent)
            await read(page, chunks)
        assert page.done == {held, *ended[:2]}
        page = Page(dict.fromkeys(ended, 0))
        async with following(live, page.body) as chunks:  # All of them were given back.
            await read(page, chunks)
        assert page.done == {*ended}


def _refused(name: str) -> Mapping[str, Any]:
    run_id = new_run_id()
    bodies: dict[str, Any] = {
        "no runs": {"runs": []},
        "absent": {},
        "too many": {"runs": [{"run_id": f"run-{number}"} for number in range(101)]},
        "twice": {"runs": [{"run_id": run_id}, {"run_id": run_id, "starting_after": 3}]},
        "no id": {"runs": [{"starting_after": 3}]},
        "an empty id": {"runs": [{"run_id": ""}]},
        "a cursor of text": {"runs": [{"run_id": run_id, "starting_after": "x"}]},
        "pings": {"runs": [{"run_id": run_id}], "pings": "loud"},
    }
    body: Mapping[str, Any] = bodies[name]
    return body


@pytest.mark.promise("P8")
@pytest.mark.parametrize(
    "name",
    ["no runs", "absent", "too many", "twice", "no id", "an empty id", "a cursor of text", "pings"],
)
async def test_a_request_that_is_not_valid_is_refused_as_a_whole(
    live: LiveServer, name: str
) -> None:
    rows = live.rows()
    async with live.stream(PATH, _refused(name)) as stream:
        assert stream.status_code == 422
        assert (await stream.error())["code"] == "validation_error"
    assert live.rows() == rows


@pytest.mark.promise("P8")
async def test_a_hundred_runs_are_followed_under_any_server_and_none_is_started(
    live: LiveServer,
) -> None:
    run_ids = [await ended_run(live, "hi") for _ in range(10)]
    unknown = [new_run_id() for _ in range(90)]
    rows = live.rows()
    page = Page(dict.fromkeys([*run_ids, *unknown], 0))
    body = json.dumps(page.body).encode()
    start, *rest = await posted_directly(live.app, PATH, body)
    assert start["status"] == 200
    assert rest[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    for message in rest:
        page.feed(message["body"])
    assert page.done == {*run_ids}
    assert page.errors.keys() == {*unknown}
    for run_id in run_ids[:2]:
        assert b"".join(page.frames[run_id]) + DONE == joined(
            await live.streamed(f"/v1/runs/{run_id}/stream")
        )
    assert live.rows() == rows
