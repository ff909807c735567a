"""Chat Completions through OpenAI's Node client, in one process that asks in every way."""

from __future__ import annotations

from typing import Any

import pytest

from tests.dialects.node_programs import printed_by
from tests.support.live_server import LiveServer

Json = dict[str, Any]

TEXT = "t0 t1 t2 "


@pytest.fixture(scope="module")
async def seen(live: LiveServer) -> Json:
    """The outcomes of all calls, by the names that the program gives them."""
    agent = (await live.agent())["id"]
    live.gates.open(agent)
    url = f"{live.url}/openai/v1"
    outcomes: Json = await printed_by("chat.mjs", url, agent, package="openai")
    return {**outcomes, "agent": agent}


async def test_an_answer_is_the_same_whole_streamed_and_through_the_helper(seen: Json) -> None:
    whole = seen["whole"]
    assert [whole["json"], whole["stream"], whole["helper"]] == [TEXT] * 3
    first, second = whole["usage"]
    assert first == second > 0


async def test_a_stream_that_breaks_at_any_frame_raises_and_its_answer_is_kept_whole(
    live: LiveServer, seen: Json
) -> None:
    assert [cut["text"] for cut in seen["cuts"]] == ["", "t0 ", "t0 t1 ", TEXT, TEXT]
    assert len({cut["run"] for cut in seen["cuts"]}) == 5
    for cut in seen["cuts"]:
        assert "terminated" in cut["error"]
        await live.ended(cut["run"])
        kept = await live.contents(cut["conversation"])
        assert kept == [("user_message", "[chunks=3]"), ("assistant_message", TEXT)]


async def test_the_helper_never_takes_a_broken_stream_for_an_answer(seen: Json) -> None:
    assert seen["helperCut"] is not None


async def test_the_helper_for_tools_runs_those_of_the_client(seen: Json) -> None:
    assert seen["tools"] == {"text": "look success: calm\n", "called": ['{"at":"sea"}']}


@pytest.mark.promise("P9")
async def test_a_request_that_the_client_retries_starts_one_run(
    live: LiveServer, seen: Json
) -> None:
    assert seen["retried"] == {"text": "retried", "counts": ["0", "1"]}
    calls = {"cuts": 5, "whole": 3, "helperCut": 1, "tools": 2, "retried": 1, "failed": 2}
    assert len(await live.run_ids(agent_id=seen["agent"])) == sum(calls.values())


async def test_failures_are_the_errors_of_the_client(seen: Json) -> None:
    failed = seen["failed"]
    assert failed["inStream"]["isApiError"]
    assert failed["inStream"]["text"] == "t0 t1 "
    assert (failed["status"], failed["unknown"]) == (500, "not_found")
