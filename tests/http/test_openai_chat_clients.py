"""Clients of Chat Completions that send a request twice, or leave before their answer is there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from reattach.domain.errors import ConversationBusyError
from reattach.domain.ids import DEFAULT_TENANT, RunId
from reattach.http.dialects.openai.leaving import waiting_clients
from tests.support.chat_completions import (
    PATH,
    body_of,
    chunks_of,
    completed,
    message_of,
    posted,
    refused,
    text_of,
    user,
)
from tests.support.live_server import WAIT_SECONDS, LiveServer, listening


@pytest.fixture
async def agent(live: LiveServer) -> str:
    """An agent whose gate is open."""
    made: str = (await live.agent())["id"]
    live.gates.open(made)
    return made


@pytest.mark.promise("P9")
@pytest.mark.parametrize("streams", [False, True])
async def test_a_retry_of_the_sdk_gets_the_run_of_its_first_attempt(
    live: LiveServer, agent: str, streams: bool
) -> None:
    first = await posted(live, agent, user("hi"), stream=streams)
    headers = {"x-stainless-retry-count": "1"}
    again = await posted(live, agent, user("hi"), stream=streams, headers=headers)
    assert again.content == first.content
    assert await live.run_ids(agent_id=agent) == [first.headers["x-run-id"]]


@pytest.mark.promise("P9")
async def test_an_idempotency_key_names_one_run(live: LiveServer, agent: str) -> None:
    headers = {"idempotency-key": f"request of {agent}"}
    first, again = [await completed(live, agent, user("hi"), headers=headers) for _ in range(2)]
    assert first == again
    error = await refused(live, agent, user("other"), status=409, headers=headers)
    assert error["code"] == "otid_conflict"


@pytest.mark.promise("P6")
async def test_a_run_goes_on_when_its_reader_leaves(live: LiveServer) -> None:
    agent = (await live.agent())["id"]
    live.gates.hold(agent, 2)
    async with live.stream(PATH, body_of(agent, user("[chunks=4]"), stream=True)) as stream:
        run_id = stream.run_id
        await live.gates.reached(agent, 2)
    run = await live.ended(run_id)
    assert run["status"] == "completed"
    assert ("assistant_message", "t0 t1 t2 t3 ") in await live.contents(run["conversation_id"])


async def cancelled(live: LiveServer, run_id: str) -> None:
    """Return when the run has been cancelled."""
    async with asyncio.timeout(WAIT_SECONDS):
        run = await live.context.runs.by_id(DEFAULT_TENANT, run_id)
        await live.context.runs.wait_until_settled(run)
    assert (await live.run(run_id))["status"] == "cancelled"


@pytest.fixture(scope="module")
async def ending_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    """A server whose chat completions end with their readers."""
    directory = tmp_path_factory.mktemp("ending")
    async with listening(directory, chat_disconnect="cancel") as live:
        yield live


@pytest.mark.parametrize("key", [None, "order-1"])
async def test_a_run_can_end_with_its_reader_and_its_retry_starts_another(
    ending_server: LiveServer, key: str | None
) -> None:
    live = ending_server
    agent = (await live.agent())["id"]
    live.gates.hold(agent, 2)
    body = body_of(agent, user("[chunks=4]"), stream=True)
    headers = {"x-stainless-retry-count": "0"} | ({} if key is None else {"idempotency-key": key})
    left = []
    for count in range(2):
        headers["x-stainless-retry-count"] = str(count)
        async with live.stream(PATH, body, headers=headers) as stream:
            left.append(stream.run_id)
            await live.gates.reached(agent, 2)
        await cancelled(live, left[-1])
        live.gates.hold(agent, 2)
    live.gates.open(agent)
    headers["x-stainless-retry-count"] = "2"
    answers = [
        await posted(live, agent, user("[chunks=4]"), stream=True, headers=headers)
        for _ in range(2)
    ]
    assert text_of(chunks_of(answers[0].text)) == "t0 t1 t2 t3 "
    assert len({*left, answers[0].headers["x-run-id"]}) == 3
    assert answers[1].content == answers[0].content


async def test_a_message_right_after_a_stop_waits_for_the_cancel_and_is_answered(
    ending_server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = ending_server
    runs, is_busy = live.context.runs, asyncio.Event()
    cancel, send = runs.cancel, runs.send

    async def cancel_late(*arguments: Any, **options: Any) -> Any:
        await is_busy.wait()
        return await cancel(*arguments, **options)

    async def send_first(*arguments: Any, **options: Any) -> Any:
        try:
            return await send(*arguments, **options)
        except ConversationBusyError:
            is_busy.set()
            raise

    monkeypatch.setattr(runs, "cancel", cancel_late)
    monkeypatch.setattr(runs, "send", send_first)
    agent = (await live.agent())["id"]
    headers = {"x-reattach-chat-key": "stopped"}
    live.gates.hold(agent, 2)
    body = body_of(agent, user("[chunks=4]"), stream=True)
    async with live.stream(PATH, body, headers=headers) as stream:
        await live.gates.reached(agent, 2)
        leaving = stream.run_id
    async with asyncio.timeout(WAIT_SECONDS):
        while waiting_clients(leaving):
            await asyncio.sleep(0.01)
    answer = await completed(live, agent, user("next"), headers=headers)
    assert message_of(answer)["content"] == "next"
    assert is_busy.is_set()


async def test_a_message_during_an_answer_is_refused_with_ways_out(live: LiveServer) -> None:
    agent = (await live.agent())["id"]
    headers = {"x-reattach-chat-key": "busy"}
    live.gates.hold(agent, 2)
    body = body_of(agent, user("[chunks=4]"), stream=True)
    async with live.stream(PATH, body, headers=headers) as stream:
        run_id = stream.run_id
    error = await refused(live, agent, user("next"), status=409, headers=headers)
    assert error["code"] == "conversation_busy"
    assert f"POST /v1/runs/{run_id}/cancel" in error["message"]
    assert "REATTACH_CHAT_DISCONNECT=cancel" in error["message"]
    await live.ended(run_id)


async def test_a_run_can_end_with_the_request_that_waits_for_its_whole_answer(
    ending_server: LiveServer,
) -> None:
    live = ending_server
    agent = (await live.agent())["id"]
    live.gates.hold(agent, 2)
    body = body_of(agent, user("[chunks=4]"))
    waiting = asyncio.create_task(live.client.post(PATH, json=body))
    await live.gates.reached(agent, 2)
    (run_id,) = await live.run_ids(agent_id=agent)
    waiting.cancel()
    await cancelled(live, run_id)


@pytest.mark.parametrize("streams", [True, False])
async def test_a_run_can_end_with_its_client_under_any_server(
    ending_server: LiveServer, streams: bool
) -> None:
    live = ending_server
    agent = (await live.agent())["id"]
    live.gates.hold(agent, 2)
    body = json.dumps(body_of(agent, user("[chunks=4]"), stream=streams)).encode()
    received = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if received:
            return received.pop()
        await live.gates.reached(agent, 2)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    headers = [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 80),
    }
    async with asyncio.timeout(WAIT_SECONDS):
        await live.app(scope, receive, send)
    (run_id,) = await live.run_ids(agent_id=agent)
    await cancelled(live, run_id)


async def test_a_run_ends_when_the_last_of_its_clients_has_left(
    ending_server: LiveServer,
) -> None:
    live = ending_server
    agent = (await live.agent())["id"]
    live.gates.hold(agent, 2)
    body = body_of(agent, user("[chunks=4]"), stream=True)
    retry = {"x-stainless-retry-count": "1"}
    async with live.stream(PATH, body, headers=retry) as other:
        async with live.stream(PATH, body, headers=retry) as one:
            assert one.run_id == other.run_id
            await live.gates.reached(agent, 2)
        async with asyncio.timeout(WAIT_SECONDS):
            while waiting_clients(other.run_id) > 1:
                await asyncio.sleep(0.01)
        assert (await live.run(other.run_id))["status"] == "running"
        run_id = other.run_id
    await cancelled(live, run_id)


# Conversations that no client can name.


@pytest.mark.parametrize("nameless_chats", ["keep", "delete"])
async def test_a_chat_without_a_name_goes_with_its_events_if_the_server_is_set_so(
    tmp_path: Path, nameless_chats: str
) -> None:
    async with listening(tmp_path, retention_seconds=3600, nameless_chats=nameless_chats) as live:
        agent = (await live.agent())["id"]
        live.gates.open(agent)
        keys = {"idempotency-key": "once"}, {"x-reattach-chat-key": "trip"}
        nameless, named = [
            await posted(live, agent, user("hello"), headers=headers) for headers in keys
        ]
        run_ids = [RunId(one.headers["x-run-id"]) for one in (nameless, named)]
        await live.context.runs.delete_logs(run_ids)
        await live.context.records.runs.mark_log_deleted(run_ids, live.clock.now())
        await live.context.records.tidy()
        shown = [
            await live.client.get(f"/v1/conversations/{one.headers['x-conversation-id']}/messages")
            for one in (nameless, named)
        ]
        again = await live.client.post(PATH, json=body_of(agent, user("hello")), headers=keys[0])
        is_kept = nameless_chats == "keep"
        assert [one.status_code for one in shown] == [200 if is_kept else 404, 200]
        assert again.status_code == (200 if is_kept else 410)
        if is_kept:
            assert message_of(again.json()) == message_of(nameless.json())
