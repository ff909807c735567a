"""Each failure of a provider is one request, and its error says whether the answer may go on.

The SDKs of providers are imported where they are used, because each takes a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pydantic import SecretStr

from reattach.domain.clock import SystemClock
from reattach.domain.errors import (
    ContextWindowError,
    EngineError,
    ModelAuthenticationError,
    ModelError,
    ModelRateLimitError,
    ModelTimeoutError,
)
from reattach.domain.events import StopReason
from reattach.domain.messages import Role
from reattach.engine.base import (
    Delta,
    Engine,
    Finished,
    Partial,
    StepFinished,
    Turn,
    Way,
    closing_deltas,
)
from reattach.engine.pydantic_ai import PydanticAIEngine
from reattach.server.assembly import engines_of
from reattach.settings import Settings
from reattach.testing.conformance.engine import Subject, message, text_of
from reattach.testing.providers import anthropic as messages
from reattach.testing.providers import openai as chats
from tests.support.breaking_provider import (
    DIALECTS,
    Answer,
    BreakingProvider,
    Dialect,
    breaking_provider,
)
from tests.support.collected_generators import bodies_among, collected_generators

pytestmark = pytest.mark.filterwarnings("ignore:Failed to extract usage with `genai-prices`")

PROVIDERS = ("openai", "anthropic", "google")
HANDLES = {"openai": "openai/small", "anthropic": "anthropic/x", "google": "google_ai/x"}
NEVER = 60.0
"""Seconds of silence that no test reaches."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A row of the table: an answer, and the error that it means."""

    name: str
    answer: Callable[[Dialect, bytes], Answer | None]
    """Makes the answer from what was sent before; None: the provider has no such failure."""
    error: type[EngineError] = ModelError
    may_pass: bool = False
    retry_after_seconds: float | None = None
    says: str = ""
    """A part of the error's text."""


def interrupted(name: str, make: Callable[[Dialect, bytes], Answer], **more: Any) -> Failure:
    return Failure(name, make, may_pass=True, **more)


def in_stream(name: str, kinds: Mapping[str, tuple[str, int]], **more: Any) -> Failure:
    """A failure that the provider reports within a stream, under a name of its own."""

    def make(dialect: Dialect, sent: bytes) -> Answer | None:
        if dialect.name not in kinds:
            return None
        kind, status = kinds[dialect.name]
        return Answer(sent + dialect.error_event(kind, status, "It is so."))

    return Failure(name, make, **more)


def refused(status: int, headers: Mapping[str, str] | None = None, **more: Any) -> Failure:
    """A failure that the provider reports instead of an answer."""
    kind, words = more.pop("kind", "some_error"), more.pop("words", "It is so.")

    def make(dialect: Dialect, sent: bytes) -> Answer:
        del sent
        named = kind if isinstance(kind, str) else kind[dialect.name]
        said = words if isinstance(words, str) else words[dialect.name]
        return Answer(dialect.error(named, status, said), status=status, headers=headers or {})

    name = more.pop(
        "name", " ".join([str(status), *(f"{k} {v}" for k, v in (headers or {}).items())])
    )
    return Failure(name, make, **more)


def waiting(seconds: int) -> Mapping[str, str]:
    return {"retry-after": str(seconds)}


NO_RETRY = {"x-should-retry": "false"}
TOO_LONG = {
    "openai": "This model's maximum context length is 8192 tokens.",
    "anthropic": "prompt is too long: 300000 tokens > 200000 maximum",
    "google": "The input token count (1300000) exceeds the maximum number of tokens allowed "
    "(1048576).",
}
BUSY = {
    "openai": ("overloaded_error", 503),
    "anthropic": ("overloaded_error", 529),
    "google": ("UNAVAILABLE", 503),
}
BROKEN = {
    "openai": ("server_error", 500),
    "anthropic": ("api_error", 500),
    "google": ("INTERNAL", 500),
}
LATE = {"anthropic": ("timeout_error", 504), "google": ("DEADLINE_EXCEEDED", 504)}
LIMITED = {
    "openai": ("rate_limit_exceeded", 429),
    "anthropic": ("rate_limit_error", 429),
    "google": ("RESOURCE_EXHAUSTED", 429),
}
NO_QUOTA = {"openai": ("insufficient_quota", 429), "anthropic": ("billing_error", 402)}
INVALID = {
    "openai": ("invalid_request_error", 400),
    "anthropic": ("invalid_request_error", 400),
    "google": ("INVALID_ARGUMENT", 400),
}

ANYWHERE: Sequence[Failure] = (
    interrupted("reset", lambda _, sent: Answer(sent, "reset"), says="connection"),
    interrupted("cut", lambda _, sent: Answer(sent, "cut"), says="connection"),
    interrupted("clean end", lambda _, sent: Answer(sent), says="broke off"),
    interrupted("end within a line", lambda _, sent: Answer(sent + b'data: {"a": ')),
    interrupted("no JSON", lambda dialect, sent: Answer(sent + dialect.garbage())),
    in_stream("overloaded", BUSY, may_pass=True, says="It is so."),
    in_stream("server error", BROKEN, may_pass=True, says="It is so."),
    in_stream("api error", {"openai": ("api_error", 500)}, may_pass=True),
    in_stream("timed out", LATE, error=ModelTimeoutError, may_pass=True),
    in_stream("limited", LIMITED, error=ModelRateLimitError, may_pass=True),
    in_stream("no quota", NO_QUOTA, error=ModelRateLimitError, says="no quota"),
    in_stream("invalid", INVALID, says="It is so."),
    Failure("filtered", lambda dialect, sent: Answer(sent + dialect.withholds()), says="filter"),
)
"""Failures before the first text and after it."""

BEFORE: Sequence[Failure] = (
    interrupted("reset without head", lambda _, __: Answer(end="reset", responds=False)),
    interrupted("cut without head", lambda _, __: Answer(end="cut", responds=False)),
    *(refused(status, may_pass=True) for status in (500, 502, 503, 529)),
    refused(504, error=ModelTimeoutError, may_pass=True),
    refused(503, waiting(7), may_pass=True, retry_after_seconds=7.0),
    refused(503, waiting(90), may_pass=True),
    refused(500, NO_RETRY),
    *(refused(status) for status in (400, 404, 405, 413, 422, 501)),
    *(refused(status, error=ModelAuthenticationError) for status in (401, 403)),
    refused(402, error=ModelRateLimitError),
    refused(408, error=ModelTimeoutError, may_pass=True),
    refused(408, waiting(60), error=ModelTimeoutError, may_pass=True, retry_after_seconds=60.0),
    *(refused(status, may_pass=True) for status in (409, 425)),
    *(refused(status, waiting(5), may_pass=True, retry_after_seconds=5.0) for status in (409, 425)),
    refused(429, error=ModelRateLimitError, may_pass=True),
    refused(429, waiting(7), error=ModelRateLimitError, may_pass=True, retry_after_seconds=7.0),
    *(
        refused(status, waiting(61), error=ModelRateLimitError, says="in the next 61 seconds")
        for status in (408, 409, 425, 429)
    ),
    refused(429, NO_RETRY, error=ModelRateLimitError),
    refused(429, name="429 no quota", kind="insufficient_quota", error=ModelRateLimitError),
    refused(403, name="403 billing", kind="billing_error", error=ModelRateLimitError),
    refused(
        400,
        name="400 too long",
        kind={
            "openai": "context_length_exceeded",
            "anthropic": "invalid_request_error",
            "google": "INVALID_ARGUMENT",
        },
        words=TOO_LONG,
        error=ContextWindowError,
    ),
)
"""Failures instead of an answer."""


def make_model(provider: str, url: str) -> Any:
    """Make a model of one of the three SDKs."""
    if provider == "openai":
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        asked = OpenAIProvider(base_url=f"{url}/v1", api_key="sk-test")
        return OpenAIChatModel("small", provider=asked)
    if provider == "anthropic":
        from pydantic_ai.models.anthropic import AnthropicModel
        from pydantic_ai.providers.anthropic import AnthropicProvider

        return AnthropicModel(
            "claude-haiku-4-5", provider=AnthropicProvider(base_url=url, api_key="sk-ant-test")
        )
    from pydantic_ai.models.google import GoogleModel
    from pydantic_ai.providers.google import GoogleProvider

    return GoogleModel("gemini-2.5-flash", provider=GoogleProvider(api_key="test", base_url=url))


@asynccontextmanager
async def engine_of(
    provider: str, url: str, *, silence: float = NEVER, first: float = NEVER
) -> AsyncIterator[PydanticAIEngine]:
    engine = PydanticAIEngine(
        models={HANDLES[provider]: make_model(provider, url)},
        silence_seconds=silence,
        first_seconds=first,
    )
    yield engine
    await engine.aclose()


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[BreakingProvider]:
    async with breaking_provider() as served:
        yield served


@pytest.fixture(scope="module", params=PROVIDERS)
async def subject(
    request: pytest.FixtureRequest, server: BreakingProvider
) -> AsyncIterator[Subject]:
    async with engine_of(request.param, server.url) as engine:
        yield Subject(engine, HANDLES[request.param])


def dialect_of(subject: Subject) -> Dialect:
    return next(DIALECTS[one] for one, handle in HANDLES.items() if handle == subject.model)


async def failing(engine: Engine, turn: Turn) -> tuple[list[Delta], EngineError]:
    """Return the deltas of a turn that fails, and its error."""
    deltas: list[Delta] = []
    try:
        async with asyncio.timeout(NEVER / 2):
            async for delta in engine.run(turn):
                deltas.append(delta)  # noqa: PERF401
    except EngineError as error:
        return deltas, error
    pytest.fail("the turn did not fail")


async def assert_failure(
    server: BreakingProvider, subject: Subject, failure: Failure, text: str
) -> None:
    dialect = dialect_of(subject)
    sent = dialect.begins() + (dialect.says(text) if text else b"")
    answer = failure.answer(dialect, sent)
    if answer is None:
        return
    server.answer = answer
    server.requests.clear()
    deltas, error = await failing(subject.engine, subject.turn("hi"))
    assert type(error) is failure.error, error
    assert error.code == failure.error.code
    assert (error.may_pass, error.retry_after_seconds) == (
        failure.may_pass,
        failure.retry_after_seconds,
    ), error
    assert failure.says in error.detail
    assert text_of(deltas) == text
    assert len(server.requests) == 1
    steps = [delta for delta in deltas if isinstance(delta, StepFinished)]
    assert [step.broke_off for step in steps] == [failure.may_pass] * len(steps)
    assert not any(isinstance(delta, Finished) for delta in deltas)


@pytest.mark.parametrize("text", ["", "Hel"], ids=["before text", "after text"])
@pytest.mark.parametrize("failure", ANYWHERE, ids=lambda failure: failure.name)
async def test_a_failure_of_a_stream_is_classified(
    server: BreakingProvider, subject: Subject, failure: Failure, text: str
) -> None:
    await assert_failure(server, subject, failure, text)


@pytest.mark.parametrize("failure", BEFORE, ids=lambda failure: failure.name)
async def test_a_refused_request_is_classified(
    server: BreakingProvider, subject: Subject, failure: Failure
) -> None:
    await assert_failure(server, subject, failure, "")


async def test_an_unbroken_answer_has_no_failure(
    server: BreakingProvider, subject: Subject
) -> None:
    dialect = dialect_of(subject)
    server.answer = Answer(dialect.begins() + dialect.says("Hello.") + dialect.ends())
    deltas = [delta async for delta in subject.engine.run(subject.turn("hi"))]
    assert text_of(deltas) == "Hello."
    assert deltas[-1] == Finished(StopReason.END_TURN)


@pytest.mark.parametrize("end", ["ends", "breaks off", "fails", "is left"])
async def test_nothing_of_a_body_is_left_to_the_garbage_collector(
    server: BreakingProvider, subject: Subject, end: str
) -> None:
    dialect = dialect_of(subject)
    sent = dialect.begins() + dialect.says("Hel")
    server.answer = {
        "ends": Answer(sent + dialect.ends()),
        "breaks off": Answer(sent),
        "fails": Answer(sent + dialect.error_event(*BROKEN[dialect.name], "It is so.")),
        "is left": Answer(sent, "silent"),
    }[end]
    with collected_generators() as collected:
        await read(subject, leaves=end == "is left")
    assert not bodies_among(collected)


async def read(subject: Subject, *, leaves: bool) -> None:
    """Read a turn to its end, or leave it at its first text."""
    async with (
        asyncio.timeout(NEVER / 2),
        closing_deltas(subject.engine.run(subject.turn("hi"))) as deltas,
    ):
        with suppress(EngineError):
            async for delta in deltas:
                if leaves and text_of([delta]):
                    break


async def test_an_answer_that_a_filter_stops_says_so(
    server: BreakingProvider, subject: Subject
) -> None:
    dialect = dialect_of(subject)
    server.answer = Answer(dialect.begins() + dialect.says("Hel") + dialect.withholds())
    _, error = await failing(subject.engine, subject.turn("hi"))
    assert (error.code, error.stop_reason) == ("llm_error", "llm_api_error")
    assert "filter stopped the answer" in error.detail


async def test_a_page_instead_of_a_stream_is_final(
    server: BreakingProvider, subject: Subject
) -> None:
    server.answer = Answer(b"<html></html>", headers={"content-type": "text/html"})
    _, error = await failing(subject.engine, subject.turn("hi"))
    assert not error.may_pass


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    ("responds", "text"),
    [(False, ""), (True, ""), (True, "Hel")],
    ids=["before the head", "before text", "after text"],
)
async def test_silence_is_a_timeout_that_may_pass(provider: str, responds: bool, text: str) -> None:
    dialect, handle = DIALECTS[provider], HANDLES[provider]
    async with breaking_provider() as server:
        sent = dialect.begins() + (dialect.says(text) if text else b"")
        server.answer = Answer(sent, "silent", responds=responds)
        silence, first = (0.2, NEVER) if text else (0.2, 0.2)
        async with engine_of(provider, server.url, silence=silence, first=first) as engine:
            deltas, error = await failing(engine, Subject(engine, handle).turn("hi"))
        assert type(error) is ModelTimeoutError
        assert error.may_pass
        assert text_of(deltas) == text
        assert len(server.requests) == 1


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_model_may_be_silent_for_longer_before_its_first_output(provider: str) -> None:
    dialect, handle = DIALECTS[provider], HANDLES[provider]
    async with breaking_provider() as server:
        rest = dialect.says("Hello.") + dialect.ends()
        server.answer = Answer(dialect.begins(), later=[(0.5, rest)])
        async with engine_of(provider, server.url, silence=0.2) as engine:
            deltas = [delta async for delta in engine.run(Subject(engine, handle).turn("hi"))]
        assert text_of(deltas) == "Hello."


async def test_the_time_of_silence_is_a_setting() -> None:
    dialect = DIALECTS["openai"]
    async with breaking_provider() as server, AsyncExitStack() as stack:
        server.answer = Answer(dialect.begins() + dialect.says("Hel"), "silent")
        settings = Settings(
            models=("openai/small",),
            openai_base_url=f"{server.url}/v1",
            openai_api_key=SecretStr("sk-test"),
            model_silence_seconds=0.2,
        )
        engines = await asyncio.to_thread(engines_of, settings, SystemClock())
        for engine in engines:
            stack.push_async_callback(engine.aclose)
        hosted = engines[0]
        deltas, error = await failing(hosted, Subject(hosted, "openai/small").turn("hi"))
        assert type(error) is ModelTimeoutError
        assert text_of(deltas) == "Hel"


@pytest.mark.parametrize(
    ("reason", "may_pass"),
    [("error", True), ("insufficient_system_resource", True), ("weather", False)],
)
async def test_the_reason_for_an_early_end_says_whether_it_may_pass(
    reason: str, may_pass: bool
) -> None:
    dialect = DIALECTS["openai"]
    async with breaking_provider() as server, engine_of("openai", server.url) as engine:
        server.answer = Answer(dialect.begins() + dialect.says("Hel") + chats.stops(reason))
        _, error = await failing(engine, Subject(engine, HANDLES["openai"]).turn("hi"))
    assert (error.code, error.may_pass) == ("llm_error", may_pass)
    assert f"'{reason}'" in error.detail


async def test_pings_between_outputs_are_no_silence() -> None:
    dialect, handle = DIALECTS["anthropic"], HANDLES["anthropic"]
    async with breaking_provider() as server:
        pings = [(0.1, messages.PING)] * 12
        server.answer = Answer(
            dialect.begins() + dialect.says("Hel"), later=[*pings, (0.1, dialect.ends())]
        )
        async with engine_of("anthropic", server.url, silence=1.0) as engine:
            deltas = [delta async for delta in engine.run(Subject(engine, handle).turn("hi"))]
        assert text_of(deltas) == "Hel"
        assert deltas[-1] == Finished(StopReason.END_TURN)


REFUSALS = {
    "openai": "The last message must not be an assistant message: prefill is not supported.",
    "anthropic": "This model does not support assistant message prefill. "
    "The conversation must end with a user message.",
}


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_a_model_that_refuses_a_prefix_gets_no_other(provider: str) -> None:
    handle = {"openai": HANDLES["openai"], "anthropic": "anthropic/claude-haiku-4-5"}[provider]
    async with breaking_provider() as server:
        models = {handle: make_model(provider, server.url)}
        engine = PydanticAIEngine(models=models, continue_models=["openai/*=flags"])
        subject = Subject(engine, handle)
        plain = subject.turn("hi")
        partial = Partial([message(Role.ASSISTANT, "Hel")])
        continued = replace(plain, partial=partial)
        words = DIALECTS[provider].error("invalid_request_error", 400, REFUSALS[provider])
        server.answer = Answer(words, status=400)
        _, error = await failing(engine, plain)
        assert not error.may_pass
        assert Way.PREFIX in engine.ways(continued)
        _, error = await failing(engine, continued)
        assert error.may_pass
        assert engine.ways(continued) == {Way.STEP}
        _, error = await failing(engine, replace(continued, partial=None))
        assert not error.may_pass
        await engine.aclose()
