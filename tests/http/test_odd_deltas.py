"""Deltas that no store, wire or client takes as they are: the run ends and can be read whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from reattach.domain.errors import EngineError
from reattach.domain.events import StopReason, Usage
from reattach.domain.messages import ReasoningPart, TextPart, ToolCallDelta, ToolReturnPart
from reattach.engine.base import Delta, Finished, StepFinished, Turn
from reattach.engine.function import FunctionEngine
from tests.support.asgi_server import Server, serving

HIGH, LOW, SMILE = "\ud83d", "\ude00", "\U0001f600"
ODD_USAGE: Any = Usage(12.5, float("nan"), -1, 1, "7", 2**70, 1.5, float("inf"))  # type: ignore[arg-type]


class Answers(FunctionEngine):
    """Yields the deltas that a test names, then those of a plain answer."""

    def __init__(self) -> None:
        super().__init__({"odd": self._answer}, provider_name="odd")
        self.deltas: list[Any] = []
        self.turns: list[Turn] = []

    async def _answer(self, turn: Turn) -> AsyncIterator[str | Delta]:
        self.turns.append(turn)
        deltas, self.deltas = self.deltas, []
        for delta in deltas or [TextPart("fine")]:
            if isinstance(delta, BaseException):
                raise delta
            yield delta


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers()


@pytest.fixture(scope="module")
async def server(
    tmp_path_factory: pytest.TempPathFactory, answers: Answers
) -> AsyncIterator[Server]:
    """One server for all tests of the file, so that a list that breaks breaks them all."""
    async with serving(tmp_path_factory.mktemp("odd"), engine=answers) as server:
        yield server


async def streamed(server: Server, thread_id: str, **body: Any) -> list[dict[str, Any]]:
    """Send, and return the events of the stream."""
    sent = {"messages": [{"role": "user", "content": "go"}], "stream_tokens": True, **body}
    response = await server.client.post(f"/v1/conversations/{thread_id}/messages", json=sent)
    assert response.status_code == 200, response.text
    return events_of(response.text)


def events_of(body: str) -> list[dict[str, Any]]:
    assert body.endswith("data: [DONE]\n\n")
    lines = [line for line in body.split("\n") if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def assert_all_can_be_read(server: Server, thread_id: str, run_id: str) -> None:
    """Everything that shows the run or its conversation answers, and the next send works."""
    for path in (
        f"/v1/runs/{run_id}",
        f"/v1/runs/{run_id}/messages",
        f"/v1/runs/{run_id}/usage",
        f"/v1/runs/{run_id}/steps",
        "/v1/runs/",
        f"/v1/conversations/{thread_id}/messages",
        f"/v1/conversations/{thread_id}",
    ):
        await server.got(path)
    after = await server.send(thread_id, "again")
    assert after["stop_reason"]["stop_reason"] == "end_turn"
    assert (await server.client.delete(f"/v1/runs/{run_id}")).status_code == 200


async def new_thread(server: Server) -> str:
    agent = await server.agent()
    thread_id: str = (await server.conversation(agent["id"]))["id"]
    return thread_id


@pytest.mark.promise("P1", "P4")
@pytest.mark.parametrize("stream_tokens", [True, False])
@pytest.mark.parametrize(
    ("deltas", "kind"),
    [
        ([TextPart(f"a{HIGH}"), TextPart(f"{LOW}b{HIGH}")], "assistant_message"),
        ([TextPart("a\0b")], "assistant_message"),
        ([ReasoningPart(HIGH, f"s{HIGH}"), TextPart("a")], "reasoning_message"),
        (
            [
                ToolCallDelta(f"c{HIGH}", name=f"n{HIGH}", arguments=f'{{"{HIGH}'),
                ToolCallDelta(f"c{HIGH}", arguments=f'{LOW}": "\0"}}'),
                StepFinished(Usage()),
                ToolReturnPart(f"c{HIGH}", f"n{HIGH}", "success", HIGH, (HIGH,), ("\0",)),
            ],
            "tool_return_message",
        ),
        ([ToolCallDelta("c", name="n", arguments='{"x":' + "[" * 5000)], "tool_call_message"),
    ],
)
async def test_invalid_unicode_ends_in_a_dense_log_and_a_usable_conversation(
    server: Server, answers: Answers, deltas: list[Delta], kind: str, *, stream_tokens: bool
) -> None:
    """A2"""
    answers.deltas = deltas
    thread_id = await new_thread(server)
    events = await streamed(server, thread_id, stream_tokens=stream_tokens, background=True)

    assert [event["seq_id"] for event in events] == list(range(1, len(events) + 1))
    assert kind in {event["message_type"] for event in events}
    assert events[-2] | {"seq_id": 0} == {
        "message_type": "stop_reason",
        "stop_reason": "end_turn",
        "seq_id": 0,
        "run_id": events[-1]["run_id"],
    }
    run_id = events[-1]["run_id"]
    for cursor in range(len(events)):
        body = {"run_id": run_id, "starting_after": cursor}
        replay = await server.client.post(f"/v1/conversations/{thread_id}/stream", json=body)
        assert events_of(replay.text) == events[cursor:]
    await assert_all_can_be_read(server, thread_id, run_id)


async def test_fractional_and_impossible_token_counts_leave_every_list_readable(
    server: Server, answers: Answers
) -> None:
    """A1"""
    answers.deltas = [
        TextPart("a"),
        StepFinished(ODD_USAGE),
        TextPart("b"),
        StepFinished(ODD_USAGE),
    ]
    thread_id = await new_thread(server)
    events = await streamed(server, thread_id)

    run_id = events[-1]["run_id"]
    usage = await server.got(f"/v1/runs/{run_id}/usage")
    assert usage["completion_tokens"] == 24
    assert usage["prompt_tokens"] == 0
    await assert_all_can_be_read(server, thread_id, run_id)


@pytest.mark.parametrize(
    "error",
    [
        EngineError(f"half {HIGH} and \0"),
        EngineError(5),  # type: ignore[arg-type]
        EngineError("long " * 100_000),
        ValueError(HIGH),
        type("OddError", (EngineError,), {"stop_reason": "because", "code": "odd\0"})("odd"),
    ],
)
async def test_an_engine_that_fails_with_an_odd_error_leaves_a_readable_run(
    server: Server, answers: Answers, error: Exception
) -> None:
    """A2: the text of the error that ends the run."""
    answers.deltas = [TextPart("a"), error]
    thread_id = await new_thread(server)
    events = await streamed(server, thread_id)

    assert [event["seq_id"] for event in events] == list(range(1, len(events) + 1))
    assert events[-2]["message_type"] == "error_message"
    await assert_all_can_be_read(server, thread_id, events[-1]["run_id"])


@pytest.mark.parametrize(
    "delta",
    [
        TextPart(5),  # type: ignore[arg-type]
        ToolCallDelta("a", name="n", arguments={"x": 1}),  # type: ignore[arg-type]
        Finished("because"),  # type: ignore[arg-type]
        object(),
    ],
)
async def test_a_delta_of_the_wrong_type_fails_the_run_and_nothing_else(
    server: Server, answers: Answers, delta: Any
) -> None:
    answers.deltas = [TextPart("a"), delta, TextPart("b")]
    thread_id = await new_thread(server)
    events = await streamed(server, thread_id)

    assert [event["seq_id"] for event in events] == list(range(1, len(events) + 1))
    texts = [one["content"] for one in events if one["message_type"] == "assistant_message"]
    assert texts == ["a"]
    assert events[-3]["stop_reason"] == "error"
    await assert_all_can_be_read(server, thread_id, events[-1]["run_id"])


@pytest.mark.parametrize("given", ["c" * 4500, "c\0", f"c{HIGH}", "", "c" * 200_000])
async def test_a_client_tool_is_answered_by_the_id_that_the_client_saw(
    server: Server, answers: Answers, given: str
) -> None:
    """A7"""
    thread_id = await new_thread(server)
    answers.deltas = [
        ToolCallDelta(given, name="look", needs_approval=True),
        ToolCallDelta(given, arguments="{}", needs_approval=True),
        Finished(StopReason.REQUIRES_APPROVAL),
    ]
    tools = [{"name": "look", "parameters": {"type": "object"}}]
    events = await streamed(server, thread_id, client_tools=tools)
    asked = [one for one in events if one["message_type"] == "approval_request_message"]
    (seen,) = {one["tool_call"]["tool_call_id"] for one in asked}
    assert events[-2]["stop_reason"] == "requires_approval"

    returned = {"type": "tool", "tool_call_id": seen, "tool_return": "1", "status": "success"}
    answer = {"type": "approval", "approvals": [returned]}
    events = await streamed(server, thread_id, messages=[answer])

    assert events[-2]["stop_reason"] == "end_turn"
    parts = [part for one in answers.turns[-1].input for part in one.parts]
    assert seen in {getattr(part, "tool_call_id", None) for part in parts}
    await assert_all_can_be_read(server, thread_id, events[-1]["run_id"])
