"""The clients of AG-UI and CopilotKit, unmodified, over sockets that break."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.dialects.node_programs import printed_by
from tests.support.live_server import LiveServer, listening

Json = dict[str, Any]

VERSIONS: Final = ("0.0.59", "1.0.0")
SCENARIOS: Final = ("cuts", "interrupt", "clientTool", "abort", "error", "docs", "copilot")


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path_factory.mktemp("ag-ui")) as live:
        yield live


@dataclass
class Program:
    """The program with the clients, after it has run all scenarios, each with an agent."""

    live: LiveServer
    agents: Mapping[str, str]
    outcomes: Json


@pytest.fixture(scope="module")
async def program(live: LiveServer) -> Program:
    agents = {}
    for scenario in SCENARIOS:
        agents[scenario] = (await live.agent())["id"]
        live.gates.open(agents[scenario])
    outcomes = await printed_by("ag_ui.mjs", live.url, json.dumps(agents), package="@ag-ui/client")
    return Program(live, agents, outcomes)


def joined(outcome: Json) -> list[Json]:
    """Check that every cut was repaired, and return the messages of a run without a cut."""
    whole: list[Json] = outcome["whole"]
    for number, cut in enumerate(outcome["cuts"], 1):
        assert cut["broke"] == "failed: cut", number
        assert cut["repaired"] == "ended", number
        assert cut["messages"] == whole, number
    assert outcome["refused"] == []
    return whole


def roles_of(messages: list[Json]) -> list[str]:
    return [message["role"] for message in messages]


async def test_a_run_that_is_cut_after_any_event_has_each_message_once_after_it_was_repeated(
    program: Program,
) -> None:
    runs = 0
    for version in VERSIONS:
        outcome = program.outcomes["cuts"][version]
        assert roles_of(joined(outcome))[2:] == [
            "user",
            "assistant",
            "tool",
            "reasoning",
            "assistant",
        ]
        assert len(outcome["cuts"]) > 15
        runs += 2 * (1 + len(outcome["cuts"]))
    assert len(await program.live.run_ids(agent_id=program.agents["cuts"])) == runs


async def test_an_interrupt_is_answered_and_the_answer_survives_every_cut(
    program: Program,
) -> None:
    for version in VERSIONS:
        outcome = program.outcomes["interrupt"][version]
        assert outcome["asked"] == "interrupt"
        assert roles_of(joined(outcome)) == ["user", "assistant", "assistant", "tool", "assistant"]
        assert len(outcome["cuts"]) > 5


async def test_a_tool_of_the_client_gives_its_result_once_whatever_is_cut(
    program: Program,
) -> None:
    for version in VERSIONS:
        outcome = program.outcomes["clientTool"][version]
        whole = joined(outcome)
        assert roles_of(whole) == ["user", "assistant", "assistant", "tool", "assistant"]
        assert "A harbour" in whole[-1]["content"]
        assert len(outcome["cuts"]) > 5


async def test_aborting_ends_the_reading_and_not_the_run(program: Program) -> None:
    for version in VERSIONS:
        seen = program.outcomes["abort"][version]
        whole = "".join(f"t{number} " for number in range(20))
        assert whole.startswith(seen["partly"]), version
        assert seen["partly"] != whole, version
        assert seen["whole"] == whole, version


async def test_failures_refusals_and_cancellations_reach_the_client(program: Program) -> None:
    for version in VERSIONS:
        seen = program.outcomes["error"][version]
        assert seen["failed"]["type"] == "RUN_ERROR"
        assert seen["failed"]["message"]
        assert seen["refused"].startswith("failed: HTTP 409"), version
        assert "conversation_busy" in seen["refused"]
        assert seen["stopped"] == "ended"
        assert seen["last"]["result"] == {"stop_reason": "cancelled"}
        kind = "cancelled" if version == "1.0.0" else "success"
        assert seen["last"]["outcome"] == {"type": kind}


async def test_copilotkit_connects_after_any_cut_to_the_same_messages(program: Program) -> None:
    seen = program.outcomes["copilot"]
    whole = seen["whole"]
    assert set(seen["agents"]) == set(program.agents.values())
    assert roles_of(whole)[2:] == ["user", "assistant", "tool", "reasoning", "assistant"]
    assert len(seen["joined"]) > 15
    for cut, one in enumerate(seen["joined"], 1):
        assert one["connected"] == "ended", cut
        assert one["messages"] == whole, cut
        assert one["reloaded"] == whole, cut
    assert seen["refused"] == []


async def test_copilotkit_stops_the_run_on_the_server(program: Program) -> None:
    seen = program.outcomes["copilot"]
    assert seen["stopped"] == "ended"
    assert seen["last"]["result"] == {"stop_reason": "cancelled"}


async def test_the_documented_client_goes_on_after_a_cut(program: Program) -> None:
    assert program.outcomes["docs"] == "t0 t1 "


async def test_no_client_warns_of_anything_but_failures(program: Program) -> None:
    assert program.outcomes["rejections"] == []
    warnings = set(program.outcomes["warnings"])
    assert {
        one for one in warnings if not one.startswith("Agent execution failed: Error: ")
    } == set()
