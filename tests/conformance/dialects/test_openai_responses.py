from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from reattach.testing.conformance.dialect import DialectConformance, frames_of
from reattach.testing.conformance.dialect_samples import SAMPLE_RUNS, SampleRun
from reattach.wire.dialects.openai_items import response_id, run_id_of
from reattach.wire.dialects.openai_responses import Responses

Json = dict[str, Any]

EVERY_RUN = pytest.mark.parametrize("run", SAMPLE_RUNS, ids=lambda run: run.name)
LAST = {"response.completed", "response.incomplete", "response.failed"}


class TestResponses(DialectConformance):
    @pytest.fixture
    def dialect(self) -> Responses:
        return Responses()


def events_of(run: SampleRun) -> list[Json]:
    frames = frames_of(Responses(), run)
    return [json.loads(frame.partition(b"\ndata: ")[2]) for frame in frames]


def sample(name: str) -> list[Json]:
    return events_of(next(run for run in SAMPLE_RUNS if run.name == name))


def short(events: list[Json]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


@pytest.fixture(scope="module")
def types() -> TypeAdapter[ResponseStreamEvent]:
    return TypeAdapter(ResponseStreamEvent)


@EVERY_RUN
def test_every_event_has_the_type_that_the_client_declares(
    run: SampleRun, types: TypeAdapter[ResponseStreamEvent]
) -> None:
    for event in events_of(run):
        types.validate_python(event)
        assert "error" not in event  # A member of this name makes the clients raise.


@EVERY_RUN
def test_events_keep_the_rules_that_the_helpers_of_the_clients_enforce(run: SampleRun) -> None:
    events = events_of(run)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert short(events)[:2] == ["created", "in_progress"]
    assert [event["type"] in LAST for event in events] == [False] * (len(events) - 1) + [True]
    assert {event["response"]["id"] for event in events if "response" in event} == {
        response_id(run.facts.run_id)
    }
    open_items: dict[int, Json] = {}
    done: list[Json] = []
    began = 0
    for event in events[2:-1]:
        index = event["output_index"]
        if event["type"] == "response.output_item.added":
            assert index == began
            began += 1
            open_items[index] = event["item"]
            continue
        item = open_items[index]
        assert event.get("item_id", item["id"]) == item["id"]
        if event["type"] == "response.output_item.done":
            assert (event["item"]["id"], event["item"]["type"]) == (item["id"], item["type"])
            done.append(event["item"])
            del open_items[index]
    assert open_items == {}
    final = events[-1]["response"]["output"]
    assert sorted(final, key=str) == sorted(done, key=str)
    assert len({item["id"] for item in final}) == len(final)


@EVERY_RUN
def test_the_deltas_of_a_part_add_up_to_its_end(run: SampleRun) -> None:
    texts: dict[tuple[str, int], str] = {}
    for event in events_of(run):
        place = (event["type"].rpartition(".")[0], event.get("output_index", -1))
        if event["type"].endswith(".delta"):
            texts[place] = texts.get(place, "") + event["delta"]
        elif event["type"].endswith(".done") and ("text" in event or "arguments" in event):
            whole = event["text"] if "text" in event else event["arguments"]
            assert texts.get(place, whole) == whole


def test_an_id_leads_to_the_run_and_back() -> None:
    run_id = SAMPLE_RUNS[0].facts.run_id
    assert run_id_of(response_id(run_id)) == run_id
    for wrong in ("", "resp_", "resp_x", response_id(run_id) + "0", run_id):
        assert run_id_of(wrong) is None


def test_a_tool_of_the_server_is_one_item_from_its_call_to_its_return() -> None:
    events = sample("a tool of the server")
    of_call = [event for event in events if event.get("output_index") == 1]
    assert short(of_call) == [
        "output_item.added",
        "mcp_call.in_progress",
        "mcp_call_arguments.delta",
        "mcp_call_arguments.delta",
        "mcp_call_arguments.done",
        "mcp_call.completed",
        "output_item.done",
    ]
    item = of_call[-1]["item"]
    assert (item["type"], item["output"]) == ("mcp_call", "10:00, 12:00")


@pytest.mark.parametrize(
    ("name", "last", "status", "item"),
    [
        ("a text", "completed", "completed", "completed"),
        ("cut by the limit", "incomplete", "incomplete", "incomplete"),
        ("too many steps", "completed", "completed", "completed"),
        ("cancelled", "incomplete", "cancelled", "incomplete"),
        ("cancelled within a call", "incomplete", "cancelled", "incomplete"),
        ("failed", "failed", "failed", "incomplete"),
    ],
)
def test_each_end_of_a_run_has_its_event_and_status(
    name: str, last: str, status: str, item: str
) -> None:
    events = sample(name)
    assert short(events)[-1] == last
    response = events[-1]["response"]
    assert response["status"] == status
    assert response["output"][-1]["status"] == item
    assert (response["error"] is not None) == (status == "failed")


def test_calls_of_each_kind_have_their_own_items() -> None:
    response = sample("a call of each kind")[-1]["response"]
    assert [item["type"] for item in response["output"]] == [
        "mcp_call",
        "function_call",
        "mcp_approval_request",
    ]
    assert response["status"] == "completed"


def test_reasoning_has_its_signature_and_its_text_in_both_members() -> None:
    item = sample("thoughts with a signature")[-1]["response"]["output"][0]
    assert item["encrypted_content"] == "sig-1"
    assert item["summary"][0]["text"] == item["content"][0]["text"] == "Hm"
