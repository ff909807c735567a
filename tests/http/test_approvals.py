"""Tools that clients run, and calls that wait for their word."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from reattach.domain.ids import new_agent_id, new_message_id, new_uuid
from reattach.domain.limits import MAX_TOOL_CALL_ID_CHARS
from tests.support.live_server import (
    WAIT_SECONDS,
    Frame,
    LiveServer,
    joined,
    kinds,
    listening,
    new_threads,
    text,
    to,
)

TOOLS = [{"name": name, "parameters": {"type": "object"}} for name in ("look", "fetch")]


async def asked(
    live: LiveServer, thread: str, message: str = "[client_tool=look][chunks=0]", **body: Any
) -> tuple[list[Frame], dict[str, str]]:
    """Make the model call tools; return the stream, and the ids of the calls by name."""
    sent = {"input": message, "client_tools": TOOLS, "background": True, **body}
    frames = await live.streamed(to(thread), sent)
    assert stop_of(frames) == "requires_approval"
    calls = [
        call
        for frame in frames
        if frame.kind in {"approval_request_message", "tool_call_message"}
        for call in listed(frame.event["tool_calls"])
    ]
    return frames, {call["name"]: call["tool_call_id"] for call in calls if call.get("name")}


def listed(calls: Any) -> list[Any]:
    return calls if isinstance(calls, list) else [calls]


def returned(call_id: str, output: Any = "42", **rest: Any) -> dict[str, Any]:
    return {
        "type": "tool",
        "tool_call_id": call_id,
        "tool_return": output,
        "status": "success",
        **rest,
    }


def verdict(call_id: str, approve: bool, reason: str | None = None) -> dict[str, Any]:
    return {"type": "approval", "tool_call_id": call_id, "approve": approve, "reason": reason}


def answer(*decisions: Any, otid: str | None = None, **body: Any) -> dict[str, Any]:
    """The body of a send that answers an approval request."""
    item: dict[str, Any] = {"type": "approval", "approvals": decisions}
    if otid is not None:
        item["otid"] = otid
    return {"messages": [item], "client_tools": TOOLS, "background": True, **body}


async def refused(live: LiveServer, thread: str, body: Any) -> tuple[int, dict[str, Any]]:
    """The same for every form of a send: nothing is streamed, and no run begins."""
    before = live.rows()
    responses = []
    for form in ({}, {"streaming": False}, {"background": False}):
        sent = {key: body[key] for key in body if key != "background"} | form
        response = await live.client.post(to(thread), json=sent)
        responses.append((response.status_code, response.json()))
    assert responses[0] == responses[1] == responses[2]
    assert live.rows() == before
    return responses[0]


def stop_of(frames: list[Frame]) -> str:
    [stop] = [frame.event["stop_reason"] for frame in frames if frame.kind == "stop_reason"]
    return str(stop)


async def items(live: LiveServer, thread: str) -> list[dict[str, Any]]:
    """The messages of the conversation, oldest first, without its system message."""
    path = f"/v1/conversations/{thread}/messages"
    agent = {"agent_id": thread} if thread.startswith("agent-") else {}
    found: list[dict[str, Any]] = await live.got(path, order="asc", limit=1000, **agent)
    return [item for item in found if item["message_type"] != "system_message"]


def types(found: list[dict[str, Any]]) -> list[str]:
    return [item["message_type"].removesuffix("_message") for item in found]


# Asking.


async def test_a_client_tool_is_asked_for_in_chunks_and_the_run_is_completed(
    live: LiveServer,
) -> None:
    _, conversation = await new_threads(live)
    frames, calls = await asked(live, conversation, "x [client_tool=look]", stream_tokens=True)
    requests = [f.event for f in frames if f.kind == "approval_request_message"]
    assert [one["tool_call"] for one in requests] == [one["tool_calls"] for one in requests]
    assert [one["tool_call"] for one in requests] == [
        {"name": "look", "arguments": None, "tool_call_id": calls["look"]},
        {"name": None, "arguments": '{"n":', "tool_call_id": calls["look"]},
        {"name": None, "arguments": " 1}", "tool_call_id": calls["look"]},
    ]
    assert kinds(frames)[-3:] == ["stop_reason", "usage_statistics", "[DONE]"]
    run = await live.run(frames[0].event["run_id"])
    assert (run["status"], run["stop_reason"]) == ("completed", "requires_approval")


async def test_a_client_tool_is_asked_for_whole_where_tokens_are_not_streamed(
    live: LiveServer,
) -> None:
    _, conversation = await new_threads(live)
    frames, calls = await asked(live, conversation)
    [request] = [f.event for f in frames if f.kind == "approval_request_message"]
    call = {"name": "look", "arguments": '{"n": 1}', "tool_call_id": calls["look"]}
    assert (request["tool_call"], request["tool_calls"]) == (call, [call])


async def test_several_calls_are_asked_for_at_once(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    frames, calls = await asked(live, conversation, "[client_tool=look,fetch]")
    [request] = [f.event for f in frames if f.kind == "approval_request_message"]
    assert [call["name"] for call in request["tool_calls"]] == ["look", "fetch"]
    assert len(set(calls.values())) == 2


async def test_in_json_mode_the_request_is_in_the_answer(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    for path in (to(conversation), f"/v1/agents/{agent}/messages"):
        body = {"input": "[client_tool=look]", "streaming": False, "client_tools": TOOLS}
        waiting = await live.made(path, body)
        assert waiting["messages"][-1]["message_type"] == "approval_request_message"
        assert waiting["stop_reason"]["stop_reason"] == "requires_approval"
        call = waiting["messages"][-1]["tool_call"]["tool_call_id"]
        done = await live.made(path, {**answer(returned(call)), "background": None, **NO_STREAM})
        assert types(done["messages"]) == ["assistant"]
        assert done["messages"][0]["content"] == "look success: 42\n"
        assert done["stop_reason"]["stop_reason"] == "end_turn"


NO_STREAM = {"streaming": False}


@pytest.mark.parametrize(
    ("tools", "fault"),
    [
        ([{"name": ""}], ["body", "client_tools", 0, "name"]),
        ([{"description": "x"}], ["body", "client_tools", 0, "name"]),
        ([{"name": "a"}, {"name": "a"}], ["body", "client_tools", 1, "name"]),
        ([{"name": "a", "parameters": []}], ["body", "client_tools", 0, "parameters"]),
        (
            [{"name": "a", "parameters": {"x": "y" * 300_000}}],
            ["body", "client_tools", 0, "parameters"],
        ),
        ([{"name": str(n)} for n in range(257)], ["body", "client_tools"]),
    ],
    ids=["no name", "name missing", "name twice", "no schema", "schema too large", "too many"],
)
async def test_a_wrong_client_tool_is_422_and_named(
    live: LiveServer, tools: list[Any], fault: list[Any]
) -> None:
    _, conversation = await new_threads(live)
    status, error = await refused(live, conversation, {"input": "x", "client_tools": tools})
    assert (status, error["errors"][0]["loc"]) == (422, fault)


# Answering.


@pytest.mark.parametrize("kind", ["approval", "tool_return"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "default"])
async def test_the_result_of_a_client_tool_reaches_the_model_and_the_turn_continues(
    live: LiveServer, named: bool, kind: str
) -> None:
    agent, conversation = await new_threads(live)
    thread = conversation if named else agent
    before, calls = await asked(live, thread)
    body = answer(returned(calls["look"], stdout=["a"], stderr=[]), stream_tokens=True)
    if kind == "tool_return":
        body["messages"] = [
            {"type": "tool_return", "tool_returns": body["messages"][0]["approvals"]}
        ]
    frames = await live.streamed(to(thread), body)
    assert text(frames) == "look success: 42\n"
    assert stop_of(frames) == "end_turn"
    assert "tool_return_message" not in kinds(frames)
    assert frames[0].event["run_id"] != before[0].event["run_id"]
    kept = await items(live, thread)
    assert types(kept) == [
        "user", "approval_request", "approval_response", "tool_return", "assistant",
    ]  # fmt: skip
    request, response, result = kept[1:4]
    expected = returned(calls["look"], stdout=["a"], stderr=[])
    assert (response["approvals"], response["approve"]) == ([expected], None)
    assert (response["step_id"], result["step_id"]) == (None, request["step_id"])
    assert result["tool_returns"] == [expected]
    assert {key: result[key] for key in expected if key != "type"} == {
        key: expected[key] for key in expected if key != "type"
    }
    assert response["run_id"] == result["run_id"] == frames[0].event["run_id"]
    assert await live.got(f"/v1/runs/{frames[0].event['run_id']}/messages", order="asc") == kept[2:]


@pytest.mark.promise("P4")
async def test_the_run_of_an_answer_is_resumed_like_any_other(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    _, calls = await asked(live, conversation)
    otid = new_uuid()
    body = answer(returned(calls["look"]), otid=otid, stream_tokens=True)
    frames = await live.streamed(to(conversation), body)
    stream = f"/v1/conversations/{conversation}/stream"
    for cursor in range(len(frames)):
        rest = await live.streamed(stream, {"otid": otid, "starting_after": cursor})
        assert joined(rest) == joined(frames[cursor:])


async def test_a_denied_call_returns_an_error_with_the_reason(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    _, calls = await asked(live, conversation, "[client_tool=look,fetch]")
    decisions = (verdict(calls["fetch"], False, "too dear"), returned(calls["look"]))
    frames = await live.streamed(to(conversation), answer(*decisions))
    denial = "The user denied this call. Reason: too dear"
    assert text(frames) == f"look success: 42\nfetch error: {denial}\n"
    response, result = (await items(live, conversation))[-3:-1]
    assert [one["type"] for one in response["approvals"]] == ["approval", "tool"]
    assert (response["approve"], response["reason"]) == (False, "too dear")
    assert response["approval_request_id"] == calls["fetch"]
    assert [(one["status"], one["tool_return"]) for one in result["tool_returns"]] == [
        ("success", "42"),
        ("error", denial),
    ]


async def test_an_approved_tool_of_the_server_runs_first_with_those_that_waited_for_it(
    live: LiveServer,
) -> None:
    _, conversation = await new_threads(live)
    asking, calls = await asked(live, conversation, "[approve=pay][with=count]")
    assert kinds(asking)[-5:-3] == ["tool_call_message", "approval_request_message"]
    _, error = await refused(live, conversation, {"input": "hm"})
    assert error["tool_call_ids"] == [calls["pay"]]
    frames = await live.streamed(to(conversation), answer(verdict(calls["pay"], True)))
    assert kinds(frames)[1:4] == ["tool_return_message", "tool_return_message", "assistant_message"]
    ran = [f.event for f in frames if f.kind == "tool_return_message"]
    assert [one["tool_call_id"] for one in ran] == [calls["count"], calls["pay"]]
    assert text(frames) == "count success: count returned 1\npay success: pay returned 1\n"


async def test_a_user_message_may_follow_the_answer(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    _, calls = await asked(live, conversation)
    body = answer(returned(calls["look"]))
    body["messages"].append({"role": "user", "content": "and now this"})
    frames = await live.streamed(to(conversation), body)
    assert text(frames) == "and now this"
    kept = await items(live, conversation)
    assert types(kept)[2:] == ["approval_response", "tool_return", "user", "assistant"]
    run = {frames[0].event["run_id"]}
    assert {item["run_id"] for item in kept[2:]} == run
    assert joined(await live.streamed(to(conversation), body)) == joined(frames)
    body["messages"][1]["content"] = "and now that"
    assert (await refused(live, conversation, body))[1]["code"] == "no_pending_approval"


async def test_the_model_may_call_again_after_a_return(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    _, first = await asked(live, conversation, "[client_tool=look][rounds=2]")
    frames = await live.streamed(to(conversation), answer(returned(first["look"], "one")))
    assert stop_of(frames) == "requires_approval"
    [second] = {
        f.event["tool_call"]["tool_call_id"] for f in frames if f.kind == "approval_request_message"
    }
    again = await live.streamed(to(conversation), answer(returned(first["look"])))
    assert joined(again) == joined(frames)
    done = await live.streamed(to(conversation), answer(returned(second, "two")))
    assert (text(done), stop_of(done)) == ("look success: two\n", "end_turn")


async def test_a_return_in_parts_is_its_text(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    _, calls = await asked(live, conversation)
    parts = [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}]
    frames = await live.streamed(to(conversation), answer(returned(calls["look"], parts)))
    assert text(frames) == "look success: 42\n"


@pytest.mark.parametrize("approve", [True, False])
async def test_the_old_form_of_an_answer_decides_on_all_calls(
    live: LiveServer, approve: bool
) -> None:
    agent, _ = await new_threads(live)
    frames, _ = await asked(live, agent, "[approve=a,b]")
    request = next(f.event["id"] for f in frames if f.kind == "approval_request_message")
    wrong = {"approval_request_id": new_message_id(), "approve": approve}
    assert (await refused(live, agent, {"messages": [wrong]}))[0] == 400
    old = {"approval_request_id": request, "approve": approve, "reason": "so"}
    frames = await live.streamed(to(agent), {"messages": [old]})
    expected = (
        "a success: a returned 1\nb success: b returned 1\n"
        if approve
        else "a error: The user denied this call. Reason: so\n"
        "b error: The user denied this call. Reason: so\n"
    )
    assert text(frames) == expected


# Refusals.


async def test_nothing_but_the_answer_is_taken_while_calls_wait(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    for thread in (conversation, agent):
        frames, calls = await asked(live, thread, "[client_tool=look,fetch]")
        request = next(f.event for f in frames if f.kind == "approval_request_message")
        assert await refused(live, thread, {"input": "hello?"}) == (
            409,
            {
                "detail": "CONFLICT: Cannot send a new message: The agent is waiting for approval "
                "on a tool call. Please approve or deny the pending request before continuing.",
                "code": "pending_approval",
                "pending_request_id": request["id"],
                "tool_call_ids": list(calls.values()),
                "run_id": request["run_id"],
            },
        )
    assert text(await live.streamed(to((await new_threads(live))[1]), {"input": "hi"})) == "hi"


async def test_an_answer_has_to_decide_on_every_waiting_call_once_and_on_no_other(
    live: LiveServer,
) -> None:
    _, conversation = await new_threads(live)
    _, calls = await asked(live, conversation, "[client_tool=look,fetch]")
    look, fetch = calls.values()
    for given in (
        [look],
        [],
        ["call-x"],
        [look, fetch, "call-x"],
        [look, look],
        [look, fetch, look],
    ):
        status, error = await refused(live, conversation, answer(*map(returned, given)))
        assert (status, error["code"]) == (400, "invalid_tool_call_ids")
        assert error["detail"] == (
            f"Invalid tool call IDs. Expected '{[look, fetch]}', but received '{given}'."
        )
    two = answer(returned(look))
    two["messages"] += answer(verdict(fetch, False))["messages"]
    assert "look success: 42" in text(await live.streamed(to(conversation), two))


async def test_an_answer_to_nothing_is_refused(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    for thread in (conversation, agent):
        status, error = await refused(live, thread, answer(returned("call-1")))
        assert (status, error["code"]) == (400, "no_pending_approval")
        assert error["detail"] == (
            "Cannot process approval response: No tool call is currently awaiting approval. "
            "Please send a regular message to interact with the agent."
        )
    _, calls = await asked(live, conversation)
    assert (await refused(live, agent, answer(returned(calls["look"]))))[0] == 400


@pytest.mark.parametrize(
    ("item", "status"),
    [
        ({"type": "approval"}, 422),
        ({"type": "approval", "approvals": [{"type": "tool", "tool_call_id": "c"}]}, 422),
        ({"type": "approval", "approvals": [{"tool_call_id": "c"}]}, 422),
        ({"type": "approval", "approvals": [{"tool_call_id": "", "approve": True}]}, 422),
        ({"type": "approval", "approvals": ["c"]}, 422),
        ({"type": "tool_return"}, 422),
        ({"type": "tool_return", "tool_returns": [{"tool_call_id": "c", "status": "?"}]}, 422),
        (
            {
                "type": "tool_return",
                "tool_returns": [returned("c" * (MAX_TOOL_CALL_ID_CHARS + 1))],
            },
            422,
        ),
        (
            {
                "type": "tool_return",
                "tool_returns": [
                    returned(
                        "c",
                        [{"type": "image", "source": {"type": "letta", "file_id": "file-1"}}],
                    )
                ],
            },
            501,
        ),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
async def test_a_malformed_answer_is_refused(live: LiveServer, item: Any, status: int) -> None:
    _, conversation = await new_threads(live)
    assert (await refused(live, conversation, {"messages": [item]}))[0] == status


async def test_an_answer_comes_before_other_messages(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    _, calls = await asked(live, conversation)
    body = answer(returned(calls["look"]))
    body["messages"].insert(0, {"role": "user", "content": "first"})
    assert (await refused(live, conversation, body))[0] == 422


# Again.


@pytest.mark.promise("P9")
@pytest.mark.parametrize("by", ["otid", "tool_call_ids", "other content"])
@pytest.mark.parametrize("background", [True, False])
async def test_an_answer_sent_again_gets_the_run_that_it_made(
    live: LiveServer, by: str, background: bool
) -> None:
    _, conversation = await new_threads(live)
    _, calls = await asked(live, conversation)
    otid = new_uuid() if by == "otid" else None
    body = answer(returned(calls["look"]), otid=otid, background=background)
    frames = await live.streamed(to(conversation), body)
    runs = await live.run_ids(conversation_id=conversation)
    if by == "other content":
        body = answer(returned(calls["look"], "43"), background=background)
    again = await live.streamed(to(conversation), body)
    assert joined(again) == joined(frames)
    as_json = await live.made(to(conversation), {**body, "background": False, **NO_STREAM})
    assert as_json["messages"][0]["content"] == "look success: 42\n"
    assert await live.run_ids(conversation_id=conversation) == runs
    assert text(await live.streamed(to(conversation), {"input": "go on"})) == "go on"
    assert joined(await live.streamed(to(conversation), body)) == joined(frames)


@pytest.mark.promise("P9", "P10")
async def test_of_many_answers_at_once_one_makes_a_run_and_all_get_it(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    _, calls = await asked(live, conversation)
    live.gates.hold(agent, 1)
    bodies = [answer(returned(calls["look"], str(n))) for n in range(8)]
    sends = [asyncio.create_task(live.streamed(to(conversation), one)) for one in bodies]
    await live.gates.reached(agent, 1)
    status, error = await refused(live, conversation, answer(returned("call-other")))
    assert (status, error["code"]) == (409, "conversation_busy")
    live.gates.open(agent)
    async with asyncio.timeout(WAIT_SECONDS):
        streams = await asyncio.gather(*sends)
    assert len({joined(frames) for frames in streams}) == 1
    assert len(await live.run_ids(conversation_id=conversation)) == 2


async def test_the_same_otid_with_another_answer_is_a_conflict(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    _, calls = await asked(live, conversation)
    otid = new_uuid()
    frames = await live.streamed(to(conversation), answer(returned(calls["look"]), otid=otid))
    status, error = await refused(
        live, conversation, answer(verdict(calls["look"], False), otid=otid)
    )
    assert (status, error["code"]) == (409, "otid_conflict")
    assert error["run_id"] == frames[0].event["run_id"]


# Ends.


@pytest.mark.promise("P6")
@pytest.mark.parametrize("named", [True, False], ids=["named", "default"])
async def test_cancelling_ends_the_wait_of_that_conversation_and_no_other(
    live: LiveServer, named: bool
) -> None:
    agent, conversation = await new_threads(live)
    frames, calls = await asked(live, conversation, "[client_tool=look,fetch]")
    default, _ = await asked(live, agent)
    if named:
        path, run, thread, other = (
            f"/v1/conversations/{conversation}/cancel",
            frames,
            conversation,
            agent,
        )
    else:
        path, run, thread, other = (
            f"/v1/agents/{agent}/messages/cancel",
            default,
            agent,
            conversation,
        )
    run_id = run[0].event["run_id"]
    assert await live.made(path, None) == {run_id: "completed"}
    last = (await items(live, thread))[-1]
    assert last["message_type"] == "tool_return_message"
    assert {one["status"] for one in last["tool_returns"]} == {"error"}
    assert last["tool_return"] == "The call was cancelled before it ran."
    assert len(last["tool_returns"]) == (2 if named else 1)
    assert types(await items(live, other))[-1] == "approval_request"
    again = await live.client.post(path)
    assert (again.status_code, again.json()["code"]) == (409, "no_active_runs")
    if named:
        stale = answer(*map(returned, calls.values()))
        assert (await refused(live, thread, stale))[1]["code"] == "no_pending_approval"
    assert text(await live.streamed(to(thread), {"input": "hi"})) == "hi"


async def test_cancelling_a_run_by_its_id_ends_the_wait_that_it_began(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    frames, calls = await asked(live, conversation)
    await live.streamed(to(conversation), answer(returned(calls["look"])))
    later, _ = await asked(live, conversation)
    path = f"/v1/agents/{agent}/messages/cancel"
    first, second = frames[0].event["run_id"], later[0].event["run_id"]
    assert await live.made(path, {"run_ids": [first]}) == {first: "completed"}
    assert (await refused(live, conversation, {"input": "x"}))[0] == 409
    assert await live.made(path, {"run_ids": [second]}) == {second: "completed"}
    assert text(await live.streamed(to(conversation), {"input": "x"})) == "x"


async def test_a_run_that_is_cancelled_within_a_call_leaves_nothing_to_answer(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    run = await live.held_run(agent, conversation, "[client_tool=look][chunks=0]", after=2)
    await live.made(f"/v1/conversations/{conversation}/cancel", None)
    live.gates.open(agent)
    kept = await items(live, conversation)
    assert types(kept) == ["user", "approval_request", "tool_return"]
    assert (kept[1]["run_id"], kept[1]["tool_call"]["arguments"]) == (run, '{"n":')
    assert kept[2]["status"] == "error"
    assert kept[2]["tool_return"].endswith("the tool did not run.")
    assert text(await live.streamed(to(conversation), {"input": "hi"})) == "hi"


async def test_an_answer_whose_run_gave_nothing_can_be_given_again(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    _, calls = await asked(live, conversation)
    before = await items(live, conversation)
    body = answer(returned(calls["look"]))
    failing = {**body, "messages": [*body["messages"], {"role": "user", "content": "[fail=0]"}]}
    assert stop_of(await live.streamed(to(conversation), failing)) == "llm_api_error"
    assert await items(live, conversation) == before
    assert text(await live.streamed(to(conversation), body)) == "look success: 42\n"


async def test_a_fork_waits_like_its_source_and_is_answered_by_itself(live: LiveServer) -> None:
    _, conversation = await new_threads(live)
    _, calls = await asked(live, conversation)
    fork = (await live.made(f"/v1/conversations/{conversation}/fork", None))["id"]
    assert (await refused(live, fork, {"input": "x"}))[0] == 409
    for thread, output in ((fork, "of the fork"), (conversation, "of the source")):
        frames = await live.streamed(to(thread), answer(returned(calls["look"], output)))
        assert text(frames) == f"look success: {output}\n"


async def test_a_reset_discards_pending_approvals(live: LiveServer) -> None:
    agent, _ = await new_threads(live)
    await asked(live, agent)
    assert (await live.client.patch(f"/v1/agents/{agent}/reset-messages")).status_code == 200
    assert text(await live.streamed(to(agent), {"input": "x"})) == "x"


async def test_an_agent_shows_the_pending_approval_of_its_default_conversation_on_request(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    await asked(live, conversation)
    path, include = f"/v1/agents/{agent}", {"include": "agent.pending_approval"}
    assert (await live.got(path, **include))["pending_approval"] is None
    await asked(live, agent, "[client_tool=look][with=count]")
    request = next(
        item
        for item in await items(live, agent)
        if item["message_type"] == "approval_request_message"
    )
    assert (await live.got(path, **include))["pending_approval"] == request
    assert (await live.got(path))["pending_approval"] is None
    response = await live.client.get(f"/v1/agents/{new_agent_id()}", params=include)
    assert response.status_code == 404


async def test_pending_approvals_survive_a_restart_of_the_server(tmp_path: Path) -> None:
    async with listening(tmp_path) as first:
        _, conversation = await new_threads(first)
        frames, calls = await asked(first, conversation)
    async with listening(tmp_path) as second:
        second.gates.open((await second.got(f"/v1/conversations/{conversation}"))["agent_id"])
        run = frames[0].event["run_id"]
        assert joined(await second.streamed(f"/v1/runs/{run}/stream", {})) == joined(frames)
        assert (await refused(second, conversation, {"input": "x"}))[0] == 409
        done = await second.streamed(to(conversation), answer(returned(calls["look"])))
        assert text(done) == "look success: 42\n"
