"""An interrupted answer of a hosted model is continued by prefix, in the form that each takes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from reattach.domain.errors import ModelError
from reattach.domain.events import StopReason
from reattach.domain.messages import (
    ContentPart,
    HiddenReasoningPart,
    Message,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.engine.base import (
    ClientTool,
    Finished,
    ModelSettings,
    Partial,
    StepFinished,
    Turn,
    Way,
)
from reattach.engine.pydantic_ai import PydanticAIEngine
from reattach.testing.conformance.engine import Subject, collect, message, text_of
from reattach.testing.providers import anthropic, openai
from reattach.testing.providers.forms import Form, Run
from reattach.testing.providers.server import Provider, provider

CHAT = "openai/small"
FLAGS = {"continue_final_message": True, "add_generation_prompt": False}
PREFIX_OR_STEP = {Way.PREFIX, Way.STEP}

pytestmark = pytest.mark.filterwarnings("ignore:Failed to extract usage with `genai-prices`")


def says(name: str, *texts: str, reason: str = "stop", **more: Any) -> Form:
    """An answer of chat completions to a request whose last message is ``name``."""
    body = (openai.says(*texts), openai.stops(reason, **more), openai.DONE)
    return openai.form(name, *body, run=Run())


@asynccontextmanager
async def serving(
    *forms: Form, continues: str = "openai/*=flags", closing: Form = openai.CLOSING
) -> AsyncIterator[tuple[PydanticAIEngine, Provider]]:
    async with provider(forms, closing) as served:
        engine = PydanticAIEngine(
            [CHAT],
            openai_base_url=f"{served.url}/v1",
            openai_api_key="sk-test",
            max_retries=0,
            continue_models=[continues],
        )
        yield engine, served
        await engine.aclose()


def message_of(role: Role, *parts: ContentPart) -> Message:
    return structs.replace(message(role, ""), parts=parts)


def turn_of(model: str = CHAT, **changes: Any) -> Turn:
    return replace(Subject(PydanticAIEngine(), model).turn("Tell."), **changes)


def after(turn: Turn, *parts: ContentPart, finished: Sequence[Message] = ()) -> Turn:
    """The turn after an interruption, with the output of an unfinished step."""
    steps = sum(one.role is Role.ASSISTANT for one in finished)
    said = [*finished, message_of(Role.ASSISTANT, *parts)]
    return replace(turn, partial=Partial(said, finished_steps=steps))


async def rest_of(engine: PydanticAIEngine, said: str, turn: Turn | None = None) -> str:
    return text_of(await collect(engine, after(turn or turn_of(), TextPart(said))))


def roles(request: Mapping[str, Any]) -> list[str]:
    return [one["role"] for one in request["messages"]]


async def test_flags_are_sent_with_the_text_so_far_and_only_the_rest_comes() -> None:
    async with serving(says("Once upon", " a", " time.", **openai.counts(12, 3))) as (
        engine,
        served,
    ):
        asked = turn_of(client_tools=[ClientTool("look", None, None)])
        deltas = await collect(engine, after(asked, TextPart("Once upon")))
    assert text_of(deltas) == " a time."
    assert deltas[-1] == Finished(StopReason.END_TURN)
    step = deltas[-2]
    assert isinstance(step, StepFinished)
    assert (step.usage.prompt_tokens, step.usage.completion_tokens) == (12, 3)
    (request,) = served.requests
    assert {name: request[name] for name in FLAGS} == FLAGS
    assert request["messages"][-1] == {"role": "assistant", "content": "Once upon"}
    assert roles(request) == ["user", "assistant"]
    assert [tool["function"]["name"] for tool in request["tools"]] == ["look"]


async def test_a_mark_on_the_last_message_is_sent_with_the_text_so_far() -> None:
    async with serving(says("Once", " upon."), continues="*/small=prefix") as (engine, served):
        asked = turn_of(history=[message(Role.USER, "Hi."), message(Role.ASSISTANT, "Hello.")])
        assert await rest_of(engine, "Once", asked) == " upon."
    (request,) = served.requests
    assert request["messages"][-1] == {"role": "assistant", "content": "Once", "prefix": True}
    assert [one.get("prefix") for one in request["messages"][:-1]] == [None, None, None]
    assert not FLAGS.keys() & request.keys()


async def test_deepseek_gets_prefixes_at_its_beta_address(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydantic_ai.providers.deepseek import DeepSeekProvider

    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-test")
    handle = "deepseek/deepseek-chat"
    async with provider([says("Tell.", "Once"), says("Once", " upon.")], openai.CLOSING) as served:
        monkeypatch.setattr(DeepSeekProvider, "base_url", f"{served.url}/v1")
        engine = PydanticAIEngine([handle], continue_models=["deepseek/*=prefix"], max_retries=0)
        assert text_of(await collect(engine, turn_of(handle))) == "Once"
        assert await rest_of(engine, "Once", turn_of(handle)) == " upon."
        await engine.aclose()
    assert served.paths == ["/v1/chat/completions", "/v1/beta/chat/completions"]
    assert served.requests[1]["messages"][-1]["prefix"] is True


@pytest.mark.parametrize(
    ("said", "pieces", "rest"),
    [
        ("Once upon", ["Once upon a time."], " a time."),
        ("Once upon", ["On", "ce ", "upon", " a", " time."], " a time."),
        ("Once upon", ["Once ", "more."], "Once more."),
        ("Once upon", ["Once"], "Once"),
        ("Once.\n\n", ["\n\n", "Then."], "Then."),
        ("Once.\n\n", ["\n", "\n", "Then."], "Then."),
        ("Once.\n", ["\n\nThen."], "\nThen."),
        ("Once.\n\n", ["Then."], "Then."),
        ("Once.\n\n", ["Once.", "\n\n", "Then."], "Then."),
        ("Once", ["\n\n", "Then."], "\n\nThen."),
        ("Once upon a time.", [], ""),
    ],
    ids=repr,
)
async def test_the_rest_joins_the_text_so_far_without_repeating_any_of_it(
    said: str, pieces: list[str], rest: str
) -> None:
    async with serving(says(said.rstrip(), *pieces)) as (engine, served):
        assert await rest_of(engine, said) == rest
    assert served.requests[0]["messages"][-1]["content"] == said.rstrip()


async def test_whitespace_at_the_start_of_the_rest_is_kept_for_models_that_begin_with_it() -> None:
    """Pydantic AI drops it for some families, because their answers begin with empty lines."""
    handle = "openai/Qwen/Qwen3-8B"
    async with provider([says("Once.", "\n\n", "Then.")], openai.CLOSING) as served:
        engine = PydanticAIEngine(
            [handle], openai_base_url=f"{served.url}/v1", continue_models=["openai/Qwen/*=flags"]
        )
        assert await rest_of(engine, "Once.", turn_of(handle)) == "\n\nThen."
        await engine.aclose()


async def test_of_whitespace_alone_nothing_is_sent() -> None:
    async with serving(says("Tell.", "\n\nOnce.")) as (engine, served):
        assert await rest_of(engine, "\n\n") == "Once."
    (request,) = served.requests
    assert roles(request) == ["user"]
    assert not FLAGS.keys() & request.keys()


async def test_a_call_comes_after_text_that_may_have_been_a_repetition() -> None:
    called = openai.form(
        "Once upon",
        openai.says("Once"),
        openai.call(0, "c", "look", "{}"),
        openai.stops("tool_calls"),
        openai.DONE,
        run=Run(),
    )
    async with serving(called) as (engine, _):
        deltas = await collect(engine, after(turn_of(), TextPart("Once upon")))
    assert deltas[0] == TextPart("Once")
    assert isinstance(deltas[1], ToolCallDelta)
    assert deltas[-1] == Finished(StopReason.REQUIRES_APPROVAL)


async def test_the_limit_of_tokens_is_lowered_by_an_estimate_of_the_text_so_far() -> None:
    settings = ModelSettings(max_output_tokens=20)
    long = "word " * 30 + "end"
    async with serving(says("Once upon", "."), says(long, ".")) as (engine, served):
        for said in ("Once upon", long):
            await rest_of(engine, said, turn_of(settings=settings))
    limits = [one.get("max_completion_tokens", one.get("max_tokens")) for one in served.requests]
    assert limits == [20 - 3, 1]


async def test_finished_steps_come_before_the_text_so_far_and_due_calls_return_once() -> None:
    due = ToolCallPart("a", "look", "{}", needs_approval=True)
    call = ToolCallPart("b", "look", "{}")
    finished = [
        message_of(Role.TOOL, due.error_return("gone")),
        message_of(Role.ASSISTANT, ReasoningPart("Hm."), TextPart("I look."), call),
        message_of(Role.TOOL, ToolReturnPart("b", "look", "success", "sand")),
    ]
    asked = turn_of(history=[message_of(Role.ASSISTANT, due)], due=[due])
    async with serving(says("I see", " sand.")) as (engine, served):
        continuing = after(asked, TextPart("I see"), finished=finished)
        assert set(engine.ways(continuing)) == PREFIX_OR_STEP
        deltas = await collect(engine, continuing)
    assert deltas[0] == TextPart(" sand.")
    (request,) = served.requests
    assert roles(request) == ["assistant", "tool", "user", "assistant", "tool", "assistant"]
    assert [one["content"] for one in request["messages"][2:]][-2:] == ["sand", "I see"]


async def test_text_that_cannot_be_continued_is_not_said_again() -> None:
    async with serving(says("Tell.", "Once"), continues="vllm/*=flags") as (engine, served):
        with pytest.raises(ModelError, match="would begin it again"):
            await rest_of(engine, "Once")
        assert text_of(await collect(engine, after(turn_of(), ReasoningPart("Hm.")))) == "Once"
    (request,) = served.requests
    assert roles(request) == ["user"]


@pytest.mark.parametrize(
    ("name", "continues"),
    [
        ("claude-haiku-4-5", True),
        ("claude-opus-4-5-20251101", True),
        ("claude-sonnet-4-5", False),
        ("claude-opus-4-6", False),
        ("claude-haiku-4-50", False),
    ],
)
def test_only_two_of_anthropics_models_continue(name: str, *, continues: bool) -> None:
    engine = PydanticAIEngine(continue_models=["*/*=flags"])
    ways = engine.ways(after(turn_of(f"anthropic/{name}"), TextPart("Once")))
    assert set(ways) == (PREFIX_OR_STEP if continues else {Way.STEP})


@pytest.mark.parametrize(
    "settings",
    [
        ModelSettings(reasons=True),
        ModelSettings(reasoning_tokens=2000),
        ModelSettings(reasoning_effort="high"),
    ],
    ids=repr,
)
def test_a_model_of_anthropic_that_reasons_does_not_continue(settings: ModelSettings) -> None:
    asked = turn_of("anthropic/claude-haiku-4-5", settings=settings)
    assert set(PydanticAIEngine().ways(after(asked, TextPart("Once")))) == {Way.STEP}


async def test_anthropic_gets_the_text_so_far_as_the_last_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = "anthropic/claude-haiku-4-5"
    body = (anthropic.begins(), anthropic.says("\n", "Then."), anthropic.END)
    form = anthropic.form("Once.", *body, run=Run())
    async with provider([form], anthropic.CLOSING) as served:
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", served.url)
        engine = PydanticAIEngine([handle], max_retries=0)
        settings = ModelSettings(reasons=False, max_output_tokens=50)
        assert await rest_of(engine, "Once.\n", turn_of(handle, settings=settings)) == "Then."
        await engine.aclose()
    (request,) = served.requests
    last = request["messages"][-1]
    assert (last["role"], [part["text"] for part in last["content"]]) == ("assistant", ["Once."])
    assert roles(request) == ["user", "assistant"]
    assert request["max_tokens"] == 50 - 2


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (TextPart(""),),
        (ReasoningPart("Hm."), TextPart("Once")),
        (HiddenReasoningPart("omitted"), TextPart("Once")),
        (TextPart("Once"), ToolCallPart("a", "look", "{")),
    ],
    ids=repr,
)
def test_only_text_is_continued(parts: tuple[ContentPart, ...]) -> None:
    engine = PydanticAIEngine(
        openai_base_url="http://localhost:9/v1", continue_models=["*/*=flags"]
    )
    assert set(engine.ways(after(turn_of(), *parts))) == {Way.STEP}
    assert set(engine.ways(after(turn_of(), TextPart("Once")))) == PREFIX_OR_STEP


def test_a_beginning_is_not_sent_after_another_message_of_the_assistant() -> None:
    engine = PydanticAIEngine(
        openai_base_url="http://localhost:9/v1", continue_models=["*/*=flags"]
    )
    asked = turn_of(input=[message(Role.USER, "Tell."), message(Role.ASSISTANT, "Well,")])
    assert set(engine.ways(after(asked, TextPart("Once")))) == {Way.STEP}


@pytest.mark.parametrize(
    ("handle", "base_url", "continues"),
    [
        ("openai/small", "http://localhost:9/v1", True),
        ("vllm/small", None, True),
        ("openai/gpt-5", None, False),
        ("google_ai/gemini-2.5-flash", None, False),
        ("openai/other", "http://localhost:9/v1", False),
    ],
)
def test_a_setting_names_the_models_that_continue(
    handle: str, base_url: str | None, *, continues: bool
) -> None:
    chosen = ["*/small=flags", "openai/gpt*=flags", "google*/*=flags"]
    engine = PydanticAIEngine(openai_base_url=base_url, continue_models=chosen)
    ways = engine.ways(after(turn_of(handle), TextPart("Once")))
    assert set(ways) == (PREFIX_OR_STEP if continues else {Way.STEP})
    default = PydanticAIEngine(openai_base_url=base_url)
    assert set(default.ways(after(turn_of(handle), TextPart("Once")))) == {Way.STEP}


@pytest.mark.parametrize(
    ("settings", "continues"),
    [
        ({"extra_body": {"top_k": 5}}, True),
        ({"extra_body": {"response_format": {"type": "json_object"}}}, False),
        ({"tool_choice": "required"}, False),
    ],
    ids=repr,
)
async def test_a_model_made_elsewhere_keeps_its_settings_unless_they_shape_its_answers(
    settings: Any, *, continues: bool
) -> None:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

    async with provider([says("Once", " upon.")], openai.CLOSING) as served:
        own = OpenAICompatibleProvider("mine", base_url=f"{served.url}/v1", api_key="sk-test")
        model = OpenAIChatModel("small", provider=own, settings=settings)
        engine = PydanticAIEngine(models={"my/own": model}, continue_models=["my/*=flags"])
        asked = after(turn_of("my/own"), TextPart("Once"))
        assert set(engine.ways(asked)) == (PREFIX_OR_STEP if continues else {Way.STEP})
        if continues:
            assert text_of(await collect(engine, asked)) == " upon."
            assert served.requests[0]["top_k"] == 5
            assert served.requests[0]["continue_final_message"] is True
        await engine.aclose()
