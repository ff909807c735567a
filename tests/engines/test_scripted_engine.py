from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import cast

import pytest
from msgspec import structs

from reattach.domain.errors import EngineError, ModelError, ModelRateLimitError
from reattach.domain.events import StopReason
from reattach.domain.messages import (
    Message,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.engine.base import Delta, Finished, StepFinished, Turn
from reattach.engine.scripted import UNICODE_FRAGMENTS, ScriptedEngine
from reattach.testing.conformance.engine import Subject, collect, message, text_of

ECHO = Subject(engine=ScriptedEngine(), model="scripted/echo")


@dataclass
class SkippingClock:
    """A clock whose sleeps take no time and are all recorded."""

    seconds: float = 0.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic_seconds(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds


async def answer(prompt: str) -> list[Delta]:
    return await collect(ECHO.engine, ECHO.turn(prompt))


async def until_error(prompt: str, error: type[Exception]) -> tuple[list[Delta], Exception]:
    deltas: list[Delta] = []

    async def read() -> None:
        async for delta in ECHO.engine.run(ECHO.turn(prompt)):
            deltas.append(delta)  # noqa: PERF401 - what came before the error counts

    async with asyncio.timeout(5):
        with pytest.raises(error) as raised:
            await read()
    return deltas, raised.value


async def test_without_directives_the_text_comes_back_word_by_word() -> None:
    deltas = await answer("Hello  there,\nworld [1]")
    texts = [delta.text for delta in deltas if isinstance(delta, TextPart)]
    assert texts == ["Hello  ", "there,\n", "world ", "[1]"]


async def test_chunks_and_think_are_numbered_and_reasoning_comes_first() -> None:
    deltas = await answer("[chunks=2][think=1]")
    assert deltas[:3] == [ReasoningPart("r0 "), TextPart("t0 "), TextPart("t1 ")]
    assert len(deltas) == 5


async def test_size_is_the_bytes_of_each_numbered_delta_also_with_unicode() -> None:
    deltas = await answer("[chunks=20][size=100][unicode]")
    sizes = {len(delta.text.encode()) for delta in deltas if isinstance(delta, TextPart)}
    assert sizes == {100}


async def test_unicode_answers_hold_every_awkward_fragment() -> None:
    text = text_of(await answer("[unicode]"))
    assert all(fragment in text for fragment in UNICODE_FRAGMENTS)


async def test_steps_are_apart_by_step_finished_and_numbers_go_on() -> None:
    deltas = await answer("[chunks=1][steps=3]")
    assert [type(delta) for delta in deltas] == [*[TextPart, StepFinished] * 3, Finished]
    assert text_of(deltas) == "t0 t1 t2 "


async def test_a_turn_has_no_more_steps_than_it_may() -> None:
    turn = replace(ECHO.turn("[chunks=1][steps=3]"), max_steps=2)
    deltas = await collect(ECHO.engine, turn)
    assert text_of(deltas) == "t0 t1 "
    assert deltas[-1] == Finished(StopReason.MAX_STEPS)


async def test_a_server_tool_is_called_and_returns_in_a_step_before_the_text() -> None:
    deltas = await answer("[tool=search] done")
    calls = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert calls[0].name == "search"
    assert "".join(call.arguments or "" for call in calls) == '{"n": 1}'
    assert not any(call.needs_approval for call in calls)
    returned = deltas[3]
    assert isinstance(returned, ToolReturnPart)
    assert returned.tool_call_id == calls[0].tool_call_id
    assert isinstance(deltas[4], StepFinished)
    assert deltas[5] == TextPart("done")


@pytest.mark.parametrize("directive", ["client_tool", "approve"])
async def test_a_call_that_waits_for_the_client_ends_the_turn(directive: str) -> None:
    deltas = await answer(f"[{directive}=ask] wait")
    assert deltas[0] == TextPart("wait")
    assert all(d.needs_approval for d in deltas if isinstance(d, ToolCallDelta))
    assert deltas[-1] == Finished(StopReason.REQUIRES_APPROVAL)


async def test_several_calls_come_at_once_and_only_some_of_them_wait() -> None:
    deltas = await answer('[client_tool=a,a][approve=b][with=c][arguments={"path": "x"}][chunks=0]')
    calls = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert [(call.name, call.needs_approval) for call in calls if call.name] == [
        ("c", False),
        ("a", True),
        ("a", True),
        ("b", True),
    ]
    pieces: dict[str, list[str]] = {}
    for call in calls:
        pieces.setdefault(call.tool_call_id, []).append(call.arguments or "")
    assert list(pieces.values()) == [["", '{"path":', ' "x"}']] * 4
    assert [type(delta) for delta in deltas[-2:]] == [StepFinished, Finished]


async def test_a_turn_uses_tool_returns_and_asks_again_until_its_rounds_are_done() -> None:
    call = ToolCallPart("call-1", "look", "{}", needs_approval=True)
    due = ToolCallPart("call-2", "count", "{}")
    asked = message(Role.USER, "[client_tool=look][rounds=2][chunks=3] x")
    request = with_parts(message(Role.ASSISTANT, ""), call)
    returned = with_parts(message(Role.TOOL, ""), ToolReturnPart("call-1", "look", "error", "no"))
    once = replace(ECHO.turn(""), history=[asked, request], input=[returned], due=[due])
    deltas = await collect(ECHO.engine, once)
    assert deltas[0] == ToolReturnPart("call-2", "count", "success", "count returned 1")
    assert text_of(deltas) == "count success: count returned 1\nlook error: no\n"
    assert deltas[-1] == Finished(StopReason.REQUIRES_APPROVAL)
    twice = replace(once, history=[asked, request, returned, request])
    assert (await collect(ECHO.engine, twice))[-1] == Finished(StopReason.END_TURN)


def with_parts(of: Message, *parts: ToolCallPart | ToolReturnPart) -> Message:
    return structs.replace(of, parts=parts)


async def test_the_message_can_choose_the_stop_reason() -> None:
    assert (await answer("[stop=max_tokens_exceeded] x"))[-1] == Finished(StopReason.MAX_TOKENS)


async def test_history_and_system_are_shown_as_the_engine_got_them() -> None:
    history = [message(Role.USER, "one"), message(Role.ASSISTANT, "two")]
    turn = ECHO.turn("[history]", history=history)
    assert text_of(await collect(ECHO.engine, turn)) == "user: one\nassistant: two\n"
    turn = ECHO.turn("[system]", system="Be  brief.\n")
    assert text_of(await collect(ECHO.engine, turn)) == "Be  brief.\n"


async def test_usage_counts_words() -> None:
    turn = ECHO.turn("[think=2] four words of text", system="two words")
    step = (await collect(ECHO.engine, turn))[-2]
    assert isinstance(step, StepFinished)
    usage = step.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 6, 13)
    assert usage.reasoning_tokens == 2


@pytest.mark.parametrize("after", [0, 3])
async def test_fail_raises_a_model_error_after_so_many_deltas(after: int) -> None:
    deltas, _ = await until_error(f"[fail={after}]", ModelError)
    assert len(deltas) == after


async def test_fail_past_the_end_fails_at_the_end() -> None:
    deltas, _ = await until_error("[chunks=2][fail=9]", ModelError)
    assert [type(delta) for delta in deltas] == [TextPart, TextPart, StepFinished]


async def test_fail_can_name_the_error() -> None:
    _, error = await until_error("[fail=0:llm_rate_limit]", EngineError)
    assert type(error) is ModelRateLimitError


async def test_crash_raises_what_no_engine_should() -> None:
    deltas, _ = await until_error("[crash=1]", RuntimeError)
    assert len(deltas) == 1


async def test_hang_is_silent_after_its_deltas_until_it_is_cancelled() -> None:
    deltas = cast(AsyncGenerator[Delta], ECHO.engine.run(ECHO.turn("[hang=2]")))
    assert [await anext(deltas), await anext(deltas)] == [TextPart("t0 "), TextPart("t1 ")]
    waiting = asyncio.ensure_future(anext(deltas))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    async with asyncio.timeout(1):
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_wait_and_rate_are_kept_by_the_clock() -> None:
    clock = SkippingClock()
    engine = ScriptedEngine(clock=clock)
    await collect(engine, ECHO.turn("[wait=2.5][rate=50][chunks=101]"))
    assert clock.seconds == pytest.approx(2.5 + 2.0)


async def test_the_slow_model_has_ten_deltas_per_second() -> None:
    clock = SkippingClock()
    slow = Subject(engine=ScriptedEngine(clock=clock), model="scripted/slow")
    await collect(slow.engine, slow.turn("[chunks=11]"))
    assert clock.seconds == pytest.approx(1.0)


async def test_no_delta_passes_a_closed_gate() -> None:
    opened = asyncio.Semaphore(0)
    waiting: list[int] = []

    async def gate(turn: Turn, count: int) -> None:
        waiting.append(count)
        await opened.acquire()

    seen: list[Delta] = []

    async def read() -> None:
        async for delta in ScriptedEngine(gate=gate).run(ECHO.turn("[chunks=2]")):
            seen.append(delta)  # noqa: PERF401 - it is looked at meanwhile

    async with asyncio.timeout(5):
        task = asyncio.create_task(read())
        while not waiting:
            await asyncio.sleep(0)
        assert seen == []
        opened.release()
        while len(waiting) < 2:
            await asyncio.sleep(0)
        assert seen == [TextPart("t0 ")]
        opened.release()
        await task
    assert waiting == [0, 1]


@pytest.mark.parametrize(
    ("directive", "reason"),
    [
        ("[chunks=many]", "[chunks=many] of the scripted model must be a whole number from 0"),
        ("[chunks=-1]", "must be a whole number from 0 to"),
        ("[chunks=9999999]", "must be a whole number from 0 to 1000000"),
        ("[chunks]", "needs a value"),
        ("[unicode=1]", "takes no value"),
        ("[chonks=3]", "is unknown; there are approve, arguments, break, chunks"),
        ("[rate=0]", "must be a number above 0, at most 1000000"),
        ("[rate=nan]", "must be a number above 0"),
        ("[rate=fast]", "must be a number above 0"),
        ("[fail=1:boom]", "must name one of the errors internal_error, llm_error"),
        ("[fail=soon]", "must be a whole number from 0"),
        ("[stop=tomorrow]", "must be one of end_turn, error"),
        ("[tool=a b]", "must be 1 to 64"),
    ],
)
async def test_a_bad_directive_fails_the_turn_and_is_named(directive: str, reason: str) -> None:
    deltas, error = await until_error(f"hello {directive}", ModelError)
    assert deltas == []
    assert directive in str(error)
    assert reason in str(error)
