"""AG-UI and CopilotKit's runtime: their routes, in the words of their clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from reattach.domain.ids import TenantId, new_uuid
from reattach.wire.event_source import KEEPALIVE
from tests.support.live_server import WAIT_SECONDS, LiveServer, listening, sent

Json = dict[str, Any]

LOOK = {"name": "look", "description": "Look around", "parameters": {"type": "object"}}
PIXEL = "iVBORw0KGgo="


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    tools = tuple(f"tests.support.tool_functions:{name}" for name in ("add", "deploy"))
    async with listening(tmp_path_factory.mktemp("live"), tools=tools) as live:
        yield live


class Client:
    """A client that keeps the messages of a thread as the ones of AG-UI do."""

    def __init__(self, live: LiveServer, agent: str, thread: str | None = None) -> None:
        self.live = live
        self.agent = agent
        self.thread = thread or new_uuid()
        self.messages: list[Json] = []
        self.run_id = ""

    def says(self, text: Any, **more: Any) -> None:
        message = {"id": new_uuid(), "role": "user", "content": text, **more}
        self.messages.append(message)

    def body(self, **more: Any) -> Json:
        return {
            "threadId": self.thread,
            "runId": self.run_id,
            "protocolVersion": "1.0",
            "state": {},
            "messages": self.messages,
            "tools": [],
            "context": [],
            "forwardedProps": {},
            **more,
        }

    @property
    def path(self) -> str:
        return f"/ag-ui/{self.agent}"

    async def run(self, text: Any = None, *, path: str | None = None, **more: Any) -> list[Json]:
        """Run the agent with a new message, and return the events."""
        if text is not None:
            self.says(text)
        self.run_id = more.pop("runId", None) or new_uuid()
        response = await self.live.client.post(path or self.path, json=self.body(**more))
        assert response.status_code == 200, response.text
        events = parsed(response.text)
        self.apply(events)
        return events

    async def refused(self, status: int, **more: Any) -> Json:
        self.run_id = more.pop("runId", None) or new_uuid()
        response = await self.live.client.post(self.path, json=self.body(**more))
        assert response.status_code == status, response.text
        error: Json = response.json()
        return error

    async def connect(self) -> list[Json]:
        path = f"/copilotkit/agent/{self.agent}/connect"
        body = self.body(runId=new_uuid())
        response = await self.live.client.post(path, json=body)
        assert response.status_code == 200, response.text
        events = parsed(response.text)
        self.apply(events)
        return events

    @asynccontextmanager
    async def connecting(self) -> AsyncIterator[AsyncIterator[Json]]:
        path, body = f"/copilotkit/agent/{self.agent}/connect", self.body(runId=new_uuid())
        async with (
            asyncio.timeout(WAIT_SECONDS),
            self.live.client.stream("POST", path, json=body) as response,
        ):
            assert response.status_code == 200
            yield streamed(response)

    @asynccontextmanager
    async def begun(self, text: str | None, **more: Any) -> AsyncIterator[AsyncIterator[Json]]:
        """Begin a run, and yield its events as they come."""
        if text is not None:
            self.says(text)
        self.run_id = more.pop("runId", None) or new_uuid()
        async with (
            asyncio.timeout(WAIT_SECONDS),
            self.live.client.stream("POST", self.path, json=self.body(**more)) as response,
        ):
            assert response.status_code == 200
            yield streamed(response)

    def apply(self, events: list[Json]) -> None:
        """Keep the messages, adding to those that are there, as the clients do."""
        for event in events:
            match event["type"]:
                case "MESSAGES_SNAPSHOT":
                    self.messages = [*event["messages"]]
                case "TEXT_MESSAGE_START" | "REASONING_MESSAGE_START":
                    self._message(event["messageId"], event["role"], content="")
                case "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT":
                    self._message(event["messageId"], "")["content"] += event["delta"]
                case "TOOL_CALL_START":
                    made = self._message(event["parentMessageId"], "assistant", toolCalls=[])
                    function = {"name": event["toolCallName"], "arguments": ""}
                    call = {"id": event["toolCallId"], "type": "function", "function": function}
                    made.setdefault("toolCalls", []).append(call)
                case "TOOL_CALL_ARGS":
                    call_id = event["toolCallId"]
                    calls = [
                        one for message in self.messages for one in message.get("toolCalls", ())
                    ]
                    (call,) = [one for one in calls if one["id"] == call_id]
                    call["function"]["arguments"] += event["delta"]
                case "TOOL_CALL_RESULT":
                    members = {"toolCallId": event["toolCallId"], "content": event["content"]}
                    message = {"id": event["messageId"], "role": "tool", **members}
                    assert message["id"] not in [one["id"] for one in self.messages]
                    self.messages.append(message)
                case _:
                    pass

    def _message(self, message_id: str, role: str, **members: Any) -> Json:
        for message in self.messages:
            if message["id"] == message_id:
                return message
        assert role
        self.messages.append({"id": message_id, "role": role, **members})
        return self.messages[-1]


def parsed(stream: str) -> list[Json]:
    frames = [one for one in stream.split("\n\n") if one and not one.startswith(":")]
    assert all(one.startswith("data: ") for one in frames)
    return [json.loads(one.removeprefix("data: ")) for one in frames]


async def streamed(response: httpx2.Response) -> AsyncIterator[Json]:
    buffer = b""
    async for data in response.aiter_raw():
        buffer = (buffer + data).replace(KEEPALIVE, b"")
        *frames, buffer = buffer.split(b"\n\n")
        for frame in frames:
            yield json.loads(frame.removeprefix(b"data: "))


def types(events: list[Json]) -> list[str]:
    return [event["type"] for event in events]


def text_of(events: list[Json]) -> str:
    return "".join(one["delta"] for one in events if one["type"] == "TEXT_MESSAGE_CONTENT")


@pytest.fixture
async def client(live: LiveServer) -> Client:
    """A client of an agent with tools, whose gate is open."""
    agent: str = (await live.agent(tools=["add", "deploy"]))["id"]
    live.gates.open(agent)
    return Client(live, agent)


# Running.


async def test_a_thread_goes_on_with_the_new_messages_only(client: Client) -> None:
    first = await client.run("Hello there")
    assert types(first) == [
        "RUN_STARTED", "STEP_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END", "STEP_FINISHED", "RUN_FINISHED",
    ]  # fmt: skip
    assert (first[0]["threadId"], first[0]["runId"]) == (client.thread, client.run_id)
    assert first[-1]["outcome"] == {"type": "success"}
    assert first[-1]["usage"][0]["outputTokens"] == 2
    answer = text_of(await client.run("[history]"))
    assert answer.splitlines() == ["user: Hello there", "assistant: Hello there"]
    assert len(await client.live.run_ids(agent_id=client.agent)) == 2


async def test_messages_that_an_earlier_request_could_not_send_are_sent_with_the_next(
    client: Client,
) -> None:
    client.says("First")
    await client.run("Second")
    assert await questions(client) == ["First", "Second"]


async def test_a_message_that_a_failed_run_left_out_of_the_conversation_is_sent_with_the_next(
    client: Client,
) -> None:
    failed = await client.run("[fail=0] One")
    assert failed[-1]["type"] == "RUN_ERROR"
    assert failed[-1]["code"]
    await client.run("Two")
    assert await questions(client) == ["[fail=0] One", "Two"]
    failed = await client.run("[fail=1] Three and more")
    assert types(failed)[-3:] == ["TEXT_MESSAGE_END", "STEP_FINISHED", "RUN_ERROR"]
    await client.run("Four")
    assert len(await questions(client)) == 4


async def test_a_run_without_a_new_message_repeats_the_last_one(client: Client) -> None:
    await client.run("Say it")
    del client.messages[1:]
    assert text_of(await client.run()) == "Say it"


async def test_a_conversation_that_another_server_had_is_taken_over(client: Client) -> None:
    client.messages = [
        {"id": "g", "role": "assistant", "content": "How can I help?"},
        {"id": "u", "role": "user", "content": "Where is it?"},
        {"id": "a", "role": "assistant", "content": "In the south."},
        {"id": "r", "role": "reasoning", "content": "Hm."},
    ]
    answer = text_of(await client.run("[history]"))
    assert answer.splitlines() == [
        "user: Where is it?",
        "assistant: In the south.",
    ]


async def test_instructions_and_context_hold_for_one_run(client: Client) -> None:
    client.messages = [{"id": "s", "role": "system", "content": "Speak Danish."}]
    context = [{"description": "The page", "value": "/ferries"}]
    answer = text_of(await client.run("[system]", context=context))
    assert "Speak Danish." in answer
    assert "The page: /ferries" in answer
    assert "/ferries" not in text_of(await client.run("[system]"))


async def test_the_id_of_a_conversation_is_the_name_of_a_thread(client: Client) -> None:
    conversation = (await client.live.conversation(client.agent))["id"]
    await sent(client.live, conversation, "By another client")
    client.thread = conversation
    assert len(await client.connect()) == 3
    assert [one["role"] for one in client.messages] == ["user", "assistant"]
    await client.run("[history]")
    assert len(await client.live.run_ids(conversation_id=conversation)) == 2


async def test_an_unknown_id_of_a_conversation_is_not_found_and_begins_nothing(
    client: Client,
) -> None:
    other = (await client.live.agent())["id"]
    foreign = (await client.live.conversation(other))["id"]
    client.says("Hello")
    for name in (f"conv-{new_uuid()}", foreign):
        await client.refused(404, threadId=name)
    assert await client.live.run_ids(agent_id=client.agent) == []


async def test_connect_follows_a_run_that_a_client_of_another_api_began(client: Client) -> None:
    conversation = (await client.live.conversation(client.agent))["id"]
    await client.live.held_run(client.agent, conversation, "[chunks=3]", after=1)
    client.thread = conversation
    async with client.connecting() as events:
        seen = [await anext(events)]
        assert (seen[0]["type"], seen[0]["threadId"]) == ("RUN_STARTED", conversation)
        client.live.gates.open(client.agent)
        seen += [event async for event in events]
    client.apply(seen)
    assert [one["content"] for one in client.messages] == ["[chunks=3]", "t0 t1 t2 "]
    assert seen[-1]["outcome"] == {"type": "success"}
    followed = list(client.messages)
    await client.connect()
    assert client.messages == followed


# Repeating.


async def test_the_same_run_id_gets_the_run_from_every_state_of_the_client(client: Client) -> None:
    client.says("Before")
    await client.run(protocolVersion=None)
    known = list(client.messages)
    events = await client.run("[think=2][tool=add] Well")
    whole, run_id = client.messages, client.run_id
    assert [one["role"] for one in whole[3:]] == ["assistant", "tool", "reasoning", "assistant"]
    for cut in range(1, len(events) + 1):
        client.messages = json.loads(json.dumps([*known, whole[2]]))
        client.apply(json.loads(json.dumps(events[:cut])))
        again = await client.run(runId=run_id)
        assert types(again)[:2] == ["RUN_STARTED", "MESSAGES_SNAPSHOT"]
        assert again[0] == events[0]
        assert again[2:] == events[1:]
        by_id = {one["id"]: one for one in client.messages}
        assert [by_id[one["id"]] for one in whole] == whole
        assert len(by_id) == len(client.messages) == len(whole)
    assert len(await client.live.run_ids(agent_id=client.agent)) == 2


async def test_two_requests_at_once_begin_one_run(client: Client) -> None:
    client.says("Hi")
    post, body = client.live.client.post, client.body(runId="r-1")
    both = await asyncio.gather(*(post(client.path, json=body) for _ in range(5)))
    assert {one.status_code for one in both} == {200}
    assert len({one.headers["x-run-id"] for one in both}) == 1
    assert len(await client.live.run_ids(agent_id=client.agent)) == 1


async def test_a_response_names_its_run_once(client: Client) -> None:
    client.says("Hi")
    post, body = client.live.client.post, client.body(runId="r-1")
    for _ in range(2):
        response = await post(client.path, json=body)
        assert len(response.headers.get_list("x-run-id")) == 1


async def test_a_run_is_streamed_again_after_its_conversation_was_deleted(client: Client) -> None:
    events = await client.run("Hi", runId="r-1")
    (run_id,) = await client.live.run_ids(agent_id=client.agent)
    run = await client.live.got(f"/v1/runs/{run_id}")
    path = f"/v1/conversations/{run['conversation_id']}"
    assert (await client.live.client.delete(path)).is_success
    client.messages = []
    again = await client.run(runId="r-1")
    assert again[0] == events[0]
    assert again[2:] == events[1:]


async def test_a_run_id_with_other_messages_is_refused(client: Client) -> None:
    await client.run("Hi", runId="r-1")
    whole = list(client.messages)
    client.says("More")
    error = await client.refused(409, runId="r-1")
    assert error["code"] == "conflict"
    assert "r-1" in error["detail"]
    assert "runId" in error["detail"]
    client.messages = [{**whole[0], "content": "Hello"}]
    await client.refused(409, runId="r-1")
    client.messages = []
    assert text_of(await client.run(runId="r-1")) == "Hi"
    assert [one["id"] for one in client.messages] == [one["id"] for one in whole]
    client.thread = new_uuid()
    client.messages = [{**whole[0], "content": "Hello"}]
    assert text_of(await client.run(runId="r-1")) == "Hello"


async def test_a_client_that_leaves_does_not_cancel(client: Client) -> None:
    client.live.gates.hold(client.agent, 1)
    async with client.begun("[chunks=3]") as events:
        while (await anext(events))["type"] != "TEXT_MESSAGE_CONTENT":
            pass
    client.live.gates.open(client.agent)
    events_again = await client.run(runId=client.run_id)
    assert text_of(events_again) == "t0 t1 t2 "
    assert events_again[-1]["outcome"] == {"type": "success"}


async def test_a_second_run_of_a_busy_thread_is_refused(client: Client) -> None:
    client.live.gates.hold(client.agent, 1)
    async with client.begun("[chunks=3]") as events:
        await anext(events)
        client.says("And?")
        error = await client.refused(409)
        assert error["code"] == "conversation_busy"
        client.live.gates.open(client.agent)


# Interrupts and tools of the client.


async def test_an_interrupt_is_answered_by_a_resume(client: Client) -> None:
    asked = await client.run('[approve=deploy][arguments={"place": "north"}] May I?')
    (interrupt,) = asked[-1]["outcome"]["interrupts"]
    call_id = interrupt["toolCallId"]
    assert interrupt["id"] == call_id
    error = await client.refused(409, messages=[{"id": "x", "role": "user", "content": "Well?"}])
    assert error["code"] == "pending_approval"
    bad = [{"interruptId": call_id, "status": "resolved", "payload": {"yes": True}}]
    assert "approved" in (await client.refused(422, resume=bad))["detail"]
    resume = [{"interruptId": call_id, "status": "resolved", "payload": {"approved": True}}]
    asked_messages = list(client.messages)
    answered = await client.run(resume=resume)
    assert "TOOL_CALL_START" not in types(answered)
    (result,) = [one for one in answered if one["type"] == "TOOL_CALL_RESULT"]
    assert result["toolCallId"] == call_id
    assert answered[-1]["outcome"] == {"type": "success"}
    whole, run_id = client.messages, client.run_id
    client.messages = asked_messages
    again = await client.run(resume=resume)  # The answer was lost, and is given once more.
    assert (again[0]["runId"], again[2:]) == (run_id, answered[1:])
    assert client.messages == whole


@pytest.mark.parametrize(
    "answer",
    [
        {"status": "cancelled"},
        {"status": "resolved", "payload": {"approved": False, "reason": "Too late"}},
        {"status": "resolved", "payload": False},
    ],
)
async def test_a_denied_call_does_not_run(client: Client, answer: Json) -> None:
    asked = await client.run("[approve=deploy]")
    (interrupt,) = asked[-1]["outcome"]["interrupts"]
    resume = [{"interruptId": interrupt["id"], **answer}]
    client.live.gates.hold(client.agent, 0)
    async with client.begun(None, resume=resume) as events:
        assert (await anext(events))["type"] == "RUN_STARTED"
        result = await anext(events)
        assert (result["toolCallId"], result["type"]) == (interrupt["id"], "TOOL_CALL_RESULT")
        fresh = Client(client.live, client.agent, client.thread)
        async with fresh.connecting() as connected:
            seen = [await anext(connected)]
            client.live.gates.open(client.agent)
            fresh.apply(seen + [event async for event in connected])
        rest = [event async for event in events]
    client.apply([result, *rest])
    assert "denied" in result["content"]
    assert f"error: {result['content']}" in text_of(rest)
    assert by_id(client.messages) == by_id(fresh.messages)
    await fresh.connect()
    assert by_id(client.messages) == by_id(fresh.messages)


def by_id(messages: list[Json]) -> dict[str, Json]:
    """Return the messages without their order: results stand after their calls or at the end."""
    found = {one["id"]: one for one in messages}
    assert len(found) == len(messages)
    return found


async def test_a_tool_of_the_client_gets_its_result_as_a_message(client: Client) -> None:
    asked = await client.run("[client_tool=look] Let me see", tools=[LOOK])
    assert asked[-1]["outcome"] == {"type": "success"}
    (call_id,) = [one["toolCallId"] for one in asked if one["type"] == "TOOL_CALL_END"]
    result = {"id": new_uuid(), "role": "tool", "toolCallId": call_id, "content": "A harbour"}
    client.messages.append(result)
    answered = await client.run(tools=[LOOK])
    assert "A harbour" in text_of(answered)
    assert "TOOL_CALL_RESULT" not in types(answered)
    shown = list(client.messages)
    await client.connect()
    assert client.messages == shown


async def test_a_failed_tool_of_the_client_reports_its_error(client: Client) -> None:
    asked = await client.run("[client_tool=look]", tools=[LOOK])
    (call_id,) = [one["toolCallId"] for one in asked if one["type"] == "TOOL_CALL_END"]
    failed = {"role": "tool", "toolCallId": call_id, "content": "", "error": "It is dark"}
    client.messages.append({"id": "t", **failed})
    assert "error: It is dark" in text_of(await client.run(tools=[LOOK]))


# CopilotKit.


async def test_connect_shows_the_thread_and_follows_its_active_run(client: Client) -> None:
    await client.run("[think=1] One", path=f"/copilotkit/agent/{client.agent}/run")
    shown = list(client.messages)
    idle = await client.connect()
    assert types(idle) == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"]
    assert client.messages == shown
    client.live.gates.hold(client.agent, 2)
    async with client.begun("[think=2][chunks=3]") as events:
        client.apply([await anext(events) for _ in range(5)])
        fresh = Client(client.live, client.agent, client.thread)
        async with client.connecting() as rest, fresh.connecting() as others:
            assert (await anext(rest))["type"] == "RUN_STARTED"
            assert (await anext(others))["type"] == "RUN_STARTED"
            client.live.gates.open(client.agent)
            for one, more in ((client, rest), (fresh, others)):
                further = [event async for event in more]
                assert text_of(further) == "t0 t1 t2 "
                one.apply(further)
    assert client.messages == fresh.messages
    ended = await client.connect()
    assert types(ended) == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"]
    assert client.messages == fresh.messages
    assert len({one["id"] for one in client.messages}) == len(client.messages) == 6


async def test_connect_shows_an_interrupt_that_waits(client: Client) -> None:
    asked = await client.run("[approve=deploy] May I?")
    idle = await client.connect()
    assert idle[-1]["outcome"] == asked[-1]["outcome"]


async def test_connect_of_an_unknown_thread_is_empty_and_begins_none(client: Client) -> None:
    assert await client.connect() == []
    conversations = await client.live.got("/v1/conversations/", agent_id=client.agent)
    assert conversations == []


async def test_stop_cancels_the_run_of_the_thread(client: Client) -> None:
    path = f"/copilotkit/agent/{client.agent}/stop/{client.thread}"
    assert (await client.live.client.post(path)).json()["code"] == "not_found"
    client.live.gates.hold(client.agent, 1)
    async with client.begun("[chunks=3]") as events:
        await anext(events)
        stopped = await client.live.client.post(path, json={"runId": client.run_id})
        assert stopped.json() == {"stopped": True}
        rest = [event async for event in events]
    assert rest[-1]["outcome"] == {"type": "cancelled"}
    stopped = await client.live.client.post(path, json={"runId": client.run_id})
    assert stopped.json() == {"stopped": False}


async def test_the_only_agent_is_the_default_one(live: LiveServer) -> None:
    tenant = TenantId(f"tenant-{new_uuid()[:8]}")
    async with await live.as_tenant(tenant) as own:
        assert (await own.get("/copilotkit/info")).json()["agents"] == {}
        missing = await own.post("/copilotkit/agent/default/stop/t-1")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        made = await own.post("/v1/agents/", json={"name": "guide", "description": "Knows it"})
        info = (await own.get("/copilotkit/info")).json()
        shown = {"name": "guide", "description": "Knows it", "className": "HttpAgent"}
        assert info["agents"] == {made.json()["id"]: shown, "default": shown}
        assert info["mode"] == "sse"
        body = {"threadId": "t-1", "runId": "r-1", "messages": []}
        connected = await own.post("/copilotkit/agent/default/connect", json=body)
        assert (connected.status_code, connected.content) == (200, b"")
        await own.post("/v1/agents/", json={"name": "other"})
        assert "default" not in (await own.get("/copilotkit/info")).json()["agents"]
        missing = await own.post("/copilotkit/agent/default/stop/t-1")
        assert "several agents" in missing.json()["detail"]
    live.client.headers["Authorization"] = f"Bearer {live.keys[tenant]}"


# Bad input.


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"messages": [{"id": "x", "role": "king", "content": ""}]}, "king"),
        ({"messages": [{"id": "x", "role": "user", "content": [{"type": "audio"}]}]}, "image"),
        ({"messages": [{"id": "x", "role": "user", "content": {"a": 1}}]}, "array of parts"),
        ({"messages": [{"id": "x", "role": "tool", "content": ""}]}, "toolCallId"),
        ({"tools": [LOOK, LOOK]}, "Another tool"),
        ({"threadId": ""}, "threadId"),
        ({"context": [{"value": "x" * 600_000}] * 2}, "at most 1000000 characters"),
        ({"resume": [{"interruptId": "x", "status": "maybe"}]}, "status"),
    ],
)
async def test_bad_input_is_refused_and_begins_nothing(
    client: Client, more: Json, word: str
) -> None:
    client.says("Hi")
    error = await client.refused(422, **more)
    assert word in json.dumps(error)
    assert await client.live.run_ids(agent_id=client.agent) == []


async def test_a_request_without_anything_to_send_says_how_to_add_a_message(
    client: Client,
) -> None:
    error = await client.refused(400, messages=[])
    assert "addMessage" in error["detail"]


async def test_images_are_sent_in_the_forms_of_all_versions(client: Client) -> None:
    for part in (
        {"type": "image", "source": {"type": "data", "value": PIXEL, "mimeType": "image/png"}},
        {"type": "binary", "mimeType": "image/png", "data": PIXEL},
    ):
        await client.run([{"type": "text", "text": "See"}, part])
    messages = [one for one in await stored(client) if one["message_type"] == "user_message"]
    sources = [one["content"][1]["source"]["data"] for one in messages]
    assert sources == [PIXEL, PIXEL]
    await client.connect()
    (first, _) = [one for one in client.messages if one["role"] == "user"]
    assert first["content"][1]["source"]["value"] == PIXEL


async def questions(client: Client) -> list[str]:
    items = await stored(client)
    return [one["content"] for one in items if one["message_type"] == "user_message"]


async def stored(client: Client) -> list[Json]:
    (conversation,) = await client.live.got("/v1/conversations/", agent_id=client.agent)
    path = f"/v1/conversations/{conversation['id']}/messages"
    items: list[Json] = await client.live.got(path, order="asc")
    return items
