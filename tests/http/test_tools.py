"""Tools that the server runs: listed, given to agents, called by the model, approved."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from letta_client import AsyncLetta

from reattach.domain.ids import TOOL_PATTERN
from tests.http.test_approvals import answer, items, returned, stop_of, types, verdict
from tests.support import tool_functions as functions
from tests.support.live_server import (
    WAIT_SECONDS,
    LiveServer,
    kinds,
    listening,
    sent,
    text,
    thread_with,
    to,
)

NAMES = ("add", "greet", "deploy", "explode", "hang", "flood")


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    tools = tuple(f"tests.support.tool_functions:{name}" for name in NAMES)
    directory = tmp_path_factory.mktemp("live")
    async with listening(directory, tools=tools, tool_seconds=0.5) as live:
        yield live


# Listing tools, and attaching them to agents.


async def test_the_sdk_lists_attaches_rules_and_detaches_tools(letta: AsyncLetta) -> None:
    listed = [one async for one in letta.tools.list(limit=2, order="asc")]
    assert [one.name for one in listed] == sorted(NAMES)
    assert all(re.fullmatch(TOOL_PATTERN, one.id) for one in listed)
    by_name = {one.name: one.id for one in listed}
    [add] = [one async for one in letta.tools.list(name="add")]
    assert (await letta.tools.retrieve(add.id)).description == "Add two numbers."
    assert [one.name async for one in letta.tools.list(search="EE")] == ["greet"]
    ids = [by_name["hang"], by_name["add"]]
    assert [one.name async for one in letta.tools.list(tool_ids=ids)] == ["hang", "add"]

    agent = await letta.agents.create(tools=["add"], tool_ids=[by_name["deploy"]])
    assert [one.name for one in agent.tools] == ["add", "deploy"]
    for _ in range(2):
        attached = await letta.agents.tools.attach(by_name["greet"], agent_id=agent.id)
        assert attached is not None
        assert [one.name for one in attached.tools] == ["greet", "add", "deploy"]
    ruled = await letta.agents.tools.update_approval(
        "add", agent_id=agent.id, body_requires_approval=True
    )
    assert ruled is not None
    rules = {one.name: one.default_requires_approval for one in ruled.tools}
    assert rules == {"add": True, "deploy": True, "greet": False}
    for order in (["add", "hang"], ["hang", "add"]):
        updated = await letta.agents.update(agent.id, tool_ids=[by_name[name] for name in order])
        assert [one.name for one in updated.tools] == order
    updated = await letta.agents.update(agent.id, tool_ids=[by_name["add"], by_name["hang"]])
    assert [(one.name, one.default_requires_approval) for one in updated.tools] == [
        ("add", True),
        ("hang", False),
    ]
    detached = await letta.agents.tools.detach(by_name["hang"], agent_id=agent.id)
    assert detached is not None
    assert [one.name async for one in letta.agents.tools.list(agent.id)] == ["add"]
    renamed = await letta.agents.update(agent.id, description="d", tool_rules=[])
    assert [one.name for one in renamed.tools] == ["add"]


async def test_tools_that_are_not_there_are_not_found(live: LiveServer) -> None:
    nobody = "tool-11111111-1111-4111-8111-111111111111"
    agent = (await live.agent())["id"]
    for path in (f"tools/attach/{nobody}", f"tools/detach/{nobody}"):
        assert (await live.client.patch(f"/v1/agents/{agent}/{path}")).status_code == 404
    assert (await live.client.get(f"/v1/tools/{nobody}")).status_code == 404
    for body in ({"tools": ["nothing"]}, {"tool_ids": [nobody]}):
        assert (await live.client.post("/v1/agents/", json=body)).status_code == 404
        assert (await live.client.patch(f"/v1/agents/{agent}", json=body)).status_code == 404
    rule = {"requires_approval": True}
    path = f"/v1/agents/{agent}/tools/approval/add"
    assert (await live.client.patch(path, json=rule)).status_code == 404
    assert (await live.client.post("/v1/tools/add-base-tools")).json() == []
    assert (await live.client.post("/v1/tools/", json={})).status_code == 501


# Turns.


@pytest.mark.parametrize("stream_tokens", [False, True])
async def test_a_call_runs_and_the_model_gets_its_result(
    live: LiveServer, stream_tokens: bool
) -> None:
    _, thread = await thread_with(live, "add")
    frames = await sent(
        live, thread, '[tool=add][arguments={"n": 41}]', stream_tokens=stream_tokens
    )
    assert text(frames) == "add success: 42\n"
    assert stop_of(frames) == "end_turn"
    [back] = [frame.event for frame in frames if frame.kind == "tool_return_message"]
    assert (back["tool_return"], back["status"], back["name"]) == ("42", "success", "add")
    [usage] = [frame.event for frame in frames if frame.kind == "usage_statistics"]
    assert usage["step_count"] == 2
    kept = await items(live, thread)
    assert types(kept) == ["user", "tool_call", "tool_return", "assistant"]
    assert len({item["step_id"] for item in kept[1:]}) == 2
    again = await sent(live, thread, "still there?")
    assert text(again) == "still there?"


async def test_calls_repeat_until_the_model_is_done_or_max_steps_is_reached(
    live: LiveServer,
) -> None:
    _, thread = await thread_with(live, "add")
    frames = await sent(live, thread, "[tool=add][rounds=3]")
    assert kinds(frames).count("tool_return_message") == 3
    assert stop_of(frames) == "end_turn"
    frames = await sent(live, thread, "[tool=add][rounds=9]", max_steps=2)
    assert kinds(frames).count("tool_return_message") == 2
    assert stop_of(frames) == "max_steps"
    assert text(await sent(live, thread, "on")) == "on"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("explode", "The tool failed: ValueError."),
        ("hang", "The tool did not return within 0.5 seconds."),
        ("flood", "The tool ran, but returned 10000000 characters"),
    ],
)
async def test_a_tool_that_raises_hangs_or_floods_is_an_error_and_the_run_continues(
    live: LiveServer, name: str, expected: str
) -> None:
    _, thread = await thread_with(live, name)
    frames = await sent(live, thread, f"[tool={name}]")
    [back] = [frame.event for frame in frames if frame.kind == "tool_return_message"]
    assert back["status"] == "error"
    assert back["tool_return"].startswith(expected)
    assert "secret" not in back["tool_return"]
    assert stop_of(frames) == "end_turn"


async def test_a_tool_that_the_agent_does_not_have_is_not_run(live: LiveServer) -> None:
    functions.RAN.clear()
    _, thread = await thread_with(live, "add")
    frames = await sent(live, thread, '[tool=deploy][arguments={"n": 1}]')
    assert stop_of(frames) == "end_turn"
    assert functions.RAN == []


async def test_a_client_tool_goes_before_a_tool_of_the_same_name(live: LiveServer) -> None:
    _, thread = await thread_with(live, "add")
    tools = [{"name": "add", "parameters": {"type": "object"}}]
    frames = await sent(live, thread, "[client_tool=add]", client_tools=tools)
    assert stop_of(frames) == "requires_approval"
    assert "tool_return_message" not in kinds(frames)


# Approvals.


async def asked(live: LiveServer, thread: str, message: str) -> dict[str, str]:
    frames = await sent(live, thread, message)
    assert stop_of(frames) == "requires_approval"
    return {
        call["name"]: call["tool_call_id"]
        for frame in frames
        if frame.kind in {"approval_request_message", "tool_call_message"}
        for call in frame.event["tool_calls"]
    }


async def test_a_call_that_needs_approval_runs_when_it_is_approved_and_only_once(
    live: LiveServer,
) -> None:
    functions.RAN.clear()
    _, thread = await thread_with(live, "deploy", "add")
    calls = await asked(live, thread, '[approve=deploy][with=add][arguments={"n": 7}]')
    assert functions.RAN == []
    body = answer(verdict(calls["deploy"], approve=True), otid="yes", client_tools=None)
    frames = await live.streamed(to(thread), body)
    assert kinds(frames)[:3] == ["ping", "tool_return_message", "tool_return_message"]
    outputs = [f.event["tool_return"] for f in frames if f.kind == "tool_return_message"]
    assert outputs == ["8", "deployed 7"]
    assert text(frames) == "add success: 8\ndeploy success: deployed 7\n"
    await live.streamed(to(thread), body)
    assert functions.RAN == ["deploy 7"]
    kept = types(await items(live, thread))
    assert kept.count("tool_return") == 2
    assert "approval_response" in kept


async def test_a_denied_call_does_not_run_and_the_model_gets_the_reason(live: LiveServer) -> None:
    functions.RAN.clear()
    _, thread = await thread_with(live, "deploy")
    calls = await asked(live, thread, "[tool=deploy]")
    frames = await live.streamed(
        to(thread), answer(verdict(calls["deploy"], approve=False, reason="Not on a Friday."))
    )
    assert "Not on a Friday." in text(frames)
    assert functions.RAN == []


async def test_an_agent_cannot_waive_an_approval_that_the_operator_requires(
    live: LiveServer,
) -> None:
    """D6: the answer shows the rule in force, and the call waits."""
    functions.RAN.clear()
    agent, thread = await thread_with(live, "deploy")
    path = f"/v1/agents/{agent}/tools/approval/deploy"
    ruled = await live.client.patch(path, json={"requires_approval": False})
    [shown] = ruled.json()["tools"]
    assert shown["default_requires_approval"] is True
    assert stop_of(await sent(live, thread, "[approve=deploy]")) == "requires_approval"
    assert functions.RAN == []


async def test_a_server_tool_and_a_client_tool_are_asked_for_together(live: LiveServer) -> None:
    functions.RAN.clear()
    _, thread = await thread_with(live, "deploy")
    calls = await asked(live, thread, "[client_tool=look][approve=deploy]")
    decisions = (returned(calls["look"], "a sea"), verdict(calls["deploy"], approve=True))
    frames = await live.streamed(to(thread), answer(*decisions))
    assert set(text(frames).splitlines()) == {"look success: a sea", "deploy success: deployed 1"}


@pytest.mark.promise("P8")
async def test_a_run_cancelled_during_a_tool_call_reports_an_unknown_outcome(
    live: LiveServer,
) -> None:
    _, thread = await thread_with(live, "hang")
    async with live.stream(to(thread), {"input": "[tool=hang]", "background": True}) as stream:
        await stream.until("tool_call_message")
        async with asyncio.timeout(WAIT_SECONDS):
            path = f"/v1/conversations/{thread}/cancel"
            assert (await live.client.post(path)).status_code == 200
        assert "cancelled" in {f.event.get("stop_reason") for f in (await stream.rest())[:-1]}
    last = (await items(live, thread))[-1]
    assert last["status"] == "error"
