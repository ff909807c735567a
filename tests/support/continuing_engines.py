"""Every kind of engine, telling the same stories, for tests of how interrupted answers go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal

import pytest

from reattach.domain.errors import ModelError
from reattach.domain.messages import (
    ReasoningPart,
    TextPart,
    ToolCallDelta,
    ToolReturnPart,
)
from reattach.engine.base import Delta, Engine, Finished, Turn, closing_deltas
from reattach.engine.function import FunctionEngine
from reattach.engine.openai_responses import OpenAIResponsesEngine
from reattach.engine.pydantic_ai import PydanticAIEngine
from reattach.engine.scripted import ScriptedEngine
from tests.support.story_provider import (
    Call,
    Fault,
    Say,
    Step,
    Story,
    StoryProvider,
    Telling,
    Think,
    rest_of_step,
    step_after,
    story_provider,
)


@dataclass(frozen=True, slots=True)
class Kind:
    """An engine and a model of it, with the ways that the documentation promises for it."""

    name: str
    model: str
    continues: Literal["never", "text", "always"] = "never"
    """Which text it continues by prefix: none, text alone, or also text after reasoning."""
    follows: bool = False
    """Whether its provider keeps its answers."""
    announces_tools: bool = True

    @property
    def is_hosted(self) -> bool:
        return not self.model.startswith(("scripted/", "function/"))

    def __str__(self) -> str:
        return self.name


KINDS: Final = (
    Kind("scripted", "scripted/echo", "always"),
    Kind("openai-responses", "openai-responses/small", follows=True),
    Kind("chat that continues", "openai/continuing", "text"),
    Kind("chat", "openai/plain"),
    Kind("anthropic that continues", "anthropic/claude-haiku-4-5", "text"),
    Kind("anthropic", "anthropic/claude-opus-4-6"),
    Kind("function that continues", "function/continuing", "always", announces_tools=False),
    Kind("function", "function/plain", announces_tools=False),
)

CONTINUE_MODELS: Final = ("openai/continuing=flags",)


@dataclass(frozen=True, slots=True)
class Tale:
    """A story, with the message for the scripted engine that has the same rows."""

    story: Story
    script: str


TALES: Final[Mapping[str, Tale]] = {
    "text": Tale(((Say(("one ", "two ", "three\n\n", "four")),),), "[chunks=4]"),
    "reasoning": Tale(
        ((Think(("hm ", "so ")), Say(("one ", "two"))),),
        "[think=2][chunks=2]",
    ),
    "tools": Tale(
        (
            (
                Say(("I look. ",)),
                Call("call_a", "launch", ('{"n":', "1}")),
                Call("call_b", "launch", ('{"n":', "2}")),
            ),
            (Say(("three ", "four")),),
        ),
        "[tool=launch][rounds=2][chunks=3]",
    ),
    "unknown tool": Tale(
        (
            (Say(("I look. ",)), Call("call_a", "serch", ('{"n":', "1}"))),
            (Say(("three ", "four")),),
        ),
        "[tool=imagined][chunks=3]",
    ),
    "approval": Tale(
        (
            (Say(("May I? ",)), Call("call_a", "launch", ('{"n":', "1}"))),
            (Say(("three ", "four")),),
        ),
        "[approve=launch][chunks=2]",
    ),
}


def message_for(kind: Kind, tale: str, label: str = "") -> str:
    """Return the user's message that asks for the tale. ``label`` distinguishes two of them."""
    return TALES[tale].script if kind.name == "scripted" else f"Tell {tale} {label}".rstrip()


@dataclass
class Engines:
    """The engines of all kinds, and the provider that they ask."""

    provider: StoryProvider
    by_name: Mapping[str, Engine]

    def of(self, kind: Kind) -> Engine:
        return self.by_name[kind.name.partition(" ")[0]]

    def tell(self, tale: str, message: str, *faults: Fault | None) -> Telling:
        """Let the provider tell the tale anew to those who ask with this message."""
        telling = Telling(TALES[tale].story, [*faults])
        self.provider.tellings[message] = telling
        scripted = self.by_name["scripted"]
        assert isinstance(scripted, BreakingScriptedEngine)
        scripted.faults = telling.faults
        return telling


@asynccontextmanager
async def continuing_engines() -> AsyncIterator[Engines]:
    """Make the engines, and close them in the end."""
    async with AsyncExitStack() as closing:
        patch = closing.enter_context(pytest.MonkeyPatch.context())
        provider = await closing.enter_async_context(story_provider({}))
        patch.setenv("ANTHROPIC_API_KEY", "sk-ant-test")
        patch.setenv("ANTHROPIC_BASE_URL", provider.url)
        url = f"{provider.url}/v1"
        hosted = PydanticAIEngine(
            [kind.model for kind in KINDS if kind.model.startswith(("openai/", "anthropic/"))],
            openai_base_url=url,
            openai_api_key="sk-test",
            continue_models=CONTINUE_MODELS,
        )
        closing.push_async_callback(hosted.aclose)
        kept = OpenAIResponsesEngine(["openai-responses/small"], base_url=url, api_key="sk-test")
        closing.push_async_callback(kept.aclose)
        yield Engines(
            provider,
            {
                "scripted": BreakingScriptedEngine(),
                "openai-responses": kept,
                "chat": hosted,
                "anthropic": hosted,
                "function": telling_functions(provider.tellings),
            },
        )


class BreakingScriptedEngine(ScriptedEngine):
    """The scripted engine with faults: each of its next answers breaks off after some deltas."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[Fault | None] = []

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        fault = self.faults.pop(0) if self.faults else None
        async with closing_deltas(super().run(turn)) as deltas:
            count = 0
            async for delta in deltas:
                if fault is not None and count == fault.after and not isinstance(delta, Finished):
                    raise _broken_stream()
                count += 1
                yield delta


def _broken_stream() -> ModelError:
    error = ModelError("The stream broke.")
    error.may_pass = True
    return error


def telling_functions(tellings: Mapping[str, Telling]) -> FunctionEngine:
    """Return an engine of two functions that tell the stories; one of them reads ``turn.said``."""
    engine = FunctionEngine()

    async def plain(turn: Turn) -> AsyncIterator[Delta]:
        async for delta in _tell_story(turn, tellings, ""):
            yield delta

    async def continuing(turn: Turn) -> AsyncIterator[Delta]:
        async for delta in _tell_story(turn, tellings, turn.said):
            yield delta

    engine.model("plain")(plain)
    engine.model("continuing", continues=True)(continuing)
    return engine


async def _tell_story(
    turn: Turn, tellings: Mapping[str, Telling], begun: str
) -> AsyncIterator[Delta]:
    messages = [*turn.history, *turn.input]
    parts = [part for message in messages for part in message.parts]
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    key = next(text for text in reversed(texts) if text.startswith("Tell "))
    returned = {part.tool_call_id for part in parts if isinstance(part, ToolReturnPart)}
    one = tellings[key]
    number = step_after(one.story, returned)
    one.generations.append(number)
    fault = one.faults.pop(0) if one.faults else None
    for count, delta in enumerate(_deltas(rest_of_step(one.story[number], begun))):
        if fault is not None and count == fault.after:
            raise _broken_stream()
        yield delta


def _deltas(step: Step) -> Iterator[Delta]:
    for piece in step:
        match piece:
            case Think(texts):
                yield from map(ReasoningPart, texts)
            case Say(texts):
                yield from map(TextPart, texts)
            case Call(call_id, name, fragments):
                yield ToolCallDelta(call_id, name=name)
                yield from (ToolCallDelta(call_id, arguments=one) for one in fragments)
