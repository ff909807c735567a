"""The loop of an agent with tools: the model calls, the tools return, the model goes on."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from reattach.clock import Clock
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
from reattach.events import StopReason
from reattach.ids import new_message_id
from reattach.messages import ContentPart, Message, Role, TextPart, ToolCallPart, ToolReturnPart
from reattach.tools.base import AttachedTool
from reattach.tools.calling import call_tool

_CUT_OFF = "The answer ended within or right after this call; the tool did not run."
_GOES_ON = frozenset({StopReason.END_TURN, StopReason.REQUIRES_APPROVAL})


class ToolLoop(Engine):
    """An engine whose calls of the agent's tools are run, and that goes on with their returns.

    Tools run one after the other, in the order of their calls. Each is preceded by a ToolStarting.
    A turn with a call that waits for somebody ends, and runs none of that step. ``max_steps``
    holds for the whole turn; the calls of the last step still run.
    """

    def __init__(
        self, engine: Engine, tools: Sequence[AttachedTool], clock: Clock, *, call_seconds: float
    ) -> None:
        self._engine = engine
        self._tools = {attached.tool.name: attached for attached in tools}
        self._clock = clock
        self._call_seconds = call_seconds
        self.announces_tools = engine.announces_tools

    def models(self) -> Sequence[Model]:
        return self._engine.models()

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        # A client's tool goes before the server's of the same name.
        theirs = {tool.name for tool in turn.client_tools}
        tools = await _ready([tool for name, tool in self._tools.items() if name not in theirs])
        turn = replace(turn, tools=[tool.told for tool in tools.values()])
        due = [call for call in turn.due if call.name in tools]
        returns: list[ToolReturn] = []
        async with closing_deltas(self._called(due, tools)) as called:
            async for delta in called:
                yield delta
                returns += [delta] if isinstance(delta, ToolReturn) else []
        if returns:
            rest = [call for call in turn.due if call.name not in tools]
            turn = replace(turn, due=rest, input=[self._told(returns), *turn.input])
        while True:
            said = _Said(tools)
            end = Finished()
            async with closing_deltas(self._engine.run(turn)) as deltas:
                async for heard in deltas:
                    if isinstance(heard, Finished):
                        end = heard
                    else:
                        yield said.hear(heard)
            calls = said.left(tools)
            if said.waits or not calls or end.reason not in _GOES_ON:
                if not said.waits:
                    for call in calls:
                        yield ToolReturn(call.tool_call_id, call.name, "error", _CUT_OFF)
                yield said.ending(end)
                return
            returns = []
            async with closing_deltas(self._called(calls, tools)) as called:
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
        self, calls: Sequence[ToolCallPart], tools: Mapping[str, AttachedTool]
    ) -> AsyncIterator[ToolStarting | ToolReturn]:
        for call in calls:
            yield ToolStarting(call.tool_call_id)
            tool = tools[call.name].tool
            yield await call_tool(tool, call, seconds=tool.call_seconds or self._call_seconds)

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


@dataclass(slots=True)
class _Said:
    """What the model said before its tools are run."""

    tools: Mapping[str, AttachedTool]
    steps: int = 0
    waits: bool = False
    """Whether a call waits for a client, or for its approval."""
    returns: list[ToolReturn] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)
    _arguments: dict[str, list[str]] = field(default_factory=dict)

    def hear(self, delta: Delta) -> Delta:
        """The delta, with what the agent wants of approvals."""
        match delta:
            case TextDelta(text):
                self._texts.append(text)
            case ToolReturn():
                self.returns.append(delta)
            case StepFinished():
                self.steps += 1
            case ToolCallDelta():
                return self._call(delta)
            case _:
                pass
        return delta

    def _call(self, delta: ToolCallDelta) -> ToolCallDelta:
        call_id = delta.tool_call_id
        name = self._names[call_id] = self._names.get(call_id) or delta.name or ""
        self._arguments.setdefault(call_id, []).append(delta.arguments or "")
        if name in self.tools:
            delta = replace(delta, needs_approval=self.tools[name].requires_approval)
        self.waits = self.waits or delta.needs_approval
        return delta

    def parts(self) -> list[ContentPart]:
        text = "".join(self._texts)
        calls = [
            ToolCallPart(call_id, name, "".join(self._arguments[call_id]))
            for call_id, name in self._names.items()
        ]
        return [TextPart(text), *calls] if text else [*calls]

    def left(self, tools: Mapping[str, AttachedTool]) -> list[ToolCallPart]:
        """The calls of the agent's tools that have no return."""
        returned = {one.tool_call_id for one in self.returns}
        return [
            part
            for part in self.parts()
            if isinstance(part, ToolCallPart)
            and part.name in tools
            and part.tool_call_id not in returned
        ]

    def ending(self, end: Finished) -> Finished:
        """How the turn ends that does not go on."""
        if self.waits and end.reason is StopReason.END_TURN:
            return Finished(StopReason.REQUIRES_APPROVAL)
        if not self.waits and end.reason is StopReason.REQUIRES_APPROVAL:
            return Finished(StopReason.END_TURN)
        return end
