"""The loop of an agent with tools: the model calls, the tools return, the model goes on."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from reattach.domain.clock import Clock
from reattach.domain.events import StopReason
from reattach.domain.ids import new_message_id
from reattach.domain.messages import (
    ContentPart,
    Message,
    Role,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.engine.base import (
    Delta,
    Engine,
    Finished,
    Model,
    StepFinished,
    TextDelta,
    ToolCallDelta,
    ToolReturn,
    ToolStarting,
    Turn,
    closing_deltas,
)
from reattach.engine.calls import CallIds, CallStream
from reattach.tools.base import NO_CONTEXT, AttachedTool, ToolContext
from reattach.tools.calling import call_tool
from reattach.tools.offer import Offer

_CUT_OFF = "The answer ended within or right after this call; the tool did not run."
_GOES_ON = frozenset({StopReason.END_TURN, StopReason.REQUIRES_APPROVAL})


class ToolLoop(Engine):
    """An engine whose calls of the agent's tools are run, and that goes on with their returns.

    Tools run one after the other, in the order of their calls. Each is preceded by a ToolStarting.
    A turn with a call that waits for somebody ends, and runs none of that step. A call of a tool
    that nobody has waits for nobody: it gets an error for its return. ``max_steps`` holds for the
    whole turn; the calls of the last step still run.
    """

    def __init__(
        self,
        engine: Engine,
        tools: Sequence[AttachedTool],
        clock: Clock,
        *,
        call_seconds: float,
        context: ToolContext = NO_CONTEXT,
    ) -> None:
        self._engine = engine
        self._tools = {attached.tool.name: attached for attached in tools}
        self._clock = clock
        self._call_seconds = call_seconds
        self._context = context
        self.announces_tools = engine.announces_tools
        self.own_tools = engine.own_tools

    def models(self) -> Sequence[Model]:
        return self._engine.models()

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        # A client's tool goes before the server's of the same name.
        theirs = {tool.name for tool in turn.client_tools}
        tools = await _ready([tool for name, tool in self._tools.items() if name not in theirs])
        turn = replace(turn, tools=[tool.definition for tool in tools.values()])
        offer = Offer(tools, theirs, self._engine.own_tools)
        ids = CallIds(partial(_ids_in, turn))
        due = [call for call in turn.due if offer.answers(call.name)]
        returns: list[ToolReturn] = []
        async with closing_deltas(self._called(due, offer)) as called:
            async for delta in called:
                yield delta
                returns += [delta] if isinstance(delta, ToolReturn) else []
        if returns:
            rest = [call for call in turn.due if not offer.answers(call.name)]
            turn = replace(turn, due=rest, input=[self._told(returns), *turn.input])
        while True:
            said = _Said(offer, CallStream(ids))
            end = Finished()
            async with closing_deltas(self._engine.run(turn)) as deltas:
                async for heard in deltas:
                    if isinstance(heard, Finished):
                        end = heard
                    else:
                        for passed in said.hear(heard):
                            yield passed
            for passed in said.rest():
                yield passed
            calls = said.left()
            if said.waits or not calls or end.reason not in _GOES_ON:
                for returned in said.unanswered(calls):
                    yield returned
                yield said.ending(end)
                return
            returns = []
            async with closing_deltas(self._called(calls, offer)) as called:
                async for delta in called:
                    yield delta
                    returns += [delta] if isinstance(delta, ToolReturn) else []
            steps_left = turn.max_steps - max(said.steps, 1)
            if steps_left <= 0:
                yield Finished(StopReason.MAX_STEPS)
                return
            history = [*turn.history, *turn.input, *self._messages(said)]
            told = [self._told(returns)]
            turn = replace(turn, history=history, input=told, due=(), max_steps=steps_left)

    async def _called(
        self, calls: Sequence[ToolCallPart], offer: Offer
    ) -> AsyncIterator[ToolStarting | ToolReturn]:
        for call in calls:
            if call.name not in offer.tools:
                yield offer.refused(call)
                continue
            yield ToolStarting(call.tool_call_id)
            tool = offer.tools[call.name].tool
            seconds = tool.call_seconds or self._call_seconds
            yield await call_tool(tool, call, seconds=seconds, context=self._context)

    def _messages(self, said: "_Said") -> list[Message]:
        messages = [self._message(Role.ASSISTANT, said.parts())]
        return [*messages, self._told(said.returns)] if said.returns else messages

    def _told(self, returns: Sequence[ToolReturn]) -> Message:
        return self._message(
            Role.TOOL,
            [
                ToolReturnPart(
                    one.tool_call_id, one.name, one.status, one.output, one.stdout, one.stderr
                )
                for one in returns
            ],
        )

    def _message(self, role: Role, parts: Sequence[ContentPart]) -> Message:
        """One that the model is told within this turn; what is kept is made of the events."""
        return Message(
            id=new_message_id(), role=role, parts=tuple(parts), created_at=self._clock.now()
        )


async def _ready(tools: Sequence[AttachedTool]) -> dict[str, AttachedTool]:
    ready = await asyncio.gather(*(attached.tool.ready() for attached in tools))
    return {
        tool.name: replace(attached, tool=tool) for attached, tool in zip(tools, ready, strict=True)
    }


def _ids_in(turn: Turn) -> Iterator[str]:
    """The ids of all calls that the turn tells of."""
    for message in (*turn.history, *turn.input):
        for part in message.parts:
            if isinstance(part, ToolCallPart | ToolReturnPart):
                yield part.tool_call_id


@dataclass(slots=True)
class _Said:
    """The model's words before its tools are run."""

    offer: Offer
    stream: CallStream
    steps: int = 0
    waits: bool = False
    """Whether a call waits for a client, or for its approval."""
    returns: list[ToolReturn] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)

    def hear(self, delta: Delta) -> Iterator[Delta]:
        """Yield the delta with what the agent wants of approvals, each call under its own id."""
        if type(delta) is TextDelta and not self.stream.calls:  # As most are.
            self._texts.append(delta.text)
            yield delta
            return
        for heard in self.stream.take(delta):
            match heard:
                case TextDelta(text):
                    self._texts.append(text)
                    yield heard
                case ToolReturn():
                    self.returns.append(heard)
                    yield heard
                case StepFinished():
                    self.steps += 1
                    yield heard
                case ToolCallDelta():
                    yield self._ruled(heard)
                case _:
                    yield heard

    def rest(self) -> Iterator[Delta]:
        """Yield the calls that were still held when the engine was done."""
        yield from map(self._ruled, self.stream.flush())

    def _ruled(self, delta: ToolCallDelta) -> ToolCallDelta:
        name = self.stream.calls[delta.tool_call_id].name
        rule = self.offer.needs_approval(name, asked=delta.needs_approval)
        self.waits = self.waits or rule
        return delta if rule is delta.needs_approval else replace(delta, needs_approval=rule)

    def parts(self) -> list[ContentPart]:
        text = "".join(self._texts)
        calls = [
            ToolCallPart(call.id, call.name, call.arguments) for call in self.stream.calls.values()
        ]
        return [TextPart(text), *calls] if text else [*calls]

    def left(self) -> list[ToolCallPart]:
        """The calls of the agent's tools, and of nobody's, that have no return."""
        returned = {one.tool_call_id for one in self.returns}
        return [
            part
            for part in self.parts()
            if isinstance(part, ToolCallPart)
            and self.offer.answers(part.name)
            and part.tool_call_id not in returned
        ]

    def unanswered(self, calls: Sequence[ToolCallPart]) -> Iterator[ToolReturn]:
        """Yield the returns of calls that will not run, as the turn ends with them."""
        for call in calls:
            if not self.offer.has(call.name):
                yield self.offer.refused(call)
            elif not self.waits:
                yield ToolReturn(call.tool_call_id, call.name, "error", _CUT_OFF)

    def ending(self, end: Finished) -> Finished:
        """How the turn ends that does not go on."""
        if self.waits and end.reason is StopReason.END_TURN:
            return Finished(StopReason.REQUIRES_APPROVAL)
        if not self.waits and end.reason is StopReason.REQUIRES_APPROVAL:
            return Finished(StopReason.END_TURN)
        return end
