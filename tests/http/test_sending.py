from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from reattach.domain.ids import new_agent_id, new_conversation_id, new_uuid
from reattach.http.schemas.sending import WholeAnswer
from tests.support.asgi_server import own_text
from tests.support.live_server import (
    Frame,
    LiveServer,
    hold_settlements,
    joined,
    kinds,
    message_body,
    new_threads,
    text,
    to,
)

PIXEL = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


async def answered(live: LiveServer, conversation: str, message: Any, **body: Any) -> list[Frame]:
    """Send one user message and return the stream."""
    return await live.streamed(to(conversation), {"input": message, "stream_tokens": True, **body})


async def refusal(live: LiveServer, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    response = await live.client.post(path, json=body)
    error: dict[str, Any] = response.json()
    assert isinstance(error["detail"], str)
    assert isinstance(error["code"], str)
    return response.status_code, error


# The form of the answer.


async def test_a_conversation_streams_by_default_and_an_agent_answers_in_json(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    body = {"messages": [{"role": "user", "content": "good day"}]}
    for path, streams in (
        (to(conversation), True),
        (to(agent), True),
        (f"/v1/agents/{agent}/messages", False),
        (f"/v1/agents/{agent}/messages/stream", True),
    ):
        response = await live.client.post(path, json=body)
        assert response.status_code == 200
        is_stream = response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert is_stream is streams
        if not streams:
            assert response.json()["messages"][0]["content"] == "good day"
    for path, streaming in ((to(conversation), False), (f"/v1/agents/{agent}/messages", True)):
        response = await live.client.post(path, json={**body, "streaming": streaming})
        is_stream = response.headers["content-type"].startswith("text/event-stream")
        assert is_stream is streaming


async def test_whole_messages_are_streamed_by_default_and_fragments_if_asked_for(
    live: LiveServer,
) -> None:
    _, conversation = await new_threads(live)
    whole = await live.streamed(to(conversation), {"input": "one two three"})
    pieces = await live.streamed(
        to(conversation), {"input": "one two three", "stream_tokens": True}
    )
    assert kinds(whole).count("assistant_message") == 1
    assert kinds(pieces).count("assistant_message") == 3
    assert text(whole) == text(pieces) == "one two three"


@pytest.mark.promise("P1", "P3")
@pytest.mark.parametrize("background", [False, True])
async def test_a_stream_is_a_ping_then_the_steps_then_one_terminal_group_then_done(
    live: LiveServer, background: bool
) -> None:
    _, conversation = await new_threads(live)
    frames = await answered(
        live, conversation, "[tool=look][think=2][chunks=3]", background=background
    )
    assert kinds(frames) == [
        "ping",
        *["tool_call_message"] * 3,
        "tool_return_message",
        *["reasoning_message"] * 2,
        *["assistant_message"] * 3,
        "stop_reason",
        "usage_statistics",
        "[DONE]",
    ]
    assert [frame.seq for frame in frames[:-1]] == list(range(1, len(frames)))
    assert frames[-3].event["stop_reason"] == "end_turn"
    assert frames[-2].event["step_count"] == 2


async def test_pings_are_left_out_if_they_are_not_wanted(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    for include_pings in (False, None):
        frames = await answered(live, conversation, "hi", include_pings=include_pings)
        assert kinds(frames)[0] == "assistant_message"
        assert frames[0].seq == 1


@pytest.mark.promise("P3")
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    ("message", "stop_reason", "error_type"),
    [
        ("[fail=0]", "llm_api_error", "llm_error"),
        ("[fail=3]", "llm_api_error", "llm_error"),
        ("[fail=3:llm_timeout]", "llm_api_error", "llm_timeout"),
        ("[fail=3:llm_rate_limit]", "llm_api_error", "llm_rate_limit"),
        ("[fail=3:llm_empty_response]", "invalid_llm_response", "llm_empty_response"),
        ("[crash=3]", "error", "internal_error"),
        ("[no_such=1]", "llm_api_error", "llm_error"),
    ],
)
async def test_a_run_that_fails_ends_its_stream_as_any_other(
    live: LiveServer, message: str, stop_reason: str, error_type: str, background: bool
) -> None:
    _, conversation = await new_threads(live)
    frames = await answered(live, conversation, message, background=background)
    assert kinds(frames)[-4:] == ["stop_reason", "error_message", "usage_statistics", "[DONE]"]
    assert kinds(frames).count("stop_reason") == 1
    assert frames[-4].event["stop_reason"] == stop_reason
    assert frames[-3].event["error_type"] == error_type
    assert "Traceback" not in frames[-3].event["message"]
    assert "crashed as the script says" not in frames[-3].event["message"]
    run = await live.run(frames[0].event["run_id"])
    assert (run["status"], run["stop_reason"]) == ("failed", stop_reason)
    assert run["metadata"]["error"]["error_type"] == error_type


@pytest.mark.parametrize("by", ["conversation", "agent"])
async def test_json_is_the_whole_answer_with_its_reason_and_its_usage(
    live: LiveServer, by: str
) -> None:
    agent, conversation = await new_threads(live)
    path = to(conversation) if by == "conversation" else f"/v1/agents/{agent}/messages"
    answer = await live.made(path, {"input": "[think=2][chunks=3]", "streaming": False})
    WholeAnswer.model_validate(answer, strict=True)
    assert list(answer) == ["messages", "stop_reason", "usage", "logprobs", "turns"]
    assert [
        (item["message_type"], item.get("reasoning", item.get("content")))
        for item in answer["messages"]
    ] == [("reasoning_message", "r0 r1 "), ("assistant_message", "t0 t1 t2 ")]
    assert answer["stop_reason"]["stop_reason"] == "end_turn"
    assert answer["stop_reason"]["message_type"] == "stop_reason"
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["usage"]["step_count"] == 1
    assert answer["logprobs"] is answer["turns"] is None


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        ("[fail=2]", 500, "llm_error"),
        ("[fail=2:llm_timeout]", 504, "llm_timeout"),
        ("[fail=0:llm_rate_limit]", 429, "llm_rate_limit"),
        ("[fail=0:llm_authentication]", 401, "llm_authentication"),
        ("[fail=0:llm_empty_response]", 500, "llm_empty_response"),
        ("[crash=1]", 500, "internal_error"),
    ],
)
async def test_a_failed_json_send_has_the_status_of_its_error(
    live: LiveServer, message: str, status: int, code: str
) -> None:
    agent, conversation = await new_threads(live)
    for path in (to(conversation), f"/v1/agents/{agent}/messages"):
        response = await live.client.post(path, json={"input": message, "streaming": False})
        error = response.json()
        assert (response.status_code, error["code"]) == (status, code)
        assert response.headers["x-should-retry"] == "false"
        assert "crashed as the script says" not in error["detail"]
        if code.startswith("llm"):
            assert error["error"]["type"] == code
        assert (await live.run(error["run_id"]))["status"] == "failed"


async def test_an_agents_json_answer_takes_no_options_of_streams(live: LiveServer) -> None:
    agent, _ = await new_threads(live)
    before = live.rows()
    for option in ({"stream_tokens": True}, {"background": True}, {"include_pings": False}):
        body = {"input": "hi", **option}
        status, error = await refusal(live, f"/v1/agents/{agent}/messages", body)
        [name] = option
        assert (status, error["code"]) == (422, "validation_error")
        assert error["errors"][0]["loc"] == ["body", name]
    assert live.rows() == before


# Which events are shown.


@pytest.mark.promise("P1")
@pytest.mark.parametrize("types", [["assistant_message"], ["reasoning_message"], []])
async def test_types_that_are_not_wanted_are_in_no_log_and_the_conversation_keeps_them(
    live: LiveServer, types: list[str]
) -> None:
    _, conversation = await new_threads(live)
    frames = await answered(
        live,
        conversation,
        "[tool=look][think=2][chunks=2]",
        background=True,
        include_return_message_types=types,
    )
    shown = set(kinds(frames)) - {"ping", "stop_reason", "usage_statistics", "[DONE]"}
    assert shown == set(types)
    assert [frame.seq for frame in frames[:-1]] == list(range(1, len(frames)))
    run = frames[0].event["run_id"]
    assert frames == await live.streamed(f"/v1/runs/{run}/stream", {})
    kept = [kind for kind, _ in await live.contents(conversation)]
    assert kept == [
        "user_message",
        "tool_call_message",
        "tool_return_message",
        "reasoning_message",
        "assistant_message",
    ]
    config = (await live.run(run))["request_config"]
    assert config["include_return_message_types"] == types


async def test_a_json_answer_has_only_the_types_that_are_wanted(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    answer = await live.send(
        conversation,
        "[tool=look][think=1][chunks=1]",
        include_return_message_types=["tool_return_message", "assistant_message"],
    )
    shown = [item["message_type"] for item in answer["messages"]]
    assert shown == ["tool_return_message", "assistant_message"]


# The messages that are sent.


async def test_input_is_short_for_one_user_message(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    await answered(live, conversation, "as text")
    await answered(live, conversation, [{"type": "text", "text": "as parts"}])
    said = [content for kind, content in await live.contents(conversation) if "user" in kind]
    assert said == ["as text", "as parts"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "exactly one of"),
        ({"messages": None, "input": None}, "exactly one of"),
        ({"messages": [{"role": "user", "content": "a"}], "input": "b"}, "exactly one of"),
        ({"messages": []}, "Messages must not be empty"),
    ],
    ids=["neither", "nulls", "both", "empty"],
)
async def test_a_send_has_messages_or_input_and_not_both(
    live: LiveServer, body: dict[str, Any], reason: str
) -> None:
    agent, conversation = await new_threads(live)
    before = live.rows()
    for path in (
        to(conversation),
        f"/v1/agents/{agent}/messages",
        f"/v1/agents/{agent}/messages/stream",
    ):
        status, error = await refusal(live, path, body)
        assert (status, error["code"]) == (422, "validation_error")
        assert reason in error["detail"]
    assert live.rows() == before


async def test_messages_are_stored_with_all_their_members(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    otid = new_uuid()
    sent = [
        {"role": "system", "content": "be kind"},
        {"role": "assistant", "content": "I said this"},
        {"role": "user", "content": "hello", "name": "Ada", "sender_id": "s-1", "otid": otid},
    ]
    frames = await live.streamed(to(conversation), {"messages": sent, "batch_item_id": "ignored"})
    items = await live.got(f"/v1/conversations/{conversation}/messages", order="asc")
    assert [(item["message_type"], item["content"]) for item in items[1:]] == [
        ("system_message", "be kind"),
        ("assistant_message", "I said this"),
        ("user_message", "hello"),
        ("assistant_message", "hello"),
    ]
    user = items[3]
    assert (user["name"], user["sender_id"], user["otid"]) == ("Ada", "s-1", otid)
    assert user["run_id"] == frames[0].event["run_id"]
    assert items[4]["id"] == frames[1].event["id"]
    assert all(item["otid"] for item in items[1:])


async def test_images_are_taken_by_url_and_in_base64_and_given_back(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    url = {"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}}
    inline = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/gif", "data": PIXEL},
    }
    words = {"type": "text", "text": "look"}
    for content in ([words, url], [inline, words], [url, inline, words]):
        frames = await live.streamed(
            to(conversation), {"messages": [{"role": "user", "content": content}]}
        )
        assert text(frames) == "look"
        kept = [item for kind, item in await live.contents(conversation) if "user" in kind]
        assert kept[-1] == content


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ({"type": "letta", "file_id": "file-1"}, 501),
        ({"type": "url"}, 422),
        ({"type": "url", "url": None}, 422),
        ({"type": "base64", "media_type": "image/png"}, 422),
        ({"type": "base64", "data": None}, 422),
        ({"type": "carrier pigeon", "url": "x"}, 422),
        ({}, 422),
        (None, 422),
    ],
    ids=repr,
)
async def test_an_image_without_its_picture_is_refused(
    live: LiveServer, source: Any, status: int
) -> None:
    _, conversation = await new_threads(live)
    before = live.rows()
    content = [{"type": "text", "text": "look"}, {"type": "image", "source": source}]
    for body in ({"messages": [{"role": "user", "content": content}]}, {"input": content}):
        assert (await refusal(live, to(conversation), body))[0] == status
    assert live.rows() == before


async def test_empty_lists_of_tools_and_deprecated_options_are_taken(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    options: dict[str, Any] = {
        "client_tools": [],
        "client_skills": None,
        "use_assistant_message": False,
        "assistant_message_tool_name": "tell",
        "assistant_message_tool_kwarg": "words",
        "enable_thinking": "true",
        "include_compaction_messages": True,
        "return_logprobs": False,
        "top_logprobs": None,
        "unknown_member": {"deep": [1, None]},
    }
    assert text(await answered(live, conversation, "hi", **options)) == "hi"


# How it is answered.


async def test_a_send_can_choose_its_model_for_itself_only(live: LiveServer) -> None:
    _, conversation = await new_threads(live)

    async def model_of(**body: Any) -> Any:
        frames = await answered(live, conversation, "hi", **body)
        [step] = await live.got(f"/v1/runs/{frames[0].event['run_id']}/steps")
        return step["model_handle"]

    assert await model_of(override_model="scripted/slow") == "scripted/slow"
    assert await model_of() == "scripted/echo"
    status, error = await refusal(
        live, to(conversation), {"input": "hi", "override_model": "openai/none"}
    )
    assert (status, error["code"]) == (404, "not_found")
    assert error["detail"].startswith("NOT_FOUND: Handle openai/none not found")


async def test_a_send_can_choose_its_system_prompt_for_itself_only(live: LiveServer) -> None:
    _, conversation = await new_threads(live, system="Be brief.")
    assert (
        text(await answered(live, conversation, "[system]", override_system="Shout!")) == "Shout!"
    )
    assert own_text(text(await answered(live, conversation, "[system]"))) == "Be brief."


async def test_the_model_gets_the_memory_as_of_the_turn(live: LiveServer) -> None:
    block = {"label": "human", "value": "Her name is Ada."}
    agent, conversation = await new_threads(live, system="Be brief.", memory_blocks=[block])
    prompt = text(await answered(live, conversation, "[system]"))
    assert prompt.startswith("Be brief.")
    assert '<block label="human"' in prompt
    assert "Her name is Ada." in prompt
    response = await live.client.patch(
        f"/v1/agents/{agent}/core-memory/blocks/human", json={"value": "Her name is Grace."}
    )
    assert response.status_code == 200, response.text
    prompt = text(await answered(live, conversation, "[system]"))
    assert "Grace" in prompt
    assert "Ada" not in prompt


async def test_the_model_gets_the_earlier_messages_of_the_conversation(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    assert text(await answered(live, conversation, "[history]")) == "(no earlier messages)\n"
    await answered(live, conversation, "the sky is blue")
    await live.send(conversation, "the sea too")
    await live.send("default", "a secret of the default thread", agent_id=agent)
    expected = (
        "user: [history]\n"
        "assistant: (no earlier messages)\n\n"
        "user: the sky is blue\n"
        "assistant: the sky is blue\n"
        "user: the sea too\n"
        "assistant: the sea too\n"
    )
    assert text(await answered(live, conversation, "[history]")) == expected
    default = await live.send("default", "[history]", agent_id=agent)
    assert default["messages"][0]["content"].startswith("user: a secret of the default thread\n")
    assert "sky" not in default["messages"][0]["content"]


@pytest.mark.parametrize(
    ("max_steps", "steps", "stop_reason"),
    [(1, 1, "max_steps"), (2, 2, "max_steps"), (3, 3, "end_turn"), (None, 3, "end_turn")],
)
async def test_a_turn_takes_no_more_steps_than_allowed(
    live: LiveServer, max_steps: int | None, steps: int, stop_reason: str
) -> None:
    _, conversation = await new_threads(live)
    frames = await answered(live, conversation, "[steps=3][chunks=1]", max_steps=max_steps)
    assert frames[-3].event["stop_reason"] == stop_reason
    assert frames[-2].event["step_count"] == steps
    assert len({frame.event["step_id"] for frame in frames[1:-3]}) == steps
    assert (await live.run(frames[0].event["run_id"]))["status"] == "completed"


@pytest.mark.parametrize("max_steps", [0, -1, 1001, 2**40, 1.5, "many", [3]], ids=repr)
async def test_steps_are_at_least_one_and_at_most_a_thousand(
    live: LiveServer, max_steps: Any
) -> None:
    _, conversation = await new_threads(live)
    body = {"input": "hi", "max_steps": max_steps}
    status, error = await refusal(live, to(conversation), body)
    assert (status, error["code"]) == (422, "validation_error")
    assert error["errors"][0]["loc"] == ["body", "max_steps"]


# Where it goes.


@pytest.mark.promise("P11")
async def test_unknown_conversations_and_agents_get_404_and_start_nothing(live: LiveServer) -> None:
    agent, _ = await new_threads(live)
    deleted = (await live.conversation(agent))["id"]
    assert (await live.client.delete(f"/v1/conversations/{deleted}")).status_code == 200
    before = live.rows()
    unknown = new_agent_id()
    for path, body in (
        (to(new_conversation_id()), {}),
        (to(deleted), {}),
        (to("default"), {}),
        (to("default"), {"agent_id": None}),
        (to("default"), {"agent_id": ""}),
        (to("default"), {"agent_id": unknown}),
        (to(unknown), {}),
        (f"/v1/agents/{unknown}/messages", {}),
        (f"/v1/agents/{unknown}/messages/stream", {}),
        (f"/v1/agents/{unknown}/messages", {"streaming": True}),
    ):
        for streaming in ({}, {"streaming": False}):
            status, error = await refusal(live, path, {"input": "hi", **streaming, **body})
            assert (status, error["code"]) == (404, "not_found")
    assert live.rows() == before


async def test_default_and_an_agents_id_are_the_thread_of_the_agents_route(
    live: LiveServer,
) -> None:
    agent, _ = await new_threads(live)
    await live.made(f"/v1/agents/{agent}/messages", {"input": "one"})
    await answered(live, "default", "two", agent_id=agent)
    async with live.stream(to(agent), {"input": "three", "agent_id": new_agent_id()}) as stream:
        assert stream.headers["deprecation"].startswith("@")
        link = '</v1/conversations/default/messages>; rel="successor-version"'
        assert stream.headers["link"] == link
        await stream.rest()
    said = [one for kind, one in await live.contents("default", agent_id=agent) if "user" in kind]
    assert said == ["one", "two", "three"]


# The messages that the conversation keeps.


@pytest.mark.promise("P3")
async def test_after_done_the_run_has_ended_and_its_messages_are_there(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    for number in range(1, 21):
        async with live.stream(to(conversation), {"input": "hi", "background": True}) as stream:
            await stream.until("[DONE]")
            run, items = await asyncio.gather(live.run(stream.run_id), live.contents(conversation))
        assert run["status"] == "completed"
        assert len(items) == 2 * number


@pytest.mark.promise("P3")
@pytest.mark.parametrize("message", ["[chunks=2]", "[fail=2]"])
async def test_the_terminal_group_is_sent_only_after_the_run_is_recorded(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    _, conversation = await new_threads(live)
    settlements = hold_settlements(live, monkeypatch)
    async with live.stream(to(conversation), {"input": message}) as stream:
        ending = asyncio.create_task(stream.until("stop_reason"))
        async with asyncio.timeout(20):
            await settlements.reached.wait()
        too_early, _ = await asyncio.wait({ending}, timeout=0.2)
        assert not too_early
        settlements.go_on.set()
        await ending
        assert (await live.run(stream.run_id))["status"] != "running"


@pytest.mark.parametrize("message", ["[fail=0]", "[fail=0:llm_timeout]", "[crash=0]", "[x=1]"])
async def test_a_run_that_fails_before_the_model_gave_anything_leaves_the_conversation_as_it_was(
    live: LiveServer, message: str
) -> None:
    _, conversation = await new_threads(live)
    await answered(live, conversation, "before")
    before = await live.contents(conversation)
    frames = await answered(live, conversation, message)
    assert await live.contents(conversation) == before
    inputs = await live.got(f"/v1/runs/{frames[0].event['run_id']}/messages")
    assert [item["content"] for item in inputs] == [message]
    assert "[fail" not in text(await answered(live, conversation, "[history]"))


@pytest.mark.parametrize("message", ["[fail=2]", "[crash=2]"])
async def test_a_run_that_fails_later_keeps_sent_and_streamed_messages(
    live: LiveServer, message: str
) -> None:
    _, conversation = await new_threads(live)
    frames = await answered(live, conversation, message)
    assert await live.contents(conversation) == [
        ("user_message", message),
        ("assistant_message", "t0 t1 "),
    ]
    assert text(frames) == "t0 t1 "


@pytest.mark.promise("P6")
@pytest.mark.parametrize("streamed", [0, 1, 3])
async def test_a_cancelled_run_keeps_its_streamed_messages(live: LiveServer, streamed: int) -> None:
    agent, conversation = await new_threads(live)
    run = await live.held_run(agent, conversation, "[chunks=5]", after=streamed)
    assert await live.made(f"/v1/conversations/{conversation}/cancel", None) == {run: "cancelled"}
    said = "".join(f"t{number} " for number in range(streamed))
    expected = [("user_message", "[chunks=5]"), ("assistant_message", said)] if streamed else []
    assert await live.contents(conversation) == expected
    frames = await live.streamed(f"/v1/runs/{run}/stream", {})
    assert text(frames) == said


async def test_streamed_and_stored_messages_are_identical(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    frames = await answered(live, conversation, "[unicode][chunks=40]")
    [_, (_, kept)] = await live.contents(conversation)
    assert kept == text(frames)
    assert "data: [DONE]\n\n" in kept


async def test_the_last_message_is_dated_when_it_arrives_and_again_at_the_end(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    path = f"/v1/conversations/{conversation}"
    assert (await live.got(path))["last_message_at"] is None
    run = await live.held_run(agent, conversation, "[chunks=2]", after=1)
    arrived = (await live.got(path))["last_message_at"]
    assert arrived == (await live.run(run))["created_at"]
    ended = await live.ended(run)
    assert (await live.got(path))["last_message_at"] == ended["completed_at"] > arrived


# Readers that go away.


@pytest.mark.promise("P6")
@pytest.mark.parametrize("background", [False, True])
async def test_a_run_continues_when_its_sender_disconnects(
    live: LiveServer, background: bool
) -> None:
    agent, conversation = await new_threads(live)
    live.gates.hold(agent, 2)
    body = {"input": "[chunks=6]", "stream_tokens": True, "background": background}
    async with live.stream(to(conversation), body) as stream:
        frames = [await stream.next() for _ in range(3)]
        run = stream.run_id
    assert text(frames) == "t0 t1 "
    assert (await live.ended(run))["stop_reason"] == "end_turn"
    [_, (_, said)] = await live.contents(conversation)
    assert said == "t0 t1 t2 t3 t4 t5 "


@pytest.mark.promise("P6")
async def test_a_json_sender_that_goes_away_leaves_its_run_running(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    live.gates.hold(agent, 1)
    body = {"input": "[chunks=3]", "streaming": False}
    sending = asyncio.create_task(live.client.post(to(conversation), json=body))
    await live.gates.reached(agent, 1)
    sending.cancel()
    await asyncio.wait({sending})
    [run] = await live.run_ids(agent_id=agent)
    assert (await live.ended(run))["status"] == "completed"
    assert (await live.contents(conversation))[1] == ("assistant_message", "t0 t1 t2 ")


@pytest.mark.promise("P2", "P6")
async def test_all_readers_of_a_run_get_the_same_frames_as_its_sender(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    live.gates.hold(agent, 3)
    body = message_body("[think=2][chunks=6]", background=True)
    path = f"/v1/conversations/{conversation}/stream"
    async with AsyncExitStack() as stack:
        sent = await stack.enter_async_context(live.stream(to(conversation), body))
        readers = [sent]
        first = [await sent.next() for _ in range(4)]
        for cursor in range(4):
            resume = live.stream(path, {"starting_after": cursor})
            readers.append(await stack.enter_async_context(resume))
        live.gates.open(agent)
        whole = joined(first + await sent.rest())
        for cursor, reader in enumerate(readers[1:]):
            assert joined(first[:cursor] + await reader.rest()) == whole
