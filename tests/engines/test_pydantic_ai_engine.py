from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import cast

import pydantic_ai.messages as pm
import pytest
from msgspec import structs
from pydantic_ai.models.function import (
    AgentInfo,
    DeltaThinkingCalls,
    DeltaThinkingPart,
    FunctionModel,
)
from pydantic_ai.models.test import TestModel

from reattach.domain.errors import (
    ContextWindowError,
    EngineError,
    ModelAuthenticationError,
    ModelEmptyResponseError,
    ModelError,
    ModelRateLimitError,
    ModelTimeoutError,
    StartupError,
)
from reattach.domain.events import StopReason
from reattach.domain.messages import (
    UNSEEN,
    ContentPart,
    HiddenReasoningPart,
    ImagePart,
    Message,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.engine.base import ClientTool, Delta, Finished, ModelSettings, StepFinished, Turn
from reattach.engine.pydantic_ai import PydanticAIEngine
from reattach.engine.pydantic_ai.provider_messages import provider_messages
from reattach.testing.conformance.engine import Subject, collect, message, text_of
from tests.support.openai_server import OpenAIServer, openai_server

BEHAVIOURS = (
    "small", "reasoning", "tool", "length", "empty", "hang", "cut", "garbage", "error",
    "status-400", "status-401", "status-403", "status-404", "status-408", "status-429",
    "status-500", "status-504", "toolong",
)  # fmt: skip


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with openai_server() as server:
        yield server


@pytest.fixture
async def engine(server: OpenAIServer) -> AsyncIterator[PydanticAIEngine]:
    engine = PydanticAIEngine(
        [f"openai/{name}" for name in BEHAVIOURS],
        openai_base_url=server.base_url,
        openai_api_key="sk-test",
        max_retries=0,
    )
    yield engine
    await engine.aclose()


def message_of(role: Role, *parts: ContentPart) -> Message:
    return structs.replace(message(role, ""), parts=parts)


def turn(engine: PydanticAIEngine, behaviour: str, prompt: str = "one two three") -> Turn:
    return Subject(engine, f"openai/{behaviour}").turn(prompt)


async def test_the_key_and_the_settings_reach_the_server(
    engine: PydanticAIEngine, server: OpenAIServer
) -> None:
    asked = turn(engine, "small")
    settings = ModelSettings(temperature=0.5, max_output_tokens=7, parallel_tool_calls=False)
    assert text_of(await collect(engine, replace(asked, settings=settings))) == "one two three"
    (request,) = server.requests
    assert request["model"] == "small"
    assert request["temperature"] == 0.5
    assert 7 in {request.get("max_tokens"), request.get("max_completion_tokens")}
    assert "parallel_tool_calls" not in request
    assert server.keys == ["Bearer sk-test"]


async def test_usage_is_what_the_server_counted(engine: PydanticAIEngine) -> None:
    step = (await collect(engine, turn(engine, "small")))[-2]
    assert isinstance(step, StepFinished)
    usage = step.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 3, 6)
    assert (usage.cached_input_tokens, usage.reasoning_tokens) == (1, 2)


async def test_reasoning_comes_as_reasoning(engine: PydanticAIEngine) -> None:
    deltas = await collect(engine, turn(engine, "reasoning"))
    assert deltas[:3] == [ReasoningPart("r0 "), ReasoningPart("r1 "), TextPart("one")]


async def test_a_turn_that_the_model_finds_too_long_is_a_context_window_error(
    engine: PydanticAIEngine,
) -> None:
    with pytest.raises(ContextWindowError, match="exceeds the context window of openai/toolong"):
        await collect(engine, turn(engine, "toolong"))


async def test_a_call_of_a_client_tool_asks_for_approval(
    engine: PydanticAIEngine, server: OpenAIServer
) -> None:
    tool = ClientTool("ask", "Asks.", {"type": "object", "properties": {"q": {"type": "integer"}}})
    deltas = await collect(engine, replace(turn(engine, "tool"), client_tools=[tool]))
    assert deltas[:3] == [
        ToolCallDelta("call_1", name="ask", needs_approval=True),
        ToolCallDelta("call_1", arguments='{"q":', needs_approval=True),
        ToolCallDelta("call_1", arguments=" 1}", needs_approval=True),
    ]
    assert deltas[-1] == Finished(StopReason.REQUIRES_APPROVAL)
    assert server.requests[0]["tools"][0]["function"]["name"] == "ask"


async def test_the_returns_of_client_tools_are_sent_after_their_calls(
    engine: PydanticAIEngine, server: OpenAIServer
) -> None:
    calls = [ToolCallPart(f"call_{n}", "ask", '{"q": 1}', needs_approval=True) for n in (1, 2)]
    denied = ToolReturnPart("call_2", "ask", "error", "The user denied this call.")
    asked = replace(
        turn(engine, "small"),
        history=[message(Role.USER, "Ask."), message_of(Role.ASSISTANT, *calls)],
        input=[
            message_of(Role.TOOL, ToolReturnPart("call_1", "ask", "success", "42"), denied),
            message(Role.USER, "and then?"),
        ],
        client_tools=[ClientTool("ask", None, None)],
    )
    assert text_of(await collect(engine, asked)) == "and then?"
    sent = [one for one in server.requests[0]["messages"] if one["role"] != "system"]
    assert [one["role"] for one in sent] == ["user", "assistant", "tool", "tool", "user"]
    assert [one["id"] for one in sent[1]["tool_calls"]] == ["call_1", "call_2"]
    assert [(one["tool_call_id"], one["content"]) for one in sent[2:4]] == [
        ("call_1", "42"),
        ("call_2", '{"error":"The user denied this call."}'),
    ]


async def test_an_answer_cut_for_length_says_so(engine: PydanticAIEngine) -> None:
    assert (await collect(engine, turn(engine, "length")))[-1] == Finished(StopReason.MAX_TOKENS)


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        ("empty", ModelEmptyResponseError),
        ("cut", ModelError),
        ("garbage", ModelError),
        ("error", ModelError),
        ("status-400", ModelError),
        ("status-401", ModelAuthenticationError),
        ("status-403", ModelAuthenticationError),
        ("status-404", ModelError),
        ("status-408", ModelTimeoutError),
        ("status-429", ModelRateLimitError),
        ("status-500", ModelError),
        ("status-504", ModelTimeoutError),
    ],
)
async def test_an_error_of_the_provider_becomes_ours_without_its_secrets(
    engine: PydanticAIEngine, behaviour: str, error: type[ModelError]
) -> None:
    with pytest.raises(EngineError) as raised:
        await collect(engine, turn(engine, behaviour))
    assert type(raised.value) is error
    assert f"openai/{behaviour}" in str(raised.value)
    assert "sk-" not in str(raised.value)
    assert "127.0.0.1" not in str(raised.value)


async def test_closing_a_turn_hangs_up_on_the_provider(
    engine: PydanticAIEngine, server: OpenAIServer
) -> None:
    deltas = cast(AsyncGenerator[Delta], engine.run(turn(engine, "hang")))
    async with asyncio.timeout(10):
        await anext(deltas)
        waiting = asyncio.create_task(drain(deltas))
        await asyncio.sleep(0)
    waiting.cancel()
    async with asyncio.timeout(1):
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await server.hung_up.wait()


async def drain(deltas: AsyncGenerator[Delta]) -> None:
    async for _ in deltas:
        pass


async def test_a_server_that_is_not_there_is_a_model_error() -> None:
    engine = PydanticAIEngine(
        ["openai/small"], openai_base_url="http://127.0.0.1:9/v1", max_retries=0
    )
    with pytest.raises(ModelError, match="The connection to the provider of openai/small failed"):
        await collect(engine, turn(engine, "small"))
    await engine.aclose()


@pytest.mark.parametrize(
    ("handle", "variable"),
    [("openai/gpt-4o", "OPENAI_API_KEY"), ("anthropic/claude-sonnet-4-5", "ANTHROPIC_API_KEY")],
)
async def test_a_missing_key_is_reported_with_its_environment_variable(
    monkeypatch: pytest.MonkeyPatch, handle: str, variable: str
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    engine = PydanticAIEngine([handle])
    with pytest.raises(ModelAuthenticationError, match=f"Set {variable} in the server's"):
        await collect(engine, Subject(engine, handle).turn())
    await engine.aclose()


def test_models_are_offered_with_their_providers_type_and_context() -> None:
    engine = PydanticAIEngine(["google_ai/gemini-2.5-flash", "openai/my-own"])
    google, own = engine.models()
    assert (google.provider_type, google.name) == ("google_ai", "gemini-2.5-flash")
    assert google.context_window_tokens == 1_048_576
    assert (own.provider_type, own.context_window_tokens) == ("openai", 128_000)


@pytest.mark.parametrize(
    ("handle", "reason"),
    [
        ("gpt-4o", "does not have the form provider/name"),
        ("nobody/gpt", "unknown provider nobody"),
        ("groq/llama", "needs a package.*groq"),
    ],
)
def test_a_handle_that_can_not_work_keeps_the_server_from_starting(
    handle: str, reason: str
) -> None:
    with pytest.raises(StartupError, match=reason):
        PydanticAIEngine([handle])


async def test_a_model_made_elsewhere_answers_by_its_handle() -> None:
    engine = PydanticAIEngine(models={"mine/test": TestModel(custom_output_text="It works.")})
    assert [model.handle for model in engine.models()] == ["mine/test"]
    deltas = await collect(engine, Subject(engine, "mine/test").turn())
    assert text_of(deltas) == "It works."
    await engine.aclose()


async def test_a_signature_comes_with_reasoning_and_without_text_it_is_hidden() -> None:
    async def stream(
        messages: list[pm.ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | DeltaThinkingCalls]:
        yield {0: DeltaThinkingPart(content="hm")}
        yield {0: DeltaThinkingPart(signature="sig")}
        yield {1: DeltaThinkingPart(signature="only")}
        yield "done"

    engine = PydanticAIEngine(models={"mine/f": FunctionModel(stream_function=stream)})
    deltas = await collect(engine, Subject(engine, "mine/f").turn())
    assert deltas[:4] == [
        ReasoningPart("hm"),
        ReasoningPart("", "sig"),
        HiddenReasoningPart("omitted"),
        TextPart("done"),
    ]
    await engine.aclose()


def test_history_is_sent_in_order_with_images_and_paired_tools() -> None:
    subject = Subject(PydanticAIEngine(), "openai/small")
    call = ToolCallPart("call-1", "search", '{"q": 1}')
    unanswered = ToolCallPart("call-2", "search", "{}")
    returned = ToolReturnPart("call-1", "search", "error", "nothing found")
    orphan = ToolReturnPart("call-3", "search", "success", "x")
    parts = (ReasoningPart("hm"), TextPart("I look."), call, unanswered)
    history = [
        message(Role.USER, "Find it."),
        message_of(Role.ASSISTANT, *parts),
        message_of(Role.TOOL, returned, orphan),
        message_of(Role.ASSISTANT),
        message_of(Role.USER, TextPart("See:"), ImagePart("https://example.com/a.png")),
        message_of(Role.USER, ImagePart(None, "image/jpeg", "aGk=")),
    ]
    sent = provider_messages(subject.turn("And?", history=history, system="Be kind."))
    assert [[part.part_kind for part in m.parts] for m in sent] == [
        ["system-prompt"],
        ["user-prompt"],
        ["text", "tool-call"],
        ["tool-return"],
        ["user-prompt"],
        ["user-prompt"],
        ["user-prompt"],
    ]
    tool_return = sent[3].parts[0]
    assert isinstance(tool_return, pm.ToolReturnPart)
    assert (tool_return.content, tool_return.outcome) == ("nothing found", "failed")
    image = sent[5].parts[0]
    assert isinstance(image, pm.UserPromptPart)
    assert image.content == [pm.BinaryContent(b"hi", media_type="image/jpeg")]


def test_returns_follow_their_calls_wherever_they_are_kept_and_ids_may_come_again() -> None:
    subject = Subject(PydanticAIEngine(), "openai/small")
    calls = (ToolCallPart("a", "look", '{"q": '), ToolCallPart("b", "look", '{"n": 1}'))
    history = [
        message(Role.USER, "Look."),
        message_of(Role.ASSISTANT, *calls),
        message_of(Role.TOOL, ToolReturnPart("b", "look", "success", "first b")),
        message(Role.USER, "and this"),
        message_of(Role.TOOL, ToolReturnPart("a", "look", "success", "first a")),
        message_of(Role.ASSISTANT, calls[0]),
        message_of(Role.TOOL, ToolReturnPart("a", "look", "error", "second a")),
    ]
    sent = provider_messages(subject.turn("And?", history=history, system=""))
    assert [
        [(part.part_kind, part.content) for part in m.parts if isinstance(part, pm.ToolReturnPart)]
        for m in sent
        if isinstance(m, pm.ModelRequest)
    ] == [
        [],
        [("tool-return", "first a"), ("tool-return", "first b")],
        [],
        [("tool-return", "second a")],
        [],
    ]
    asked = [part for m in sent for part in m.parts if isinstance(part, pm.ToolCallPart)]
    assert [part.args for part in asked] == ["{}", '{"n": 1}', "{}"]


async def test_an_approved_client_call_returns_that_the_client_has_to_run_it(
    engine: PydanticAIEngine,
) -> None:
    call = ToolCallPart("call-1", "look", "{}", needs_approval=True)
    asking = replace(
        turn(engine, "hi"), history=[message_of(Role.ASSISTANT, call)], input=[], due=[call]
    )
    first, *_ = await collect(engine, asking)
    assert isinstance(first, ToolReturnPart)
    assert (first.tool_call_id, first.status) == ("call-1", "error")
    assert "The client has to run it" in first.output


def test_a_return_is_sent_with_its_images_if_the_model_sees_them() -> None:
    subject = Subject(PydanticAIEngine(), "openai/small")
    pixel = ImagePart(None, "image/gif", "aGk=", detail="low")
    returned = ToolReturnPart("call-1", "look", "success", "see", images=(pixel,))
    history = [
        message_of(Role.ASSISTANT, ToolCallPart("call-1", "look", "{}")),
        message_of(Role.TOOL, returned),
        message_of(Role.USER, pixel),
    ]

    def contents(*, sees_images: bool) -> list[object]:
        messages = provider_messages(subject.turn(history=history), sees_images=sees_images)
        parts = [part for one in messages for part in one.parts]
        return [
            part.content
            for part in parts
            if isinstance(part, pm.ToolReturnPart | pm.UserPromptPart)
        ][:2]

    seen = pm.BinaryContent(b"hi", media_type="image/gif", vendor_metadata={"detail": "low"})
    assert contents(sees_images=True) == [["see", seen], [seen]]
    assert contents(sees_images=False) == [["see", UNSEEN], UNSEEN]


async def test_images_reach_the_server_and_a_refusal_says_that_they_may_be_why(
    engine: PydanticAIEngine, server: OpenAIServer
) -> None:
    image = message_of(Role.USER, TextPart("See."), ImagePart(None, "image/gif", "aGk="))
    asked = replace(turn(engine, "small"), input=[image])
    await collect(engine, asked)
    (request,) = server.requests
    content = request["messages"][-1]["content"]
    assert content[0] == {"type": "text", "text": "See."}
    assert content[1]["image_url"]["url"] == "data:image/gif;base64,aGk="
    with pytest.raises(ModelError, match="has images, which the model may not accept"):
        await collect(engine, replace(asked, model="openai/status-400"))


def test_an_image_that_is_no_base64_is_a_model_error() -> None:
    subject = Subject(PydanticAIEngine(), "openai/small")
    history = [message_of(Role.USER, ImagePart(None, "image/png", "!"))]
    with pytest.raises(ModelError, match="not valid base64"):
        provider_messages(subject.turn(history=history))
