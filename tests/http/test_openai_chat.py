"""Chat Completions of OpenAI's API, over HTTP as its clients and chat applications speak it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from reattach.domain.ids import TenantId
from tests.support.chat_completions import (
    PATH,
    Json,
    assistant,
    body_of,
    chunks_of,
    completed,
    conversation,
    message_of,
    posted,
    refused,
    returned,
    text_of,
    user,
)
from tests.support.live_server import LiveServer, listening

LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
PIXEL = "data:image/png;base64,iVBORw0KGgo="
TOOLS = tuple(f"tests.support.tool_functions:{name}" for name in ("add", "deploy"))


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path_factory.mktemp("live"), tools=TOOLS) as live:
        yield live


@pytest.fixture
async def agent(live: LiveServer) -> str:
    """An agent with tools, whose gate is open."""
    made: str = (await live.agent(tools=["add", "deploy"]))["id"]
    live.gates.open(made)
    return made


# Streams and whole answers.


async def test_a_whole_answer_has_the_text_the_usage_and_the_ids(
    live: LiveServer, agent: str
) -> None:
    response = await posted(live, agent, user("[think=1] hello there"))
    answer = response.json()
    assert answer["object"] == "chat.completion"
    assert answer["id"] == "chatcmpl-" + response.headers["x-run-id"][4:].replace("-", "")
    assert answer["model"] == agent
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"].strip() == "hello there"
    assert choice["message"]["reasoning_content"] == "r0 "
    assert "tool_calls" not in choice["message"]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    run = await live.run(response.headers["x-run-id"])
    assert run["conversation_id"] == response.headers["x-conversation-id"]


async def test_a_stream_adds_up_to_the_whole_answer(live: LiveServer, agent: str) -> None:
    response = await posted(
        live,
        agent,
        user("[think=2] [chunks=4]"),
        stream=True,
        stream_options={"include_usage": True},
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-conversation-id"].startswith("conv-")
    *chunks, last = chunks_of(response.text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(chunks) == "t0 t1 t2 t3 "
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]["completion_tokens"] > 0) == ([], True)
    plain = await posted(live, agent, user("[think=2] [chunks=4]"), stream=True)
    assert "usage" not in plain.text
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_a_failed_run_is_an_error_in_the_stream_and_a_status_without_one(
    live: LiveServer, agent: str
) -> None:
    response = await posted(live, agent, user("[fail=2]"), stream=True)
    chunks = chunks_of(response.text)
    assert text_of(chunks[:-1]) == "t0 t1 "
    error = chunks[-1]["error"]
    assert (error["type"], error["param"]) == ("server_error", None)
    assert "failed as the script says" in error["message"]
    body = body_of(agent, user("[fail=2]"))
    failed = await live.client.post(PATH, json=body)
    assert failed.status_code == 500
    assert failed.json()["error"]["message"] == error["message"]
    assert failed.headers["x-should-retry"] == "false"


async def test_an_answer_at_its_limit_says_so(live: LiveServer, agent: str) -> None:
    answer = await completed(live, agent, user("[stop=max_tokens_exceeded] and so on"))
    assert answer["choices"][0]["finish_reason"] == "length"


# Tools.


@pytest.mark.parametrize("key", ["tools-1", None])
async def test_a_tool_of_the_client_makes_its_round_trip(
    live: LiveServer, agent: str, key: str | None
) -> None:
    headers = {"x-reattach-chat-key": key} if key else {}
    asked = user('[client_tool=look][arguments={"at": "the sea"}] look')
    first = await completed(live, agent, asked, tools=[LOOK], headers=headers)
    (choice,) = first["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "look", "arguments": '{"at": "the sea"}'}
    messages = [asked, choice["message"], returned(call, "calm")]
    second = await posted(live, agent, *messages, tools=[LOOK], headers=headers)
    assert message_of(second.json())["content"] == "look success: calm\n"
    stored = [kind for kind, _ in await conversation(live, second)]
    assert stored.count("user_message") == 1
    if key:
        assert stored.count("tool_return_message") == 1


async def test_a_streamed_call_names_the_tool_once_and_goes_on_in_pieces(
    live: LiveServer, agent: str
) -> None:
    asked = user('[client_tool=look][arguments={"at": "the sea"}] look')
    response = await posted(live, agent, asked, tools=[LOOK], stream=True)
    calls = [
        call
        for chunk in chunks_of(response.text)
        for call in chunk["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert len(calls) > 1
    assert [call["function"].get("name") for call in calls] == ["look"] + [None] * (len(calls) - 1)
    joined = "".join(call["function"]["arguments"] for call in calls)
    assert json.loads(joined) == {"at": "the sea"}


async def test_the_tools_of_the_server_run_and_are_never_shown_as_calls(
    live: LiveServer, agent: str
) -> None:
    asked = user('[tool=add][arguments={"n": 2}] hello')
    answer = await completed(live, agent, asked, tools=[])
    assert "tool_calls" not in message_of(answer)
    assert answer["choices"][0]["finish_reason"] == "stop"
    response = await posted(live, agent, asked, stream=True)
    assert "tool_calls" not in response.text
    assert "tool_return_message" in [kind for kind, _ in await conversation(live, response)]


async def test_a_call_that_needs_an_approval_is_named_in_the_text(
    live: LiveServer, agent: str
) -> None:
    headers = {"x-reattach-chat-key": "approval"}
    asked = user('[approve=deploy][arguments={"n": 2}] sure')
    answer = await completed(live, agent, asked, headers=headers)
    assert "Waiting for an approval of `deploy`" in message_of(answer)["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    error = await refused(live, agent, user("and now?"), status=409, headers=headers)
    assert error["code"] == "pending_approval"
    _, path = re.findall(r"(POST|/v1/runs/\S+/cancel)", error["message"])
    assert (await live.client.post(path)).status_code == 200
    assert message_of(await completed(live, agent, user("and now?"), headers=headers))


async def test_a_choice_of_no_tool_withholds_them(live: LiveServer, agent: str) -> None:
    asked = user("[client_tool=look] look")
    answer = await completed(live, agent, asked, tools=[LOOK], tool_choice="none")
    assert "tool_calls" not in message_of(answer)


# Conversations.


@pytest.mark.parametrize(
    ("header", "streams"),
    [
        ("x-reattach-chat-key", False),
        ("X-Letta-Chat-Key", True),
        ("X-OpenWebUI-Chat-Id", True),
        ("X-Conversation-Id", True),
    ],
)
async def test_a_chat_with_a_name_keeps_the_new_messages_of_each_request(
    live: LiveServer, agent: str, header: str, streams: bool
) -> None:
    headers = {header: "chat-1"}
    first = await posted(live, agent, user("one"), headers=headers, stream=streams)
    sent = [user("one"), assistant("one"), user("two")]
    second = await posted(live, agent, *sent, headers=headers, stream=streams)
    assert first.headers["x-conversation-id"] == second.headers["x-conversation-id"]
    assert await conversation(live, second) == [
        ("user_message", "one"),
        ("assistant_message", "one"),
        ("user_message", "two"),
        ("assistant_message", "two"),
    ]
    listed = await live.got("/v1/conversations/", agent_id=agent)
    assert [one["id"] for one in listed] == [second.headers["x-conversation-id"]]


async def test_a_chat_that_comes_under_a_name_later_begins_with_its_past(
    live: LiveServer, agent: str
) -> None:
    sent = [user("before"), assistant("yes"), user("[history]")]
    response = await posted(live, agent, *sent, headers={"x-reattach-chat-key": "late"})
    assert message_of(response.json())["content"] == "user: before\nassistant: yes\n"


async def test_a_request_without_a_name_gets_a_hidden_conversation_with_its_past(
    live: LiveServer, agent: str
) -> None:
    call = {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    sent = [user("look"), assistant(None, call), returned(call, "calm"), assistant("It is calm.")]
    response = await posted(live, agent, *sent, user("[history]"))
    history = message_of(response.json())["content"]
    assert history.startswith("user: look\n")
    assert "assistant: It is calm.\n" in history
    assert (await conversation(live, response))[-1][0] == "assistant_message"
    again = await posted(live, agent, *sent, user("[history]"))
    assert again.headers["x-conversation-id"] != response.headers["x-conversation-id"]
    assert await live.got("/v1/conversations/", agent_id=agent) == []


@pytest.mark.parametrize("header", ["X-OpenWebUI-Chat-Id", "X-Conversation-Id"])
async def test_the_title_of_a_chat_is_made_apart_from_it_and_without_tools(
    live: LiveServer, agent: str, header: str
) -> None:
    headers = {header: f"titled {header}"}
    chat = await posted(live, agent, user("hello"), headers=headers, stream=True)
    title = await posted(
        live, agent, user('[tool=add][arguments={"n": 2}] A title'), headers=headers
    )
    assert title.headers["x-conversation-id"] != chat.headers["x-conversation-id"]
    assert len(await conversation(live, chat)) == 2
    items = await live.got(
        f"/v1/conversations/{title.headers['x-conversation-id']}/messages", order="asc"
    )
    returned = [one["tool_return"] for one in items if "tool_return" in one]
    assert returned == ["add returned 1"], "the scripted model has invented it"
    listed = await live.got("/v1/conversations/", agent_id=agent)
    assert [one["id"] for one in listed] == [chat.headers["x-conversation-id"]]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        *[("x-conversation-id", value) for value in ("new", "null", "", "undefined")],
        *[("x-openwebui-chat-id", value) for value in ("local:8AbC", "channel:1")],
    ],
)
async def test_a_chat_that_is_temporary_or_has_no_id_yet_shares_no_conversation(
    live: LiveServer, agent: str, header: str, value: str
) -> None:
    headers = {header: value}
    one, other = [
        await posted(live, agent, user("hi"), headers=headers, stream=True) for _ in range(2)
    ]
    assert one.headers["x-conversation-id"] != other.headers["x-conversation-id"]


async def test_a_name_that_is_an_unfilled_template_is_refused(live: LiveServer, agent: str) -> None:
    headers = {"x-conversation-id": "{{LIBRECHAT_BODY_CONVERSATIONID}}"}
    error = await refused(live, agent, user("hi"), status=400, headers=headers)
    assert "template" in error["message"]


async def test_system_messages_follow_the_prompt_of_the_agent_for_one_turn(
    live: LiveServer,
) -> None:
    agent = (await live.agent(system="You are a guide."))["id"]
    live.gates.open(agent)
    headers = {"x-reattach-chat-key": "system"}
    sent = [{"role": "developer", "content": "Be brief."}, user("[system]")]
    answer = message_of(await completed(live, agent, *sent, headers=headers))["content"]
    assert answer.startswith("You are a guide.")
    assert answer.endswith("Be brief.")
    later = await completed(live, agent, user("[system]"), headers=headers)
    assert "Be brief." not in message_of(later)["content"]


async def test_an_image_reaches_the_conversation(live: LiveServer, agent: str) -> None:
    image = {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}
    content = [{"type": "text", "text": "What is it?"}, image]
    response = await posted(live, agent, {"role": "user", "content": content})
    kept = (await conversation(live, response))[0][1]
    assert [part["type"] for part in kept] == ["text", "image"]


async def test_an_answer_is_followed_and_cancelled_through_other_dialects(
    live: LiveServer,
) -> None:
    agent = (await live.agent())["id"]
    live.gates.hold(agent, 2)
    async with live.stream(PATH, body_of(agent, user("[chunks=4]"), stream=True)) as stream:
        run_id = stream.run_id
        await live.gates.reached(agent, 2)
        async with live.stream(f"/v1/runs/{run_id}/stream", method="GET") as letta:
            assert [frame.event["content"] for frame in await letta.until("assistant_message")]
            cancel = f"/openai/v1/responses/resp_{run_id[4:].replace('-', '')}/cancel"
            assert (await live.client.post(cancel)).json()["status"] == "cancelled"
            assert (await letta.rest())[-1].kind == "[DONE]"
        last = [frame.raw for frame in await stream.rest()][-2:]
    assert json.loads(last[0].removeprefix(b"data: "))["choices"][0]["finish_reason"] == "stop"
    assert last[1] == b"data: [DONE]\n\n"


# Bad input, and other tenants.


def call(call_id: str = "call-1") -> Json:
    return {"id": call_id, "type": "function", "function": {"name": "look", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([], "messages", "not empty"),
        ([assistant("hi")], "messages[0].role", "Add a message of the user"),
        (
            [user("a"), assistant("b"), {"role": "system", "content": "c"}],
            "messages[2].role",
            "Add",
        ),
        ([user("a"), assistant(None, call()), user("b")], "messages[2].role", "has no result"),
        (
            [user("a"), assistant(None, call()), returned({"id": "other"}, "x")],
            "messages[2].tool_call_id",
            "No call with the id 'other'",
        ),
        ([user("a"), assistant(None, call(), call())], "messages[1].tool_calls", "Two calls"),
        ([user("a"), returned(call(), "x")], "messages[1].role", "must precede"),
        ([{"role": "function", "content": "x"}], "messages[0]", "role"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content", "string"),
        ([{"role": "user", "content": 5}], "messages[0].content", "string"),
    ],
)
async def test_messages_that_make_no_conversation_are_refused_with_their_place(
    live: LiveServer, agent: str, messages: list[Json], param: str | None, words: str
) -> None:
    error = await refused(live, agent, *messages, status=422)
    assert param is None or error["param"] == param
    assert words.lower() in error["message"].lower()
    assert await live.run_ids(agent_id=agent) == []


async def test_a_result_that_nothing_waits_for_is_refused(live: LiveServer, agent: str) -> None:
    error = await refused(live, agent, returned(call(), "x"), status=400)
    assert error["code"] == "no_pending_approval"


@pytest.mark.parametrize(
    "more", [{"n": 2}, {"tools": [LOOK, LOOK]}, {"tools": [{"type": "custom"}]}, {"stream": "x"}]
)
async def test_what_an_agent_cannot_do_is_refused(live: LiveServer, agent: str, more: Json) -> None:
    assert (await refused(live, agent, user("hi"), status=422, **more))["type"] == (
        "invalid_request_error"
    )
    assert await live.run_ids(agent_id=agent) == []


async def test_members_that_an_agent_has_no_use_for_are_ignored(
    live: LiveServer, agent: str
) -> None:
    answer = await completed(
        live, agent, user("hi"), temperature=0.2, max_tokens=5, user="u", metadata={"a": "b"}
    )
    assert message_of(answer)["content"] == "hi"


async def test_an_unknown_model_is_not_found(live: LiveServer) -> None:
    error = await refused(live, "nobody", user("hi"), status=404)
    assert "GET /openai/v1/models" in error["message"]


async def test_a_tenant_reaches_neither_the_agents_nor_the_chats_of_another(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path) as live:
        agent = (await live.agent())["id"]
        live.gates.open(agent)
        headers = {"x-reattach-chat-key": "chat", "idempotency-key": "request"}
        ours = await posted(live, agent, user("hi"), headers=headers)
        async with await live.as_tenant(TenantId("tenant-b")) as stranger:
            body = body_of(agent, user("hi"))
            response = await stranger.post(PATH, json=body, headers=headers)
            assert response.status_code == 404
            theirs = (await stranger.post("/v1/agents/", json={})).json()["id"]
            live.gates.open(theirs)
            body = body_of(theirs, user("hi"))
            response = await stranger.post(PATH, json=body, headers=headers)
            assert response.status_code == 200
            assert response.headers["x-run-id"] != ours.headers["x-run-id"]
