"""Settings of a single send, on every route and in every mode."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.live_server import LiveServer, listening

NAMED, DEFAULT, AGENT, AGENT_STREAM, ASYNC = (
    "a named conversation",
    "the default conversation",
    "the agent",
    "the agent's stream",
    "async",
)
MODES = [
    (NAMED, {"streaming": True}),
    (NAMED, {"streaming": True, "stream_tokens": True, "background": True}),
    (NAMED, {"streaming": False}),
    (DEFAULT, {"streaming": True}),
    (DEFAULT, {"streaming": False}),
    (AGENT, {"streaming": False}),
    (AGENT, {"streaming": True}),
    (AGENT_STREAM, {}),
    (ASYNC, {}),
]
on_every_route = pytest.mark.parametrize(
    ("route", "mode"), MODES, ids=[f"{route} {json.dumps(mode)}" for route, mode in MODES]
)


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path_factory.mktemp("live")) as live:
        yield live


async def shown(
    live: LiveServer, route: str, mode: dict[str, Any], message: str, **body: Any
) -> list[dict[str, Any]]:
    """The answer without pings: messages, then ``stop_reason`` and ``usage_statistics``."""
    agent = (await live.agent(system="Be brief."))["id"]
    live.gates.open(agent)
    sent = {"input": message, **mode, **body}
    path = f"/v1/agents/{agent}/messages"
    if route in {NAMED, DEFAULT}:
        thread = (await live.conversation(agent))["id"] if route == NAMED else "default"
        path = f"/v1/conversations/{thread}/messages"
        sent["agent_id"] = agent
    elif route == AGENT_STREAM:
        path += "/stream"
    elif route == ASYNC:
        run = (await live.made(f"{path}/async", sent))["id"]
        frames = await live.streamed(f"/v1/runs/{run}/stream", {})
        return [frame.event for frame in frames[:-1] if frame.kind != "ping"]
    if mode.get("streaming", True):
        frames = await live.streamed(path, sent)
        return [frame.event for frame in frames[:-1] if frame.kind != "ping"]
    answer = await live.made(path, sent)
    return [*answer["messages"], answer["stop_reason"], answer["usage"]]


def said(items: list[dict[str, Any]]) -> str:
    return "".join(i["content"] for i in items if i["message_type"] == "assistant_message")


@on_every_route
async def test_the_model_the_prompt_and_the_steps_of_a_send_are_its_own(
    live: LiveServer, route: str, mode: dict[str, Any]
) -> None:
    items = await shown(
        live,
        route,
        mode,
        "[system][steps=3]",
        override_model="scripted/slow",
        override_system="Shout!",
        max_steps=2,
    )
    assert said(items) == "Shout!Shout!"
    assert items[-2]["stop_reason"] == "max_steps"
    assert items[-1]["step_count"] == 2
    run_id = next(item["run_id"] for item in items if item.get("run_id"))
    steps = await live.got(f"/v1/runs/{run_id}/steps")
    assert {step["model_handle"] for step in steps} == {"scripted/slow"}


@on_every_route
async def test_a_send_is_answered_with_the_types_that_it_names(
    live: LiveServer, route: str, mode: dict[str, Any]
) -> None:
    wanted = ["reasoning_message", "assistant_message"]
    items = await shown(
        live,
        route,
        mode,
        "[tool=look][think=1][chunks=1]",
        include_return_message_types=wanted,
    )
    kinds = [item["message_type"] for item in items]
    assert kinds == [*wanted, "stop_reason", "usage_statistics"]
    run_id = items[0]["run_id"]
    kept = await live.got(f"/v1/runs/{run_id}/messages")
    assert [item["message_type"] for item in kept] == [
        "user_message",
        "tool_call_message",
        "tool_return_message",
        *wanted,
    ]


async def test_the_old_name_of_the_system_prompt_is_understood(live: LiveServer) -> None:
    items = await shown(live, NAMED, {"streaming": False}, "[system]", system="Shout!")
    assert said(items) == "Shout!"
