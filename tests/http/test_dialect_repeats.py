"""Requests of clients of other ecosystems that come twice, and their names in the records."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from reattach.domain.ids import new_uuid
from reattach.records.database import schema
from tests.support.live_server import LiveServer, listening

Json = dict[str, Any]

RESPONSES = "/openai/v1/responses"
CHAT = "/openai/v1/chat/completions"
FAMILIES = ("responses", "chat", "ai-sdk", "ag-ui")


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path_factory.mktemp("live")) as live:
        yield live


@pytest.fixture
async def agent(live: LiveServer) -> str:
    made: str = (await live.agent())["id"]
    live.gates.open(made)
    return made


def request_of(family: str, agent: str) -> tuple[str, Json]:
    """Return the path and the body of a request that begins a conversation."""
    if family == "responses":
        return RESPONSES, {"model": agent, "input": "Hello"}
    if family == "chat":
        return CHAT, {"model": agent, "messages": [{"role": "user", "content": "Hello"}]}
    if family == "ai-sdk":
        parts = [{"type": "text", "text": "Hello"}]
        message = {"id": new_uuid(), "role": "user", "parts": parts}
        return f"/ai-sdk/{agent}/chat", {"id": new_uuid(), "messages": [message]}
    body = {"threadId": new_uuid(), "runId": new_uuid(), "protocolVersion": "1.0", "state": {}}
    messages = [{"id": new_uuid(), "role": "user", "content": "Hello"}]
    more = {"messages": messages, "tools": [], "context": [], "forwardedProps": {}}
    return f"/ag-ui/{agent}", {**body, **more}


async def sent(live: LiveServer, path: str, body: Json, **headers: str) -> httpx2.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return await live.client.post(path, json=body, headers=names)


async def ended(live: LiveServer, response: httpx2.Response) -> str:
    """Return the run of an answer that was read to its end, once it is settled."""
    assert response.status_code == 200, response.text
    if run_id := response.headers.get("x-run-id"):
        run_id = run_id.partition(",")[0]
    else:
        run_id = run_of(response.json()["id"])
    await live.ended(run_id)
    return run_id


def run_of(response_id: str) -> str:
    digits = response_id.removeprefix("resp_")
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return "run-" + "-".join(parts)


# Names.


@pytest.mark.promise("P9", "P11")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", ["", "order-1"])
async def test_no_client_can_send_under_a_name_of_a_request_of_a_dialect(
    live: LiveServer, agent: str, family: str, key: str
) -> None:
    run_id = await ended(live, await sent(live, *request_of(family, agent), idempotency_key=key))
    otids = schema.run_otids
    rows = await live.context.records.runs._database.rows(
        select(otids.c.otid).where(otids.c.run_id == run_id)
    )
    assert rows
    conversation = (await live.conversation(agent))["id"]
    path = f"/v1/conversations/{conversation}/messages"
    for otid in (row["otid"] for row in rows):
        for message in (
            {"role": "user", "content": "Mine", "otid": otid},
            {"type": "approval", "approve": True, "otid": otid},
            {"type": "tool_return", "tool_returns": [], "otid": otid},
        ):
            refused = await live.client.post(path, json={"messages": [message]})
            assert refused.status_code == 422, (otid, refused.text)
            assert "Choose another one" in refused.text


# Keys.


DIFFERENT: dict[str, Json] = {
    "history": {
        "messages": [
            {"role": "user", "content": "BBB"},
            {"role": "assistant", "content": "bbb"},
            {"role": "user", "content": "Go on"},
        ]
    },
    "instructions": {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "AAA"},
            {"role": "assistant", "content": "aaa"},
            {"role": "user", "content": "Go on"},
        ],
        "instructions": "Be short.",
    },
    "tools": {
        "tools": [
            {"type": "function", "name": "look", "function": {"name": "look", "parameters": {}}}
        ]
    },
}
SAME = [
    {"role": "user", "content": "AAA"},
    {"role": "assistant", "content": "aaa"},
    {"role": "user", "content": "Go on"},
]


def with_history(path: str, agent: str, more: Json) -> Json:
    body = {"model": agent, "messages": SAME, **more}
    if path == RESPONSES:
        body["input"] = [one for one in body.pop("messages") if one["role"] != "system"]
    else:
        body.pop("instructions", None)
    return body


@pytest.mark.promise("P9")
@pytest.mark.parametrize("path", [RESPONSES, CHAT])
@pytest.mark.parametrize("difference", DIFFERENT)
async def test_one_idempotency_key_with_two_contents_is_a_conflict(
    live: LiveServer, agent: str, path: str, difference: str
) -> None:
    key = new_uuid()
    first = await sent(live, path, with_history(path, agent, {}), idempotency_key=key)
    run_id = await ended(live, first)
    other = with_history(path, agent, DIFFERENT[difference])
    refused = await sent(live, path, other, idempotency_key=key)
    assert refused.status_code == 409, refused.text
    assert (
        f"The Idempotency-Key of this request was already used by another request (run_id={run_id})"
        in (refused.text)
    )
    # The form of the answer is no content.
    streamed = with_history(path, agent, {"stream": True})
    again = await sent(live, path, streamed, idempotency_key=key)
    assert again.headers["x-run-id"] == run_id


async def test_a_message_id_with_another_text_is_a_conflict_in_words_of_that_client(
    live: LiveServer, agent: str
) -> None:
    path, body = request_of("ai-sdk", agent)
    run_id = await ended(live, await sent(live, path, body))
    body["messages"][0]["parts"][0]["text"] = "Something else"
    refused = await sent(live, path, body)
    assert refused.status_code == 409, refused.text
    assert (
        f"The message id of this request was already used by another request (run_id={run_id})"
        in (refused.text)
    )


# Retries.


@pytest.mark.promise("P8", "P9")
@pytest.mark.parametrize("event_id", ["5", ""])
@pytest.mark.parametrize("family", FAMILIES)
async def test_a_request_that_continues_a_stream_starts_no_run(
    live: LiveServer, agent: str, family: str, event_id: str
) -> None:
    path, body = request_of(family, agent)
    refused = await sent(live, path, body, last_event_id=event_id)
    assert refused.status_code == 400, refused.text
    assert "Last-Event-ID" in refused.text
    assert await live.run_ids(agent_id=agent) == []
    run_id = await ended(live, await sent(live, path, body))
    live.clock.skipped_seconds += 3600
    again = await sent(live, path, body, last_event_id=event_id)
    assert await ended(live, again) == run_id
    assert await live.run_ids(agent_id=agent) == [run_id]


@pytest.mark.parametrize("count", ["9" * 5000, "0" * 5000, "²", "-1", "1.5", ""])
@pytest.mark.parametrize("path", [RESPONSES, CHAT])
async def test_any_count_of_attempts_is_understood(
    live: LiveServer, agent: str, path: str, count: str
) -> None:
    body = request_of("responses" if path == RESPONSES else "chat", agent)[1]
    first = await ended(live, await sent(live, path, body))
    again = await live.client.post(
        path, json=body, headers={b"x-stainless-retry-count": count.encode("latin-1")}
    )
    assert (await ended(live, again) == first) is (count[:1] == "9")


@pytest.mark.parametrize("path", [RESPONSES, CHAT])
async def test_a_retry_of_a_refused_request_is_not_taken_for_an_earlier_equal_one(
    live: LiveServer, agent: str, path: str
) -> None:
    body = request_of("responses" if path == RESPONSES else "chat", agent)[1]
    key = {"x_reattach_chat_key": new_uuid()} if path == CHAT else {}
    first = await ended(live, await sent(live, path, body, **key))
    live.context.runs.open_runs.draining = True
    try:
        refused = await sent(live, path, body, **key)
    finally:
        live.context.runs.open_runs.draining = False
    assert refused.status_code == 503
    assert "otid" not in refused.text.lower()
    retry = await sent(live, path, body, x_stainless_retry_count="1", **key)
    second = await ended(live, retry)
    assert second != first
    again = await sent(live, path, body, x_stainless_retry_count="2", **key)
    assert await ended(live, again) == second
