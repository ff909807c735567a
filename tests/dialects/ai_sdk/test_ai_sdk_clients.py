"""The clients of the AI SDK, in the versions 5, 6 and 7, unmodified, over sockets that break."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.dialects.node_programs import printed_by
from tests.support.live_server import LiveServer, listening

Json = dict[str, Any]

ALL: Final = ("5", "6", "7")
SCENARIOS: Final = (
    "idle",
    "cuts",
    "approval",
    "clientTool",
    "stop",
    "again",
    "error",
    "workflow",
)


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path_factory.mktemp("ai-sdk")) as live:
        yield live


@dataclass
class Program:
    """The program with the clients, after it has run all scenarios, each with an agent."""

    live: LiveServer
    agents: Mapping[str, str]
    outcomes: Json

    def run(self, scenario: str) -> Json:
        outcome: Json = self.outcomes[scenario]
        return outcome


@pytest.fixture(scope="module")
async def program(live: LiveServer) -> Program:
    agents = {}
    for scenario in SCENARIOS:
        agents[scenario] = (await live.agent())["id"]
        live.gates.open(agents[scenario])
    outcomes = await printed_by("ai_sdk.mjs", live.url, json.dumps(agents), package="ai7")
    return Program(live, agents, outcomes)


async def test_a_chat_that_is_cut_after_any_chunk_ends_up_like_one_that_is_not(
    program: Program,
) -> None:
    outcome = program.run("cuts")
    runs = 0
    for version in ALL:
        seen = outcome[version]
        whole = seen["whole"]
        assert seen["cuts"] > 10
        assert [one["role"] for one in whole] == ["user", "assistant"]
        assert seen["history"] == whole, version
        for cut, same in enumerate(seen["same"], 1):
            assert same["broke"] == "error", (version, cut)
            assert same["status"] == "ready", (version, cut)
            assert same["messages"] == whole, (version, cut)
        for cut, reloaded in enumerate(seen["reloaded"], 1):
            assert reloaded["status"] == "ready", (version, cut)
            assert reloaded["messages"] == whole, (version, cut)
        runs += 1 + 2 * seen["cuts"]
    assert len(await program.live.run_ids(agent_id=program.agents["cuts"])) == runs


async def test_a_chat_without_a_run_is_ready_and_empty_after_resuming(program: Program) -> None:
    empty = {"status": "ready", "messages": []}
    assert program.run("idle") == dict.fromkeys(ALL, empty)


async def test_an_approval_is_answered_and_its_answer_survives_a_reload_at_any_chunk(
    program: Program,
) -> None:
    for version, seen in program.run("approval").items():
        whole = seen["whole"]
        (call,) = [one for one in whole[-1]["parts"] if one["type"] == "dynamic-tool"]
        assert call["state"] == "output-available", version
        assert call["approval"]["approved"] is True
        assert seen["history"] == whole, version
        for reloaded in seen["reloaded"]:
            assert reloaded["status"] == "ready"
            assert _without_decisions(reloaded["messages"]) == _without_decisions(whole), version


def _without_decisions(messages: list[Json]) -> list[Json]:
    """Leave out who approved: versions 6 and 7 have no common chunk for it."""
    for part in messages[-1]["parts"]:
        if "approval" in part:
            part["approval"] = {"id": part["approval"]["id"]}
    return messages


async def test_a_tool_of_the_page_runs_once_and_its_result_is_in_the_history(
    program: Program,
) -> None:
    for version, seen in program.run("clientTool").items():
        (call,) = [one for one in seen["whole"][-1]["parts"] if one["type"] == "tool-where"]
        assert (call["state"], call["output"]) == ("output-available", {"at": "Marstal"}), version
        assert seen["whole"][-1]["parts"][-1]["type"] == "text"
        assert seen["history"] == seen["whole"], version


async def test_stopping_ends_every_stream_of_the_chat(program: Program) -> None:
    for version, seen in program.run("stop").items():
        assert seen["stopped"] == ["cancelled"], version
        assert seen["status"] == ["ready", "ready"], version
        assert seen["reason"] == "cancelled"
        assert seen["history"] == seen["whole"], version


async def test_a_regenerated_answer_and_an_edited_message_replace_what_follows(
    program: Program,
) -> None:
    for version, seen in program.run("again").items():
        assert len(seen["before"]) == len(seen["regenerated"]) == 4, version
        assert seen["before"][:3] == seen["regenerated"][:3]
        assert seen["before"][3]["id"] != seen["regenerated"][3]["id"]
        assert seen["afterwards"] == seen["regenerated"], version
        assert len(seen["edited"]) == 2
        assert seen["history"] == seen["edited"], version


async def test_failures_and_refusals_reach_the_page_as_errors(program: Program) -> None:
    for version, seen in program.run("error").items():
        failed, refused = seen["errors"]
        assert seen["failed"] == "error", version
        assert "failed" in failed
        assert json.loads(refused)["code"] == "conversation_busy"


async def test_the_transport_of_workflows_gets_each_chunk_once_however_it_is_cut(
    program: Program,
) -> None:
    seen = program.run("workflow")
    whole = seen["whole"]
    assert whole["again"] == whole["chunks"]
    assert [one["type"] for one in whole["last"]] == ["finish-step", "finish"]
    assert len(seen["broken"]) == len(whole["chunks"]) - 1
    for cut, broken in enumerate(seen["broken"], 1):
        assert broken == whole, cut
    assert seen["single"] == whole
    sends = len(whole["chunks"])
    first = [one.rpartition("=")[2] for one in seen["requests"][1:sends]]
    assert first == [str(index) for index in range(1, sends)]


async def test_a_chat_whose_transport_of_workflows_gave_up_shows_everything_once_after_resuming(
    program: Program,
) -> None:
    seen = program.run("workflow")["resumed"]
    assert (seen["broke"], seen["status"]) == ("error", "ready")
    shown = [(kind, text) for kind, text in seen["parts"] if text is not None]
    assert shown == [("reasoning", "r0 r1 "), ("text", "t0 t1 t2 t3 ")]
