"""Each row of the table of continuations, for each engine, interrupted after each event.

The rows are those of docs/survival.md. The log of an interrupted run says which row it is in; the
row and the engine say how the run must go on.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import groupby
from typing import Any, TypeVar

import pytest

from reattach.domain.events import Event, Output, Stopped, StopReason, Usage
from reattach.domain.ids import DEFAULT_TENANT, FIRST_SEQ, Seq, Token, new_message_id
from reattach.domain.messages import (
    ApprovalPart,
    HiddenReasoningPart,
    Message,
    ReasoningPart,
    Role,
    SummaryPart,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.log.base import Log, RunWriter
from reattach.records.base import Agent, Conversation, Run, Span, Thread
from reattach.runs.attempts.policy import ContinuePolicy
from reattach.runs.service import RunService
from reattach.tools.base import Toolbox
from reattach.wire import letta
from tests.recovery.test_tools import Launch
from tests.support.continuing_engines import (
    KINDS,
    TALES,
    Engines,
    Kind,
    continuing_engines,
    message_for,
)
from tests.support.faulty_stores import (
    Faults,
    FaultyLog,
    FaultyRunWriter,
    Life,
    faulty_records,
)
from tests.support.stores import Stores
from tests.support.story_provider import Fault, Telling, text_of

T = TypeVar("T")

WAIT_SECONDS = 20.0

GOES_ON = ContinuePolicy()

pytestmark = pytest.mark.filterwarnings("ignore:Failed to extract usage with `genai-prices`")


TWINS = {"chat", "anthropic", "anthropic that continues"}
"""Kinds that share everything but the dialect with another one."""


class Row(StrEnum):
    """The part of the interrupted step that the log has."""

    NOTHING = "nothing"
    KEPT = "an answer that the provider keeps"
    REASONING = "only reasoning"
    TEXT = "text"
    INCOMPLETE = "calls that may not be complete"
    COMPLETE = "complete calls that have not begun"
    BEGUN = "a call that had begun"
    RETURNED = "the returns of all calls"
    ENDED = "its end"


# Processes that die.


class EndingLog(FaultyLog):
    """A log whose process dies once the run has ``events`` events, its terminal group apart."""

    def __init__(self, log: Log, life: Life, events: int) -> None:
        super().__init__(log, life)
        self._life = life
        self._events = events

    async def open(
        self, run_id: str, token: Token, *, first_seq: Seq = FIRST_SEQ, aliases: Sequence[str] = ()
    ) -> RunWriter:
        writer = await super().open(run_id, token, first_seq=first_seq, aliases=aliases)
        return EndingWriter(writer, self._life, self._events)


class EndingWriter(FaultyRunWriter):
    def __init__(self, writer: RunWriter, life: Life, events: int) -> None:
        super().__init__(writer, life)
        self._life = life
        self._events = events

    async def append(self, first_seq: Seq, frames: Sequence[bytes], *, close: bool = False) -> None:
        left = self._events - (first_seq - 1)
        if len(frames) > left or (len(frames) == left and not close):
            if left > 0 and not close:  # The terminal group comes whole or not at all.
                await self._writer.append(first_seq, frames[:left])
            self._life.ended.set()
        await super().append(first_seq, frames, close=close)


@dataclass
class CountingTool(Launch):
    """A tool that counts the calls by their arguments, and ends its process in one of them."""

    idempotent: bool = False
    hangs: bool = False
    began: Counter[str] = field(default_factory=Counter)
    dies_in: int | None = None
    """The number of the call in which its process dies."""
    life: Life | None = None

    async def call(self, arguments: str) -> str:
        self.began[arguments] += 1
        if self.life is not None and sum(self.began.values()) == self.dies_in:
            self.life.ended.set()
            await asyncio.Event().wait()
        return await super().call(arguments)


@dataclass
class Cell:
    """A run of one engine with one tale, over several processes."""

    stores: Stores
    engines: Engines
    kind: Kind
    tale: str
    tool: CountingTool = field(default_factory=CountingTool)
    options: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    agent: Agent | None = None
    """The agent, if it is not the stores'."""
    conversation: Conversation | None = None
    """The conversation, if it is not a new one."""
    approvals: tuple[Message, ...] = ()
    """An answer to an approval request, which is sent in place of the message."""

    def __post_init__(self) -> None:
        self.message = self.message or message_for(self.kind, self.tale)
        self.tool.requires_approval = self.tale == "approval"

    @property
    def steps(self) -> int:
        """The number of generations of a run that is not interrupted."""
        return 1 if self.tale == "approval" else len(TALES[self.tale].story)

    @property
    def story_text(self) -> str:
        return text_of(TALES[self.tale].story)

    def tell_anew(self, *faults: Fault | None) -> Telling:
        """Forget what happened, and return the story for the next run."""
        self.tool.began.clear()
        return self.engines.tell(self.tale, self.message, *faults)

    def service(self, **options: Any) -> RunService:
        toolbox = Toolbox([self.tool])
        engine = self.engines.of(self.kind)
        return self.stores.service(engine=engine, toolbox=toolbox, policy=GOES_ON, **options)

    async def send(self, service: RunService) -> Run:
        conversation = self.conversation or await self.stores.conversation()
        send = self.stores.send(conversation, self.message, model=self.kind.model, **self.options)
        agent = (self.agent or self.stores.agent).with_tools({"launch": None})
        messages = self.approvals or send.messages
        return await service.send(replace(send, agent=agent, messages=messages))

    async def uninterrupted(self) -> Whole:
        telling, service = self.tell_anew(), self.service()
        async with asyncio.timeout(WAIT_SECONDS):
            run = await service.wait_until_settled(await self.send(service))
        assert self.kind.name == "scripted" or len(telling.generations) == self.steps
        return Whole(run, text_of_all(await stored_messages(self, run)), await self.events(run))

    async def died(self, life: Life, events: int, run: Run | None = None) -> Run | None:
        """Let a process start or go on with the run and die; None if the run ended before."""
        log = EndingLog(self.stores.log, life, events)
        service = self.service(log=log, records=faulty_records(self.stores.records, life))
        self.tool.life = life
        async with asyncio.timeout(WAIT_SECONDS):
            starting = asyncio.create_task(service.start())
            if run is None:
                await starting
                run = await self.send(service)
            ended = asyncio.create_task(life.ended.wait())
            settled = asyncio.create_task(service.wait_until_settled(run))
            await asyncio.wait({ended, settled}, return_when=asyncio.FIRST_COMPLETED)
            for task in (starting, ended, settled, *service.open_runs.tasks):
                task.cancel()
        self.tool.life = None
        return run if life.ended.is_set() else None

    async def goes_on(self, run: Run) -> Run:
        """Start the next process, and return the run when it has ended."""
        service = self.service()
        async with asyncio.timeout(WAIT_SECONDS):
            await service.start()
            return await service.wait_until_settled(run)

    async def events(self, run: Run) -> list[Event]:
        """Return all events of the run, the hidden ones included, in order."""
        frames = await self.stores.frames(run)
        hidden = await self.stores.hidden_events(run)
        assert all(one.after_seq <= len(frames) for one in hidden)
        placed = [(seq, 0, frame) for seq, frame in enumerate(frames, 1)]
        placed += [(one.after_seq, 1, one.frame.encode()) for one in hidden]
        return [letta.decode(frame) for _, _, frame in sorted(placed, key=lambda one: one[:2])]


# Reading the log.


def parts_of(events: Sequence[Event], step_id: str | None = None) -> list[Any]:
    return [
        part
        for event in events
        if isinstance(event, Output) and step_id in {None, event.place.step_id}
        for part in event.parts
    ]


def text_in(events: Sequence[Event]) -> str:
    return "".join(part.text for part in parts_of(events) if isinstance(part, TextPart))


def returns_in(events: Sequence[Event]) -> list[ToolReturnPart]:
    return [part for part in parts_of(events) if isinstance(part, ToolReturnPart)]


def newest_step(events: Sequence[Event]) -> list[Any]:
    """Return the parts of the newest step that is not a summary."""
    outputs = [
        event
        for event in events
        if isinstance(event, Output) and not isinstance(event.parts[0], SummaryPart)
    ]
    return parts_of(events, outputs[-1].place.step_id) if outputs else []


def open_calls(parts: Sequence[Any]) -> list[str]:
    called = [p.tool_call_id for p in parts if isinstance(p, ToolCallDelta | ToolCallPart)]
    returned = {part.tool_call_id for part in parts if isinstance(part, ToolReturnPart)}
    return [one for one in dict.fromkeys(called) if one not in returned]


def row_of(events: Sequence[Event], begun: Collection[str], *, is_kept: bool) -> Row:
    """Return the row of the table for a log and the calls whose tools may have begun."""
    if any(isinstance(event, Stopped) for event in events):
        return Row.ENDED
    parts = newest_step(events)
    waiting = open_calls(parts)
    called = any(isinstance(part, ToolCallDelta | ToolCallPart) for part in parts)
    if waiting and any(one in begun for one in waiting):
        return Row.BEGUN
    if waiting and any(p.tool_call_id in begun for p in parts if isinstance(p, ToolReturnPart)):
        return Row.COMPLETE
    if called and not waiting:
        return Row.KEPT if is_kept else Row.RETURNED
    if is_kept:
        return Row.KEPT
    if waiting:
        return Row.INCOMPLETE
    if not parts:
        return Row.NOTHING
    reasoning = ReasoningPart | HiddenReasoningPart
    return Row.REASONING if all(isinstance(part, reasoning) for part in parts) else Row.TEXT


def way_after(kind: Kind, row: Row, events: Sequence[Event]) -> str | None:
    """Return the way in which the run goes on; None: it ends."""
    match row:
        case Row.KEPT:
            return "upstream"
        case Row.TEXT:
            has_reasoned = any(isinstance(p, ReasoningPart) for p in newest_step(events))
            if kind.continues == "always" or (kind.continues == "text" and not has_reasoned):
                return "prefix"
            return None
        case _:
            return "step"


@dataclass(frozen=True)
class Left:
    """The log and the record after an interruption."""

    row: Row
    way: str | None
    frames: list[bytes]
    events: list[Event]
    begun: Collection[str]
    attempts: int
    """The number of attempts before the interruption, the first one apart."""


async def left_by(cell: Cell, run: Run) -> Left:
    stored = await cell.stores.run(run)
    events = await cell.events(run)
    noted = {one.id for one in stored.notes.steps}
    seen = [event.place.step_id for event in events if isinstance(event, Output)]
    begun = stored.begun_calls or ()
    parts = newest_step(events)
    is_over = bool(seen) and (
        seen[-1] in noted or any(getattr(part, "tool_call_id", None) in begun for part in parts)
    )
    upstream = stored.notes.upstream_step
    is_kept = stored.notes.upstream_id is not None and (
        upstream not in noted and (upstream not in seen or (upstream == seen[-1] and not is_over))
    )
    row = row_of(events, begun, is_kept=is_kept)
    frames = await cell.stores.frames(run)
    way = way_after(cell.kind, row, events)
    return Left(row, way, frames, events, begun, len(stored.attempts))


# Invariants.


@dataclass(frozen=True)
class Whole:
    """A run that nothing interrupted."""

    run: Run
    text: str
    events: list[Event]

    @property
    def reason(self) -> StopReason | None:
        return self.run.stop_reason


async def stored_messages(cell: Cell, run: Run) -> Sequence[Message]:
    """Return the messages of the run that its conversation keeps, without those that were sent."""
    span = Span(1000, ascending=True)
    messages = await cell.stores.records.messages.of_run(run.tenant, run.id, span)
    return [one for one in messages if one.role not in {Role.USER, Role.APPROVAL}]


def text_of_all(messages: Sequence[Message]) -> str:
    return "".join(one.text for one in messages if one.role is Role.ASSISTANT)


async def check(cell: Cell, run: Run, left: Sequence[Left], whole: Whole) -> Run:
    """Check a run that has ended after these interruptions, against an uninterrupted one."""
    ended = await cell.stores.run(run)
    frames = await cell.stores.frames(run)
    events = [letta.decode(frame) for frame in frames]
    seqs = [json.loads(frame.partition(b"data: ")[2])["seq_id"] for frame in frames]
    assert seqs == list(range(1, len(frames) + 1))
    for one in left:
        assert frames[: len(one.frames)] == one.frames
    stops = [number for number, event in enumerate(events) if isinstance(event, Stopped)]
    assert len(stops) == 1
    assert isinstance(events[-1], Usage)
    assert not any(isinstance(event, Output) for event in events[stops[0] :])
    steps = [event.place.step_id for event in events if isinstance(event, Output)]
    assert len(set(steps)) == sum(a != b for a, b in zip(["", *steps], steps, strict=False))
    open_rows = [one for one in left if one.row is not Row.ENDED]
    # A process may have died before it noted the attempt.
    later = [*(one.attempts for one in left[1:]), len(ended.attempts)]
    for one, attempts in zip(left, later, strict=True):
        assert attempts - one.attempts in {0, 1}
        if attempts > one.attempts:
            assert ended.attempts[one.attempts].way == one.way
    if left:
        assert (later[-1] > left[-1].attempts) == (
            left[-1].row is not Row.ENDED and left[-1].way is not None
        )
    messages = await stored_messages(cell, ended)
    shown = cell.options.get("message_types")
    assert shown or text_of_all(messages) == text_in(events)
    check_end(cell, ended, messages, open_rows, whole)
    check_tool(cell, messages, left)
    return ended


def check_end(
    cell: Cell, ended: Run, messages: Sequence[Message], left: Sequence[Left], whole: Whole
) -> None:
    """Check the text and the reason of the end."""
    said = text_of_all(messages)
    if any(one.way is None for one in left):
        assert ended.stop_reason in {StopReason.ERROR, StopReason.MODEL_API_ERROR}
        assert whole.text.startswith(said)
        return
    refused = [one for one in returns_of(messages) if one.status == "error"]
    if refused and cell.tale != "unknown tool":
        # The model went on without the tool; the scripted one says the returns.
        assert ended.stop_reason is StopReason.END_TURN
        assert cell.kind.name == "scripted" or said == cell.story_text
    else:
        assert ended.stop_reason is whole.reason
        assert said == whole.text


def returns_of(messages: Sequence[Message]) -> list[ToolReturnPart]:
    return [p for one in messages for p in one.parts if isinstance(p, ToolReturnPart)]


def check_tool(cell: Cell, messages: Sequence[Message], left: Sequence[Left]) -> None:
    """Check that no call began twice without leave, and that the returns say what happened."""
    returned = {part.tool_call_id: part for part in returns_of(messages)}
    assert len(returned) == len(returns_of(messages))
    if not cell.tool.idempotent:
        calls = [p for one in messages for p in one.parts if isinstance(p, ToolCallPart)]
        assert cell.tool.began.total() <= len(calls)
        assert cell.kind.name == "scripted" or {*cell.tool.began.values()} <= {1}
    if cell.tale == "unknown tool":
        return
    for one in left:
        for call in open_calls(newest_step(one.events)):
            if call not in returned or one.row is Row.KEPT:
                continue
            status, output = returned[call].status, returned[call].output
            if not cell.kind.announces_tools:
                assert (status, "not known" in output) == ("error", True)
            elif one.row is Row.INCOMPLETE:
                assert (status, "did not run" in output) == ("error", True)
            elif call in one.begun and not cell.tool.idempotent:
                assert (status, "not known" in output) == ("error", True)
            else:
                assert status == "success"


@pytest.fixture(scope="module")
async def engines() -> AsyncIterator[Engines]:
    async with continuing_engines() as engines:
        yield engines


@pytest.fixture
def every_event(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--every-event"))


def _stretch(event: Output) -> tuple[str, str, object]:
    part = event.parts[0]
    return event.place.step_id, type(part).__name__, getattr(part, "tool_call_id", None)


def moments(whole: Whole, *, every: bool) -> list[int]:
    """Return the numbers of events after which the run is interrupted.

    Unless it is every one, these are the second of each stretch of events of one kind, or the only
    one; and before the first event, and before the end.
    """
    outputs = [event for event in whole.events if isinstance(event, Output)]
    if every:
        return [*range(len(outputs) + 2)]
    chosen = [0, len(outputs), len(outputs) + 1]
    place = 0
    for _, stretch in groupby(map(_stretch, outputs)):
        length = len([*stretch])
        chosen.append(place + min(length, 2))
        place += length
    return sorted({*chosen})


DISTINCT_KINDS = [one for one in KINDS if one.name not in TWINS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the cells of the table: all of them only with ``--every-event``."""
    if "kind_and_tale" not in metafunc.fixturenames:
        return
    every = metafunc.config.getoption("--every-event")
    cells = [
        pytest.param((kind, tale), id=f"{kind}-{tale}")
        for kind in KINDS
        for tale in TALES
        # Other engines than hosted ones may have tools of their own.
        if (tale != "unknown tool" or kind.is_hosted)
        and (every or kind.name not in TWINS or tale == "tools")
    ]
    metafunc.parametrize("kind_and_tale", cells)


@pytest.mark.promise("P2", "P17", "P19")
async def test_a_run_goes_on_after_its_process_died_at_any_event(
    stores: Stores, engines: Engines, kind_and_tale: tuple[Kind, str], every_event: bool
) -> None:
    kind, tale = kind_and_tale
    cell = Cell(stores, engines, kind, tale)
    whole = await cell.uninterrupted()
    for events in moments(whole, every=every_event or (kind.name, tale) == ("scripted", "tools")):
        await interrupt(cell, whole, events)


@pytest.mark.promise("P2", "P17", "P19")
@pytest.mark.parametrize("tale", ["text", "tools"])
@pytest.mark.parametrize("kind", DISTINCT_KINDS, ids=str)
async def test_a_run_goes_on_after_several_processes_died(
    stores: Stores, engines: Engines, kind: Kind, tale: str, every_event: bool
) -> None:
    cell = Cell(stores, engines, kind, tale)
    whole = await cell.uninterrupted()
    for events in moments(whole, every=every_event)[1 :: 1 if every_event else 4]:
        await interrupt(cell, whole, events, events + 1, events + 3)


@pytest.mark.promise("P2", "P4", "P17", "P19")
@pytest.mark.parametrize(
    "options",
    [
        {"stream_tokens": False},
        {"message_types": frozenset({"assistant_message"})},
        {"message_types": frozenset({"tool_return_message"}), "stream_tokens": False},
    ],
    ids=["no tokens", "only text", "only returns, no tokens"],
)
@pytest.mark.parametrize("kind", DISTINCT_KINDS, ids=str)
async def test_a_run_in_another_representation_goes_on_after_its_process_died(
    stores: Stores, engines: Engines, kind: Kind, options: dict[str, Any], every_event: bool
) -> None:
    cell = Cell(stores, engines, kind, "tools", options=options)
    whole = await cell.uninterrupted()
    for events in moments(whole, every=every_event)[:: 1 if every_event else 3]:
        await interrupt(cell, whole, events)


async def interrupt(cell: Cell, whole: Whole, *deaths: int) -> None:
    """Let processes die after these numbers of events, and check how the run ends."""
    telling = cell.tell_anew()
    run, left = None, []
    for events in deaths:
        died = await cell.died(Life("before runs.settle"), events, run)
        if died is None:
            break
        run = died
        left.append(await left_by(cell, run))
    assert run is not None
    await cell.goes_on(run)
    await check(cell, run, left, whole)
    # Each death may have interrupted a generation that the provider does not keep.
    lost = [one for one in left if one.row is not Row.KEPT]
    assert len(telling.generations) <= cell.steps + len(lost)


@pytest.mark.promise("P17", "P19")
@pytest.mark.parametrize("idempotent", [False, True])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("kind", DISTINCT_KINDS, ids=str)
async def test_a_run_goes_on_after_its_process_died_in_a_tool(
    stores: Stores, engines: Engines, kind: Kind, number: int, idempotent: bool
) -> None:
    cell = Cell(stores, engines, kind, "tools")
    whole = await cell.uninterrupted()
    telling = cell.tell_anew()
    cell.tool.idempotent, cell.tool.dies_in = idempotent, number
    run = await cell.died(Life(None), 10**9)
    assert run is not None
    left = await left_by(cell, run)
    assert left.row is (Row.BEGUN if kind.announces_tools else Row.INCOMPLETE)
    await cell.goes_on(run)
    await check(cell, run, [left], whole)
    assert len(telling.generations) == (cell.steps if kind.name != "scripted" else 0)
    assert cell.tool.began.total() == 2 + (idempotent and kind.announces_tools) - (
        0 if kind.announces_tools else 2 - number
    )


@pytest.mark.promise("P17", "P18", "P19")
@pytest.mark.parametrize("shown", [True, False])
async def test_a_run_with_a_compaction_goes_on_after_its_process_died(
    stores: Stores, engines: Engines, shown: bool
) -> None:
    kind = KINDS[0]
    cell = Cell(stores, engines, kind, "text", options={"compaction_messages": shown})
    cell.message = "[chunks=4] " + "now " * 40
    cell.agent = replace(stores.agent, context_window_limit=60)
    await stores.execute("UPDATE agents SET context_window_limit = 60")

    async def fill() -> Conversation:
        conversation = await stores.conversation()
        service = stores.service()
        for number in range(3):
            send = stores.send(conversation, f"turn {number} and " + "more " * 8)
            await service.wait_until_settled(await service.send(send))
        return conversation

    cell.conversation = await fill()
    whole = await cell.uninterrupted()
    outputs = [event for event in whole.events if isinstance(event, Output)]
    assert any(isinstance(p, SummaryPart) for p in parts_of(whole.events)) is shown
    for events in range(len(outputs) + 2):
        cell.conversation = await fill()
        await interrupt(cell, whole, events)
        thread = Thread(stores.agent.id, cell.conversation.id)
        stored = await stores.records.messages.list(
            DEFAULT_TENANT, thread, Span(1000, ascending=True)
        )
        # The next attempt may find the context too large again.
        assert [one.role for one in stored].count(Role.SUMMARY) in {1, 2}


@pytest.mark.promise("P17", "P19")
@pytest.mark.parametrize("idempotent", [False, True])
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[1], KINDS[2], KINDS[6]], ids=str)
async def test_a_run_that_answers_an_approval_goes_on_after_its_process_died(
    stores: Stores, engines: Engines, kind: Kind, idempotent: bool
) -> None:
    cell = Cell(stores, engines, kind, "approval")
    cell.tool.idempotent = idempotent
    whole = await answered(cell, None)
    assert whole is not None
    assert cell.tool.began.total() == 1
    for events in range(10):
        ended = await answered(cell, events)
        if ended is None:
            break
        assert ended.reason is StopReason.END_TURN
        # Before the first event, which is the return, the tool has begun.
        [returned] = returns_of(await stored_messages(cell, ended.run))
        repeats = idempotent and kind.announces_tools and events == 0
        assert cell.tool.began.total() == 1 + repeats
        assert returned.status == ("success" if repeats or events else "error")
        assert kind.name == "scripted" or ended.text == whole.text
    else:
        pytest.fail("the run has no end")
    assert events > 1
    ended = await answered(cell, 10**9, dies_in=1)
    assert ended is not None
    assert ended.reason is StopReason.END_TURN
    [returned] = returns_of(await stored_messages(cell, ended.run))
    repeats = idempotent and kind.announces_tools
    assert cell.tool.began.total() == 1 + repeats
    assert returned.status == ("success" if repeats else "error")


async def answered(cell: Cell, events: int | None, dies_in: int | None = None) -> Whole | None:
    """Approve a call, let the process of that run die, and return the run when it has ended.

    Return None if it ended before it had that many events.
    """
    cell.tell_anew()
    cell.conversation, cell.approvals = await cell.stores.conversation(), ()
    service = cell.service()
    async with asyncio.timeout(WAIT_SECONDS):
        asked = await service.wait_until_settled(await cell.send(service))
    assert asked.stop_reason is StopReason.REQUIRES_APPROVAL
    called = [p for one in await stored_messages(cell, asked) for p in one.parts]
    approved = tuple(
        ApprovalPart(part.tool_call_id, approve=True)
        for part in called
        if isinstance(part, ToolCallPart)
    )
    at = cell.stores.clock.now()
    answer = Message(id=new_message_id(), role=Role.APPROVAL, parts=approved, created_at=at)
    cell.approvals = (answer,)
    cell.tool.dies_in = dies_in
    if events is None:
        async with asyncio.timeout(WAIT_SECONDS):
            run = await service.wait_until_settled(await cell.send(service))
    else:
        died = await cell.died(Life("before runs.settle"), events)
        if died is None:
            return None
        stopped = any(isinstance(one, Stopped) for one in await cell.events(died))
        run = await cell.goes_on(died)
        if stopped:
            return None
    return Whole(run, text_of_all(await stored_messages(cell, run)), await cell.events(run))


@pytest.mark.promise("P7", "P19")
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[1]], ids=str)
async def test_a_run_whose_conversation_was_deleted_meanwhile_ends(
    stores: Stores, engines: Engines, kind: Kind
) -> None:
    cell = Cell(stores, engines, kind, "text", conversation=await stores.conversation())
    telling = cell.tell_anew()
    run = await cell.died(Life(None), 2)
    assert run is not None
    assert cell.conversation is not None
    await stores.records.conversations.delete(DEFAULT_TENANT, cell.conversation.id)
    ended = await cell.goes_on(run)
    assert ended.stop_reason is StopReason.ERROR
    assert ended.attempts == ()
    assert len(telling.generations) == (kind.name != "scripted")


class AheadOfLog(Faults):
    """A slow log. Each note about finished steps is compared with the log at that moment."""

    def __init__(self, stores: Stores) -> None:
        super().__init__()
        self.stores = stores
        self.missing: list[str] = []
        """The notes about steps whose events the log did not have."""

    async def around(self, step: str, call: Callable[[], Awaitable[T]]) -> T:
        if step == "log.append":
            for _ in range(100):
                await asyncio.sleep(0)
        result = await super().around(step, call)
        if step == "runs.note":
            [run] = await self.stores.active_runs()
            text = text_in([letta.decode(frame) for frame in await self.stores.frames(run)])
            steps = len(run.notes.steps)
            if f"t{3 * steps - 1} " not in text:
                self.missing.append(f"{steps} steps after {text!r}")
        return result


@pytest.mark.promise("P19")
async def test_a_step_is_noted_as_finished_only_when_the_log_has_all_of_it(stores: Stores) -> None:
    faults = AheadOfLog(stores)
    service = stores.service_upon(faults, policy=GOES_ON)
    send = stores.send(await stores.conversation(), "[chunks=3][steps=3]")
    async with asyncio.timeout(WAIT_SECONDS):
        await service.wait_until_settled(await service.send(send))
    assert faults.calls["runs.note"] == 2
    assert faults.missing == []


# Streams of providers that break.


@pytest.mark.promise("P2", "P17", "P19")
async def test_a_run_goes_on_after_its_providers_stream_was_cut_at_any_event(
    stores: Stores, engines: Engines, kind_and_tale: tuple[Kind, str], every_event: bool
) -> None:
    kind, tale = kind_and_tale
    cell = Cell(stores, engines, kind, tale)
    whole = await cell.uninterrupted()
    for generation in range(cell.steps):
        for cut in range(0, 100, 1 if every_event else 9):
            if not await cut_stream(cell, whole, generation, [cut]):
                break
        else:
            pytest.fail("every event was cut off")


@pytest.mark.promise("P2", "P19")
@pytest.mark.parametrize("kind", [one for one in KINDS if one.name != "scripted"], ids=str)
async def test_a_run_goes_on_after_its_providers_stream_was_cut_several_times(
    stores: Stores, engines: Engines, kind: Kind
) -> None:
    cell = Cell(stores, engines, kind, "text")
    whole = await cell.uninterrupted()
    cuts = [1, 6, 7] if kind.follows else [3, 3, 2]
    assert await cut_stream(cell, whole, 0, cuts)


async def cut_stream(cell: Cell, whole: Whole, generation: int, cuts: Sequence[int]) -> bool:
    """Cut the streams of a generation and of the next ones, each after this number of events.

    Return False if the first one had no more events.
    """
    kind = cell.kind
    telling = cell.tell_anew(*[None] * generation, *map(Fault, cuts))
    service = cell.service()
    async with asyncio.timeout(WAIT_SECONDS):
        run = await service.wait_until_settled(await cell.send(service))
    ended, events = await cell.stores.run(run), await cell.events(run)
    if not ended.attempts and ended.stop_reason is whole.reason:
        assert cell.tale == "unknown tool" or not any(
            one.status == "error" for one in returns_in(events)
        )
        return False
    left: list[Left] = []
    for place in [*(one.after_seq for one in ended.attempts), None]:
        stopped = next(n for n, event in enumerate(events) if isinstance(event, Stopped))
        before = events[: stopped if place is None else place]
        if place is None and (ended.stop_reason is not StopReason.MODEL_API_ERROR):
            continue
        begun = [one.tool_call_id for one in returns_in(before) if one.status == "success"]
        is_kept = kind.follows and cuts[len(left)] > 0
        row = row_of(before, begun, is_kept=is_kept)
        frames = (await cell.stores.frames(run))[: len(before)]
        way = way_after(kind, row, before)
        left.append(Left(row, way, frames, before, begun, len(left)))
    await check(cell, run, left, whole)
    again = {Row.NOTHING, Row.REASONING, Row.TEXT, Row.RETURNED}
    repeated = sum(one.row in again and one.way is not None for one in left)
    assert len(telling.generations) == len({*telling.generations}) + (
        0 if kind.name == "scripted" else repeated
    )
    return True
