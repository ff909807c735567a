"""An engine without a model: it follows the directives of the message, deterministically.

Use it for tests, for benchmarks and to try out clients. Directives stand in square brackets in the
text of the turn's last user message. Without directives it repeats the text word by word; with them
it may repeat the rest of the text.

=========================  =====================================================================
Directive                  Meaning
=========================  =====================================================================
``[chunks=20]``            20 text deltas: ``t0 `` ``t1 `` … A step without text to repeat has 10.
``[think=3]``              3 reasoning deltas before the text of a step: ``r0 `` ``r1 `` …
``[size=300]``             Each numbered delta is padded to 300 bytes with ``x``.
``[unicode]``              Numbered deltas with emoji, CJK, line ends, U+2028 and SSE look-alikes.
``[steps=2]``              2 steps of these deltas, numbered on.
``[tool=name]``            A first step that calls the server's tool ``name`` and gets its return.
                           The tool runs if the agent has it; else the return is invented.
``[client_tool=a,b]``      Calls these tools of the client after the text, all at once, and stops:
                           ``requires_approval``.
``[approve=a,b]``          The same for tools of the server that need approval.
``[with=a,b]``             Calls tools of the server that need no approval together with those.
``[arguments={"n": 2}]``   The arguments of every call, in pieces of 8 characters.
``[rounds=2]``             Repeats the calls after their returns, for 2 rounds in total.
``[history]``              The text is the history, a line ``role: text`` for each message.
``[system]``               The text is the system prompt.
``[rate=50]``              50 deltas per second; by default one per event loop iteration.
``[wait=2.5]``             2.5 seconds of silence before the first delta.
``[fail=3]``               ModelError after 3 deltas, or at the end if there are fewer.
``[fail=3:llm_timeout]``   The same with the error of that ``error_type``.
``[break=3]``              The provider's stream breaks once, after 3 deltas.
``[crash=3]``              RuntimeError after 3 deltas: a fault of the engine.
``[hang=3]``               Silence after 3 deltas until the turn is cancelled.
``[stop=max_steps]``       Ends with that stop reason.
``[context=50]``           Fails as too long if the prompt has more than 50 words.
=========================  =====================================================================

An interrupted turn is continued exactly.

"After n deltas" counts everything that is yielded except ``StepFinished`` and ``Finished``.
A known name with an invalid value, and an unknown name with a value, fail the turn with a
ModelError; an unknown name without a value (``[1]``) is text. A turn has at most ``max_steps``
steps. A token is a word.

A turn with returns of tools and no user message continues the directives of the previous user
message: it calls again while ``[rounds=…]`` allows, else its text is the returns, a line
``tool status: output`` for each. A tool of the server returns ``tool returned 1``.
"""

import asyncio
import re
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Final

from reattach.domain.clock import Clock, SystemClock
from reattach.domain.context_messages import ContextMessages
from reattach.domain.errors import (
    ContextWindowError,
    EngineError,
    ModelError,
)
from reattach.domain.events import StopReason, Usage
from reattach.domain.messages import (
    Message,
    ReasoningPart,
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
    Turn,
    Way,
)
from reattach.engine.script import Script

Gate = Callable[[Turn, int], Awaitable[None]]
"""Awaited before delta number ``n`` (from 0) of a turn, so that a test decides when it is
yielded."""

MODELS: Final[Mapping[str, float | None]] = {"echo": None, "slow": 10.0}
"""The models by name, with their default rate in deltas per second."""

UNICODE_FRAGMENTS: Final = (
    "naïve café ",
    "日本語の文 ",
    "👩‍👩‍👧‍👦🏳️‍🌈 ",
    "line one\nline two\r\n\r\n",
    "data: [DONE]\n\n",
    'event: error\ndata: {"seq_id":1}\n\n',
    "\u2028\u2029\u0085 ",
    ' "quoted" \\u0041 \\ / <b>&amp;</b> ',
    "\t\x01\x1f\ufeff\ufffd ",
    "עברית e\u0301 ",
)

_WORD = re.compile(r"\s*\S+\s*")
_DEFAULT_CHUNKS: Final = 10


class ScriptedEngine(Engine):
    """Answers as the directives of the message say; the module's docstring lists them.

    ``clock`` is used for all waiting; ``gate`` is awaited before every delta.
    """

    announces_tools = True  # It runs none itself.

    def __init__(self, *, clock: Clock | None = None, gate: Gate | None = None) -> None:
        self._clock = clock or SystemClock()
        self._gate = gate

    def ways(self, turn: Turn) -> Collection[Way]:  # noqa: ARG002
        return {Way.PREFIX, Way.STEP}

    def models(self) -> Sequence[Model]:
        return [
            Model(
                handle=f"scripted/{name}",
                name=name,
                provider_name="scripted",
                provider_type="openai",
                context_window_tokens=128_000,
                display_name=f"Scripted ({name})",
            )
            for name in MODELS
        ]

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        script = _script_of(turn)
        if script.context is not None and _prompt_words(turn) > script.context:
            raise ContextWindowError(
                f"The scripted model takes {script.context} words, as the script says."
            )
        if script.wait and turn.partial is None:
            await self._clock.sleep(script.wait)
        pace = _Pace(self._clock, script.rate or MODELS.get(turn.model.partition("/")[2]))
        count = 0
        earlier = _Earlier.of(turn.partial)
        for delta in _Answer(turn, script).deltas():
            if earlier.has(delta):
                count += not isinstance(delta, StepFinished)
                continue
            if not isinstance(delta, StepFinished | Finished):
                if turn.partial is None and count == script.breaks:
                    raise _broken_stream(count)
                await self._interrupt(script, count)
                await pace.next()
                if self._gate is not None:
                    await self._gate(turn, count)
                count += 1
            elif isinstance(delta, Finished):
                await self._interrupt(script, None)
            yield delta

    @staticmethod
    async def _interrupt(script: Script, count: int | None) -> None:
        """Fail, crash or hang if the script says so for delta ``count``; None is the end."""
        if script.fail is not None and count in (script.fail.after, None):
            raise script.fail.error(
                f"The scripted model failed as the script says: {script.fail.after}."
            )
        if script.crash is not None and count in (script.crash, None):
            raise RuntimeError("the scripted engine crashed as the script says")
        if script.hang is not None and count in (script.hang, None):
            await asyncio.Event().wait()


def _broken_stream(after: int) -> EngineError:
    error = ModelError(f"The scripted model's stream broke after {after} deltas.")
    error.may_pass = True
    return error


@dataclass(slots=True)
class _Earlier:
    """The output before an interruption, from which deltas are removed as they come again."""

    steps: int
    text: int
    """In characters, as for reasoning and the arguments of calls."""
    reasoning: int
    calls: dict[str, int]
    returned: set[str]

    @classmethod
    def of(cls, partial: Partial | None) -> "_Earlier":
        messages = () if partial is None else partial.messages
        parts = [part for message in messages for part in message.parts]
        return cls(
            0 if partial is None else partial.finished_steps,
            sum(len(part.text) for part in parts if isinstance(part, TextPart)),
            sum(len(part.text) for part in parts if isinstance(part, ReasoningPart)),
            {p.tool_call_id: len(p.arguments) for p in parts if isinstance(p, ToolCallPart)},
            {part.tool_call_id for part in parts if isinstance(part, ToolReturnPart)},
        )

    def has(self, delta: Delta) -> bool:
        """Whether the delta was yielded before the interruption."""
        match delta:
            case TextPart(text) if self.text:
                self.text -= len(text)
                return True
            case ReasoningPart(text) if self.reasoning:
                self.reasoning -= len(text)
                return True
            case ToolCallDelta(call_id, name, arguments) if call_id in self.calls:
                if name is None:
                    self.calls[call_id] -= len(arguments or "")
                return self.calls[call_id] >= 0
            case ToolReturnPart(call_id):
                return call_id in self.returned
            case StepFinished() if self.steps:
                self.steps -= 1
                return True
            case _:
                return False


def _script_of(turn: Turn) -> Script:
    """Return the script of the turn's last user message, or the rest of the previous one."""
    sent = _last_user_text(turn.input)
    if sent is not None or not (turn.due or _returns(turn)):
        return Script.parse(sent or "")
    script = Script.parse(_last_user_text(turn.history) or "")
    attached = {tool.name for tool in turn.tools}
    rounds = 0
    for message in reversed(turn.history):
        if message.role is Role.USER:
            break
        calls = (part for part in message.parts if isinstance(part, ToolCallPart))
        rounds += any(call.needs_approval or call.name in attached for call in calls)
    if rounds >= script.rounds:
        script.client_tool = script.approve = script.without_approval = ()
    if rounds >= script.rounds or script.tool not in attached:
        script.tool = None
    script.chunks = None
    script.unicode = False
    script.steps = 1
    returns = [*map(_run_tool, turn.due), *_returns(turn)]
    script.words = "".join(f"{one.name} {one.status}: {one.output}\n" for one in returns)
    return script


def _prompt_words(turn: Turn) -> int:
    sent = sum(map(_words, turn.input))
    return len(turn.system.split()) + ContextMessages.of(turn.history).total(_words) + sent


def _words(message: Message) -> int:
    return len(message.text.split())


def _last_user_text(messages: Sequence[Message]) -> str | None:
    return next((m.text for m in reversed(messages) if m.role is Role.USER), None)


def _returns(turn: Turn) -> list[ToolReturnPart]:
    return [part for m in turn.input for part in m.parts if isinstance(part, ToolReturnPart)]


def _run_tool(call: ToolCallPart) -> ToolReturnPart:
    return ToolReturnPart(call.tool_call_id, call.name, "success", f"{call.name} returned 1")


@dataclass(slots=True)
class _Pace:
    """Yields deltas at a rate that does not drift, or one per iteration of the event loop."""

    clock: Clock
    per_second: float | None
    start: float = field(init=False)
    passed: int = 0

    def __post_init__(self) -> None:
        self.start = self.clock.monotonic_seconds()

    async def next(self) -> None:
        due = self.start
        if self.per_second is not None:
            due += self.passed / self.per_second
        self.passed += 1
        wait = due - self.clock.monotonic_seconds()
        if wait > 0:
            await self.clock.sleep(wait)
        else:
            await asyncio.sleep(0)


@dataclass(slots=True)
class _Answer:
    """The deltas of one turn, lazily, with the usage of each step."""

    turn: Turn
    script: Script
    thoughts: int = 0
    texts: int = 0

    def deltas(self) -> Iterator[Delta]:
        script = self.script
        steps: list[Iterator[Delta]] = [self._step() for _ in range(script.steps)]
        if script.tool is not None:
            steps.insert(0, self._tool_step(script.tool))
        names = (*script.client_tool, *script.approve)
        if script.tool is not None and self._is_attached(script.tool):
            del steps[1:]  # The next turn continues after the tool's return.
            names = ()
        reason = script.stop or StopReason.END_TURN
        allowed = max(self.turn.max_steps, 1)
        if len(steps) > allowed:
            del steps[allowed:]
            reason = StopReason.MAX_STEPS
        elif names:
            steps[-1] = self._approval_step(names)
            reason = StopReason.REQUIRES_APPROVAL
        yield from map(_run_tool, self.turn.due)
        for step in steps:
            words = reasoning_words = 0
            for delta in step:
                yield delta
                if isinstance(delta, TextPart):
                    words += len(delta.text.split())
                elif isinstance(delta, ReasoningPart):
                    reasoning_words += len(delta.text.split())
                elif isinstance(delta, ToolCallDelta):
                    words += 1
            yield StepFinished(self._usage(words, reasoning_words))
        yield Finished(reason)

    def _step(self) -> Iterator[Delta]:
        for _ in range(self.script.think):
            yield ReasoningPart(self._fill(f"r{self.thoughts} "))
            self.thoughts += 1
        for text in self._text():
            yield TextPart(text)

    def _tool_step(self, name: str) -> Iterator[Delta]:
        call_id = self._call_id(name)
        yield from self._call(call_id, name, needs_approval=False)
        if not self._is_attached(name):
            yield ToolReturnPart(call_id, name, "success", f"{name} returned 1")

    def _is_attached(self, name: str) -> bool:
        return any(tool.name == name for tool in self.turn.tools)

    def _approval_step(self, names: Sequence[str]) -> Iterator[Delta]:
        yield from self._step()
        called: list[str] = []
        for name in (*self.script.without_approval, *names):
            waits = len(called) >= len(self.script.without_approval)
            again = called.count(name)
            call_id = self._call_id(f"{name}-{again}" if again else name)
            yield from self._call(call_id, name, needs_approval=waits)
            called.append(name)

    def _call(self, call_id: str, name: str, *, needs_approval: bool) -> Iterator[Delta]:
        yield ToolCallDelta(call_id, name=name, needs_approval=needs_approval)
        for fragment in self.script.arguments:
            yield ToolCallDelta(call_id, arguments=fragment, needs_approval=needs_approval)

    def _call_id(self, name: str) -> str:
        return f"call-{self.turn.run_id.removeprefix('run-')}-{name}"

    def _text(self) -> Iterator[str]:
        script = self.script
        if script.history:
            yield from self._history()
        elif script.system:
            yield from _WORD.findall(self.turn.system)
        elif script.chunks is None and not script.unicode and script.words:
            yield from _WORD.findall(script.words)
        else:
            yield from self._numbered(_DEFAULT_CHUNKS if script.chunks is None else script.chunks)

    def _history(self) -> Iterator[str]:
        for message in self.turn.history:
            yield f"{message.role}: {message.text}\n"
        if not self.turn.history:
            yield "(no earlier messages)\n"

    def _numbered(self, count: int) -> Iterator[str]:
        for _ in range(count):
            text = f"t{self.texts} "
            if self.script.unicode:
                text += UNICODE_FRAGMENTS[self.texts % len(UNICODE_FRAGMENTS)]
            yield self._fill(text)
            self.texts += 1

    def _fill(self, text: str) -> str:
        return text + "x" * (self.script.size - len(text.encode()))

    def _usage(self, words: int, reasoning_words: int) -> Usage:
        prompt = _prompt_words(self.turn)
        completion = words + reasoning_words
        return Usage(
            completion_tokens=completion,
            prompt_tokens=prompt,
            total_tokens=prompt + completion,
            step_count=1,
            reasoning_tokens=reasoning_words or None,
            context_tokens=prompt + completion,
        )
