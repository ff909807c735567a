from __future__ import annotations

import asyncio
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx2
import pytest

from reattach.domain.ids import (
    DEFAULT_TENANT,
    AgentId,
    ConversationId,
    RunId,
    Seq,
    new_agent_id,
    new_conversation_id,
    new_run_id,
    new_uuid,
)
from reattach.domain.limits import OPEN_LOOK_SECONDS, OPEN_WAIT_SECONDS
from reattach.http.api import resuming
from reattach.records.base import RunKnown, Thread
from reattach.records.runs.created import RunCreated
from tests.support.asgi_server import OTHER_TENANT
from tests.support.live_server import (
    DONE,
    LiveServer,
    Stream,
    joined,
    kinds,
    listening,
    message_body,
    new_threads,
)
from tests.support.record_samples import a_run

SOME_UUID = "6af1ebde-378d-4111-b936-e8f82c8f8359"

NO_ACTIVE_RUN = "INVALID_ARGUMENT: No active runs found for this conversation."
NOT_BACKGROUND = (
    "INVALID_ARGUMENT: Run was not created in background mode, so it cannot be retrieved."
)


def resume_path(thread_id: str) -> str:
    return f"/v1/conversations/{thread_id}/stream"


async def resumed_run(live: LiveServer, path: str, body: Any = None, **more: Any) -> str:
    """Which run a resume gives; the run may be live."""
    async with live.stream(path, body, **more) as stream:
        assert stream.status_code == 200, await stream.error()
        return stream.run_id


async def refusal(
    live: LiveServer, path: str, body: Any = None, *, passes: bool = False, **more: Any
) -> tuple[int, Any]:
    """The status and body of a resume that is refused.

    They are the same by POST and by GET, except if the error ``passes``.
    """
    answers = []
    for method in ("POST",) if passes else ("POST", "GET"):
        async with live.stream(path, body, method=method, **more) as stream:
            error = await stream.error()
            assert isinstance(error["detail"], str)
            assert isinstance(error["code"], str)
            answers.append((stream.status_code, error))
    if not passes:
        posted, got = map(str, answers)
        assert got == posted.replace("body", "query")  # The place of a fault.
    return answers[0]


# Which run is meant.


@pytest.mark.promise("S1", "S9")
@pytest.mark.parametrize(
    "request_body",
    [
        {},
        {"json": {}},
        {"content": b"null", "headers": {"content-type": "application/json"}},
        {"json": {"run_id": None, "otid": None, "agent_id": None}},
        {"json": {"run_id": None, "otid": None, "agent_id": ""}},
        {"json": {"unknown": [1, {"member": None}]}},
    ],
    ids=["absent", "empty", "null", "nulls", "no agent", "unknown members"],
)
async def test_every_form_of_an_empty_body_resumes_the_active_run(
    live: LiveServer, request_body: dict[str, Any]
) -> None:
    agent, conversation = await new_threads(live)
    run = await live.held_run(agent, conversation, "[chunks=8]", after=3)
    async with live.stream(resume_path(conversation), **request_body) as stream:
        assert stream.run_id == run
        first = [await stream.next() for _ in range(4)]
        live.gates.open(agent)
        rest = await stream.rest()
    assert joined(first + rest) == joined(await live.streamed(f"/v1/runs/{run}/stream"))


@pytest.mark.promise("S1")
async def test_conversations_of_one_agent_resume_each_its_own_run(live: LiveServer) -> None:
    agent, one = await new_threads(live)
    two = (await live.conversation(agent))["id"]
    run_of_one = await live.held_run(agent, one, "[chunks=4]", after=2)
    run_of_two = await live.held_run(agent, two, "[chunks=4]", after=2)
    assert await resumed_run(live, resume_path(one), {}) == run_of_one
    assert await resumed_run(live, resume_path(two), {}) == run_of_two
    live.gates.open(agent)


@pytest.mark.promise("S1")
async def test_of_the_runs_of_a_conversation_the_newest_is_resumed(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    for _ in range(2):
        await live.ended(await live.held_run(agent, conversation, "[chunks=2]", after=1))
    newest = await live.held_run(agent, conversation, "[chunks=2]", after=1)
    assert await resumed_run(live, resume_path(conversation), {}) == newest
    await live.ended(newest)
    assert await refusal(live, resume_path(conversation), {}) == (
        400,
        {"detail": NO_ACTIVE_RUN, "code": "no_active_run"},
    )


@pytest.mark.promise("S2")
async def test_default_is_the_run_of_the_agent_outside_named_conversations(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    default = await live.held_run(agent, "default", "[chunks=4]", after=2, agent_id=agent)
    named = await live.held_run(agent, conversation, "[chunks=4]", after=2)
    body = {"agent_id": agent}
    assert await resumed_run(live, resume_path("default"), body) == default
    assert await resumed_run(live, resume_path(conversation), body) == named
    live.gates.open(agent)


@pytest.mark.promise("S2", "S3")
async def test_default_never_sees_the_run_of_a_named_conversation(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    await live.held_run(agent, conversation, "[chunks=4]", after=2)
    for path, body in (("default", {"agent_id": agent}), (agent, {})):
        status, error = await refusal(live, resume_path(path), body)
        assert (status, error["detail"]) == (400, NO_ACTIVE_RUN)
    live.gates.open(agent)


@pytest.mark.promise("S2")
async def test_default_is_the_run_of_this_agent_and_of_no_other(live: LiveServer) -> None:
    agent, _ = await new_threads(live)
    other, _ = await new_threads(live)
    run = await live.held_run(agent, "default", "[chunks=4]", after=2, agent_id=agent)
    assert (await refusal(live, resume_path("default"), {"agent_id": other}))[0] == 400
    assert (await refusal(live, resume_path("default"), {}))[0] == 400
    await live.ended(run)


@pytest.mark.promise("S3")
async def test_an_agent_id_in_the_path_resumes_its_default_conversation_with_deprecation_headers(
    live: LiveServer, log_lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    resuming._warn_about_agent_path.cache_clear()
    agent, _ = await new_threads(live)
    other, _ = await new_threads(live)
    run = await live.held_run(agent, "default", "[chunks=4]", after=2, agent_id=agent)
    for body in ({}, {"agent_id": other}, None):
        async with live.stream(resume_path(agent), body) as stream:
            assert stream.run_id == run
            assert stream.headers["deprecation"].startswith("@")
            assert "/v1/conversations/default/stream" in stream.headers["link"]
            assert 'rel="successor-version"' in stream.headers["link"]
    async with live.stream(resume_path("default"), {"agent_id": agent}) as stream:
        assert "deprecation" not in stream.headers
        assert "link" not in stream.headers
    await live.ended(run)
    warnings = [line for line in log_lines if line["event"] == "deprecated path used"]
    assert len(warnings) == 1
    assert warnings[0]["log_level"] == "warning"


@pytest.mark.promise("S4")
async def test_a_run_id_in_the_body_overrides_the_conversation_in_the_path(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    other_agent, other = await new_threads(live)
    run = await live.background_run(conversation, "[chunks=5]")
    whole = await live.streamed(f"/v1/runs/{run}/stream", {})
    elsewhere = await live.held_run(other_agent, other, "[chunks=2]", after=1)
    for path in (conversation, other, agent, other_agent, "default", new_conversation_id()):
        frames = await live.streamed(resume_path(path), {"run_id": run})
        assert joined(frames) == joined(whole)
        frames = await live.streamed(
            resume_path(path), {"run_id": run, "agent_id": other_agent, "starting_after": 3}
        )
        assert joined(frames) == joined(whole[3:])
    await live.ended(elsewhere)


@pytest.mark.promise("S4", "S5")
async def test_a_run_id_wins_over_an_otid(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    one, two = new_uuid(), new_uuid()
    first = await live.background_run(conversation, "one", otid=one)
    await live.ended(first)
    second = await live.background_run(conversation, "two", otid=two)
    await live.ended(second)
    for body, expected in (
        ({"run_id": first, "otid": two}, first),
        ({"run_id": first, "otid": "never sent"}, first),
        ({"run_id": None, "otid": two}, second),
    ):
        assert await resumed_run(live, resume_path(conversation), body) == expected
    status, error = await refusal(
        live, resume_path(conversation), {"run_id": new_run_id(), "otid": two}
    )
    assert (status, error["code"]) == (404, "not_found")


@pytest.mark.promise("S5")
async def test_an_otid_names_its_run_live_and_after_its_end_from_any_path(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    otid = f"client-{new_uuid()}"
    run = await live.held_run(agent, conversation, "[chunks=6]", after=3, otid=otid)
    for path in (conversation, "default", new_conversation_id()):
        assert await resumed_run(live, resume_path(path), {"otid": otid}) == run
    await live.ended(run)
    whole = await live.streamed(f"/v1/runs/{run}/stream", {})
    for path in (conversation, "default", new_conversation_id()):
        assert await live.streamed(resume_path(path), {"otid": otid}) == whole


@pytest.mark.promise("S5")
async def test_an_otid_names_the_newest_of_the_runs_that_have_it(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    shared, own = new_uuid(), new_uuid()
    path = f"/v1/conversations/{conversation}/messages"
    runs = []
    for otids in ([shared], [shared, own]):
        items = [{"role": "user", "content": "hi", "otid": otid} for otid in otids]
        async with live.stream(path, {"messages": items, "background": True}) as stream:
            runs.append(stream.run_id)
            await stream.rest()
    assert runs[0] != runs[1]
    for otid in (shared, own):
        assert await resumed_run(live, resume_path(conversation), {"otid": otid}) == runs[1]


@pytest.mark.promise("S5")
@pytest.mark.parametrize("name", ["run_id", "otid"])
async def test_an_empty_run_id_or_otid_is_refused_and_not_taken_for_an_absent_one(
    live: LiveServer, name: str
) -> None:
    agent, conversation = await new_threads(live)
    run = await live.held_run(agent, conversation, "[chunks=2]", after=1)
    status, error = await refusal(live, resume_path(conversation), {name: ""})
    assert (status, error["detail"]) == (
        422,
        f"body.{name}: It is empty. Leave it out or send null instead.",
    )
    assert await resumed_run(live, resume_path(conversation), {name: None}) == run


@pytest.mark.promise("S5")
async def test_an_otid_can_be_resumed_from_the_moment_its_run_is_committed(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, conversation = await new_threads(live)
    otid = new_uuid()
    create = live.context.records.runs.create
    resuming_early: list[asyncio.Task[Any]] = []

    async def create_and_be_late(*arguments: Any, **more: Any) -> RunCreated | RunKnown:
        outcome = await create(*arguments, **more)
        early = live.streamed(resume_path(conversation), {"otid": otid})
        resuming_early.append(asyncio.create_task(early))
        await asyncio.wait(resuming_early, timeout=0.3)
        return outcome

    monkeypatch.setattr(live.context.records.runs, "create", create_and_be_late)
    sent = await live.streamed(
        f"/v1/conversations/{conversation}/messages",
        message_body("hello", otid=otid, background=True),
    )
    assert await resuming_early[0] == sent


@pytest.mark.promise("S5", "P8")
async def test_resumes_that_race_with_a_send_find_its_run_or_no_run(
    live: LiveServer,
) -> None:
    agents = [await new_threads(live) for _ in range(4)]

    async def resume(conversation: str, otid: str) -> bytes:
        while True:
            async with live.stream(resume_path(conversation), {"otid": otid}) as stream:
                if stream.status_code == 200:
                    return joined(await stream.rest())
                error = await stream.error()
                assert (stream.status_code, error["code"]) == (404, "not_found"), error

    async def send(conversation: str, otid: str) -> bytes:
        body = message_body("[chunks=3]", otid=otid, background=True)
        return joined(await live.streamed(f"/v1/conversations/{conversation}/messages", body))

    async def race(conversation: str) -> None:
        otid = new_uuid()
        resumes = [resume(conversation, otid) for _ in range(4)]
        assert len(set(await asyncio.gather(*resumes, send(conversation, otid)))) == 1

    for _ in range(3):
        await asyncio.gather(*(race(conversation) for _, conversation in agents))
    for agent, _ in agents:
        assert len(await live.run_ids(agent_id=agent)) == 3


# Refused resumes and their errors.


@pytest.mark.promise("S10")
@pytest.mark.parametrize(
    "path_id",
    [
        "conv-1",
        f"conv-{SOME_UUID.upper()}",
        f"conv-{SOME_UUID}x",
        "conv-aaaaaaaa-aaaa-1aaa-8aaa-aaaaaaaaaaaa",
        f"run-{SOME_UUID}",
        "DEFAULT",
        "default2",
        SOME_UUID,
        "%00",
        "conv-%0a",
        "a" * 5000,
    ],
)
async def test_a_malformed_conversation_in_the_path_is_422(live: LiveServer, path_id: str) -> None:
    status, error = await refusal(live, resume_path(path_id), {})
    assert (status, error["code"]) == (422, "validation_error")
    assert [fault["loc"] for fault in error["errors"]] == [["path", "conversation_id"]]


@pytest.mark.promise("S10")
async def test_only_posts_and_gets_resume(live: LiveServer) -> None:
    for path in (resume_path("default"), f"/v1/runs/{new_run_id()}/stream"):
        assert (await live.client.head(path)).status_code == 405
        for method in ("PUT", "PATCH", "DELETE"):
            response = await live.client.request(method, path)
            assert response.status_code == 405
            assert response.json() == {"detail": "Method Not Allowed", "code": "method_not_allowed"}


@pytest.mark.promise("S10")
@pytest.mark.parametrize("run_id", ["run-1", "x", f"run-{SOME_UUID}0", f"RUN-{SOME_UUID}", " "])
async def test_a_malformed_run_id_is_400(live: LiveServer, run_id: str) -> None:
    text = f"Invalid run ID format: {run_id}. Expected format: 'run-<uuid4>'"
    expected = {"detail": f"INVALID_ARGUMENT: {text}", "code": "invalid_argument"}
    assert await refusal(live, resume_path("default"), {"run_id": run_id}) == (400, expected)
    assert await refusal(live, f"/v1/runs/{run_id}/stream", {}) == (400, expected)


@pytest.mark.promise("S10")
async def test_an_unknown_run_or_otid_is_404_and_an_unknown_thread_has_no_active_run(
    live: LiveServer,
) -> None:
    run, otid = new_run_id(), new_uuid()
    ways: list[tuple[str, Any]] = [
        (resume_path("default"), {"run_id": run}),
        (f"/v1/runs/{run}/stream", {}),
        (f"/v1/runs/{run}/stream", None),
    ]
    for path, body in ways:
        status, error = await refusal(live, path, body)
        assert (status, error["code"]) == (404, "not_found")
        assert run in error["detail"]
    assert await refusal(live, resume_path("default"), {"otid": otid}) == (
        404,
        {
            "detail": f"No run found for otid={otid}. The run may have expired or never existed.",
            "code": "not_found",
        },
    )
    threads: list[tuple[str, Any]] = [
        (new_conversation_id(), {}),
        ("default", {}),
        ("default", {"agent_id": new_agent_id()}),
        ("default", {"agent_id": "nobody"}),
        (new_agent_id(), {}),
    ]
    for thread, body in threads:
        assert await refusal(live, resume_path(thread), body) == (
            400,
            {"detail": NO_ACTIVE_RUN, "code": "no_active_run"},
        )


@pytest.mark.promise("S10")
async def test_a_deleted_conversation_has_no_active_run(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    await live.ended(await live.background_run(conversation, "hi"))
    response = await live.client.delete(f"/v1/conversations/{conversation}")
    assert response.status_code == 200
    assert (await refusal(live, resume_path(conversation), {}))[1]["detail"] == NO_ACTIVE_RUN


@pytest.mark.promise("P5")
async def test_a_resume_of_a_run_whose_log_never_opens_waits_for_it_once(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C16: the answer past the routing does not wait, so the routes behind it are the only wait."""
    agent, conversation = await new_threads(live)
    run = a_run(Thread(AgentId(agent), ConversationId(conversation)), DEFAULT_TENANT)
    await live.context.records.runs.create(DEFAULT_TENANT, run, None, ())
    monkeypatch.setattr(live.context.runs.ownership, "shared", True)
    # Nobody owns this run, and a sweep would end it within the wait.
    monkeypatch.setattr(live.context.runs, "recover", AsyncMock())
    sleep = live.clock.sleep
    waited: list[float] = []

    async def skip_looks(seconds: float) -> None:
        if seconds != OPEN_LOOK_SECONDS:
            await sleep(seconds)
            return
        waited.append(seconds)
        live.clock.skipped_seconds += seconds
        await asyncio.sleep(0)

    monkeypatch.setattr(live.clock, "sleep", skip_looks)
    for path, body in (
        (f"/v1/runs/{run.id}/stream", {}),
        (resume_path(conversation), {"run_id": run.id}),
    ):
        waited.clear()
        status, error = await refusal(live, path, body, passes=True)
        assert (status, error["code"]) == (503, "store_unavailable")
        assert 0 < sum(waited) < 1.5 * OPEN_WAIT_SECONDS


@pytest.mark.promise("S10")
async def test_a_foreground_run_is_refused_at_once_by_whatever_name(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    live.gates.hold(agent, 1)
    otid = new_uuid()
    path = f"/v1/conversations/{conversation}/messages"
    async with live.stream(path, message_body("[chunks=3]", otid=otid)) as sent:
        run = sent.run_id
        await live.gates.reached(agent, 1)
        ways: list[tuple[str, dict[str, Any]]] = [
            (resume_path(conversation), {"run_id": run}),
            (resume_path(conversation), {"otid": otid}),
            (resume_path(conversation), {"otid": otid, "starting_after": 1000}),
            (f"/v1/runs/{run}/stream", {}),
        ]
        expected = (400, {"detail": NOT_BACKGROUND, "code": "invalid_argument"})
        for way in (*ways, (resume_path(conversation), {})):
            assert await refusal(live, *way) == expected
        live.gates.open(agent)
        await sent.rest()
    for way in ways:
        assert await refusal(live, *way) == expected
    status, error = await refusal(live, resume_path(conversation), {})
    assert (status, error["detail"]) == (400, NO_ACTIVE_RUN)


@pytest.mark.promise("S10", "P5")
async def test_a_cursor_past_the_end_of_an_open_run_is_409_with_the_last_seq(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    run = await live.held_run(agent, conversation, "[chunks=5]", after=3)
    last = 4  # the ping and three deltas
    async with live.stream(resume_path(conversation), {"starting_after": last}) as at_the_end:
        assert at_the_end.status_code == 200
        assert at_the_end.headers["x-stream-starts-after"] == str(last)
        for cursor in (last + 1, last + 1000, 2**53 - 1):
            for path, method in (
                (resume_path(conversation), "POST"),
                (f"/v1/runs/{run}/stream", "POST"),
                (f"/v1/runs/{run}/stream", "GET"),
            ):
                body = {"starting_after": cursor}
                async with live.stream(path, body, method=method) as ahead:
                    error = await ahead.error()
                    assert ahead.status_code == 409
                    assert ahead.headers["x-should-retry"] == "false"
                assert error["code"] == "cursor_ahead"
                assert (error["run_id"], error["last_seq"]) == (run, last)
                assert str(last) in error["detail"]
        live.gates.open(agent)
        assert kinds(await at_the_end.rest())[-3:] == ["stop_reason", "usage_statistics", "[DONE]"]


@pytest.mark.promise("S10", "P4")
async def test_a_cursor_at_or_past_the_end_of_an_ended_run_gets_done_at_once(
    live: LiveServer,
) -> None:
    _, conversation = await new_threads(live)
    run = await live.background_run(conversation, "[chunks=3]")
    await live.ended(run)
    last = 6
    for cursor, method in product((last, last + 1, 2**53 - 1), ("POST", "GET")):
        body = {"starting_after": cursor}
        async with live.stream(f"/v1/runs/{run}/stream", body, method=method) as stream:
            assert stream.headers["x-stream-starts-after"] == str(last)
            assert stream.headers["x-run-status"] == "completed"
            assert joined(await stream.rest()) == DONE


@pytest.mark.promise("S10", "P5")
async def test_a_cursor_before_the_earliest_kept_event_is_410_with_its_seq(
    live: LiveServer,
) -> None:
    _, conversation = await new_threads(live)
    run = await live.background_run(conversation, "[chunks=10]")
    await live.ended(run)
    whole = await live.streamed(f"/v1/runs/{run}/stream", {})
    await live.context.runs.log.trim(run, Seq(5))
    for cursor in (-1, 0, 1, 3):
        status, error = await refusal(
            live, resume_path("default"), {"run_id": run, "starting_after": cursor}
        )
        assert (status, error["code"], error["earliest_seq"]) == (410, "expired", 5)
        assert error["detail"].startswith("EXPIRED: ")
    for cursor, method in product((4, 5, 9), ("POST", "GET")):
        body = {"starting_after": cursor}
        frames = await live.streamed(f"/v1/runs/{run}/stream", body, method=method)
        assert joined(frames) == joined(whole[cursor:])


@pytest.mark.promise("S10", "P14")
async def test_a_log_past_its_retention_is_410_with_the_time_and_the_messages_stay(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path, retention_seconds=3600) as live:
        _, conversation = await new_threads(live)
        otid = new_uuid()
        run = await live.background_run(conversation, "hello", otid=otid)
        ended = await live.ended(run)
        await live.context.runs.delete_logs([run])
        now = live.context.clock.now()
        await live.context.records.runs.mark_log_deleted([RunId(run)], now)
        for path, body in (
            (f"/v1/runs/{run}/stream", {}),
            (resume_path(conversation), {"run_id": run, "starting_after": 2}),
            (resume_path(conversation), {"otid": otid, "starting_after": 100_000}),
        ):
            status, error = await refusal(live, path, body)
            assert (status, error["code"]) == (410, "expired")
            assert error["detail"].startswith("EXPIRED: ")
            hour = ended["completed_at"][11:13]
            assert error["expired_at"][11:13] == f"{(int(hour) + 1) % 24:02}"
            assert error["expired_at"][13:19] == ended["completed_at"][13:19]
        assert await live.contents(conversation) == [
            ("user_message", "hello"),
            ("assistant_message", "hello"),
        ]


# Headers.


@pytest.mark.promise("S10", "P5")
async def test_headers_are_sent_before_the_first_event_and_name_the_run(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    body = {"include_pings": False}
    run = await live.held_run(agent, conversation, "[chunks=2]", after=0, include_pings=False)

    async def headers_of(stream: Stream) -> None:
        assert stream.status_code == 200
        expected = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache, no-transform",
            "x-accel-buffering": "no",
            "x-run-id": run,
            "x-run-status": "running",
            "x-stream-starts-after": "0",
        }
        assert {name: stream.headers.get(name) for name in expected} == expected
        assert "content-length" not in stream.headers

    async with (
        live.stream(resume_path(conversation), body) as one,
        live.stream(f"/v1/runs/{run}/stream", {"starting_after": -7, **body}) as two,
    ):
        await headers_of(one)
        await headers_of(two)
        live.gates.open(agent)
        frames = await one.rest()
        assert frames == await two.rest()
    assert [frame.seq for frame in frames[:-1]] == [1, 2, 3, 4]


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("message", "status"),
    [("hi", "completed"), ("[fail=1]", "failed"), ("[hang=1]", "cancelled")],
)
async def test_the_headers_of_an_ended_run_show_its_status(
    live: LiveServer, message: str, status: str
) -> None:
    agent, conversation = await new_threads(live)
    live.gates.open(agent)
    run = await live.background_run(conversation, message)
    if status == "cancelled":
        cancelled = await live.made(f"/v1/conversations/{conversation}/cancel", None)
        assert cancelled == {run: "cancelled"}
    await live.ended(run)
    async with live.stream(f"/v1/runs/{run}/stream", {"starting_after": 2}) as stream:
        assert stream.headers["x-run-status"] == status
        assert stream.headers["x-stream-starts-after"] == "2"


# Keys and tenants.


async def open_resumes(live: LiveServer) -> list[tuple[str, dict[str, Any]]]:
    """Live runs of the default tenant, by every way to resume one."""
    agent, conversation = await new_threads(live)
    otid = new_uuid()
    default = await live.agent()
    live.gates.hold(default["id"], 1)
    await live.background_run("default", "[chunks=2]", agent_id=default["id"])
    run = await live.held_run(agent, conversation, "[chunks=2]", after=1, otid=otid)
    return [
        (resume_path(conversation), {}),
        (resume_path("default"), {"agent_id": default["id"]}),
        (resume_path(default["id"]), {}),
        (resume_path(conversation), {"run_id": run}),
        (resume_path(conversation), {"otid": otid}),
        (f"/v1/runs/{run}/stream", {}),
    ]


@pytest.mark.promise("S11")
async def test_a_server_with_keys_wants_one_for_every_resume(tmp_path: Path) -> None:
    async with listening(tmp_path) as live:
        ways = await open_resumes(live)
        for path, body in ways:
            await resumed_run(live, path, body)  # nobody has made a key yet
        own = await live.as_tenant(DEFAULT_TENANT)
        key = own.headers["authorization"]
        wrong = [None, "Bearer", "Bearer wrong", f"{key}x", key[:-1], f"Basic {key[7:]}"]
        for authorization in wrong:
            headers = {} if authorization is None else {"authorization": authorization}
            for path, body in [*ways, (f"/v1/runs/{new_run_id()}/stream", {}), ("/v1/nowhere", {})]:
                async with live.stream(path, body, headers=headers) as stream:
                    assert stream.status_code == 401
                    assert await stream.error() == {
                        "detail": "Unauthorized",
                        "code": "unauthorized",
                    }
        async with own:
            for path, body in ways:
                await resumed_run(live, path, body, client=own)


@pytest.mark.promise("P11")
async def test_runs_of_another_tenant_are_answered_like_unknown_ones(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path) as live:
        ways = await open_resumes(live)
        stranger = await live.as_tenant(OTHER_TENANT)

        def unlike(path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, str]]:
            """The same resume of unknown ids, and the mapping between the ids."""
            names = {}
            for name in {path.split("/")[3], *body.values()} - {"default"}:
                prefix, _, _ = name.partition("-")
                known = prefix in {"run", "agent", "conv"}
                names[name] = f"{prefix}-{new_uuid()}" if known else new_uuid()
            other = {key: names[value] for key, value in body.items()}
            for name, replacement in names.items():
                path = path.replace(name, replacement)
            return path, other, names

        async with stranger:
            for path, body in ways:
                other_path, other_body, names = unlike(path, body)
                got = await refusal(live, path, body, client=stranger)
                expected = await refusal(live, other_path, other_body, client=stranger)
                error_text = httpx2.Response(got[0], json=got[1]).text
                for name, replacement in names.items():
                    error_text = error_text.replace(name, replacement)
                assert got[0] == expected[0]
                assert error_text == httpx2.Response(expected[0], json=expected[1]).text
                assert got[0] in {400, 404}


# Resuming starts nothing.


@pytest.mark.promise("P8")
async def test_no_resume_of_any_kind_makes_or_changes_anything(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    otid = new_uuid()
    ended = await live.background_run(conversation, "hi", otid=otid)
    await live.ended(ended)
    run = await live.held_run(agent, conversation, "[chunks=3]", after=2)
    before = live.rows(), await live.run(run), await live.run(ended)
    unknown = {"run_id": new_run_id()}
    for path, body in (
        (conversation, {}),
        (conversation, {"run_id": ended}),
        (conversation, {"otid": otid}),
        (conversation, {"otid": new_uuid()}),
        (conversation, unknown),
        (conversation, {"starting_after": 99}),
        (conversation, {"starting_after": "x"}),
        (conversation, {"starting_after": "1_0"}),
        ("default", {"agent_id": agent}),
        ("default", {"agent_id": new_agent_id()}),
        ("default", {}),
        (agent, {}),
        (new_agent_id(), {}),
        (new_conversation_id(), {}),
        (new_conversation_id(), {"otid": new_uuid()}),
        ("nonsense", {}),
    ):
        for method in ("POST", "GET"):
            async with live.stream(resume_path(path), body, method=method):
                pass
    for run_id in (run, ended, new_run_id(), "nonsense"):
        for method in ("POST", "GET"):
            async with live.stream(f"/v1/runs/{run_id}/stream", {}, method=method):
                pass
    assert (live.rows(), await live.run(run), await live.run(ended)) == before
    await live.ended(run)
