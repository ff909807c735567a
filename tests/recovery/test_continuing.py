"""An interrupted answer is continued by the next process, at whatever moment the owner died."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeGuard

import pytest

from reattach.domain.errors import ModelError
from reattach.domain.events import Event, Output, RunStatus, Stopped, StopReason
from reattach.domain.messages import (
    Fragment,
    Message,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.engine.base import Delta, Turn
from reattach.engine.function import FunctionEngine
from reattach.records.base import Page, Run, Span
from reattach.runs.attempts.policy import ContinuePolicy
from reattach.tools.base import Toolbox
from reattach.wire import letta
from tests.recovery.test_tools import Launch, sent
from tests.support.faulty_stores import FaultyLog, Gate, Life
from tests.support.stores import Stores

WAIT_SECONDS = 10.0

GOES_ON = ContinuePolicy()
SPAN = Span(1000, ascending=True)

SCRIPTS = (
    "[chunks=6]",
    "[think=2][chunks=4]",
    "[chunks=3][steps=3]",
    "[tool=imagined][chunks=3]",
    "[unicode][chunks=4]",
    "",
)


async def interrupted(
    stores: Stores,
    text: str,
    moment: str,
    nth: int,
    *,
    tool: Launch | None = None,
    **options: Any,
) -> Run | None:
    """Return a run whose process died at the ``nth`` moment; None if the run ended before."""
    life = Life(moment, nth)
    toolbox = Toolbox([tool or Launch(hangs=False)])
    service = stores.service_upon(life, policy=GOES_ON, toolbox=toolbox)
    send = sent(stores, await stores.conversation(), text=text or "one two three four")
    send = replace(send, representation=replace(send.representation, **options))
    async with asyncio.timeout(WAIT_SECONDS):
        await service.start()
        run = await service.send(send)
        ended = asyncio.create_task(life.ended.wait())
        settled = asyncio.create_task(service.wait_until_settled(run))
        await asyncio.wait({ended, settled}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        settled.cancel()
    return run if life.ended.is_set() else None


async def continued(stores: Stores, run: Run, tool: Launch | None = None) -> Run:
    """Start the next process, and return the run when it has ended."""
    service = stores.service(policy=GOES_ON, toolbox=Toolbox([tool or Launch(hangs=False)]))
    async with asyncio.timeout(WAIT_SECONDS):
        await service.start()
        return await service.wait_until_settled(run)


async def events(stores: Stores, run: Run) -> list[Event]:
    frames = await stores.frames(run)
    seqs = [json.loads(frame.partition(b"data: ")[2])["seq_id"] for frame in frames]
    assert seqs == list(range(1, len(frames) + 1))
    return [letta.decode(frame) for frame in frames]


def said(events: list[Event]) -> list[tuple[str, str]]:
    """Return the texts of adjacent fragments of one kind, joined."""
    joined: list[tuple[str, str]] = []
    for event in events:
        for fragment in event.parts if isinstance(event, Output) else ():
            kind, text = _text(fragment)
            if joined and joined[-1][0] == kind:
                joined[-1] = (kind, joined[-1][1] + text)
            else:
                joined.append((kind, text))
    return joined


def _text(fragment: Fragment) -> tuple[str, str]:
    match fragment:
        case TextPart(text) | ReasoningPart(text):
            return type(fragment).__name__, text
        case ToolCallDelta(_, name, arguments) | ToolCallPart(_, name, arguments):
            return "call", (name or "") + (arguments or "")
        case ToolReturnPart(output=output, status=status):
            return f"return {status}", output
        case _:
            return type(fragment).__name__, ""


@pytest.mark.promise("P19")
@pytest.mark.parametrize("text", SCRIPTS)
async def test_an_answer_goes_on_exactly_after_any_append(stores: Stores, text: str) -> None:
    service = stores.service(policy=GOES_ON, toolbox=Toolbox([Launch(hangs=False)]))
    whole_run = await service.send(
        sent(stores, await stores.conversation(), text=text or "one two three four")
    )
    await service.wait_until_settled(whole_run)
    whole = said(await events(stores, whole_run))
    for nth in range(1, 40):
        run = await interrupted(stores, text, "after log.append", nth)
        if run is None:
            break
        ended = await continued(stores, run)
        assert ended.stop_reason is StopReason.END_TURN, nth
        logged = await events(stores, run)
        assert sum(isinstance(event, Stopped) for event in logged) == 1
        if not ("imagined" in text and any(kind == "return error" for kind, _ in said(logged))):
            assert "".join(t for k, t in said(logged) if k == "TextPart") == "".join(
                t for k, t in whole if k == "TextPart"
            ), nth
    assert nth > 2


def is_return(part: object) -> TypeGuard[ToolReturnPart]:
    return isinstance(part, ToolReturnPart)


def returns_in(logged: list[Event]) -> list[tuple[str, str]]:
    parts = [part for event in logged if isinstance(event, Output) for part in event.parts]
    return [(one.status, one.output) for one in parts if is_return(one)]


@pytest.mark.promise("P17", "P19")
@pytest.mark.parametrize(
    ("moment", "idempotent", "calls", "returned"),
    [
        ("before runs.note_begun", True, [0, 0], ("error", "did not run")),
        ("after runs.note_begun", False, [0, 0], ("error", "not known")),
        ("after runs.note_begun", True, [0, 1], ("success", "launched")),
        ("before runs.settle", False, [1, 0], ("success", "launched")),
    ],
)
async def test_a_tool_that_may_have_begun_runs_again_only_if_it_is_idempotent(
    stores: Stores, moment: str, idempotent: bool, calls: list[int], returned: tuple[str, str]
) -> None:
    tools = [Launch(hangs=False), Launch(hangs=False)]
    for tool in tools:
        tool.idempotent = idempotent
    run = await interrupted(stores, "[tool=launch]", moment, 1, tool=tools[0])
    assert run is not None
    ended = await continued(stores, run, tools[1])
    assert [tool.calls for tool in tools] == calls
    assert ended.stop_reason is StopReason.END_TURN
    [(status, output)] = returns_in(await events(stores, run))
    assert status == returned[0]
    assert returned[1] in output


@pytest.mark.promise("P17", "P19")
async def test_a_call_runs_a_third_time_only_if_its_tool_was_idempotent_at_the_second(
    stores: Stores,
) -> None:
    tools = [Launch(hangs=False) for _ in range(3)]
    tools[0].idempotent = True
    run = await interrupted(stores, "[tool=launch]", "after runs.note_begun", 1, tool=tools[0])
    assert run is not None
    life = Life("after runs.note_begun")
    second = stores.service_upon(life, policy=GOES_ON, toolbox=Toolbox([tools[1]]))
    async with asyncio.timeout(WAIT_SECONDS):
        await second.start()
        await life.ended.wait()
    ended = await continued(stores, run, tools[2])
    assert [tool.calls for tool in tools] == [0, 0, 0]
    assert ended.stop_reason is StopReason.END_TURN
    [(status, output)] = returns_in(await events(stores, run))
    assert (status, output.endswith("is not known.")) == ("error", True)


@pytest.mark.promise("P19")
@pytest.mark.parametrize("stream_tokens", [False, True])
async def test_a_run_with_tools_goes_on_after_any_append_and_calls_each_tool_once(
    stores: Stores, stream_tokens: bool
) -> None:
    for nth in range(1, 20):
        tools = [Launch(hangs=False), Launch(hangs=False)]
        run = await interrupted(
            stores,
            "[tool=launch][rounds=2]",
            "after log.append",
            nth,
            tool=tools[0],
            stream_tokens=stream_tokens,
        )
        if run is None:
            break
        ended = await continued(stores, run, tools[1])
        assert ended.stop_reason is StopReason.END_TURN, nth
        logged = await events(stores, run)
        begun = sum(tool.calls for tool in tools)
        assert begun == sum("not run" not in text for _, text in returns_in(logged)), nth
        thread = ended.thread
        stored = await stores.records.messages.of_run(ended.tenant, ended.id, SPAN)
        assert "".join(one.text for one in stored[1:]) == "".join(
            text for kind, text in said(logged) if kind == "TextPart"
        )
        assert await stores.records.messages.pending_in(thread) is None
    assert nth > 2


@pytest.mark.promise("P19")
async def test_a_broken_stream_of_a_provider_is_continued_in_the_same_process(
    stores: Stores,
) -> None:
    service = stores.service(policy=GOES_ON)
    run = await service.send(stores.send(await stores.conversation(), "[chunks=6][break=3]"))
    async with asyncio.timeout(WAIT_SECONDS):
        ended = await service.wait_until_settled(run)
    assert ended.stop_reason is StopReason.END_TURN
    assert said(await events(stores, run)) == [("TextPart", "t0 t1 t2 t3 t4 t5 ")]
    [attempt] = ended.attempts
    assert (attempt.way, attempt.interruption, attempt.after_seq) == ("prefix", "provider", 3)
    assert ended.usage is not None
    assert ended.usage.step_count == 1


def speaking(*words: str, breaks_at: int | None = None, continues: bool = False) -> FunctionEngine:
    """A model that says the words; in its first attempt the stream breaks before one of them."""
    engine = FunctionEngine()
    turns: list[Turn] = []

    async def speak(turn: Turn) -> AsyncIterator[str]:
        turns.append(turn)
        already = len(turn.said.split()) if continues else 0
        for number, word in enumerate(words):
            if number == breaks_at and len(turns) == 1:
                error = ModelError("The stream broke.")
                error.may_pass = True
                raise error
            if number >= already:
                yield f"{word} "

    engine.model("speaker", continues=continues)(speak)
    return engine


async def answered(stores: Stores, engine: FunctionEngine, policy: ContinuePolicy) -> Run:
    service = stores.service(engine=engine, policy=policy)
    conversation = await stores.conversation()
    run = await service.send(stores.send(conversation, "speak", model="function/speaker"))
    async with asyncio.timeout(WAIT_SECONDS):
        return await service.wait_until_settled(run)


@pytest.mark.promise("P19")
async def test_a_function_that_reads_what_was_said_continues_its_text(stores: Stores) -> None:
    engine = speaking("a", "b", "c", breaks_at=2, continues=True)
    run = await answered(stores, engine, GOES_ON)
    assert run.stop_reason is StopReason.END_TURN
    assert said(await events(stores, run)) == [("TextPart", "a b c ")]


@pytest.mark.promise("P7", "P19")
async def test_another_function_is_called_again_only_before_its_first_text(stores: Stores) -> None:
    run = await answered(stores, speaking("a", "b", breaks_at=0), GOES_ON)
    assert run.stop_reason is StopReason.END_TURN
    assert [one.way for one in run.attempts] == ["step"]
    run = await answered(stores, speaking("a", "b", breaks_at=1), GOES_ON)
    assert run.stop_reason is StopReason.MODEL_API_ERROR
    assert said(await events(stores, run)) == [("TextPart", "a ")]


@pytest.mark.promise("P19")
async def test_a_model_is_asked_to_continue_its_text_only_if_the_operator_allows_it(
    stores: Stores,
) -> None:
    policy = replace(GOES_ON, may_ask=True)
    run = await answered(stores, speaking("a", "b", breaks_at=1), policy)
    assert run.stop_reason is StopReason.END_TURN
    assert [one.way for one in run.attempts] == ["ask"]
    assert said(await events(stores, run)) == [("TextPart", "a a b ")]
    [message] = [m for m in await stored(stores, run) if m.role is Role.ASSISTANT]
    assert message.text == "a a b "


async def stored(stores: Stores, run: Run) -> Sequence[Message]:
    return await stores.records.messages.of_run(run.tenant, run.id, SPAN)


@pytest.mark.promise("P6", "P19")
async def test_a_run_that_was_cancelled_between_attempts_is_not_continued(stores: Stores) -> None:
    run = await interrupted(stores, "[chunks=9]", "after log.append", 2)
    assert run is not None
    await stores.records.runs.request_cancel(run.tenant, [run.id])
    ended = await continued(stores, run)
    assert ended.stop_reason is StopReason.CANCELLED
    assert ended.attempts == ()


@pytest.mark.promise("P7", "P19")
async def test_a_run_that_was_interrupted_long_ago_ends(stores: Stores) -> None:
    run = await interrupted(stores, "[chunks=9]", "after log.append", 2)
    assert run is not None
    long_ago = stores.clock.now() - timedelta(seconds=GOES_ON.within_seconds + 1)
    await stores.execute(
        "UPDATE runs SET created_at = :at WHERE id = :id", at=stored_moment(long_ago), id=run.id
    )
    await stores.execute("UPDATE owners SET beat_at = :at", at=stored_moment(long_ago))
    ended = await continued(stores, run)
    assert ended.stop_reason is StopReason.ERROR


def stored_moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")


@pytest.mark.promise("P15", "P19")
async def test_a_run_that_is_handed_over_goes_on_where_it_stopped(stores: Stores) -> None:
    gate = Gate("log.append")
    service = stores.service(policy=GOES_ON, log=FaultyLog(stores.log, gate))
    run = await service.send(stores.send(await stores.conversation(), "[chunks=400][rate=2000]"))
    gate.opened.set()
    async with asyncio.timeout(WAIT_SECONDS):
        while len(await stores.frames(run)) < 3:
            await asyncio.sleep(0)
        await service.drain(0)
        handed_over = await stores.run(run)
        assert (handed_over.owner, handed_over.status) == ("", RunStatus.RUNNING)
        ended = await continued(stores, run)
    assert ended.stop_reason is StopReason.END_TURN
    assert [one.interruption for one in ended.attempts] == ["handover"]
    text = "".join(f"t{number} " for number in range(400))
    assert said(await events(stores, run)) == [("TextPart", text)]


@pytest.mark.promise("P15", "P19")
async def test_a_run_that_nobody_can_continue_ends_when_its_server_is_stopped(
    stores: Stores,
) -> None:
    hangs = asyncio.Event()
    engine = FunctionEngine()

    @engine.model("speaker")
    async def speak(turn: Turn) -> AsyncIterator[str]:
        yield "a "
        hangs.set()
        await asyncio.Event().wait()

    service = stores.service(engine=engine, policy=GOES_ON)
    conversation = await stores.conversation()
    run = await service.send(stores.send(conversation, "speak", model="function/speaker"))
    async with asyncio.timeout(WAIT_SECONDS):
        await hangs.wait()
        await service.drain(0)
    ended = await stores.run(run)
    assert ended.error is not None
    assert ended.error.error_type == "stream_task_cancelled"


@pytest.mark.promise("P4", "P19")
@pytest.mark.parametrize("types", [{"assistant_message"}, {"tool_return_message"}])
async def test_a_run_with_hidden_messages_goes_on_and_the_conversation_keeps_them(
    stores: Stores, types: set[str]
) -> None:
    options = {"message_types": frozenset(types)}
    for nth in range(1, 20):
        tools = [Launch(hangs=False), Launch(hangs=False)]
        run = await interrupted(
            stores,
            "[think=2][tool=launch][rounds=2]",
            "after log.append",
            nth,
            tool=tools[0],
            **options,
        )
        if run is None:
            break
        ended = await continued(stores, run, tools[1])
        assert ended.stop_reason is StopReason.END_TURN, nth
        messages = await stored(stores, run)
        calls = [p for m in messages for p in m.parts if isinstance(p, ToolCallPart)]
        returned = [p for m in messages for p in m.parts if isinstance(p, ToolReturnPart)]
        assert [call.tool_call_id for call in calls] == [one.tool_call_id for one in returned]
        logged = await events(stores, run)
        shown = {
            type(part) for event in logged if isinstance(event, Output) for part in event.parts
        }
        assert shown <= {TextPart, ToolReturnPart}
        begun = sum(tool.calls for tool in tools)
        assert begun == sum("not run" not in one.output for one in returned), nth
        assert await stores.hidden_events(run) == []
    assert nth > 1


@pytest.mark.promise("P6", "P17", "P19")
async def test_a_run_that_is_cancelled_before_it_goes_on_reports_its_tool_as_unknown(
    stores: Stores,
) -> None:
    run = await interrupted(stores, "[tool=launch]", "after runs.note_begun", 1)
    assert run is not None
    gate = Gate("messages.context")
    service = stores.service_upon(gate, policy=GOES_ON, toolbox=Toolbox([Launch(hangs=False)]))
    async with asyncio.timeout(WAIT_SECONDS):
        await service.start()
        await gate.waiting.wait()
        assert await service.cancel([run]) == {run.id: "cancelled"}
    [returned] = [p for m in await stored(stores, run) for p in m.parts if is_return(p)]
    assert "whether it did its work is not known" in returned.output
    steps = await stores.records.runs.steps(run.tenant, run.id, Page(limit=9, ascending=True))
    assert len(steps) == 1


@pytest.mark.promise("P4", "P19")
async def test_the_conversation_keeps_a_hidden_part_that_the_end_of_the_run_completed(
    stores: Stores,
) -> None:
    types = frozenset({"tool_return_message"})
    options: dict[str, Any] = {"message_types": types, "stream_tokens": False}
    run = await interrupted(stores, "[chunks=3][fail=2]", "before runs.settle", 1, **options)
    assert run is not None
    ended = await continued(stores, run)
    assert ended.stop_reason is StopReason.MODEL_API_ERROR
    assert [m.text for m in await stored(stores, run)][1:] == ["t0 t1 "]


@pytest.mark.promise("P9", "P19")
async def test_a_sender_that_comes_back_while_its_run_is_taken_up_gets_the_whole_answer(
    stores: Stores,
) -> None:
    run = await interrupted(stores, "[chunks=3]", "after log.append", 1)
    assert run is not None
    gate = Gate("log.open")
    service = stores.service_upon(gate, policy=GOES_ON)
    async with asyncio.timeout(WAIT_SECONDS):
        starting = asyncio.create_task(service.start())
        await gate.waiting.wait()
        waiting = asyncio.create_task(service.wait_until_settled(run))
        await asyncio.wait({waiting}, timeout=0.05)
        gate.opened.set()
        await starting
        ended = await waiting
    assert ended.stop_reason is StopReason.END_TURN


@pytest.mark.promise("P17", "P19")
@pytest.mark.parametrize("continues", [False, True])
async def test_a_function_that_was_interrupted_in_its_own_tool_is_not_called_again(
    stores: Stores, continues: bool
) -> None:
    began: list[str] = []

    async def pay(turn: Turn) -> AsyncIterator[Delta]:
        yield TextPart("I will pay. ")
        yield ToolCallDelta("c1", name="pay", arguments="{}")
        began.append(turn.said)
        await asyncio.Event().wait()

    engine = FunctionEngine()
    engine.model("payer", continues=continues)(pay)
    service = stores.service(engine=engine, policy=GOES_ON)
    async with asyncio.timeout(WAIT_SECONDS):
        await service.start()
        conversation = await stores.conversation()
        run = await service.send(stores.send(conversation, "pay", model="function/payer"))
        while not began or "pay" not in str(await stores.frames(run)):
            await asyncio.sleep(0)
        second = stores.service(engine=engine, policy=GOES_ON)
        await second.start()
        ended = await second.wait_until_settled(run)
    assert began == [""]
    assert ended.stop_reason is StopReason.ERROR
    [returned] = [p for m in await stored(stores, run) for p in m.parts if is_return(p)]
    assert "not known" in returned.output


@pytest.mark.promise("P15", "P19")
async def test_a_run_that_was_handed_over_and_cannot_go_on_says_that_the_server_was_stopped(
    stores: Stores,
) -> None:
    gate = Gate("log.append")
    service = stores.service(policy=GOES_ON, log=FaultyLog(stores.log, gate))
    conversation = await stores.conversation()
    run = await service.send(stores.send(conversation, "[chunks=400][rate=2000]"))
    gate.opened.set()
    async with asyncio.timeout(WAIT_SECONDS):
        while len(await stores.frames(run)) < 3:
            await asyncio.sleep(0)
        await service.drain(0)
    await stores.records.conversations.delete(run.tenant, conversation.id)
    ended = await continued(stores, run)
    assert ended.error is not None
    assert ended.error.error_type == "stream_task_cancelled"
