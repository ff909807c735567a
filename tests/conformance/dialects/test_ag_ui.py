from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest

from reattach.domain.events import StopReason
from reattach.testing.conformance.dialect import DialectConformance, frames_of
from reattach.testing.conformance.dialect_samples import SAMPLE_RUNS, SampleRun
from reattach.wire.dialects.ag_ui import AgUi

EVERY_RUN = pytest.mark.parametrize("run", SAMPLE_RUNS, ids=lambda run: run.name)


def events_of(run: SampleRun, given: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    asked = msgspec.structs.replace(run.facts, given=given or {"protocolVersion": "1.0"})
    frames = frames_of(AgUi(), SampleRun(run.name, run.events, asked))
    return [msgspec.json.decode(frame.removeprefix(b"data: ")) for frame in frames]


def members(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for one in value.values():
            yield from members(one)
    elif isinstance(value, list):
        for one in value:
            yield from members(one)
    else:
        yield value


class TestAgUi(DialectConformance):
    @pytest.fixture
    def dialect(self) -> AgUi:
        return AgUi()


@EVERY_RUN
def test_every_message_call_and_step_ends_before_the_run_does(run: SampleRun) -> None:
    events = events_of(run)
    open_: set[tuple[str, str]] = set()
    for event in events:
        kind, _, change = event["type"].rpartition("_")
        named = next((event[n] for n in ("messageId", "toolCallId", "stepName") if n in event), "")
        if change in {"START", "STARTED"} and kind != "RUN":
            assert (kind, named) not in open_
            open_.add((kind, named))
        elif change in {"END", "FINISHED"} and kind != "RUN":
            open_.remove((kind, named))
        elif change in {"CONTENT", "ARGS"}:
            assert (kind, named) in open_
            assert event["delta"]
    assert not open_
    assert events[0]["type"] == "RUN_STARTED"
    assert events[-1]["type"] in {"RUN_FINISHED", "RUN_ERROR"}


@EVERY_RUN
def test_no_member_of_an_event_is_null(run: SampleRun) -> None:
    assert None not in members(events_of(run))


@EVERY_RUN
def test_a_cancelled_run_is_a_success_to_clients_that_know_no_cancellation(run: SampleRun) -> None:
    reasons = [event.reason for event in run.events if hasattr(event, "reason")]
    is_cancelled = reasons == [StopReason.CANCELLED]
    newer, older = events_of(run)[-1], events_of(run, {"threadId": "t"})[-1]
    assert (newer.get("outcome") == {"type": "cancelled"}) is is_cancelled
    if is_cancelled:
        assert older["outcome"] == {"type": "success"}
        assert older["result"] == {"stop_reason": "cancelled"}
    assert "usage" not in older


def test_a_call_of_the_server_that_waits_is_an_interrupt_and_one_of_the_client_is_none() -> None:
    ends = {run.name: events_of(run)[-1] for run in SAMPLE_RUNS}
    (asked,) = ends["an approval"]["outcome"]["interrupts"]
    assert (asked["id"], asked["toolCallId"]) == ("call-1", "call-1")
    assert asked["responseSchema"]["required"] == ["approved"]
    assert ends["a tool of the client"]["outcome"] == {"type": "success"}
    mixed = [one["id"] for one in ends["a call of each kind"]["outcome"]["interrupts"]]
    assert mixed == ["call-3"]


def test_the_names_of_the_client_are_repeated() -> None:
    given = {"threadId": "t-1", "runId": "r-1", "parentRunId": "r-0", "protocolVersion": "1.0"}
    events = events_of(SAMPLE_RUNS[0], given)
    run_id = SAMPLE_RUNS[0].facts.run_id
    assert events[0] == {
        "type": "RUN_STARTED",
        **given,
        "metadata": {"reattach": {"run_id": run_id}},
    }
    assert (events[-1]["threadId"], events[-1]["runId"]) == ("t-1", "r-1")
