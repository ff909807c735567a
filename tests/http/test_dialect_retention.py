"""Runs whose events were deleted, read in other dialects by a process that has translated them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from reattach.domain.ids import DEFAULT_TENANT, RunId, new_uuid
from reattach.records.base import Target
from reattach.runs.translation.facts import facts_of
from reattach.wire.dialects.openai_items import response_id
from reattach.wire.dialects.openai_responses import Responses
from tests.support.live_server import LiveServer, listening

Json = dict[str, Any]


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path_factory.mktemp("live")) as live:
        yield live


@pytest.fixture
async def agent(live: LiveServer) -> str:
    made: str = (await live.agent())["id"]
    live.gates.open(made)
    return made


async def expire(live: LiveServer, run_id: str) -> None:
    """Delete the events of the run as the retention does."""
    await live.context.runs.delete_logs([run_id])
    await live.context.records.runs.mark_log_deleted([RunId(run_id)], live.clock.now())


def requests_of(family: str, agent: str) -> tuple[str, Json, dict[str, str]]:
    """Return the path, body and headers of a request that streams and may be sent twice."""
    headers = {"idempotency-key": new_uuid()}
    if family == "responses":
        body: Json = {"model": agent, "input": "Hello", "stream": True}
        return "/openai/v1/responses", body, headers
    if family == "chat":
        messages = [{"role": "user", "content": "Hello"}]
        body = {"model": agent, "messages": messages, "stream": True}
        return "/openai/v1/chat/completions", body, headers
    if family == "ai-sdk":
        parts = [{"type": "text", "text": "Hello"}]
        message = {"id": new_uuid(), "role": "user", "parts": parts}
        return f"/ai-sdk/{agent}/chat", {"id": new_uuid(), "messages": [message]}, {}
    body = {"threadId": new_uuid(), "runId": new_uuid(), "protocolVersion": "1.0", "state": {}}
    messages = [{"id": new_uuid(), "role": "user", "content": "Hello"}]
    more = {"messages": messages, "tools": [], "context": [], "forwardedProps": {}}
    return f"/ag-ui/{agent}", {**body, **more}, {}


@pytest.mark.promise("P14")
@pytest.mark.parametrize("family", ["responses", "chat", "ai-sdk", "ag-ui"])
async def test_deleted_events_are_gone_in_every_dialect(
    live: LiveServer, agent: str, family: str
) -> None:
    path, body, headers = requests_of(family, agent)
    first = await live.client.post(path, json=body, headers=headers)
    run_id = first.headers["x-run-id"].partition(",")[0]
    await live.ended(run_id)
    assert (await live.client.post(path, json=body, headers=headers)).status_code == 200
    others = {
        "responses": [f"/openai/v1/responses/{response_id(run_id)}?stream=true"],
        "ai-sdk": [
            f"/ai-sdk/{agent}/chat/{run_id}/stream",
            f"{path}/{body.get('id')}/stream?startIndex=0",
            f"{path}/{body.get('id')}/stream?startIndex=-1",
        ],
    }.get(family, [])
    await expire(live, run_id)
    repeated = await live.client.post(path, json=body, headers=headers)
    assert repeated.status_code == 410, repeated.text
    for other in others:
        gone = await live.client.get(other)
        assert gone.status_code == 410, (other, gone.text)


async def test_a_reader_of_deleted_events_is_not_joined(live: LiveServer, agent: str) -> None:
    path, body, headers = requests_of("responses", agent)
    first = await live.client.post(path, json=body, headers=headers)
    run_id = first.headers["x-run-id"]
    await live.ended(run_id)
    run = await live.context.runs.by_id(DEFAULT_TENANT, run_id)
    following = await live.context.translations.follow(
        Target.of(run), Responses(), facts_of(run), 0
    )
    async with following:
        await expire(live, run_id)
        gone = await live.client.get(f"{path}/{response_id(run_id)}", params={"stream": True})
        assert gone.status_code == 410, gone.text


async def test_an_expired_response_can_be_cancelled_as_often_as_any_other(
    live: LiveServer, agent: str
) -> None:
    path, body, headers = requests_of("responses", agent)
    first = await live.client.post(path, json=body, headers=headers)
    run_id = first.headers["x-run-id"]
    await live.ended(run_id)
    whole = (await live.client.get(f"{path}/{response_id(run_id)}")).json()
    await expire(live, run_id)
    cancelled = await live.client.post(f"{path}/{response_id(run_id)}/cancel")
    assert cancelled.status_code == 200, cancelled.text
    names = ("id", "status", "usage", "conversation", "error")
    assert {name: cancelled.json()[name] for name in names} == {name: whole[name] for name in names}
