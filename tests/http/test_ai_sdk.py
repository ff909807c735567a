"""The routes of the AI SDK: what they send, accept and refuse."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from reattach.http.dialects.ai_sdk import history
from reattach.http.dialects.ai_sdk.replays import REPLAYED_SECONDS
from reattach.wire.dialects.ui_message_state import UiMessageState
from tests.support.asgi_server import serving
from tests.support.live_server import LiveServer, listening, to

Json = dict[str, Any]


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path_factory.mktemp("ai-sdk")) as live:
        yield live


HELLO = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "hello"}]}
LARGE = {"description": "x" * 300_000}


class Client:
    """A client of one chat with an agent."""

    def __init__(self, live: LiveServer, agent_id: str, chat_id: str) -> None:
        self.live = live
        self.agent_id = agent_id
        self.api = f"/ai-sdk/{agent_id}/chat"
        self.chat_id = chat_id
        self.of_chat = f"{self.api}/{chat_id}"
        self.sent = 0

    async def send(self, text: str, *, message_id: str | None = None, **more: Any) -> list[Json]:
        self.sent += 1
        message = {
            "id": message_id or f"u{self.sent}",
            "role": "user",
            "parts": [{"type": "text", "text": text}],
        }
        body = {"id": self.chat_id, "messages": [message], "trigger": "submit-message", **more}
        return await self.post(body)

    async def post(self, body: Json) -> list[Json]:
        response = await self.live.client.post(self.api, json=body)
        assert response.status_code == 200, response.text
        assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
        assert response.headers["x-workflow-run-id"].startswith("run-")
        return chunks_of(response.text)

    async def answer(self, message: Json, **more: Any) -> list[Json]:
        body = {"id": self.chat_id, "messages": [message], "messageId": message["id"], **more}
        return await self.post(body)

    async def messages(self, **query: Any) -> list[Json]:
        found: list[Json] = await self.live.got(f"{self.of_chat}/messages", **query)
        return found


def chunks_of(text: str) -> list[Json]:
    frames = text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def kinds(chunks: list[Json]) -> list[str]:
    return [chunk["type"] for chunk in chunks]


@pytest.fixture
async def client(live: LiveServer) -> Client:
    agent = await live.agent(tools=[])
    live.gates.open(agent["id"])
    return Client(live, agent["id"], "chat-1")


async def test_a_message_is_answered_by_one_stream_and_is_in_the_history(client: Client) -> None:
    chunks = await client.send("hello you")
    assert kinds(chunks)[:3] == ["start", "start-step", "text-start"]
    assert kinds(chunks)[-3:] == ["text-end", "finish-step", "finish"]
    user, assistant = await client.messages()
    assert user == {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "hello you"}]}
    assert assistant["id"] == chunks[0]["messageId"]
    assert assistant["metadata"] == chunks[-1]["messageMetadata"]
    assert assistant["parts"] == [
        {"type": "step-start"},
        {"type": "text", "text": "hello you", "state": "done"},
    ]


async def test_a_chat_without_a_run_has_neither_stream_nor_messages(client: Client) -> None:
    idle = await client.live.client.get(f"{client.of_chat}/stream")
    assert (idle.status_code, idle.content) == (204, b"")
    assert await client.messages() == []
    unknown = await client.live.client.get(f"{client.of_chat}/stream", params={"startIndex": 0})
    assert unknown.status_code == 404


async def test_a_message_that_is_sent_again_gets_its_run(client: Client) -> None:
    first = await client.send("hi", message_id="m")
    assert await client.send("hi", message_id="m") == first
    assert len(await client.live.run_ids(agent_id=client.agent_id)) == 1
    other = await client.live.client.post(
        client.api,
        json={
            "id": "chat-1",
            "message": {"id": "m", "role": "user", "parts": [{"type": "text", "text": "other"}]},
        },
    )
    assert other.status_code == 409
    assert list(other.json())[:2] == ["code", "detail"]


async def test_a_chat_that_sends_its_last_message_again_gets_its_run_unless_that_failed(
    client: Client,
) -> None:
    """As ``sendMessage()`` without a message does, which names the last one as edited."""
    await client.send("one")
    first = await client.send("two", message_id="m")
    assert await client.send("two", message_id="m", messageId="m") == first
    assert len(await client.live.run_ids(agent_id=client.agent_id)) == 2
    failed = await client.send("[chunks=2][fail=1]", message_id="f")
    again = await client.send("[chunks=2][fail=1]", message_id="f", messageId="f")
    assert again[0]["messageId"] != failed[0]["messageId"]
    assert len(await client.live.run_ids(agent_id=client.agent_id)) == 4


async def test_an_answer_that_ended_is_streamed_again_until_somebody_lists_it(
    client: Client,
) -> None:
    chunks = await client.send("hi")
    again = await client.live.client.get(f"{client.of_chat}/stream")
    assert chunks_of(again.text) == chunks
    await client.messages()
    assert (await client.live.client.get(f"{client.of_chat}/stream")).status_code == 204


async def test_an_index_is_the_number_of_chunks_received(client: Client) -> None:
    chunks = await client.send("one two three")
    run_id = chunks[0]["messageMetadata"]["run_id"]
    for place in (run_id, "chat-1"):
        for index in range(len(chunks) + 1):
            rest = await client.live.client.get(
                f"{client.api}/{place}/stream", params={"startIndex": index}
            )
            assert chunks_of(rest.text) == chunks[index:]
    last = await client.live.client.get(f"{client.api}/{run_id}/stream", params={"startIndex": -2})
    assert chunks_of(last.text) == chunks[-2:]
    assert last.headers["x-workflow-stream-tail-index"] == str(len(chunks) - 1)


async def test_an_approval_continues_the_message_that_asked(client: Client) -> None:
    asked = await client.send("[approve=rm][chunks=1]")
    assert kinds(asked)[-4:] == [
        "tool-input-available",
        "tool-approval-request",
        "finish-step",
        "finish",
    ]
    assert asked[-1]["finishReason"] == "tool-calls"
    message = (await client.messages())[-1]
    part = message["parts"][-1]
    assert part["state"] == "approval-requested"
    part |= {
        "state": "approval-responded",
        "approval": {"id": part["toolCallId"], "approved": True},
    }
    answered = await client.answer(message)
    assert answered[0]["messageId"] == message["id"]
    assert "tool-output-available" in kinds(answered) or "tool-output-error" in kinds(answered)
    assert await client.answer(message) == answered
    whole = await client.live.client.get(f"{client.of_chat}/stream")
    assert chunks_of(whole.text) == asked[:-1] + answered[1:]
    (_, shown) = await client.messages()
    assert shown["id"] == message["id"]
    assert shown["metadata"]["run_id"] == answered[-1]["messageMetadata"]["run_id"]
    assert [one["type"] for one in shown["parts"]].count("dynamic-tool") == 1


async def test_a_turn_whose_first_events_are_gone_is_streamed_from_its_messages(
    client: Client,
) -> None:
    asked = await client.send("[think=2][approve=rm][chunks=1]")
    message = (await client.messages())[-1]
    part = message["parts"][-1]
    approval = {"id": part["toolCallId"], "approved": True}
    part |= {"state": "approval-responded", "approval": approval}
    answered = await client.answer(message)
    live, first = client.live, asked[0]["messageMetadata"]["run_id"]
    await live.context.runs.delete_logs([first])
    live.context.translations._kept.clear()
    whole = chunks_of((await live.client.get(f"{client.of_chat}/stream")).text)
    assert whole[0] == asked[0]
    assert whole[-len(answered) + 1 :] == answered[1:]
    together, before = UiMessageState(), UiMessageState()
    together.add(whole)
    before.add([*asked[:-1], *answered])
    assert together.message() == before.message()


async def test_an_answer_that_ended_long_ago_is_not_streamed_again(client: Client) -> None:
    await client.send("hi")
    client.live.clock.skipped_seconds += REPLAYED_SECONDS + 1
    assert (await client.live.client.get(f"{client.of_chat}/stream")).status_code == 204


async def test_images_and_metadata_of_a_message_are_in_the_history(client: Client) -> None:
    pixel = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
    message = {
        "id": "m",
        "role": "user",
        "metadata": {"at": [1, None]},
        "parts": [
            {"type": "text", "text": "this"},
            {"type": "file", "mediaType": "image/gif", "url": pixel},
        ],
    }
    await client.post({"id": "chat-1", "message": message})
    assert (await client.messages())[0] == message


async def test_a_deleted_chat_begins_anew_under_its_name(client: Client) -> None:
    await client.send("one")
    deleted = await client.live.client.delete(f"/v1/conversations/{await conversation_of(client)}")
    assert deleted.status_code == 200
    assert await client.messages() == []
    await client.send("two")
    assert [one["parts"][-1]["text"] for one in await client.messages()] == ["two", "two"]


async def test_an_answer_of_another_client_of_the_server_continues_the_message(
    client: Client,
) -> None:
    asked = await client.send("[approve=rm][chunks=0]")
    (call,) = [one["toolCallId"] for one in asked if one["type"] == "tool-approval-request"]
    approval = {"type": "approval", "tool_call_id": call, "approve": True}
    body = {"messages": [{"type": "approval", "approvals": [approval]}]}
    await client.live.streamed(to(await conversation_of(client)), body)
    whole = chunks_of((await client.live.client.get(f"{client.of_chat}/stream")).text)
    assert whole[: len(asked) - 1] == asked[:-1]
    shown = (await client.messages())[-1]
    assert shown["id"] == asked[0]["messageId"]
    assert shown["parts"][1]["state"] == "output-available"


async def test_a_person_may_write_on_when_the_page_has_settled_all_calls(client: Client) -> None:
    tools = {"where": {"parameters": {"type": "object"}}}
    await client.send("[client_tool=where][chunks=0]", tools=tools)
    message = (await client.messages())[-1]
    failed = {"state": "output-error", "errorText": "The user wrote on."}
    message["parts"][-1] |= failed
    new = {"id": "u2", "role": "user", "parts": [{"type": "text", "text": "never mind"}]}
    body = {"id": "chat-1", "messages": [message, new]}
    chunks = await client.post(body)
    assert await client.post(body) == chunks
    _, asked, user, answer = await client.messages()
    assert asked["parts"][1] | failed == asked["parts"][1]
    assert asked["metadata"]["stop_reason"] == "requires_approval"
    assert user == new
    assert answer["id"] == chunks[0]["messageId"] != asked["id"]
    assert len(await client.live.run_ids(agent_id=client.agent_id)) == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"toolCallId": []},
        {"toolCallId": {}},
        {"state": ["output-available"]},
        {"type": 5},
        {"state": "approval-responded", "approval": {"approved": "yes"}},
        {"state": "approval-responded"},
    ],
)
async def test_a_malformed_answer_is_refused_and_the_call_still_waits(
    client: Client, bad: Json
) -> None:
    await client.send("[approve=rm][chunks=0]")
    message = (await client.messages())[-1]
    part = message["parts"][-1]
    wrong = {**message, "parts": [*message["parts"][:-1], {**part, **bad}]}
    body = {"id": client.chat_id, "messages": [wrong], "messageId": message["id"]}
    refused = await client.live.client.post(client.api, json=body)
    assert refused.status_code == 422, refused.text
    part |= {"state": "approval-responded", "approval": {"id": "a", "approved": True}}
    assert kinds(await client.answer(message))[-1] == "finish"


async def test_a_call_is_answered_whose_run_was_deleted_or_is_in_another_conversation(
    client: Client,
) -> None:
    await client.send("[approve=rm][chunks=0]")
    message = (await client.messages())[-1]
    part = message["parts"][-1]
    part |= {"state": "approval-responded", "approval": {"id": "a", "approved": False}}
    (run_id,) = await client.live.run_ids(agent_id=client.agent_id)
    run = await client.live.got(f"/v1/runs/{run_id}")
    path = f"/v1/conversations/{run['conversation_id']}/fork"
    fork = (await client.live.made(path, {}))["id"]
    assert (await client.live.client.delete(f"/v1/runs/{run_id}")).is_success
    assert kinds(await client.answer(message))[-1] == "finish"
    client.chat_id = fork
    assert kinds(await client.answer(message))[-1] == "finish"


@pytest.mark.promise("P17")
async def test_a_page_cannot_send_the_result_of_a_call_of_the_server(client: Client) -> None:
    await client.send("[approve=rm][chunks=0]")
    message = (await client.messages())[-1]
    part = message["parts"][-1]
    part |= {"state": "output-available", "output": "FAKE"}
    body = {"id": client.chat_id, "messages": [message], "messageId": message["id"]}
    refused = await client.live.client.post(client.api, json=body)
    assert refused.status_code == 400, refused.text
    assert "Approve or deny" in refused.json()["detail"]
    part |= {"state": "approval-responded", "approval": {"id": "a", "approved": True}}
    assert kinds(await client.answer(message))[-1] == "finish"


async def test_a_denied_call_is_shown_as_denied(client: Client) -> None:
    await client.send("[approve=rm][chunks=0]")
    message = (await client.messages())[-1]
    part = message["parts"][-1]
    part |= {
        "state": "approval-responded",
        "approval": {"id": part["toolCallId"], "approved": False, "reason": "no"},
    }
    answered = await client.answer(message)
    assert kinds(answered)[:2] == ["start", "tool-output-denied"]
    assert "tool-output-error" not in kinds(answered)
    part = (await client.messages())[-1]["parts"][1]
    assert part["state"] == "output-denied"
    assert part["approval"] == {"id": part["toolCallId"], "approved": False, "reason": "no"}


async def test_a_tool_of_the_page_is_called_and_returns_what_the_page_says(client: Client) -> None:
    tools = {"where": {"description": "Where?", "inputSchema": {"type": "object"}}}
    asked = await client.send("[client_tool=where][chunks=0]", tools=tools)
    (call,) = [one for one in asked if one["type"] == "tool-input-available"]
    assert "providerExecuted" not in call
    assert "tool-approval-request" not in kinds(asked)
    message = (await client.messages())[-1]
    assert message["parts"][-1]["type"] == "tool-where"
    message["parts"][-1] |= {"state": "output-available", "output": {"at": "Marstal"}}
    answered = await client.answer(message, tools=tools)
    assert "tool-output-available" not in kinds(answered)
    message["parts"][-1]["output"] = "another place"
    assert await client.answer(message, tools=tools) == answered
    whole = await client.live.client.get(f"{client.of_chat}/stream")
    returned = {
        "type": "tool-output-available",
        "toolCallId": call["toolCallId"],
        "output": {"at": "Marstal"},
    }
    assert chunks_of(whole.text) == [*asked[:-1], returned, *answered[1:]]
    shown = (await client.messages())[-1]["parts"][1]
    assert (shown["state"], shown["output"]) == ("output-available", {"at": "Marstal"})


async def test_an_answer_without_a_decision_on_each_call_is_refused(client: Client) -> None:
    await client.send("[approve=rm][chunks=0]")
    message = (await client.messages())[-1]
    body = {"id": "chat-1", "messages": [message]}
    refused = await client.live.client.post(client.api, json=body)
    assert refused.status_code == 400
    assert "sendAutomaticallyWhen" in refused.json()["detail"]
    early = await client.live.client.post(
        client.api,
        json={
            "id": "chat-1",
            "message": {"id": "m", "role": "user", "parts": [{"type": "text", "text": "so?"}]},
        },
    )
    assert (early.status_code, early.json()["code"]) == (409, "pending_approval")


async def test_regenerating_replaces_the_answer_and_keeps_the_old_conversation(
    client: Client,
) -> None:
    await client.send("one")
    await client.send("two")
    (old,) = {await conversation_of(client)}
    again = await client.send("two", message_id="u2", trigger="regenerate-message")
    messages = await client.messages()
    assert [one["id"] for one in messages[:3:2]] == ["u1", "u2"]
    assert len(messages) == 4
    assert messages[-1]["id"] == again[0]["messageId"]
    assert await conversation_of(client) != old
    kept = [text for _, text in await client.live.contents(old)]
    assert kept == ["one", "one", "two", "two"]
    third = await client.send("two", message_id="u2", trigger="regenerate-message")
    assert third[0]["messageId"] != again[0]["messageId"]


async def test_an_edited_message_replaces_everything_after_it(client: Client) -> None:
    await client.send("one")
    await client.send("two")
    await client.send("changed", message_id="u1", messageId="u1")
    user, assistant = await client.messages()
    assert user["parts"][0]["text"] == "changed"
    assert assistant["parts"][-1]["text"] == "changed"


async def test_an_edit_that_is_sent_again_gets_its_run(client: Client) -> None:
    await client.send("one")
    for text in ("one", "changed", "changed"):
        await client.send(text, message_id="u1", messageId="u1")
    assert len(await client.live.run_ids(agent_id=client.agent_id)) == 2


async def conversation_of(client: Client) -> str:
    run_ids = await client.live.run_ids(agent_id=client.agent_id)
    run = await client.live.run(run_ids[0])
    return str(run["conversation_id"])


async def test_an_active_answer_is_resumed_whole_and_can_be_stopped(client: Client) -> None:
    client.live.gates.hold(client.agent_id, 2)
    body = {
        "id": "chat-1",
        "message": {"id": "m", "role": "user", "parts": [{"type": "text", "text": "a b c d"}]},
    }
    async with client.live.stream(client.api, body) as stream:
        await client.live.gates.reached(client.agent_id, 2)
        assert [one["id"] for one in await client.messages()] == ["m"]
        path = f"{client.of_chat}/stream"
        async with client.live.client.stream("GET", path) as resumed:
            assert resumed.status_code == 200
            stopped = await client.live.client.post(f"{client.of_chat}/stop")
            assert list(stopped.json().values()) == ["cancelled"]
            await resumed.aread()
        del stream
    chunks = chunks_of(resumed.text)
    assert kinds(chunks)[0] == "start"
    assert kinds(chunks)[-2:] == ["abort", "finish"]
    again = await client.live.client.delete(f"{client.of_chat}/stream")
    assert (again.status_code, again.json()) == (200, {})
    assert (await client.messages())[-1]["metadata"]["stop_reason"] == "cancelled"


async def test_a_failure_is_an_error_after_the_metadata_and_before_the_finish(
    client: Client,
) -> None:
    chunks = await client.send("[chunks=2][fail=2]")
    assert kinds(chunks)[-3:] == ["message-metadata", "error", "finish"]
    assert chunks[-1]["finishReason"] == "error"


async def test_a_chat_that_began_elsewhere_brings_its_history(client: Client) -> None:
    earlier = [
        {"id": "a", "role": "user", "parts": [{"type": "text", "text": "Before"}]},
        {"id": "b", "role": "assistant", "parts": [{"type": "text", "text": "Yes"}]},
        {"id": "c", "role": "user", "parts": [{"type": "text", "text": "Now"}]},
    ]
    await client.post({"id": "chat-1", "messages": earlier})
    assert [one["id"] for one in await client.messages()][:3] == ["a", "b", "c"]


@pytest.mark.parametrize("page_items", [1, 2, 1000])
async def test_pages_of_messages_end_before_the_named_one(
    client: Client, monkeypatch: pytest.MonkeyPatch, page_items: int
) -> None:
    monkeypatch.setattr(history, "MAX_PAGE_ITEMS", page_items)
    for text in ("one", "two", "three"):
        await client.send(text)
    messages = await client.messages()
    assert await client.messages(limit=2) == messages[-2:]
    for end in range(len(messages)):
        for limit in (1, 2, 3):
            expected = messages[max(end - limit, 0) : end]
            assert await client.messages(limit=limit, before=messages[end]["id"]) == expected
    unknown = await client.live.client.get(f"{client.of_chat}/messages", params={"before": "x"})
    assert unknown.status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"id": "c"}, 422),
        ({"id": "c", "messages": []}, 422),
        ({"id": "a/b", "message": HELLO}, 422),
        ({"id": "..", "message": HELLO}, 422),
        ({"id": "c", "messages": [HELLO] * 2_002}, 422),
        ({"id": "c", "message": HELLO, "tools": {"": {}}}, 422),
        ({"id": "c", "message": HELLO, "tools": {"f": {"inputSchema": LARGE}}}, 422),
        ({"id": "c", "message": {"id": "m", "role": "user", "parts": []}}, 422),
        ({"id": "c", "message": {"id": "m", "role": "system", "parts": []}}, 422),
        ({"id": "c", "message": {"id": "m", "role": "assistant", "parts": []}}, 400),
        (
            {
                "id": "c",
                "message": {
                    "id": "m",
                    "role": "user",
                    "parts": [{"type": "file", "mediaType": "text/html", "url": "data:,x"}],
                },
            },
            422,
        ),
    ],
)
async def test_a_bad_request_is_refused_with_a_code_and_begins_nothing(
    client: Client, body: Json, status: int
) -> None:
    refused = await client.live.client.post(client.api, json=body)
    assert refused.status_code == status, refused.text
    assert list(refused.json())[:2] == ["code", "detail"]
    assert await client.live.run_ids(agent_id=client.agent_id) == []


async def test_a_conversation_of_another_client_is_a_chat_by_its_id(client: Client) -> None:
    conversation = await client.live.conversation(client.agent_id)
    chat = Client(client.live, client.agent_id, conversation["id"])
    await chat.send("hi")
    assert len(await client.live.contents(conversation["id"])) == 2
    again = {
        "id": chat.chat_id,
        "trigger": "regenerate-message",
        "message": {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "hi"}]},
    }
    refused = await client.live.client.post(client.api, json=again)
    assert refused.status_code == 400


async def test_a_server_without_the_dialect_has_none_of_its_routes(tmp_path: Path) -> None:
    async with serving(tmp_path, dialects=("openai",)) as server:
        agent = await server.agent()
        tags = [one["name"] for one in server.app.openapi_tags or ()]
        assert "openai" in tags
        assert "ai-sdk" not in tags
        path = f"/ai-sdk/{agent['id']}/chat/chat-1"
        assert (await server.client.get(f"{path}/stream")).status_code == 404
        assert (await server.client.post(f"{path}/stop")).status_code == 404


async def test_a_page_may_read_the_headers_that_its_transports_need(client: Client) -> None:
    headers = {"Origin": "http://localhost:3000"}
    answer = await client.live.client.get(f"{client.of_chat}/stream", headers=headers)
    exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
    assert {"x-workflow-run-id", "x-workflow-stream-tail-index"} <= {*exposed}


async def test_tenants_have_chats_of_their_own(tmp_path: Path) -> None:
    async with listening(tmp_path) as live:
        agent = await live.agent()
        live.gates.open(agent["id"])
        mine = Client(live, agent["id"], "chat-1")
        await mine.send("hi")
        async with await live.as_tenant("other") as other:  # type: ignore[arg-type]
            for path in (f"{mine.of_chat}/stream", f"{mine.of_chat}/messages"):
                assert (await other.get(path)).status_code == 404
            assert (await other.post(f"{mine.of_chat}/stop")).status_code == 404


async def test_a_stream_token_opens_the_chat_of_its_conversation_and_no_other(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path) as live:
        agent = await live.agent()
        live.gates.open(agent["id"])
        mine, other = [(await live.conversation(agent["id"]))["id"] for _ in range(2)]
        scopes = ["read", "send", "cancel"]
        asked = {"conversation_id": mine, "scope": scopes, "client_tools": ["where"]}
        issued = await live.client.post("/v1/tokens", json=asked)
        assert issued.status_code == 200, issued.text
        live.client.headers["Authorization"] = f"Bearer {issued.json()['token']}"
        chat = Client(live, agent["id"], mine)
        tool = {"parameters": {"type": "object"}}
        run_id = (await chat.send("hi", tools={"where": tool}))[0]["messageMetadata"]["run_id"]
        assert len(await chat.messages()) == 2
        assert (await live.client.get(f"{chat.api}/{run_id}/stream")).status_code == 200
        assert (await live.client.post(f"{chat.of_chat}/stop")).json() == {}
        message = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "hi"}]}
        refused = [
            await live.client.get(f"{chat.api}/{other}/stream"),
            await live.client.get(f"{chat.api}/chat-1/messages"),
            await live.client.post(f"{chat.api}/{other}/stop"),
            *[
                await live.client.post(chat.api, json={"id": mine, "message": message, **more})
                for more in ({"id": other}, {"system": "Obey."}, {"tools": {"rm": tool}})
            ],
        ]
        assert [one.status_code for one in refused] == [403] * len(refused)
