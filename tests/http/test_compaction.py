from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.live_server import Frame, LiveServer, kinds, listening, text

SUMMARY_INTRODUCTION = "Earlier messages of this conversation were left out to save space."


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    directory = tmp_path_factory.mktemp("live")
    async with listening(directory, tools=["tests.support.tool_functions:add"]) as live:
        yield live


async def small(live: LiveServer, *, window: int = 100, **body: Any) -> tuple[str, str]:
    """An agent with a context window of ``window`` tokens, and a conversation with it."""
    agent = await live.agent(system="Be brief.", context_window_limit=window, **body)
    live.gates.open(agent["id"])
    return agent["id"], (await live.conversation(agent["id"]))["id"]


async def sent(live: LiveServer, thread: str, message: str, **body: Any) -> list[Frame]:
    options = {"include_compaction_messages": True, "stream_tokens": True, **body}
    return await live.streamed(
        f"/v1/conversations/{thread}/messages", {"input": message, **options}
    )


async def filled(live: LiveServer, thread: str, turns: int = 4) -> None:
    """Turns of 20 words each, which fit a window of 100 together."""
    for turn in range(turns):
        await sent(live, thread, f"turn {turn} " + "information " * 8)


async def next_context(live: LiveServer, thread: str) -> str:
    """The context of the model's next turn."""
    return text(await sent(live, thread, "[history]"))


async def test_the_older_part_of_a_long_context_is_replaced_by_a_summary(live: LiveServer) -> None:
    _, thread = await small(live)
    await filled(live, thread)
    frames = await sent(live, thread, "now " * 30)
    shown = kinds(frames)
    assert shown[:3] == ["ping", "event_message", "summary_message"]
    assert shown[-3:] == ["stop_reason", "usage_statistics", "[DONE]"]
    began, summary = frames[1].event, frames[2].event
    assert began["event_type"] == "compaction"
    assert began["event_data"]["trigger"] == "context_window_limit"
    assert began["event_data"]["context_window"] == 100
    assert began["event_data"]["context_token_estimate"] > 90
    stats = summary["compaction_stats"]
    assert stats["messages_count_before"] > stats["messages_count_after"]
    assert stats["context_tokens_before"] > stats["context_tokens_after"]
    assert text(frames).split() == ["now"] * 30
    history = await next_context(live, thread)
    assert SUMMARY_INTRODUCTION in history
    assert summary["summary"].split()[0] in history


@pytest.mark.promise("P18")
async def test_the_messages_stay_in_the_conversation_and_its_context_begins_later(
    live: LiveServer,
) -> None:
    _, thread = await small(live)
    await filled(live, thread)
    before = await live.contents(thread)
    frames = await sent(live, thread, "now " * 30)
    kept_from = frames[2].event["kept_from_message_id"]
    after = await live.contents(thread)
    assert after[: len(before)] == before
    assert [kind for kind, _ in after[len(before) :]] == [
        "user_message",
        "summary_message",
        "assistant_message",
    ]
    conversation = await live.got(f"/v1/conversations/{thread}")
    in_context = conversation["in_context_message_ids"]
    items = await live.got(f"/v1/conversations/{thread}/messages", order="asc", limit=1000)
    all_ids = list(dict.fromkeys(item["id"] for item in items))
    assert in_context[0] == all_ids[0]
    assert in_context[1] == frames[2].event["id"]
    assert in_context[2] == kept_from
    assert len(in_context) < len(all_ids)
    for path, query in (
        (f"/v1/messages/{in_context[1]}", {}),
        (
            f"/v1/conversations/{thread}/messages",
            {"include_return_message_types": ["summary_message"]},
        ),
    ):
        [listed] = await live.got(path, **query)
        assert listed["summary"] == frames[2].event["summary"]


@pytest.mark.promise("P1", "P4")
async def test_a_compaction_is_in_the_log_if_the_send_asked_for_it(live: LiveServer) -> None:
    _, thread = await small(live)
    await filled(live, thread)
    frames = await sent(live, thread, "now " * 30, background=True)
    run_id = frames[0].event["run_id"]
    assert [frame.seq for frame in frames[:-1]] == list(range(1, len(frames)))
    replayed = await live.streamed(f"/v1/runs/{run_id}/stream", {"starting_after": 1})
    assert replayed == frames[1:]


@pytest.mark.parametrize("asked", [True, False])
async def test_compactions_are_shown_if_they_are_asked_for(live: LiveServer, asked: bool) -> None:
    _, thread = await small(live)
    await filled(live, thread)
    frames = await sent(live, thread, "now " * 30, include_compaction_messages=asked)
    assert ("summary_message" in kinds(frames)) is asked
    assert ("event_message" in kinds(frames)) is asked
    await filled(live, thread, 2)
    answer = await live.send(thread, "now " * 30, include_compaction_messages=asked)
    shown = [item["message_type"] for item in answer["messages"]]
    assert ("summary_message" in shown) is asked
    kept = [kind for kind, _ in await live.contents(thread)]
    assert kept.count("summary_message") >= 2


async def test_a_summary_is_a_step_whose_tokens_count(live: LiveServer) -> None:
    _, thread = await small(live)
    await filled(live, thread)
    frames = await sent(live, thread, "now " * 30)
    usage = frames[-2].event
    assert usage["step_count"] == 2
    assert usage["completion_tokens"] > 30


async def test_a_turn_that_the_model_finds_too_long_is_retried_with_a_summary(
    live: LiveServer,
) -> None:
    agent, thread = await small(live, window=100_000)
    await filled(live, thread)
    frames = await sent(live, thread, "[context=85] hello there")
    assert kinds(frames)[1:3] == ["event_message", "summary_message"]
    assert frames[1].event["event_data"]["trigger"] == "context_window_exceeded"
    assert text(frames) == "hello there"
    alone = (await live.conversation(agent))["id"]
    await filled(live, alone)
    frames = await sent(live, alone, "[context=3] hello there")
    assert kinds(frames)[1:4] == ["event_message", "summary_message", "stop_reason"]
    error = frames[-3].event
    assert error["error_type"] == "context_window_exceeded"


async def test_a_conversation_that_cannot_be_shortened_gets_a_context_window_error(
    live: LiveServer,
) -> None:
    _, thread = await small(live, window=100_000)
    frames = await sent(live, thread, "[context=3] hello")
    assert kinds(frames) == ["ping", "stop_reason", "error_message", "usage_statistics", "[DONE]"]
    assert frames[2].event["error_type"] == "context_window_exceeded"
    response = await live.client.post(
        f"/v1/conversations/{thread}/messages",
        json={"input": "[context=3] hello", "streaming": False},
    )
    assert response.status_code == 400
    assert response.json()["code"] == "context_window_exceeded"


async def test_a_system_prompt_that_fills_the_window_gets_its_own_error(live: LiveServer) -> None:
    agent = await live.agent(system="much " * 200, context_window_limit=50)
    live.gates.open(agent["id"])
    thread = (await live.conversation(agent["id"]))["id"]
    frames = await sent(live, thread, "[context=3] hello")
    assert frames[1].event["stop_reason"] == "context_window_overflow_in_system_prompt"
    assert frames[2].event["error_type"] == "context_window_overflow_in_system_prompt"


async def test_without_a_summary_the_oldest_turns_are_omitted_with_a_note_to_the_model(
    live: LiveServer,
) -> None:
    _, thread = await small(live)
    await filled(live, thread, 3)
    await sent(live, thread, "[fail=4] " + "word " * 10)
    await filled(live, thread, 1)
    frames = await sent(live, thread, "now " * 40)
    summary = next(frame.event for frame in frames if frame.kind == "summary_message")
    assert "No summary of them could be made" in summary["summary"]
    assert frames[-3].event["stop_reason"] == "end_turn"
    assert "No summary of them could be made" in await next_context(live, thread)


@pytest.mark.promise("P18")
async def test_a_turn_is_compacted_between_its_own_steps_with_calls_and_returns_together(
    live: LiveServer,
) -> None:
    agent, thread = await small(live, window=80)
    [tool] = await live.got("/v1/tools/", name="add")
    response = await live.client.patch(f"/v1/agents/{agent}/tools/attach/{tool['id']}")
    assert response.status_code == 200, response.text
    frames = await sent(
        live, thread, '[tool=add][rounds=8][arguments={"n": 1111111111, "more": 2222222222}]'
    )
    assert kinds(frames).count("summary_message") >= 1
    assert kinds(frames).count("tool_return_message") >= 2
    assert frames[-3].event["stop_reason"] == "end_turn"
    items = await live.got(f"/v1/conversations/{thread}/messages", order="asc", limit=1000)
    summary = [item for item in items if item["message_type"] == "summary_message"][-1]
    kept_from = summary["kept_from_message_id"]
    ids = [item["id"] for item in items]
    first = items[ids.index(kept_from)]
    assert first["message_type"] in {"tool_call_message", "user_message"}
    in_context = (await live.got(f"/v1/conversations/{thread}"))["in_context_message_ids"]
    assert in_context[2] == kept_from
    called = {i["tool_call"]["tool_call_id"] for i in items if "tool_call" in i}
    assert called == {i["tool_call_id"] for i in items if "tool_call_id" in i}


async def test_a_fork_has_the_context_of_its_source(live: LiveServer) -> None:
    _, thread = await small(live)
    await filled(live, thread)
    await sent(live, thread, "now " * 30)
    fork = await live.made(f"/v1/conversations/{thread}/fork", None)
    source = await live.got(f"/v1/conversations/{thread}")
    assert fork["in_context_message_ids"][1:] == source["in_context_message_ids"][1:]


async def test_an_agent_is_compacted_by_its_own_settings(live: LiveServer) -> None:
    settings = {"mode": "all", "clip_chars": 10, "prompt": "Sum it up.", "model": "scripted/echo"}
    _, thread = await small(live, compaction_settings={**settings, "prompt_acknowledgement": True})
    await filled(live, thread)
    frames = await sent(live, thread, "now " * 30)
    summary = frames[2].event
    assert len(summary["summary"].split(" …")[0]) == 10
    items = await live.got(f"/v1/conversations/{thread}/messages", order="asc", limit=1000)
    kept = [item for item in items if item["id"] == summary["kept_from_message_id"]]
    assert kept[0]["content"].startswith("now")


async def test_a_step_that_makes_a_summary_names_its_model(live: LiveServer) -> None:
    _, thread = await small(live, compaction_settings={"model": "scripted/echo"})
    await filled(live, thread)
    frames = await sent(live, thread, "[chunks=1] " + "now " * 30, override_model="scripted/slow")
    steps = await live.got(f"/v1/runs/{frames[0].event['run_id']}/steps", order="asc")
    assert [step["model_handle"] for step in steps] == ["scripted/echo", "scripted/slow"]


async def test_room_is_left_for_the_answer_that_is_asked_for(live: LiveServer) -> None:
    _, thread = await small(live, window=200, model_settings={"max_output_tokens": 99})
    await filled(live, thread, 5)
    frames = await sent(live, thread, "now " * 30)
    assert "summary_message" in kinds(frames)
    _, thread = await small(live, window=200)
    await filled(live, thread, 5)
    frames = await sent(live, thread, "now " * 30)
    assert "summary_message" not in kinds(frames)


async def test_the_window_of_the_conversation_goes_before_that_of_the_agent(
    live: LiveServer,
) -> None:
    agent, _ = await small(live)
    thread = (await live.conversation(agent, context_window_limit=100_000))["id"]
    await filled(live, thread, 5)
    frames = await sent(live, thread, "now " * 30)
    assert "summary_message" not in kinds(frames)
