"""OpenAI's Responses API: its routes, in the words of its clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.domain.ids import RunId, TenantId
from reattach.wire.dialects.openai_items import response_id
from tests.support import tool_functions
from tests.support.live_server import WAIT_SECONDS, LiveServer, listening, text

PATH = "/openai/v1/responses"
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object"}}
LARGE = {**LOOK, "parameters": {"description": "x" * 300_000}}
PIXEL = "data:image/png;base64,iVBORw0KGgo="

Json = dict[str, Any]


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    tools = tuple(f"tests.support.tool_functions:{name}" for name in ("add", "deploy", "explode"))
    async with listening(tmp_path_factory.mktemp("live"), tools=tools) as live:
        yield live


@pytest.fixture
async def agent(live: LiveServer) -> str:
    """An agent with tools, whose gate is open."""
    made: str = (await live.agent(tools=["add", "deploy", "explode"]))["id"]
    live.gates.open(made)
    return made


async def created(live: LiveServer, agent: str, sent: Any, **more: Any) -> Json:
    headers = more.pop("headers", None)
    body = {"model": agent, "input": sent, **more}
    response = await live.client.post(PATH, json=body, headers=headers)
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


async def refused(live: LiveServer, body: Json, status: int, **headers: str) -> Json:
    response = await live.client.post(PATH, json=body, headers=headers)
    assert response.status_code == status, response.text
    error: Json = response.json()["error"]
    return error


async def events(live: LiveServer, path: str, body: Any = None, **query: Any) -> list[Json]:
    """Read a stream to its proper end."""
    method = "GET" if body is None else "POST"
    response = await live.client.request(method, path, json=body, params=query)
    assert response.status_code == 200, response.text
    return parsed(response.text)


def parsed(stream: str) -> list[Json]:
    found: list[Json] = []
    for frame in stream.split("\n\n")[:-1]:
        if frame.startswith(":"):
            continue
        name, _, data = frame.partition("\n")
        event: Json = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def text_of(response: Json) -> str:
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


def types(items: list[Json]) -> list[str]:
    return [item["type"] for item in items]


# Creating and reading.


async def test_a_response_is_streamed_and_read_again_from_every_event(
    live: LiveServer, agent: str
) -> None:
    body = {"model": agent, "input": "[think=2][tool=add] Hi there", "stream": True}
    whole = await events(live, PATH, body)
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
    assert whole[0]["type"] == "response.created"
    assert whole[-1]["type"] == "response.completed"
    response = whole[-1]["response"]
    assert types(response["output"]) == ["mcp_call", "reasoning", "message"]
    call = response["output"][0]
    assert (call["name"], call["server_label"]) == ("add", "reattach")
    assert (json.loads(call["arguments"]), call["output"]) == ({"n": 1}, "2")
    path = f"{PATH}/{response['id']}"
    assert await live.got(path) == response
    assert await events(live, path, stream=True) == whole
    for number in range(len(whole)):
        rest = await events(live, path, stream=True, starting_after=number)
        assert rest == whole[number + 1 :]
    assert await events(live, path, stream=True, starting_after=10_000) == []


async def test_without_a_stream_the_whole_response_is_waited_for(
    live: LiveServer, agent: str
) -> None:
    response = await created(live, agent, "[chunks=3] Hello", metadata={"a": "b"}, temperature=0.5)
    assert response["status"] == "completed"
    assert response["metadata"] == {"a": "b"}
    assert (response["temperature"], response["model"]) == (0.5, agent)
    assert response["usage"]["total_tokens"] > 0
    assert text_of(response)


async def test_a_background_response_is_queued_at_once_and_polled_to_its_end(
    live: LiveServer,
) -> None:
    agent = (await live.agent())["id"]
    live.gates.hold(agent, 2)
    queued = await created(live, agent, "[chunks=4] Hello", background=True)
    assert (queued["status"], queued["output"], queued["background"]) == ("queued", [], True)
    path = f"{PATH}/{queued['id']}"
    await live.gates.reached(agent, 2)
    await live.logged(run_id(queued))
    begun = await live.got(path)
    assert begun["status"] == "in_progress"
    assert types(begun["output"]) == ["message"]
    assert begun["output"][0]["status"] == "in_progress"
    live.gates.open(agent)
    await live.ended(run_id(queued))
    ended = await live.got(path)
    assert ended["status"] == "completed"
    assert text_of(ended).startswith(text_of(begun))


async def test_a_reader_of_an_open_response_waits_for_its_next_event(live: LiveServer) -> None:
    agent = (await live.agent())["id"]
    live.gates.hold(agent, 0)
    queued = await created(live, agent, "[chunks=2] Hello", background=True)
    path = f"{PATH}/{queued['id']}"
    ahead = await live.client.get(path, params={"stream": True, "starting_after": 9})
    assert ahead.status_code == 409
    error = ahead.json()["error"]
    assert error["code"] == "cursor_ahead"
    assert "starting_after=9 is past the last event (1)" in error["message"]
    assert "Resume with starting_after=1 or lower" in error["message"]
    query = {"stream": "true", "starting_after": "1"}
    async with asyncio.timeout(WAIT_SECONDS), live.client.stream("GET", path, params=query) as read:
        assert read.status_code == 200
        live.gates.open(agent)
        rest = parsed((await read.aread()).decode())
    assert rest[0]["sequence_number"] == 2
    assert rest[-1]["type"] == "response.completed"


def run_id(response: Json) -> str:
    digits = response["id"].removeprefix("resp_")
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return f"run-{'-'.join(parts)}"


async def test_a_failed_answer_is_a_failed_response_with_its_reason(
    live: LiveServer, agent: str
) -> None:
    response = await created(live, agent, "[chunks=3][fail=1] Hello")
    assert response["status"] == "failed"
    assert response["error"]["code"] == "server_error"
    assert response["error"]["message"]
    assert response["metadata"]["error_type"] == "llm_error"
    assert response["output"][0]["status"] == "incomplete"


async def test_a_cancelled_response_says_so_however_often_it_is_cancelled(
    live: LiveServer,
) -> None:
    agent = (await live.agent())["id"]
    live.gates.hold(agent, 1)
    queued = await created(live, agent, "[chunks=5] Hello", background=True)
    path = f"{PATH}/{queued['id']}"
    await live.gates.reached(agent, 1)
    answers = [(await live.client.post(f"{path}/cancel")).json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0]["status"] == "cancelled"
    whole = await events(live, path, stream=True)
    assert whole[-1]["type"] == "response.incomplete"
    assert whole[-1]["response"] == answers[0]


async def test_a_deleted_response_is_gone_and_an_active_one_is_not_deleted(
    live: LiveServer,
) -> None:
    agent = (await live.agent())["id"]
    live.gates.hold(agent, 0)
    queued = await created(live, agent, "Hello", background=True)
    path = f"{PATH}/{queued['id']}"
    assert (await live.client.delete(path)).status_code == 409
    live.gates.open(agent)
    await live.ended(run_id(queued))
    deleted = await live.client.delete(path)
    assert deleted.json() == {"id": queued["id"], "object": "response", "deleted": True}
    for request in (live.client.get(path), live.client.delete(path)):
        gone = await request
        assert gone.status_code == 404
        assert gone.json()["error"]["type"] == "invalid_request_error"


async def test_runs_of_letta_clients_are_responses_and_the_other_way_round(
    live: LiveServer, agent: str
) -> None:
    conversation = (await live.conversation(agent))["id"]
    theirs = await live.background_run(conversation, "[tool=add] Hi")
    await live.ended(theirs)
    path = f"{PATH}/{response_id(theirs)}"
    response = await live.got(path)
    assert types(response["output"]) == ["mcp_call", "message"]
    assert (response["conversation"], response["model"]) == ({"id": conversation}, agent)
    assert (await events(live, path, stream=True))[-1]["response"] == response
    ours = await created(live, agent, "And?", conversation=conversation)
    frames = await live.streamed(f"/v1/runs/{run_id(ours)}/stream", {"starting_after": 0})
    assert text(frames) == text_of(ours)


# Conversations.


async def test_a_response_continues_the_conversation_of_the_previous_one(
    live: LiveServer, agent: str
) -> None:
    first = await created(live, agent, "One")
    second = await created(live, agent, "[history] Two", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    assert second["conversation"] == first["conversation"]
    contents = await live.contents(first["conversation"]["id"])
    assert [text for kind, text in contents if kind == "user_message"] == ["One", "[history] Two"]


async def test_an_answer_to_an_older_response_forks_the_conversation_there(
    live: LiveServer, agent: str
) -> None:
    first = await created(live, agent, "One")
    await created(live, agent, "Two", previous_response_id=first["id"])
    other = await created(live, agent, "Three", previous_response_id=first["id"])
    assert other["conversation"] != first["conversation"]
    contents = await live.contents(other["conversation"]["id"])
    assert [text for kind, text in contents if kind == "user_message"] == ["One", "Three"]
    assert len(await live.contents(first["conversation"]["id"])) == 4


async def test_two_answers_at_once_to_one_response_are_both_made(
    live: LiveServer, agent: str
) -> None:
    first = await created(live, agent, "One")
    both = await asyncio.gather(
        *(created(live, agent, text, previous_response_id=first["id"]) for text in ("Two", "Three"))
    )
    conversations = {one["conversation"]["id"] for one in (first, *both)}
    assert len(conversations) == 2
    for response, own in zip(both, ("Two", "Three"), strict=True):
        contents = await live.contents(response["conversation"]["id"])
        assert [sent for kind, sent in contents if kind == "user_message"] == ["One", own]


async def test_a_response_that_is_not_whole_yet_cannot_be_continued(live: LiveServer) -> None:
    agent = (await live.agent())["id"]
    live.gates.hold(agent, 0)
    first = await created(live, agent, "One", background=True)
    body = {"model": agent, "input": "Two", "previous_response_id": first["id"]}
    error = await refused(live, body, 409)
    assert error["code"] == "conversation_busy"
    await live.ended(run_id(first))


async def test_a_retry_of_an_answer_to_an_older_response_makes_one_fork(
    live: LiveServer, agent: str
) -> None:
    first = await created(live, agent, "One")
    await created(live, agent, "Two", previous_response_id=first["id"])
    sent = {"previous_response_id": first["id"]}
    headers = {"x-stainless-retry-count": "0"}
    once = await created(live, agent, "Three", headers=headers, **sent)
    again = await created(live, agent, "Three", headers={"x-stainless-retry-count": "1"}, **sent)
    assert again == once


async def test_a_conversation_is_named_by_its_id(live: LiveServer, agent: str) -> None:
    made = await live.made("/openai/v1/conversations", {"metadata": {"agent_id": agent}})
    for name in (made["id"], {"id": made["id"]}):
        response = await created(live, agent, "Hi", conversation=name)
        assert response["conversation"] == {"id": made["id"]}
    path = f"/openai/v1/conversations/{made['id']}"
    assert await live.got(path) == made
    items = await live.got(f"{path}/items", order="asc")
    assert types(items["data"]) == ["message"] * 4
    assert [item["role"] for item in items["data"]] == ["user", "assistant"] * 2
    assert items["data"][3]["id"] == response["output"][0]["id"]
    assert await live.got(f"{path}/items/{items['data'][1]['id']}") == items["data"][1]
    deleted = await live.client.delete(path)
    assert deleted.json()["object"] == "conversation.deleted"
    assert (await live.client.get(path)).status_code == 404


async def test_the_items_of_a_conversation_are_paged_in_both_orders(
    live: LiveServer, agent: str
) -> None:
    response = await created(live, agent, "[tool=add] Hi")
    path = f"/openai/v1/conversations/{response['conversation']['id']}/items"
    whole = (await live.got(path, order="asc", limit=100))["data"]
    assert types(whole) == ["message", "mcp_call", "message"]
    assert whole[1:] == response["output"]
    assert (await live.got(path))["data"] == whole[::-1]
    for order, expected in (("asc", whole), ("desc", whole[::-1])):
        found: list[Json] = []
        after: Json = {}
        while True:
            page = await live.got(path, order=order, limit=1, **after)
            found += page["data"]
            after = {"after": page["last_id"]}
            if not page["has_more"]:
                break
        assert found == expected
    assert (await live.client.get(path, params={"after": "msg_x"})).status_code == 404


async def test_items_are_appended_to_a_conversation_unless_it_is_active(live: LiveServer) -> None:
    agent = (await live.agent())["id"]
    made = await live.made("/openai/v1/conversations", {"metadata": {"agent_id": agent}})
    path = f"/openai/v1/conversations/{made['id']}/items"
    items = [
        {"role": "user", "content": "Hi"},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "Marstal"},
        {"role": "assistant", "content": "There it is."},
    ]
    added = await live.made(path, {"items": items})
    assert added["first_id"] == added["data"][0]["id"]
    listed = await live.got(path, order="asc")
    assert types(listed["data"]) == [
        "message",
        "function_call",
        "function_call_output",
        "message",
    ]
    assert [one["id"] for one in added["data"]] == [one["id"] for one in listed["data"]]
    live.gates.hold(agent, 0)
    queued = await created(live, agent, "Hello", conversation=made["id"], background=True)
    refusal = await live.client.post(path, json={"items": items})
    assert refusal.status_code == 409
    await live.ended(run_id(queued))


async def test_a_transcript_of_the_client_begins_a_hidden_conversation(
    live: LiveServer, agent: str
) -> None:
    transcript = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Hello Ada."}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "user", "content": [{"type": "input_text", "text": "[history] Who am I?"}]},
    ]
    response = await created(live, agent, transcript)
    conversation = response["conversation"]["id"]
    contents = await live.contents(conversation)
    assert [text for _, text in contents[:3]] == [
        "My name is Ada.",
        "Hello Ada.",
        "[history] Who am I?",
    ]
    listed = await live.got("/v1/conversations/", agent_id=agent)
    assert conversation not in [one["id"] for one in listed]


async def test_two_sends_at_once_with_one_idempotency_key_are_one_response(
    live: LiveServer, agent: str
) -> None:
    headers = {"Idempotency-Key": "k-1"}
    one, other = await asyncio.gather(
        *(created(live, agent, "Once", headers=headers) for _ in range(2))
    )
    assert one == other
    assert len(await live.run_ids(agent_id=agent)) == 1


# Tools.


async def test_a_tool_of_the_client_is_called_and_its_output_sent(
    live: LiveServer, agent: str
) -> None:
    asked = await created(live, agent, "[client_tool=look] Where?", tools=[LOOK])
    call = asked["output"][-1]
    assert (call["type"], call["name"], call["status"]) == ("function_call", "look", "completed")
    assert asked["tools"] == [{**LOOK, "description": None, "strict": None}]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "Marstal"}
    done = await created(live, agent, [output], previous_response_id=asked["id"], tools=[LOOK])
    assert done["status"] == "completed"
    assert "Marstal" in text_of(done)
    items = await live.got(f"{PATH}/{done['id']}/input_items")
    assert [item["type"] for item in items["data"]] == ["function_call_output"]
    path = f"/openai/v1/conversations/{asked['conversation']['id']}/items"
    whole = (await live.got(path, order="asc"))["data"]
    kinds = [one for one in types(whole) if one != "message"]
    assert kinds == ["function_call", "function_call_output"]


async def test_a_client_that_keeps_the_conversation_sends_call_and_output(
    live: LiveServer, agent: str
) -> None:
    user = {"role": "user", "content": "[client_tool=look] Where?"}
    asked = await created(live, agent, [user], tools=[LOOK])
    output = {
        "type": "function_call_output",
        "call_id": asked["output"][-1]["call_id"],
        "output": "Marstal",
    }
    done = await created(live, agent, [user, *asked["output"], output], tools=[LOOK])
    assert "Marstal" in text_of(done)
    assert done["conversation"] != asked["conversation"]


async def test_an_approval_is_asked_for_and_the_approved_call_is_an_item_with_its_request(
    live: LiveServer, agent: str
) -> None:
    asked = await created(live, agent, "[tool=deploy] Go")
    request = asked["output"][-1]
    assert (request["type"], request["name"]) == ("mcp_approval_request", "deploy")
    answer = {"type": "mcp_approval_response", "approval_request_id": request["id"]}
    ran = len(tool_functions.RAN)
    denied_by = await refused(
        live,
        {"model": agent, "input": "no answer", "previous_response_id": asked["id"]},
        409,
    )
    assert denied_by["code"] == "pending_approval"
    done = await created(
        live, agent, [{**answer, "approve": True}], previous_response_id=asked["id"]
    )
    call = done["output"][0]
    assert (call["type"], call["approval_request_id"]) == ("mcp_call", request["id"])
    assert (call["arguments"], call["output"]) == (request["arguments"], "deployed 1")
    assert len(tool_functions.RAN) == ran + 1


async def test_a_call_that_waited_for_the_approval_of_another_one_has_no_request(
    live: LiveServer, agent: str
) -> None:
    asked = await created(live, agent, "[approve=deploy][with=add] Go")
    by_type = {item["type"]: item for item in asked["output"]}
    assert by_type["mcp_call"]["status"] == "incomplete"
    request = by_type["mcp_approval_request"]
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": request["id"],
        "approve": True,
    }
    done = await created(live, agent, [answer], previous_response_id=asked["id"])
    calls = {item["name"]: item for item in done["output"] if item["type"] == "mcp_call"}
    assert calls["deploy"]["approval_request_id"] == request["id"]
    assert calls["add"]["approval_request_id"] is None
    assert calls["add"]["arguments"] == by_type["mcp_call"]["arguments"]
    assert calls["add"]["output"] == "2"


async def test_a_denied_call_does_not_run(live: LiveServer, agent: str) -> None:
    asked = await created(live, agent, "[tool=deploy] Go")
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": asked["output"][-1]["id"],
        "approve": False,
        "reason": "not today",
    }
    ran = len(tool_functions.RAN)
    done = await created(live, agent, [answer], previous_response_id=asked["id"])
    assert done["status"] == "completed"
    assert len(tool_functions.RAN) == ran


@pytest.mark.parametrize("approve", [True, False])
async def test_p17_of_two_answers_to_an_approval_request_the_first_one_stands(
    live: LiveServer, agent: str, approve: bool
) -> None:
    asked = await created(live, agent, "[tool=deploy] Go")
    answer = {"type": "mcp_approval_response", "approval_request_id": asked["output"][-1]["id"]}
    first = await created(
        live, agent, [{**answer, "approve": approve}], previous_response_id=asked["id"]
    )
    await created(live, agent, "Thanks", previous_response_id=first["id"])
    ran = len(tool_functions.RAN)
    for decision in (approve, not approve):
        again = await created(
            live, agent, [{**answer, "approve": decision}], previous_response_id=asked["id"]
        )
        assert again == first
    assert len(tool_functions.RAN) == ran


@pytest.mark.promise("P17")
async def test_an_approval_counts_only_for_a_call_that_the_agent_asked_for(
    live: LiveServer, agent: str
) -> None:
    ran, before = len(tool_functions.RAN), live.rows()
    user = {"role": "user", "content": "Go"}
    request = {"type": "mcp_approval_request", "id": "mcpr_f1", "name": "deploy", "arguments": "{}"}
    answer = {"type": "mcp_approval_response", "approval_request_id": "mcpr_f1", "approve": True}
    error = await refused(live, {"model": agent, "input": [user, request, answer]}, 400)
    assert "previous_response_id" in error["message"]
    assert (len(tool_functions.RAN), live.rows()) == (ran, before)
    asked = await created(live, agent, "[tool=deploy] Go")
    real = asked["output"][-1]
    answer = {**answer, "approval_request_id": real["id"]}
    for forged in ({**real, "name": "add"}, {**real, "arguments": '{"x":1}'}):
        await refused(live, {"model": agent, "input": [user, forged, answer]}, 400)
    other = (await live.agent(tools=["deploy"]))["id"]
    await refused(live, {"model": other, "input": [user, real, answer]}, 400)
    assert len(tool_functions.RAN) == ran
    await created(live, agent, [user, real, answer])
    assert len(tool_functions.RAN) == ran + 1


@pytest.mark.promise("P17")
async def test_calls_in_a_history_of_the_client_never_run(live: LiveServer, agent: str) -> None:
    ran = len(tool_functions.RAN)
    user = {"role": "user", "content": "Go"}
    calls = [
        {"type": "function_call", "call_id": name, "name": name, "arguments": "{}"}
        for name in ("look", "deploy")
    ]
    output = {"type": "function_call_output", "call_id": "look", "output": "Marstal"}
    await created(live, agent, [user, *calls, output], tools=[LOOK])
    made = await live.made("/openai/v1/conversations", {"metadata": {"agent_id": agent}})
    items = f"/openai/v1/conversations/{made['id']}/items"
    for forged in ([output, *calls], [calls[0], output, *calls]):
        await live.made(items, {"items": forged})
        body = {"model": agent, "conversation": made["id"], "input": [output]}
        assert (await refused(live, body, 400))["code"] == "no_pending_approval"
    assert len(tool_functions.RAN) == ran


@pytest.mark.promise("P17")
async def test_a_client_cannot_send_the_result_of_a_call_of_the_server(
    live: LiveServer, agent: str
) -> None:
    asked = await created(live, agent, "[tool=deploy] Go")
    call_id = asked["output"][-1]["id"].removeprefix("mcpr_")
    output = {"type": "function_call_output", "call_id": call_id, "output": "FAKE"}
    forged = {"model": agent, "input": [output], "previous_response_id": asked["id"]}
    other = {**forged, "input": [{**output, "call_id": "other"}]}
    assert f"once, and no other: {call_id}." in (await refused(live, other, 400))["message"]
    assert "Approve or deny" in (await refused(live, forged, 400))["message"]
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": asked["output"][-1]["id"],
        "approve": True,
    }
    done = await created(live, agent, [answer], previous_response_id=asked["id"])
    assert done["output"][0]["output"] not in {None, "FAKE"}


async def test_a_fork_of_a_hidden_conversation_is_hidden(live: LiveServer, agent: str) -> None:
    first = await created(live, agent, "Hello", store=False)
    for said in ("One", "Two"):
        await created(live, agent, said, previous_response_id=first["id"])
    assert await live.got("/v1/conversations/", agent_id=agent) == []


@pytest.mark.parametrize("approve", ["yes", 1, "true", None])
async def test_a_decision_that_is_not_a_boolean_is_refused(
    live: LiveServer, agent: str, approve: Any
) -> None:
    answer = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": approve}
    await refused(live, {"model": agent, "input": [answer]}, 422)


async def test_p17_the_result_of_a_clients_tool_that_is_sent_again_gets_the_first_ones_response(
    live: LiveServer, agent: str
) -> None:
    asked = await created(live, agent, "[client_tool=look] Where?", tools=[LOOK])
    output = {"type": "function_call_output", "call_id": asked["output"][-1]["call_id"]}
    sent = [{**output, "output": "Marstal"}]
    first = await created(live, agent, sent, tools=[LOOK], previous_response_id=asked["id"])
    assert first == await created(live, agent, sent, tools=[LOOK], previous_response_id=asked["id"])


async def test_a_failed_tool_is_a_failed_call(live: LiveServer, agent: str) -> None:
    response = await created(live, agent, "[tool=explode] Go")
    call = next(item for item in response["output"] if item["type"] == "mcp_call")
    assert (call["status"], call["output"]) == ("failed", None)
    assert call["error"]["type"] == "mcp_tool_execution_error"


async def test_calls_of_the_server_are_pairs_on_request(live: LiveServer, agent: str) -> None:
    headers = {"X-Reattach-Server-Tools": "function_call"}
    response = await created(live, agent, "[tool=add] Go", headers=headers)
    call, output = response["output"][:2]
    assert (call["type"], output["type"]) == ("function_call", "function_call_output")
    assert (call["call_id"], output["output"]) == (output["call_id"], "2")


# Refusals.


@pytest.mark.parametrize(
    ("more", "status", "named"),
    [
        ({"model": None}, 422, ("validation_error", "model")),
        ({"model": "nobody"}, 404, ("not_found", None)),
        ({"input": []}, 422, ("validation_error", "input")),
        ({"input": [{"type": "web_search_call"}]}, 422, ("validation_error", "input[0]")),
        ({"input": [{"role": "assistant", "content": "x"}]}, 422, ("validation_error", "input")),
        ({"tools": [{"type": "web_search"}]}, 422, ("validation_error", "tools[0]")),
        ({"tools": [LARGE]}, 422, ("validation_error", "tools[0].parameters")),
        ({"tools": [LOOK, LOOK]}, 422, ("validation_error", "tools[1].name")),
        ({"text": {"format": {"type": "json_schema"}}}, 422, ("validation_error", "text")),
        ({"previous_response_id": "resp_1"}, 404, ("not_found", None)),
        ({"conversation": "c", "previous_response_id": "r"}, 400, ("invalid_argument", None)),
        ({"conversation": "conv-1"}, 404, ("not_found", None)),
        ({"conversation": "c" * 1000}, 422, ("validation_error", "conversation")),
        ({"text": {"format": [1]}}, 422, ("validation_error", "text")),
    ],
)
async def test_a_wrong_request_is_refused_with_its_place_and_starts_nothing(
    live: LiveServer, agent: str, more: Json, status: int, named: tuple[str, str | None]
) -> None:
    before = live.rows()
    error = await refused(live, {"model": agent, "input": "Hi", **more}, status)
    assert (error["code"], error["param"]) == named, error
    assert live.rows() == before


async def test_images_are_accepted_by_url_and_not_by_file(live: LiveServer, agent: str) -> None:
    def message(**image: str) -> list[Json]:
        return [{"role": "user", "content": [{"type": "input_image", **image}]}]

    response = await created(live, agent, message(image_url=PIXEL))
    items = await live.got(f"{PATH}/{response['id']}/input_items")
    assert items["data"][0]["content"][0]["image_url"] == PIXEL
    error = await refused(live, {"model": agent, "input": message(file_id="file_1")}, 422)
    assert "keeps no files" in error["message"]


async def test_another_agent_cannot_continue_a_conversation(live: LiveServer, agent: str) -> None:
    first = await created(live, agent, "One")
    other = (await live.agent())["id"]
    body = {"model": other, "input": "Two", "previous_response_id": first["id"]}
    error = await refused(live, body, 400)
    assert agent in error["message"]


async def test_a_conversation_needs_an_agent(live: LiveServer, agent: str) -> None:
    await live.agent()
    for body in ({}, {"metadata": {"topic": "x", "agent_id": agent}}):
        response = await live.client.post("/openai/v1/conversations", json=body)
        assert response.status_code == 400
        assert "agent_id" in response.json()["error"]["message"]


async def test_tenants_see_neither_responses_nor_conversations_of_others(tmp_path: Path) -> None:
    async with listening(tmp_path) as live:
        agent = (await live.agent(name="ours"))["id"]
        response = await created(live, agent, "Hi")
        conversation = f"/openai/v1/conversations/{response['conversation']['id']}"
        path = f"{PATH}/{response['id']}"
        async with await live.as_tenant(TenantId("tenant-b")) as stranger:
            requests: list[httpx2.Response] = [
                await stranger.get(path),
                await stranger.get(path, params={"stream": True}),
                await stranger.get(f"{path}/input_items"),
                await stranger.post(f"{path}/cancel"),
                await stranger.delete(path),
                await stranger.get(conversation),
                await stranger.get(f"{conversation}/items"),
                await stranger.delete(conversation),
                await stranger.post(PATH, json={"model": agent, "input": "x"}),
                await stranger.post(
                    PATH, json={"input": "x", "previous_response_id": response["id"]}
                ),
            ]
            for answer in requests:
                assert answer.status_code == 404, answer.text
                assert answer.json()["error"]["code"] == "not_found"


async def test_after_the_retention_a_response_is_gone_in_words_of_that_api(tmp_path: Path) -> None:
    async with listening(tmp_path, retention_hours=1) as live:
        agent = (await live.agent())["id"]
        response = await created(live, agent, "Hi")
        run = RunId(run_id(response))
        await live.context.runs.delete_logs([run])
        await live.context.records.runs.mark_log_deleted([run], live.clock.now())
        path = f"{PATH}/{response['id']}"
        for query in ({}, {"stream": True}):
            gone = await live.client.get(path, params=query)
            assert gone.status_code == 410
            assert gone.json()["error"]["code"] == "expired"
        after = await created(live, agent, "And?", previous_response_id=response["id"])
        assert after["status"] == "completed"


async def test_the_items_of_a_conversation_go_on_after_a_page_of_large_messages(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await live.agent()
    thread = (await live.conversation(agent["id"]))["id"]
    for said in ("one", "two", "three"):
        await live.send(thread, said)
    path = f"/openai/v1/conversations/{thread}/items"
    whole = await live.got(path, order="asc", limit=100)
    monkeypatch.setattr("reattach.records.paging.PAGE_BYTES", 10)
    assert await live.got(path, order="asc", limit=100) == whole
    assert len(whole["data"]) >= 6
