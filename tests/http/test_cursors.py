from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.live_server import (
    DONE,
    Frame,
    LiveServer,
    joined,
    kinds,
    listening,
    posted_directly,
)

BOTH = pytest.mark.parametrize("method", ["POST", "GET"])
LONG = "[think=3][tool=look][chunks=12][unicode][steps=2]"


@pytest.fixture(scope="module")
async def quick_pings(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    directory = tmp_path_factory.mktemp("pings")
    async with listening(directory, ping_interval_seconds=0.05) as live:
        yield live


async def ended_run(live: LiveServer, message: str, **body: Any) -> tuple[str, list[Frame]]:
    """A run that has ended, and all of its frames with ``[DONE]``."""
    agent = await live.agent()
    live.gates.open(agent["id"])
    conversation = await live.conversation(agent["id"])
    run = await live.background_run(conversation["id"], message, **body)
    return run, await live.streamed(f"/v1/runs/{run}/stream", {})


async def held_run(live: LiveServer, message: str, *, after: int, **body: Any) -> tuple[str, str]:
    """The agent and the run, which waits before its delta number ``after``."""
    agent = (await live.agent())["id"]
    conversation = (await live.conversation(agent))["id"]
    return agent, await live.held_run(agent, conversation, message, after=after, **body)


# S6: exactly what comes after the cursor.


@pytest.mark.promise("P1")
@pytest.mark.parametrize("message", [LONG, "[chunks=0]", "[fail=0]", "[fail=4]", "[crash=2]"])
@pytest.mark.parametrize("options", [{}, {"stream_tokens": False}, {"include_pings": False}])
async def test_events_are_numbered_from_one_without_gaps_and_name_their_run(
    live: LiveServer, message: str, options: dict[str, Any]
) -> None:
    run, frames = await ended_run(live, message, **options)
    events = [frame.event for frame in frames[:-1]]
    assert [event["seq_id"] for event in events] == list(range(1, len(events) + 1))
    assert {event["run_id"] for event in events} == {run}
    assert (kinds(frames)[0] == "ping") is options.get("include_pings", True)
    assert kinds(frames).count("stop_reason") == kinds(frames).count("usage_statistics") == 1
    assert kinds(frames).count("error_message") == message.startswith(("[fail", "[crash"))


@pytest.mark.promise("S6", "P4")
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("POST", {}),
        ("POST", {"stream_tokens": False}),
        ("POST", {"include_pings": False}),
        ("GET", {}),
    ],
)
@pytest.mark.parametrize("message", [LONG, "[fail=7]"])
async def test_from_every_cursor_an_ended_run_gives_the_same_bytes(
    live: LiveServer, message: str, method: str, options: dict[str, Any]
) -> None:
    run, whole = await ended_run(live, message, **options)

    async def resume(cursor: int) -> None:
        body = {"starting_after": cursor}
        async with live.stream(f"/v1/runs/{run}/stream", body, method=method) as stream:
            assert stream.headers["x-stream-starts-after"] == str(cursor)
            assert joined(await stream.rest()) == joined(whole[cursor:])

    for first in range(0, len(whole), 8):
        cursors = range(first, min(first + 8, len(whole)))
        await asyncio.gather(*(resume(cursor) for cursor in cursors))


@pytest.mark.promise("S6", "P4")
@pytest.mark.parametrize(
    ("method", "options"), [("POST", {}), ("POST", {"include_pings": False}), ("GET", {})]
)
async def test_from_every_cursor_a_live_run_gives_the_same_bytes(
    live: LiveServer, method: str, options: dict[str, Any]
) -> None:
    agent, run = await held_run(live, LONG, after=20, **options)
    last = 20 + options.get("include_pings", True)

    async def resume(cursor: int) -> list[Frame]:
        body = {"starting_after": cursor}
        async with live.stream(f"/v1/runs/{run}/stream", body, method=method) as stream:
            assert stream.headers["x-stream-starts-after"] == str(cursor)
            assert stream.headers["x-run-status"] == "running"
            frames = [await stream.next() for _ in range(last - cursor)]
            caught_up.append(cursor)
            if len(caught_up) == last + 1:
                live.gates.open(agent)
            return frames + await stream.rest()

    caught_up: list[int] = []
    resumed = await asyncio.gather(*(resume(cursor) for cursor in range(last + 1)))
    whole = await live.streamed(f"/v1/runs/{run}/stream", {})
    assert [joined(frames) for frames in resumed] == [
        joined(whole[cursor:]) for cursor in range(last + 1)
    ]


@pytest.mark.promise("S6", "P4", "P6")
@BOTH
async def test_a_reader_cut_after_every_event_gets_the_whole_run_in_the_end(
    live: LiveServer, method: str
) -> None:
    agent, run = await held_run(live, "[think=2][chunks=8][unicode]", after=1)
    path = f"/v1/runs/{run}/stream"
    got: list[Frame] = []
    for allowed in range(2, 14):
        cursor = got[-1].seq if got else 0
        async with live.stream(path, {"starting_after": cursor}, method=method) as stream:
            got.append(await stream.next())
        live.gates.hold(agent, allowed)
    live.gates.open(agent)
    got += await live.streamed(path, {"starting_after": got[-1].seq}, method=method)
    assert got == await live.streamed(f"/v1/runs/{run}/stream", {})


@pytest.mark.promise("S6")
@pytest.mark.parametrize("cursor", [0, -1, -5, -(2**53) + 1, "0", "-3", 0.0], ids=repr)
async def test_a_cursor_of_zero_or_less_gives_the_run_from_its_start(
    live: LiveServer, cursor: Any
) -> None:
    run, whole = await ended_run(live, "[chunks=5]")
    async with live.stream(f"/v1/runs/{run}/stream", {"starting_after": cursor}) as stream:
        assert stream.headers["x-stream-starts-after"] == "0"
        assert joined(await stream.rest()) == joined(whole)


@pytest.mark.promise("S6")
@pytest.mark.parametrize("cursor", [5, "5", 5.0], ids=repr)
async def test_a_cursor_may_be_a_string(live: LiveServer, cursor: Any) -> None:
    run, whole = await ended_run(live, "[chunks=5]")
    frames = await live.streamed(f"/v1/runs/{run}/stream", {"starting_after": cursor})
    assert joined(frames) == joined(whole[5:])


@pytest.mark.promise("S6", "P4")
@BOTH
async def test_a_thousand_events_come_the_same_from_anywhere(live: LiveServer, method: str) -> None:
    run, whole = await ended_run(live, "[chunks=1000][size=300]")
    assert len(whole) == 1000 + 4
    for cursor in (1, 99, 100, 101, 500, 999, 1000, 1002, 1003):
        body = {"starting_after": cursor}
        frames = await live.streamed(f"/v1/runs/{run}/stream", body, method=method)
        assert joined(frames) == joined(whole[cursor:])


# S7: pings.


@pytest.mark.promise("S7", "P1")
@BOTH
async def test_silence_is_broken_by_pings_that_repeat_the_last_seq(
    quick_pings: LiveServer, method: str
) -> None:
    live = quick_pings
    agent, run = await held_run(live, "[chunks=4]", after=2)
    body = {"starting_after": 1}
    async with live.stream(f"/v1/runs/{run}/stream", body, method=method) as stream:
        events = [await stream.next() for _ in range(2)]
        pings = [await stream.next() for _ in range(3)]
        live.gates.hold(agent, 3)
        event = await stream.next()
        while event.kind == "ping":
            event = await stream.next()
        later = await stream.next()
        live.gates.open(agent)
        rest = [frame for frame in await stream.rest() if frame.kind != "ping"]
    assert kinds(pings) == ["ping"] * 3
    assert {(ping.seq, ping.event["run_id"]) for ping in pings} == {(3, run)}
    assert len({ping.event["id"] for ping in pings}) == 3
    assert later.kind == "ping"
    assert later.seq == event.seq == 4
    whole = await live.streamed(f"/v1/runs/{run}/stream", {"starting_after": 1})
    assert joined([*events, event, *rest]) == joined(whole)


@pytest.mark.promise("S7", "P1")
@BOTH
async def test_a_ping_before_the_first_event_has_no_seq_and_is_in_no_log(
    quick_pings: LiveServer, method: str
) -> None:
    live = quick_pings
    agent, run = await held_run(live, "[chunks=1]", after=0, include_pings=False)
    async with live.stream(f"/v1/runs/{run}/stream", {}, method=method) as stream:
        ping = await stream.next()
        live.gates.open(agent)
        frames = [frame for frame in await stream.rest() if frame.kind != "ping"]
    assert (ping.kind, ping.seq) == ("ping", None)
    assert [frame.seq for frame in frames[:-1]] == [1, 2, 3]
    assert joined(frames) == joined(await live.streamed(f"/v1/runs/{run}/stream", {}))


@pytest.mark.promise("S7")
async def test_a_reader_without_include_pings_gets_no_pings(quick_pings: LiveServer) -> None:
    live = quick_pings
    agent, run = await held_run(live, "[chunks=3]", after=1)
    path = f"/v1/runs/{run}/stream"
    async with (
        live.stream(path, {"include_pings": False}) as without,
        live.stream(path, {"include_pings": None}) as null,
        live.stream(path, {"include_pings": "yes"}) as wanting,
        live.stream(path) as silent,
    ):
        for stream in (wanting, silent):
            assert kinds([await stream.next() for _ in range(6)])[2:] == ["ping"] * 4
        live.gates.open(agent)
        whole = await live.streamed(path, {"include_pings": False})
        assert joined(await without.rest()) == joined(await null.rest()) == joined(whole)
        for stream in (wanting, silent):
            rest = [frame for frame in await stream.rest() if frame.kind != "ping"]
            assert joined(rest) == joined(whole[2:])


@pytest.mark.promise("S7")
async def test_a_sender_is_pinged_as_a_reader_is(quick_pings: LiveServer) -> None:
    live = quick_pings
    agent = (await live.agent())["id"]
    live.gates.hold(agent, 1)
    for body in ({"background": True}, {"background": False}):
        async with live.stream(
            f"/v1/agents/{agent}/messages/stream",
            {"input": "[chunks=2]", "stream_tokens": True, **body},
        ) as stream:
            frames = [await stream.next() for _ in range(4)]
            assert kinds(frames) == ["ping", "assistant_message", "ping", "ping"]
            assert [frame.seq for frame in frames] == [1, 2, 2, 2]
            live.gates.open(agent)
            await stream.rest()
        live.gates.hold(agent, 1)


# S8: hints.


@pytest.mark.promise("S8", "P4")
@pytest.mark.parametrize(
    "hints",
    [
        {"batch_size": 1},
        {"batch_size": 0},
        {"batch_size": -1},
        {"batch_size": -(2**53) + 1},
        {"batch_size": None},
        {"batch_size": 7},
        {"batch_size": "2"},
        {"batch_size": 1_000},
        {"batch_size": 2**53 - 1},
        {"poll_interval": None},
        {"poll_interval": 0},
        {"poll_interval": -3600},
        {"poll_interval": 3600},
        {"poll_interval": "0.5"},
        {"poll_interval": None, "batch_size": None, "include_pings": None},
        {"poll_interval": 3600, "batch_size": 1},
    ],
    ids=str,
)
async def test_hints_change_no_byte_and_delay_no_event(
    live: LiveServer, hints: dict[str, Any]
) -> None:
    agent, run = await held_run(live, "[chunks=40][unicode]", after=20)
    async with live.stream(f"/v1/runs/{run}/stream", {**hints, "starting_after": 3}) as stream:
        first = [await stream.next() for _ in range(21 - 3)]
        for allowed in (21, 22):
            live.gates.hold(agent, allowed)
            first.append(await stream.next())
        live.gates.open(agent)
        resumed = first + await stream.rest()
    whole = await live.streamed(f"/v1/runs/{run}/stream", hints)
    assert joined(resumed) == joined(whole[3:])
    assert whole == await live.streamed(f"/v1/runs/{run}/stream", {})


@pytest.mark.promise("S8")
async def test_the_batch_size_bounds_the_events_of_one_write(
    live: LiveServer,
) -> None:
    run, whole = await ended_run(live, "[chunks=20]")
    for batch_size, expected in ((1, 1), (0, 1), (-1, 1), (5, 5), (None, 100), (10_000, 23)):
        body = json.dumps({"batch_size": batch_size}).encode()
        sent = await posted_directly(live.app, f"/v1/runs/{run}/stream", body)
        writes = [message["body"] for message in sent[1:]]
        assert b"".join(writes) == joined(whole)
        events = [write.count(b"\n\n") for write in writes if write not in {b"", DONE}]
        assert max(events) == min(expected, 23)


@pytest.mark.promise("S9", "S6")
async def test_an_absent_body_a_null_and_an_empty_object_give_the_whole_run_on_every_path(
    live: LiveServer,
) -> None:
    agent, run = await held_run(live, "[chunks=6]", after=4)
    conversation = (await live.run(run))["conversation_id"]
    paths = [f"/v1/conversations/{conversation}/stream", f"/v1/runs/{run}/stream"]
    json_type = {"content-type": "application/json"}
    requests: list[dict[str, Any]] = [
        {},
        {"json": {}},
        {"content": b"null", "headers": json_type},
        {"content": b"", "headers": json_type},
        {"content": b" \n{ } ", "headers": json_type},
    ]

    async def resume(path: str, request: dict[str, Any]) -> bytes:
        async with live.stream(path, **request) as stream:
            assert stream.run_id == run
            frames = [await stream.next() for _ in range(5)]
            opened.append(path)
            if len(opened) == len(paths) * len(requests):
                live.gates.open(agent)
            return joined(frames + await stream.rest())

    opened: list[str] = []
    got = await asyncio.gather(*(resume(path, one) for path in paths for one in requests))
    whole = await live.streamed(f"/v1/runs/{run}/stream", {})
    assert set(got) == {joined(whole)}
    assert kinds(whole)[-3:] == ["stop_reason", "usage_statistics", "[DONE]"]
