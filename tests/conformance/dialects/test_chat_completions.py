from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from reattach.runs.transcript import Transcript
from reattach.testing.conformance.dialect import DialectConformance, frames_of
from reattach.testing.conformance.dialect_samples import SAMPLE_RUNS, SampleRun
from reattach.wire.dialects.chat_completions import ChatCompletions, completion

Json = dict[str, Any]

ENDED = [run for run in SAMPLE_RUNS if not run.name.startswith("failed")]


class TestChatCompletions(DialectConformance):
    @pytest.fixture(params=[False, True], ids=["plain", "with usage"])
    def dialect(self, request: pytest.FixtureRequest) -> ChatCompletions:
        return ChatCompletions(includes_usage=request.param)


def chunks_of(run: SampleRun) -> list[Json]:
    frames = frames_of(ChatCompletions(includes_usage=True), run)
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames]


def joined(chunks: list[Json]) -> Json:
    """Add up a stream as clients do."""
    *chunks, last = chunks
    texts: Json = {"content": "", "reasoning_content": ""}
    calls: dict[int, Json] = {}
    for delta in (chunk["choices"][0]["delta"] for chunk in chunks):
        for name in texts:
            texts[name] += delta.get(name, "")
        for piece in delta.get("tool_calls", ()):
            known = calls.setdefault(piece["index"], piece)
            if known is not piece:
                known["function"]["arguments"] += piece["function"]["arguments"]
    return {
        **texts,
        "tool_calls": [{"id": one["id"], **one["function"]} for one in calls.values()],
        "finish_reason": chunks[-1]["choices"][0]["finish_reason"],
        "usage": last["usage"],
    }


def whole(run: SampleRun) -> Json:
    """Make the object out of the messages that the conversation keeps of the run."""
    transcript = Transcript()
    for event in run.events:
        transcript.add(event)
    messages = transcript.messages(SimpleNamespace(id=run.facts.run_id))  # type: ignore[arg-type]
    assert transcript.stopped is not None
    answer = completion(run.facts, messages, transcript.stopped.reason, transcript.usage)
    (choice,) = answer["choices"]
    message = choice["message"]
    return {
        "content": message["content"] or "",
        "reasoning_content": message.get("reasoning_content", ""),
        "tool_calls": [
            {"id": one["id"], **one["function"]} for one in message.get("tool_calls", ())
        ],
        "finish_reason": choice["finish_reason"],
        "usage": answer["usage"],
    }


@pytest.mark.parametrize("run", ENDED, ids=lambda run: run.name)
def test_the_chunks_of_a_run_add_up_to_its_whole_answer(run: SampleRun) -> None:
    assert joined(chunks_of(run)) == whole(run)


def sample(name: str) -> SampleRun:
    return next(run for run in SAMPLE_RUNS if run.name == name)


@pytest.mark.parametrize(
    ("name", "content", "calls", "reason"),
    [
        ("two texts in a step", "One\n\nTwo", [], "stop"),
        ("a tool of the server", "I look.\n\nAt ten.", [], "stop"),
        ("a tool of the client", "", ["open_map"], "tool_calls"),
        ("cut by the limit", "And so on and", [], "length"),
        ("cancelled", "The isl", [], "stop"),
    ],
)
def test_a_run_reads_as_one_answer(name: str, content: str, calls: list[str], reason: str) -> None:
    answer = joined(chunks_of(sample(name)))
    assert answer["content"] == content
    assert [call["name"] for call in answer["tool_calls"]] == calls
    assert answer["finish_reason"] == reason


def test_a_call_that_needs_an_approval_is_named_in_the_text() -> None:
    answer = joined(chunks_of(sample("an approval")))
    assert answer["content"].startswith("May I?\n\n(Waiting for an approval of `delete_all`")
    assert (answer["tool_calls"], answer["finish_reason"]) == ([], "stop")


def test_a_failed_run_ends_with_its_error_and_no_finish() -> None:
    *chunks, last = chunks_of(sample("failed"))
    assert last["error"]["code"] == "llm_error"
    assert not any(chunk["choices"][0]["finish_reason"] for chunk in chunks)
