"""Turns become requests of the Responses API, and its answers become deltas and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from reattach.agent.model_settings import model_settings
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
from reattach.engine.base import (
    AnswerKept,
    ClientTool,
    Delta,
    Finished,
    ModelSettings,
    ServerTool,
    StepFinished,
    Turn,
)
from reattach.engine.openai_responses import OpenAIResponsesEngine
from reattach.engine.openai_responses.request import response_request
from reattach.engine.pydantic_ai import model_profile
from reattach.engine.pydantic_ai.images import FetchedImage
from reattach.testing.conformance.engine import Subject, collect, message, text_of
from reattach.tools.base import AttachedTool
from reattach.tools.function import FunctionTool
from reattach.tools.loop import ToolLoop
from reattach.tools.threads import Threads
from tests.support.clocks import NOON, LeapClock
from tests.support.collected_generators import bodies_among, collected_generators
from tests.support.responses_server import (
    Json,
    ResponsesServer,
    call_item,
    message_item,
    reasoning_item,
    refusal_item,
    responses_server,
)

MODEL = "openai-responses/small"


@pytest.fixture
async def server() -> AsyncIterator[ResponsesServer]:
    async with responses_server() as server:
        yield server


@pytest.fixture
async def engine(server: ResponsesServer) -> AsyncIterator[OpenAIResponsesEngine]:
    engine = OpenAIResponsesEngine(
        [MODEL], base_url=server.base_url, api_key="sk-test", clock=LeapClock()
    )
    yield engine
    await engine.aclose()


def new_turn() -> Turn:
    return Subject(OpenAIResponsesEngine(), MODEL).turn("one two three", system="Be kind.")


@pytest.fixture
async def turn() -> Turn:
    return new_turn()


def message_of(role: Role, *parts: ContentPart) -> Message:
    return structs.replace(message(role, ""), parts=parts)


async def failure(engine: OpenAIResponsesEngine, turn: Turn) -> tuple[list[Delta], EngineError]:
    deltas: list[Delta] = []
    try:
        async with asyncio.timeout(10):
            async for delta in engine.run(turn):
                deltas.append(delta)  # noqa: PERF401  # those before the error are kept
    except EngineError as error:
        return deltas, error
    pytest.fail("the turn ended without an error")


# Requests.


async def test_an_answer_is_kept_by_the_provider_and_announced_before_everything_else(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    deltas = await collect(engine, turn)
    assert deltas[0] == AnswerKept("resp_1")
    assert text_of(deltas) == "one two three"
    [request] = server.requests
    assert request == {
        "model": "small",
        "instructions": "Be kind.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "one two three"}]}],
        "background": True,
        "store": True,
        "stream": True,
    }
    assert server.keys == ["Bearer sk-test"]


async def test_the_conversation_is_sent_with_its_calls_and_their_returns(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    calls = [ToolCallPart(f"call_{n}", "look up", '{"q": 1}') for n in (1, 2)]
    long_id = "x" * 100
    history = [
        message(Role.SYSTEM, "Be brief."),
        message(Role.USER, "Look."),
        message_of(
            Role.ASSISTANT,
            ReasoningPart("hm"),
            TextPart("I look."),
            *calls,
            ToolCallPart(long_id, "find", "{"),
        ),
        message_of(
            Role.TOOL,
            ToolReturnPart("call_1", "look up", "success", "42"),
            ToolReturnPart(long_id, "find", "error", "No."),
        ),
    ]
    await collect(engine, replace(turn, history=history))
    [request] = server.requests
    developer, user, text, call, other, returned, refused, last = request["input"]
    assert developer == {"role": "developer", "content": "Be brief."}
    assert user["content"] == [{"type": "input_text", "text": "Look."}]
    assert text == {"role": "assistant", "content": "I look."}
    assert call == {
        "type": "function_call",
        "call_id": "call_1",
        "name": "look_up",
        "arguments": '{"q": 1}',
    }
    assert (other["arguments"], len(other["call_id"]) <= 64) == ("{}", True)
    assert returned == {"type": "function_call_output", "call_id": "call_1", "output": "42"}
    assert (refused["call_id"], refused["output"]) == (other["call_id"], '{"error": "No."}')
    assert last["role"] == "user"


async def test_tools_of_the_client_and_of_the_server_are_offered(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    schema = {"type": "object", "properties": {"q": {"type": "integer"}}}
    offering = replace(
        turn,
        client_tools=[ClientTool("ask", "Asks.", schema)],
        tools=[ServerTool("look", None, {"type": "object"})],
        settings=ModelSettings(parallel_tool_calls=False),
    )
    await collect(engine, offering)
    [request] = server.requests
    ask, look = request["tools"]
    assert ask == {
        "type": "function",
        "name": "ask",
        "description": "Asks.",
        "parameters": schema,
        "strict": False,
    }
    assert look["name"] == "look"
    assert request["parallel_tool_calls"] is False


def test_images_are_sent_by_url_or_as_their_bytes() -> None:
    turn = new_turn()
    by_url, fetched, lost = (ImagePart(f"https://example.com/{name}.png") for name in "abc")
    inline = ImagePart(None, "image/gif", "aGk=", detail="low")
    call = ToolCallPart("call_1", "look", "{}")
    returned = ToolReturnPart("call_1", "look", "success", "see", images=(inline,))
    asking = replace(
        turn,
        history=[message_of(Role.ASSISTANT, call), message_of(Role.TOOL, returned)],
        input=[message_of(Role.USER, TextPart("See."), by_url, fetched, lost, inline)],
    )
    images = {by_url.url or "": None, fetched.url or "": FetchedImage(b"hi", "image/png")}

    _, output, user = response_request(asking, {}, images=images)["input"]
    gif = {"type": "input_image", "image_url": "data:image/gif;base64,aGk=", "detail": "low"}
    assert output["output"] == [{"type": "input_text", "text": "see"}, gif]
    assert [part.get("image_url") or part["text"] for part in user["content"]] == [
        "See.",
        "https://example.com/a.png",
        "data:image/png;base64,aGk=",
        "(An image that can no longer be fetched.)",
        "data:image/gif;base64,aGk=",
    ]
    _, output, user = response_request(asking, {}, images=None)["input"]
    assert "input_image" not in str([output, user])


def test_an_image_that_is_not_base64_is_a_model_error() -> None:
    asking = replace(new_turn(), input=[message_of(Role.USER, ImagePart(None, "image/png", "!"))])
    with pytest.raises(ModelError, match="not valid base64"):
        response_request(asking, {}, images={})


@pytest.mark.parametrize(
    ("name", "settings", "sent"),
    [
        ("gpt-5.1", {"reasoning": {"reasoning_effort": "low"}}, {"reasoning": {"effort": "low"}}),
        ("gpt-5.1", {"thinking": {"type": "disabled"}}, {"reasoning": {"effort": "none"}}),
        ("gpt-5.1", {"thinking": {"type": "enabled"}}, {"reasoning": {"effort": "medium"}}),
        ("gpt-5.1", {"effort": "max"}, {"reasoning": {"effort": "xhigh"}}),
        ("gpt-5.6-sol", {"effort": "max"}, {"reasoning": {"effort": "max"}}),
        ("o3", {"thinking": {"type": "disabled"}}, {"reasoning": {"effort": "low"}}),
        ("o3", {"reasoning": {"reasoning_effort": "max"}}, {"reasoning": {"effort": "high"}}),
        ("gpt-5.1", {"temperature": 0.5}, {"temperature": 0.5}),
        ("gpt-5.1", {"temperature": 0.5, "effort": "low"}, {"reasoning": {"effort": "low"}}),
        ("gpt-5", {"temperature": 0.5}, {}),
        ("small", {"temperature": 0.5, "effort": "low"},
         {"temperature": 0.5, "reasoning": {"effort": "low"}}),
        ("small", {"thinking": {"type": "disabled"}}, {}),
        ("gpt-5", {"thinking_config": {"include_thoughts": True}},
         {"reasoning": {"summary": "auto"}}),
        ("gpt-5", {"thinking_config": {"include_thoughts": False}}, {}),
        ("gpt-4o", {"max_output_tokens": 7, "verbosity": "low", "parallel_tool_calls": True},
         {"max_output_tokens": 7, "text": {"verbosity": "low"}}),
    ],
    ids=repr,
)  # fmt: skip
def test_settings_are_sent_as_the_model_knows_them(
    name: str, settings: Mapping[str, Any], sent: Json
) -> None:
    handle = f"openai-responses/{name}"
    asked = replace(new_turn(), model=handle, settings=model_settings(settings))
    request = response_request(asked, model_profile(handle))
    fixed = {"model", "input", "instructions", "background", "store", "stream"}
    assert {member: value for member, value in request.items() if member not in fixed} == sent


# Answers.


async def test_reasoning_text_and_calls_come_as_their_deltas(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    server.items = [
        reasoning_item(["Hm, ", "so."], ["And?"]),
        reasoning_item(),
        message_item("I ", "look."),
        call_item("call_1", "look", '{"q":', " 1}"),
        call_item("call_1", "look"),
    ]
    assert (await collect(engine, turn))[1:-2] == [
        ReasoningPart("Hm, "),
        ReasoningPart("so."),
        ReasoningPart("\n\nAnd?"),
        HiddenReasoningPart("omitted"),
        TextPart("I "),
        TextPart("look."),
        ToolCallDelta("call_1", name="look", needs_approval=True),
        ToolCallDelta("call_1", arguments='{"q":', needs_approval=True),
        ToolCallDelta("call_1", arguments=" 1}", needs_approval=True),
        ToolCallDelta("call_1-2", name="look", needs_approval=True),
    ]


async def test_usage_is_that_of_the_provider(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    step, finished = (await collect(engine, turn))[-2:]
    assert isinstance(step, StepFinished)
    usage = step.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 3, 10)
    assert (usage.cached_input_tokens, usage.reasoning_tokens, usage.step_count) == (1, 2, 1)
    assert finished == Finished(StopReason.END_TURN)


async def test_an_answer_cut_for_its_length_says_so(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    server.end = _incomplete("max_output_tokens")
    assert (await collect(engine, turn))[-1] == Finished(StopReason.MAX_TOKENS)


def _only_ends(events: list[Json]) -> list[Json]:
    return [one for one in events if one["type"].endswith((".created", "item.done", ".completed"))]


@pytest.mark.parametrize(
    "arrange", [_only_ends, lambda events: [events[0], events[-1]]], ids=["items", "response"]
)
async def test_an_answer_without_fragments_is_complete(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn, arrange: Any
) -> None:
    server.items = [
        reasoning_item(["Hm."]), message_item("I look."), call_item("call_1", "look", "{}")
    ]  # fmt: skip
    server.arrange = arrange
    assert (await collect(engine, turn))[:-2] == [
        AnswerKept("resp_1"),
        ReasoningPart("Hm."),
        TextPart("I look."),
        ToolCallDelta("call_1", name="look", needs_approval=True),
        ToolCallDelta("call_1", arguments="{}", needs_approval=True),
    ]


async def test_an_approved_client_call_returns_that_the_client_has_to_run_it(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    call = ToolCallPart("call-1", "look", "{}", needs_approval=True)
    asking = replace(turn, history=[message_of(Role.ASSISTANT, call)], due=[call])
    first, *_ = await collect(engine, asking)
    assert isinstance(first, ToolReturnPart)
    assert (first.tool_call_id, first.status) == ("call-1", "error")
    [request] = server.requests
    assert "The client has to run it" in request["input"][1]["output"]


# Failures.


def _incomplete(reason: str) -> Json:
    return {"status": "incomplete", "incomplete_details": {"reason": reason}}


def _failed(code: str) -> Json:
    return {"status": "failed", "error": {"code": code, "message": "sk-secret is wrong"}}


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (([], {}), ModelEmptyResponseError, "ended without an answer"),
        (([refusal_item("I ", "cannot.")], {}), ModelError,
         "withheld the answer: refusal. It says: I cannot."),
        ((None, _incomplete("content_filter")), ModelError, "the rest of its answer: content"),
        ((None, _incomplete("max_messages")), ModelError, "before it was whole.*'max_messages'"),
        ((None, _failed("invalid_prompt")), ModelError, "failed.*is wrong"),
        ((None, _failed("server_error")), ModelError, "failed.*is wrong"),
        (([], _failed("context_length_exceeded")), ContextWindowError, "context window"),
        (([], _failed("insufficient_quota")), ModelRateLimitError, "no quota"),
    ],
)  # fmt: skip
async def test_an_answer_that_ends_in_a_failure_is_final_and_its_usage_counts(
    engine: OpenAIResponsesEngine,
    server: ResponsesServer,
    answer: tuple[list[Json] | None, Json],
    kind: type[EngineError],
    words: str,
) -> None:
    server.items, server.end = answer[0], {"status": "completed", **answer[1]}
    deltas, error = await failure(engine, new_turn())
    with pytest.raises(kind, match=words):
        raise error
    assert type(error) is kind
    assert not error.may_pass
    assert isinstance(deltas[-1], StepFinished)
    assert "sk-" not in error.detail


@pytest.mark.parametrize("code", ["server_error", "rate_limit_exceeded"])
async def test_a_passing_failure_before_any_output_may_be_tried_again(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn, code: str
) -> None:
    server.items, server.end = [], _failed(code)
    deltas, error = await failure(engine, turn)
    assert error.may_pass
    assert deltas == [AnswerKept("resp_1")]


@pytest.mark.parametrize(
    ("refusal", "kind", "may_pass", "seconds"),
    [
        ((400, {"message": "no"}, {}), ModelError, False, None),
        ((400, {"code": "context_length_exceeded"}, {}), ContextWindowError, False, None),
        ((401, {"message": "sk-secret"}, {}), ModelAuthenticationError, False, None),
        ((403, {}, {}), ModelAuthenticationError, False, None),
        ((404, {}, {}), ModelError, False, None),
        ((413, {}, {}), ModelError, False, None),
        ((422, {}, {}), ModelError, False, None),
        ((408, {}, {}), ModelTimeoutError, True, None),
        ((409, {}, {}), ModelError, True, None),
        ((429, {}, {}), ModelRateLimitError, True, None),
        ((429, {}, {"retry-after": "7"}), ModelRateLimitError, True, 7.0),
        ((429, {}, {"retry-after-ms": "250"}), ModelRateLimitError, True, 0.25),
        ((429, {}, {"retry-after": NOON.strftime("%a, %d %b %Y 12:00:30 GMT")}),
         ModelRateLimitError, True, 30.0),
        ((429, {}, {"retry-after": "300"}), ModelRateLimitError, False, 300.0),
        ((429, {}, {"retry-after": "soon"}), ModelRateLimitError, True, None),
        ((429, {"code": "insufficient_quota"}, {}), ModelRateLimitError, False, None),
        ((500, {}, {}), ModelError, True, None),
        ((502, {}, {}), ModelError, True, None),
        ((503, {}, {"retry-after": "2"}), ModelError, True, 2.0),
        ((504, {}, {}), ModelTimeoutError, True, None),
        ((529, {}, {}), ModelError, True, None),
    ],
)  # fmt: skip
async def test_a_refused_request_is_sent_once_and_says_whether_it_may_pass(
    server: ResponsesServer,
    refusal: tuple[int, Json, Mapping[str, str]],
    kind: type[EngineError],
    may_pass: bool,
    seconds: float | None,
) -> None:
    engine = OpenAIResponsesEngine(
        [MODEL], base_url=server.base_url, api_key="sk-test", clock=LeapClock()
    )
    server.refusals = [refusal]
    _, raised = await failure(engine, new_turn())
    await engine.aclose()
    assert (type(raised), raised.may_pass, raised.retry_after_seconds) == (kind, may_pass, seconds)
    assert MODEL in raised.detail
    assert "sk-" not in raised.detail
    assert "127.0.0.1" not in raised.detail
    assert len(server.lines) == 1


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["{not json"], "an event that cannot be read"),
        (['{"type": "error", "code": "server_error", "message": "sorry"}'], "sorry"),
        (['{"type": "error", "error": {"code": "server_error", "message": "sorry"}}'], "sorry"),
    ],
)
async def test_a_stream_with_an_error_in_it_may_pass(
    engine: OpenAIResponsesEngine,
    server: ResponsesServer,
    turn: Turn,
    extra: list[str],
    words: str,
) -> None:
    server.cut_after, server.extra = [6], extra
    deltas, error = await failure(engine, turn)
    assert error.may_pass
    assert words in error.detail
    assert text_of(deltas)


async def test_nothing_of_a_failed_body_is_left_to_the_garbage_collector(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    server.cut_after = [6]
    server.extra = ['{"type": "error", "code": "server_error", "message": "sorry"}']
    with collected_generators() as collected:
        await failure(engine, turn)
    assert not bodies_among(collected)


async def test_a_silent_stream_is_broken(server: ResponsesServer) -> None:
    engine = OpenAIResponsesEngine(
        [MODEL], base_url=server.base_url, api_key="sk-test", silence_seconds=0.2
    )
    server.hangs, server.cut_after = True, [6]
    deltas, error = await failure(engine, Subject(engine, MODEL).turn())
    assert (type(error), error.may_pass) == (ModelTimeoutError, True)
    assert isinstance(deltas[0], AnswerKept)
    await engine.aclose()


async def test_a_server_that_is_not_there_may_come_back() -> None:
    engine = OpenAIResponsesEngine([MODEL], base_url="http://127.0.0.1:9/v1", api_key="sk-test")
    _, error = await failure(engine, Subject(engine, MODEL).turn())
    assert error.may_pass
    assert f"The connection to the provider of {MODEL} failed" in error.detail
    await engine.aclose()


async def test_a_base_url_of_a_wrong_depth_is_recognized(server: ResponsesServer) -> None:
    url = server.base_url.removesuffix("/v1")
    engine = OpenAIResponsesEngine([MODEL], base_url=url, api_key="sk-test")
    _, error = await failure(engine, Subject(engine, MODEL).turn())
    assert "a URL that ends in /v1" in error.detail
    await engine.aclose()


async def test_a_missing_key_is_reported_with_its_variable() -> None:
    engine = OpenAIResponsesEngine([MODEL])
    with pytest.raises(ModelAuthenticationError, match="Set OPENAI_API_KEY in the server's"):
        await collect(engine, Subject(engine, MODEL).turn())
    await engine.aclose()


# Models.


def test_only_named_handles_are_listed_and_others_are_found_if_they_are_accepted() -> None:
    named = OpenAIResponsesEngine(["openai-responses/gpt-5.1"])
    [model] = named.models()
    assert (model.provider_name, model.name, model.provider_type) == (
        "openai-responses", "gpt-5.1", "openai",
    )  # fmt: skip
    assert model.context_window_tokens == 400_000
    assert named.find("openai-responses/gpt-5") is None

    accepting = OpenAIResponsesEngine(accepts_any=True)
    found = accepting.find("openai-responses/gpt-5")
    assert found is not None
    assert (accepting.models(), found.name) == ([], "gpt-5")
    assert accepting.find("openai/gpt-5") is None
    assert accepting.find("openai-responses/") is None


def test_a_handle_of_another_provider_keeps_the_server_from_starting() -> None:
    with pytest.raises(StartupError, match="does not have the form openai-responses/name"):
        OpenAIResponsesEngine(["openai/gpt-5"])


async def test_every_step_of_a_turn_with_tools_is_a_kept_answer_of_its_own(
    engine: OpenAIResponsesEngine, server: ResponsesServer, turn: Turn
) -> None:
    async def look(q: int) -> str:
        """Look something up."""
        server.items = [message_item("It is 42.")]
        return f"found {q}"

    server.items = [message_item("I look."), call_item("call_1", "look", '{"q":', " 1}")]
    tools = [AttachedTool(FunctionTool(look, Threads()), requires_approval=False)]
    deltas = await collect(ToolLoop(engine, tools, LeapClock(), call_seconds=10), turn)
    kept = [delta.upstream_id for delta in deltas if isinstance(delta, AnswerKept)]
    assert kept == ["resp_1", "resp_2"]
    assert text_of(deltas) == "I look.It is 42."
    *_, text, call, returned = server.requests[1]["input"]
    assert text["content"] == "I look."
    assert call["call_id"] == returned["call_id"] == "call_1"
    assert returned["output"] == "found 1"
    assert deltas[-1] == Finished(StopReason.END_TURN)
