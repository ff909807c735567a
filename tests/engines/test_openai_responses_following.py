"""An answer of the Responses API is continued where it broke off, and is generated once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from msgspec import structs

from reattach.domain.errors import EngineError, ModelError, ModelTimeoutError
from reattach.domain.events import StopReason
from reattach.domain.messages import (
    Fragment,
    HiddenReasoningPart,
    Message,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    join_fragments,
)
from reattach.engine.base import AnswerKept, Delta, Finished, Partial, StepFinished, Turn, Way
from reattach.engine.intake import Intake
from reattach.engine.openai_responses import OpenAIResponsesEngine
from reattach.testing.conformance.engine import Subject, collect, message, text_of
from tests.support.clocks import LeapClock
from tests.support.responses_server import (
    Json,
    ResponsesServer,
    answer_events,
    call_item,
    message_item,
    reasoning_item,
    responses_server,
)

MODEL = "openai-responses/small"
ITEMS = [
    reasoning_item(["r0 ", "r1 "], ["s0 "]),
    message_item("one ", "two ", "three"),
    call_item("call_1", "look", '{"q":', " 1}"),
    call_item("call_2", "find", '{"n":', " 22", "}"),
]
EVENTS = len(answer_events("resp_1", ITEMS, {"status": "completed"}))


@pytest.fixture
async def server() -> AsyncIterator[ResponsesServer]:
    async with responses_server() as server:
        server.ends_cleanly = True
        yield server


@pytest.fixture
def clock() -> LeapClock:
    return LeapClock()


@pytest.fixture
async def engine(server: ResponsesServer, clock: LeapClock) -> AsyncIterator[OpenAIResponsesEngine]:
    engine = OpenAIResponsesEngine(
        [MODEL], base_url=server.base_url, api_key="sk-test", clock=clock
    )
    yield engine
    await engine.aclose()


@pytest.fixture
def turn(engine: OpenAIResponsesEngine) -> Turn:
    return Subject(engine, MODEL).turn()


@dataclass(frozen=True)
class Shown:
    """An answer as a reader sees it."""

    text: str
    reasoning: str
    hidden: int
    calls: tuple[ToolCallPart, ...]


def parts_of(deltas: Sequence[Delta]) -> list[Any]:
    """Fold deltas as the log is folded: adjacent fragments of one kind are one part."""
    intake = Intake()
    fragments = [
        one
        for delta in deltas
        for one in intake.take(delta)
        if isinstance(one, TextPart | ReasoningPart | HiddenReasoningPart | ToolCallDelta)
    ]
    groups = itertools.groupby(fragments, type)
    return [
        part
        for _, group in groups
        for part in join_fragments(cast("Sequence[Fragment]", list(group)))
    ]


def shown(deltas: Sequence[Delta]) -> Shown:
    fragments: Sequence[Any] = [d for d in deltas if isinstance(d, ToolCallDelta)]
    reasoning = "".join(d.text for d in deltas if isinstance(d, ReasoningPart))
    hidden = sum(isinstance(d, HiddenReasoningPart) for d in deltas)
    calls = cast("tuple[ToolCallPart, ...]", join_fragments(fragments)) if fragments else ()
    return Shown(
        "".join(p.text for p in parts_of(deltas) if isinstance(p, TextPart)),
        reasoning,
        hidden,
        calls,
    )


def partial_of(deltas: Sequence[Delta]) -> Partial:
    [kept_id] = [delta.upstream_id for delta in deltas if isinstance(delta, AnswerKept)]
    parts = tuple(parts_of(deltas))
    output = [answer_of(parts)] if parts else []
    return Partial(output, upstream_id=kept_id)


def answer_of(parts: tuple[Any, ...]) -> Message:
    return structs.replace(message(Role.ASSISTANT, ""), parts=parts)


async def broken_off(engine: OpenAIResponsesEngine, turn: Turn) -> tuple[list[Delta], EngineError]:
    """Collect the deltas of a turn whose stream breaks, and the error."""
    deltas: list[Delta] = []
    try:
        async with asyncio.timeout(10):
            async for delta in engine.run(turn):
                deltas.append(delta)  # noqa: PERF401  # those before the error are kept
    except EngineError as error:
        return deltas, error
    pytest.fail("the turn ended without an error")


def interleaved(events: list[Json]) -> list[Json]:
    """Mix the events of all items, keeping the order within each."""
    begin, end = events[:3], events[-1]
    items: dict[int, list[Json]] = {}
    for event in events[3:-1]:
        items.setdefault(event["output_index"], []).append(event)
    mixed = itertools.zip_longest(*items.values())
    return [*begin, *(event for row in mixed for event in row if event is not None), end]


@pytest.mark.parametrize("arrange", [list, interleaved], ids=["in order", "interleaved"])
@pytest.mark.parametrize("too_old", [False, True], ids=["stream", "whole"])
async def test_an_answer_cut_after_any_event_is_continued_and_generated_once(
    engine: OpenAIResponsesEngine, server: ResponsesServer, too_old: bool, arrange: Any
) -> None:
    turn = Subject(engine, MODEL).turn()
    server.items, server.arrange = ITEMS, arrange
    whole = shown(await collect(engine, turn))
    assert whole.text == "one two three"
    assert whole.reasoning == "r0 r1 \n\ns0 "
    assert [call.arguments for call in whole.calls] == ['{"q": 1}', '{"n": 22}']
    for cut in range(1, EVENTS):
        server.requests.clear()
        server.cut_after, server.too_old = [cut], too_old
        first, error = await broken_off(engine, turn)
        assert error.may_pass
        rest = await collect(engine, replace(turn, partial=partial_of(first)))

        assert shown([*first, *rest]) == whole, cut
        assert [type(delta) for delta in rest[-2:]] == [StepFinished, Finished]
        assert rest[-1] == Finished(StopReason.REQUIRES_APPROVAL)
        assert not [delta for delta in rest if isinstance(delta, AnswerKept)]
        assert len(server.requests) == 1, cut


async def test_an_answer_that_breaks_off_at_every_event_is_generated_once(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    server.items = ITEMS
    server.cut_after = list(range(1, EVENTS))
    deltas: list[Delta] = []
    for _ in range(1, EVENTS):
        partial = partial_of(deltas) if deltas else None
        more, error = await broken_off(engine, replace(turn, partial=partial))
        assert error.may_pass
        deltas += more
    deltas += await collect(engine, replace(turn, partial=partial_of(deltas)))
    assert len(server.requests) == 1
    server.items = ITEMS
    assert shown(deltas) == shown(await collect(engine, turn))


async def test_a_connection_that_is_reset_may_be_followed_again(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    server.hangs, server.cut_after = True, [6]
    deltas = cast("AsyncGenerator[Delta]", engine.run(turn))
    async with asyncio.timeout(10):
        first = [await anext(deltas), await anext(deltas)]
    await deltas.aclose()
    server.hangs, server.ends_cleanly, server.cut_after = False, False, [6]
    _, error = await broken_off(engine, replace(turn, partial=partial_of(first)))
    assert (error.may_pass, error.code) == (True, "llm_error")
    rest = await collect(engine, replace(turn, partial=partial_of(first)))
    assert text_of([*first, *rest]) == "one two three four five six seven eight"
    assert len(server.requests) == 1


@pytest.mark.parametrize(("cut", "before"), [(5, "a"), (6, "a\U0001f600b")])
async def test_a_character_in_two_halves_is_completed(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn, cut: int, before: str
) -> None:
    server.items, server.cut_after = [message_item("a\ud83d", "\ude00b", "c")], [cut]
    first, _ = await broken_off(engine, turn)
    assert shown(first).text == before
    rest = await collect(engine, replace(turn, partial=partial_of(first)))
    assert shown(first).text + shown(rest).text == "a\U0001f600bc"


@pytest.mark.parametrize("too_old", [False, True], ids=["stream", "whole"])
async def test_an_answer_that_differs_from_the_shown_text_ends_the_run(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn, too_old: bool
) -> None:
    server.cut_after, server.too_old = [6], too_old
    first, _ = await broken_off(engine, turn)
    partial = partial_of([*first, TextPart(" zwei")])
    _, error = await broken_off(engine, replace(turn, partial=partial))
    assert not error.may_pass
    assert "differs from the part that arrived" in error.detail
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "more", [TextPart(" nine"), ToolCallDelta("call_9", "look", "{}"), ReasoningPart("Why?")]
)
async def test_an_answer_that_is_shorter_than_what_was_shown_ends_the_run(
    engine: OpenAIResponsesEngine, turn: Turn, more: Delta
) -> None:
    shown_deltas = [*(await collect(engine, turn))[:-2], more]
    with pytest.raises(ModelError, match="differs from the part that arrived"):
        await collect(engine, replace(turn, partial=partial_of(shown_deltas)))


async def test_a_call_goes_on_under_the_id_that_the_log_has(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    server.items = [
        call_item("call_1", "look", '{"q":', " 1}"),
        call_item("call_1-2", "find", "{}"),
    ]
    server.cut_after = [5]
    first, _ = await broken_off(engine, turn)
    renamed = ToolCallPart("call_1-2", "look", '{"q":', needs_approval=True)
    partial = replace(partial_of(first), messages=[answer_of((renamed,))])
    rest = await collect(engine, replace(turn, partial=partial))
    assert rest[0] == ToolCallDelta("call_1-2", arguments=" 1}", needs_approval=True)
    other = [delta for delta in rest if isinstance(delta, ToolCallDelta)][1:]
    assert [delta.name for delta in other] == ["find", None]
    assert {delta.tool_call_id for delta in other}.isdisjoint({"call_1-2"})


async def test_earlier_steps_of_the_partial_output_are_not_compared(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    server.cut_after = [6]
    first, _ = await broken_off(engine, turn)
    partial = partial_of(first)
    earlier = message(Role.ASSISTANT, "An earlier step.")
    partial = replace(partial, messages=[earlier, *partial.messages], finished_steps=1)
    rest = await collect(engine, replace(turn, partial=partial))
    assert text_of([*first, *rest]) == "one two three four five six seven eight"


async def test_an_answer_too_old_to_be_streamed_is_asked_for_until_it_ends(
    engine: OpenAIResponsesEngine, server: ResponsesServer, clock: LeapClock, turn: Turn
) -> None:
    server.cut_after = [6]
    first, _ = await broken_off(engine, turn)
    server.too_old, server.unfinished_polls = True, 5
    rest = await collect(engine, replace(turn, partial=partial_of(first)))
    assert [type(delta) for delta in rest] == [TextPart, StepFinished, Finished]
    assert text_of([*first, *rest]) == "one two three four five six seven eight"
    assert clock.passed_seconds == 1 + 2 + 4 + 8 + 10
    assert len(server.requests) == 1


async def test_an_answer_that_does_not_end_is_given_up_after_an_hour(
    engine: OpenAIResponsesEngine, server: ResponsesServer, clock: LeapClock, turn: Turn
) -> None:
    server.cut_after = [6]
    first, _ = await broken_off(engine, turn)
    server.too_old, server.unfinished_polls = True, 10_000
    with pytest.raises(ModelTimeoutError, match="did not end within 60 minutes"):
        await collect(engine, replace(turn, partial=partial_of(first)))
    assert 3600 <= clock.passed_seconds < 3700


async def test_an_answer_that_the_provider_no_longer_keeps_ends_the_run(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    _, error = await broken_off(engine, replace(turn, partial=Partial((), upstream_id="resp_9")))
    assert (type(error), error.may_pass) == (ModelError, False)
    assert "no longer keeps the answer" in error.detail
    assert server.requests == []


FAILED = {"status": "failed", "error": {"code": "server_error", "message": "sorry"}}


async def test_an_answer_that_failed_without_output_is_generated_again(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    server.items, server.end = [], FAILED
    first, error = await broken_off(engine, turn)
    assert error.may_pass
    server.items, server.end = [message_item("Hello.")], {"status": "completed"}
    rest = await collect(engine, replace(turn, partial=partial_of(first)))
    assert rest[0] == AnswerKept("resp_2")
    assert text_of(rest) == "Hello."
    assert len(server.requests) == 2


@pytest.mark.parametrize("too_old", [False, True], ids=["stream", "whole"])
async def test_an_answer_that_failed_after_text_ends_the_run(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn, too_old: bool
) -> None:
    server.items, server.end, server.cut_after = [message_item("Hel", "lo.")], FAILED, [5]
    first, _ = await broken_off(engine, turn)
    server.too_old = too_old
    _, error = await broken_off(engine, replace(turn, partial=partial_of(first)))
    assert not error.may_pass
    assert "It says: sorry" in error.detail
    assert len(server.requests) == 1


# Ways, and the end of a turn.


async def test_an_answer_with_an_id_can_be_followed_and_every_call_made_again(
    engine: OpenAIResponsesEngine, turn: Turn
) -> None:
    assert set(engine.ways(turn)) == {Way.STEP}
    assert set(engine.ways(replace(turn, partial=Partial(())))) == {Way.STEP}
    kept = replace(turn, partial=Partial((), upstream_id="resp_1"))
    assert set(engine.ways(kept)) == {Way.UPSTREAM, Way.STEP}


async def test_closing_a_turn_leaves_the_answer_and_cancelling_it_stops_the_answer(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    server.hangs, server.cut_after = True, [6]
    deltas = cast("AsyncGenerator[Delta]", engine.run(turn))
    async with asyncio.timeout(10):
        first = [await anext(deltas), await anext(deltas)]
    async with asyncio.timeout(1):
        await deltas.aclose()
    async with asyncio.timeout(10):
        await server.hung_up.wait()
    assert server.cancelled == []
    upstream_id = partial_of(first).upstream_id
    assert upstream_id is not None
    await engine.cancel_upstream(turn.model, upstream_id)
    assert server.cancelled == ["resp_1"]


async def test_an_answer_whose_id_never_came_is_stopped_when_its_turn_is_cancelled(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    server.held = asyncio.Event()
    waiting = asyncio.create_task(collect(engine, turn))
    async with asyncio.timeout(10):
        await server.asked.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        server.held.set()
        await server.kept["resp_1"].cancelled.wait()
    assert len(server.requests) == 1


async def test_a_provider_that_does_not_answer_holds_up_no_cancelled_run(
    engine: OpenAIResponsesEngine, turn: Turn
) -> None:
    released = asyncio.Event()

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.close()

    listener = await asyncio.start_server(silence, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        silent = OpenAIResponsesEngine([MODEL], base_url=f"http://127.0.0.1:{port}/v1")
        async with asyncio.timeout(5):
            await silent.cancel_upstream(turn.model, "resp_1")
            await silent.aclose()
        released.set()


async def test_a_refused_cancellation_is_only_logged(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    await engine.cancel_upstream(turn.model, "resp_9")
    assert server.lines == ["POST /v1/responses/resp_9/cancel"]
