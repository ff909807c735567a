from __future__ import annotations

import json
from typing import Any, Final

import pytest

from reattach.domain.events import Output, Stopped, StopReason
from reattach.domain.messages import ToolCallPart
from reattach.testing.conformance.dialect import DialectConformance, frames_of
from reattach.testing.conformance.dialect_samples import SAMPLE_RUNS, SampleRun
from reattach.wire.dialects.ui_message_state import UiMessageState
from reattach.wire.dialects.ui_messages import UiMessages, message_id_of

KNOWN_TO_VERSION_5: Final = {
    *("start", "start-step", "finish-step", "finish", "abort", "error", "message-metadata"),
    *("text-start", "text-delta", "text-end"),
    *("reasoning-start", "reasoning-delta", "reasoning-end"),
    *("tool-input-start", "tool-input-delta", "tool-input-available", "tool-input-error"),
    *("tool-output-available", "tool-output-error"),
    "data-reattach-compaction",
}

EVERY_RUN = pytest.mark.parametrize("run", SAMPLE_RUNS, ids=lambda run: run.name)


def chunks_of(run: SampleRun, dialect: UiMessages | None = None) -> list[dict[str, Any]]:
    frames = frames_of(dialect or UiMessages(), run)
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames]


def sample(name: str) -> SampleRun:
    return next(run for run in SAMPLE_RUNS if run.name == name)


class TestUiMessages(DialectConformance):
    @pytest.fixture
    def dialect(self) -> UiMessages:
        return UiMessages()


@EVERY_RUN
def test_version_5_knows_every_chunk_of_a_run_without_approvals(run: SampleRun) -> None:
    kinds = {chunk["type"] for chunk in chunks_of(run)}
    asks = any(getattr(part, "name", "") == "delete_all" for part in parts_of(run))
    assert kinds - KNOWN_TO_VERSION_5 == ({"tool-approval-request"} if asks else set())


def parts_of(run: SampleRun) -> list[object]:
    return [part for event in run.events for part in getattr(event, "parts", ())]


@EVERY_RUN
def test_every_part_begins_before_it_goes_on_and_every_stream_finishes(run: SampleRun) -> None:
    chunks = chunks_of(run)
    assert chunks[0]["type"] == "start"
    assert chunks[-1]["type"] == "finish"
    is_open: set[str] = set()
    calls: set[str] = set()
    for chunk in chunks:
        kind, _, moment = chunk["type"].rpartition("-")
        if kind in {"text", "reasoning"}:
            if moment == "start":
                assert chunk["id"] not in is_open
                is_open.add(chunk["id"])
            assert chunk["id"] in is_open
            if moment == "end":
                is_open.remove(chunk["id"])
        elif kind.startswith("tool-"):
            if "toolName" in chunk:
                calls.add(chunk["toolCallId"])
            assert chunk["toolCallId"] in calls
    assert not is_open
    kinds = [chunk["type"] for chunk in chunks]
    assert kinds.count("start-step") == kinds.count("finish-step")


@EVERY_RUN
def test_the_chunks_add_up_to_a_message_in_which_nothing_is_in_progress(run: SampleRun) -> None:
    state = UiMessageState()
    state.add(chunks_of(run))
    message = state.message()
    assert message["id"] == message_id_of(run.facts.run_id)
    assert {"streaming", "input-streaming"}.isdisjoint(
        part.get("state") for part in message["parts"]
    )
    assert message["metadata"]["seq"] == len(run.events)


def test_a_call_that_waits_is_in_a_step_after_the_calls_that_the_server_still_runs() -> None:
    run = sample("two calls at once")
    first, second = ToolCallPart("call-1", "look", "{}"), ToolCallPart("call-2", "rm", "{}", True)
    place = next(event.place for event in run.events if isinstance(event, Output))
    ended = (Stopped(StopReason.REQUIRES_APPROVAL), run.events[-1])
    for parts in ((first, second), (second, first)):
        asking = SampleRun("asks", (Output(place, parts), *ended), run.facts)
        steps = " ".join(chunk["type"] for chunk in chunks_of(asking)).split("start-step")
        assert [step.count("tool-input-available") for step in steps] == [0, 1, 1]
        assert "tool-approval-request" in steps[-1]


def test_a_return_of_a_call_that_the_message_lacks_brings_the_call() -> None:
    run = sample("a tool of the server")
    events = [event for event in run.events if not _calls(event)]
    alone = SampleRun("return", tuple(events), run.facts)
    kinds = [chunk["type"] for chunk in chunks_of(alone)]
    place = kinds.index("tool-output-available")
    assert kinds[place - 1] == "tool-input-available"
    continued = chunks_of(alone, UiMessages(first_run_id="run-1", denied=["call-9"]))
    assert continued[0]["messageId"] == "msg-1"
    assert continued[1] == {"type": "tool-output-denied", "toolCallId": "call-9"}
    assert "tool-input-available" not in [chunk["type"] for chunk in continued]


def _calls(event: object) -> bool:
    return any(type(part).__name__ == "ToolCallDelta" for part in getattr(event, "parts", ()))
