"""The loop of an agent with tools: the model calls, the tools return, the model continues."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from msgspec import structs

from reattach.domain.clock import Clock
from reattach.domain.context_messages import ContextMessages, call_ids
from reattach.domain.events import StopReason
from reattach.domain.ids import new_message_id
from reattach.domain.messages import (
    ContentPart,
    Message,
    Role,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.engine.base import (
    Delta,
    Engine,
    Finished,
    Model,
    Partial,
    StepFinished,
    ToolStarting,
    Turn,
    Way,
    closing_deltas,
)
from reattach.engine.calls import CallIds, CallStream
from reattach.tools.base import NO_CONTEXT, AttachedTool, ToolContext
from reattach.tools.calling import call_tool
from reattach.tools.offer import Offer

_CUT_OFF = "The answer was cut off within or right after this call; the tool did not run."
_GOES_ON = frozenset({StopReason.END_TURN, StopReason.REQUIRES_APPROVAL})


class ToolLoop(Engine):
    """An engine that runs the agent's tools and continues with their returns.

    Tools run one after the other in the order of their calls, each preceded by a ToolStarting. A
    call that waits for the client ends the turn, and no tool of that step runs. A call of an
    unknown tool does not wait; it gets an error return. ``max_steps`` bounds the whole turn; the
    calls of the last step still run.
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

    def ways(self, turn: Turn) -> Collection[Way]:
        return self._engine.ways(turn)

    def models(self) -> Sequence[Model]:
        return self._engine.models()

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        # A client's tool takes precedence over the server's of the same name.
        theirs = {tool.name for tool in turn.client_tools}
        tools = await _ready([tool for name, tool in self._tools.items() if name not in theirs])
        turn = replace(turn, tools=[tool.definition for tool in tools.values()])
        offer = Offer(tools, theirs, self._engine.own_tools)
        ids = CallIds(_call_finder(turn))
        due = [call for call in turn.due if offer.answers(call.name)]
        returns: list[ToolReturnPart] = []
        async with closing_deltas(self._call_tools(due, offer, turn.run_id)) as outcomes:
            async for delta in outcomes:
                yield delta
                returns += [delta] if isinstance(delta, ToolReturnPart) else []
        if returns:
            rest = [call for call in turn.due if not offer.answers(call.name)]
            turn = replace(turn, due=rest, input=[self._message(Role.TOOL, returns), *turn.input])
        while turn.max_steps > 0:  # An interrupted turn may have made all of them.
            answer = _Answer(offer, CallStream(ids))
            answer.take_earlier(turn.partial)
            end = Finished()
            async with closing_deltas(self._engine.run(turn)) as deltas:
                async for delta_or_end in deltas:
                    if isinstance(delta_or_end, Finished):
                        end = delta_or_end
                    elif answer.passes(delta_or_end):
                        yield delta_or_end
                    else:
                        for passed in answer.take(delta_or_end):
                            yield passed
            for passed in answer.flush():
                yield passed
            calls = answer.open_calls()
            if answer.waits or not calls or end.reason not in _GOES_ON:
                for returned in answer.close_calls(calls):
                    yield returned
                yield answer.finish(end)
                return
            returns = []
            async with closing_deltas(self._call_tools(calls, offer, turn.run_id)) as outcomes:
                async for delta in outcomes:
                    yield delta
                    returns += [delta] if isinstance(delta, ToolReturnPart) else []
            steps_left = turn.max_steps - max(answer.steps, 1)
            said = [*turn.input, *self._messages(answer)]
            history = ContextMessages.of(turn.history).followed_by(said)
            input_messages = [self._message(Role.TOOL, returns)]
            turn = replace(
                turn,
                history=history,
                input=input_messages,
                due=(),
                max_steps=steps_left,
                partial=None,
            )
        yield Finished(StopReason.MAX_STEPS)

    async def _call_tools(
        self, calls: Sequence[ToolCallPart], offer: Offer, run_id: str
    ) -> AsyncIterator[ToolStarting | ToolReturnPart]:
        for call in calls:
            if call.name not in offer.tools:
                yield offer.unknown_tool(call)
                continue
            tool = offer.tools[call.name].tool
            yield ToolStarting(call.tool_call_id, tool.idempotent, call.name)
            seconds = tool.call_seconds or self._call_seconds
            yield await call_tool(tool, call, seconds=seconds, context=self._context, run_id=run_id)

    def _messages(self, answer: "_Answer") -> list[Message]:
        said = self._message(Role.ASSISTANT, answer.parts())
        returned = [self._message(Role.TOOL, answer.returns)] if answer.returns else []
        return [said, *returned]

    def _message(self, role: Role, parts: Sequence[ContentPart]) -> Message:
        """Make a message for the model within this turn; it is not stored."""
        return Message(
            id=new_message_id(), role=role, parts=tuple(parts), created_at=self._clock.now()
        )


async def _ready(tools: Sequence[AttachedTool]) -> dict[str, AttachedTool]:
    ready = await asyncio.gather(*(attached.tool.ready() for attached in tools))
    return {
        tool.name: replace(attached, tool=tool) for attached, tool in zip(tools, ready, strict=True)
    }


def _call_finder(turn: Turn) -> Callable[[str], bool]:
    """Return a function that says whether a call in the turn has an id."""
    history = ContextMessages.of(turn.history)
    sent = {call_id for message in turn.input for call_id in call_ids(message)}
    return lambda call_id: call_id in sent or history.has_call(call_id)


@dataclass(slots=True)
class _Answer:
    """The model's output up to its tool calls."""

    offer: Offer
    stream: CallStream
    steps: int = 0
    waits: bool = False
    """Whether a call waits for the client, or for its approval."""
    returns: list[ToolReturnPart] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)

    def take_earlier(self, partial: Partial | None) -> None:
        """Add the output before an interruption, which the engine does not yield again."""
        if partial is None:
            return
        self.steps = partial.finished_steps
        parts = [part for message in partial.messages for part in message.parts]
        self.returns = [part for part in parts if isinstance(part, ToolReturnPart)]
        returned = {part.tool_call_id for part in self.returns}
        for part in parts:
            if isinstance(part, TextPart):
                self._texts.append(part.text)
            elif isinstance(part, ToolCallPart):
                has_returned = part.tool_call_id in returned
                self.stream.add_earlier(part, has_returned=has_returned)
                rule = self.offer.needs_approval(part.name, asked=part.needs_approval)
                self.waits = self.waits or (rule and not has_returned)

    def passes(self, delta: Delta) -> bool:
        """Take a text before any call, as most deltas are, and return whether it was one."""
        if type(delta) is not TextPart or self.stream.calls:
            return False
        self._texts.append(delta.text)
        return True

    def take(self, delta: Delta) -> Iterator[Delta]:
        """Yield the delta with the call's allocated id and the agent's approval rule."""
        for delta_or_end in self.stream.take(delta):
            match delta_or_end:
                case TextPart(text):
                    self._texts.append(text)
                    yield delta_or_end
                case ToolReturnPart():
                    self.returns.append(delta_or_end)
                    yield delta_or_end
                case StepFinished():
                    self.steps += 1
                    yield delta_or_end
                case ToolCallDelta():
                    yield self._with_approval_rule(delta_or_end)
                case _:
                    yield delta_or_end

    def flush(self) -> Iterator[Delta]:
        """Yield the calls that are still held back at the end of the engine's deltas."""
        yield from map(self._with_approval_rule, self.stream.flush())

    def _with_approval_rule(self, delta: ToolCallDelta) -> ToolCallDelta:
        name = self.stream.calls[delta.tool_call_id].name
        rule = self.offer.needs_approval(name, asked=delta.needs_approval)
        self.waits = self.waits or rule
        return structs.replace(delta, needs_approval=rule)

    def parts(self) -> list[ContentPart]:
        text = "".join(self._texts)
        calls = [
            ToolCallPart(call.id, call.name, call.arguments) for call in self.stream.calls.values()
        ]
        return [TextPart(text), *calls] if text else [*calls]

    def open_calls(self) -> list[ToolCallPart]:
        """Return the calls that the server answers and that have no return yet."""
        returned = {one.tool_call_id for one in self.returns}
        return [
            part
            for part in self.parts()
            if isinstance(part, ToolCallPart)
            and self.offer.answers(part.name)
            and part.tool_call_id not in returned
        ]

    def close_calls(self, calls: Sequence[ToolCallPart]) -> Iterator[ToolReturnPart]:
        """Yield error returns for calls that will not run, because the turn ends with them."""
        for call in calls:
            if not self.offer.has(call.name):
                yield self.offer.unknown_tool(call)
            elif not self.waits:
                yield call.error_return(_CUT_OFF)

    def finish(self, end: Finished) -> Finished:
        """Return the last delta of the turn, with ``requires_approval`` exactly if a call waits."""
        if self.waits and end.reason is StopReason.END_TURN:
            return Finished(StopReason.REQUIRES_APPROVAL)
        if not self.waits and end.reason is StopReason.REQUIRES_APPROVAL:
            return Finished(StopReason.END_TURN)
        return end
