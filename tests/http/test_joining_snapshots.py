"""The code of the documentation that joins a snapshot with the events after it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.live_server import LiveServer, new_threads

pytestmark = pytest.mark.promise("P20")

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
TOOLS = [{"name": name, "parameters": {"type": "object"}} for name in ("look", "listen")]


def documented() -> Callable[[list[dict[str, Any]], dict[str, Any]], None]:
    (code,) = re.findall(r"^(def join\(.*?)^(?:```|\w)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"Any": Any}
    exec(code, names)
    join: Callable[[list[dict[str, Any]], dict[str, Any]], None] = names["join"]
    return join


def shown(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    members = ("message_type", "id", "content", "reasoning", "tool_calls", "tool_return")
    return [{name: item[name] for name in members if name in item} for item in items]


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "whole parts"])
@pytest.mark.parametrize(
    ("script", "deltas"),
    [
        ("[think=2][chunks=3][steps=2]", 8),
        ("[think=1][tool=weather][chunks=2]", 4),
        ('[chunks=2][client_tool=look,listen][arguments={"far": 1000}]', 8),
    ],
)
async def test_each_snapshot_joined_with_the_events_after_it_is_the_last_snapshot(
    live: LiveServer, script: str, deltas: int, tokens: bool
) -> None:
    join = documented()
    agent, thread = await new_threads(live)
    body = {"client_tools": TOOLS, "stream_tokens": tokens}
    run_id = await live.held_run(agent, thread, script, after=0, **body)
    path = f"/v1/runs/{run_id}/snapshot"
    taken = [await live.got(path)]
    for count in range(1, deltas):
        live.gates.hold(agent, count)
        await live.gates.reached(agent, count)
        await live.logged(run_id)
        taken.append(await live.got(path))
    await live.ended(run_id)
    last = await live.got(path)
    for one in taken:
        after = {"starting_after": one["seq"]}
        for frame in (await live.streamed(f"/v1/runs/{run_id}/stream", after))[:-1]:
            join(one["messages"], frame.event)
        assert shown(one["messages"]) == shown(last["messages"])
