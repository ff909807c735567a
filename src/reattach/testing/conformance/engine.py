"""Conformance tests of engines: subclass ``EngineConformance`` and provide a ``subject``.

>>> class TestMyEngine(EngineConformance):
...     @pytest.fixture
...     def subject(self):
...         return Subject(engine=MyEngine(), model="mine/small")

The tests are coroutines and need AnyIO's pytest plugin in its ``auto`` mode. To have pytest
explain a failed assertion, call ``pytest.register_assert_rewrite("reattach.testing")`` first.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

import pytest

from reattach.domain.events import StopReason
from reattach.domain.ids import new_agent_id, new_message_id, new_run_id
from reattach.domain.messages import (
    HiddenReasoningPart,
    Message,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallDelta,
    ToolReturnPart,
)
from reattach.engine.base import (
    AnswerKept,
    Compacted,
    Compacting,
    Delta,
    Engine,
    Finished,
    ModelSettings,
    StepFinished,
    ToolStarting,
    Turn,
)

ANSWER_SECONDS = 60.0
"""Time limit of a whole answer, which keeps a broken engine from hanging the tests."""

CLOSE_SECONDS = 1.0
"""Time within which a closed or cancelled turn must end."""


@dataclass(frozen=True)
class Subject:
    """The engine under test, with prompts that make it answer as the tests need."""

    engine: Engine
    model: str
    prompt: str = "one two three four five six seven eight"
    """A prompt for an answer of at least six deltas."""
    settings: ModelSettings = field(default_factory=ModelSettings)
    history_prompt: str | None = None
    """A prompt whose answer repeats the history. None: ``prompt_tokens`` must grow with it."""
    system_prompt: str | None = None
    """A prompt whose answer repeats the system prompt. None: as for ``history_prompt``."""

    def turn(
        self, prompt: str | None = None, *, history: Sequence[Message] = (), system: str = ""
    ) -> Turn:
        """Create a turn with ``prompt`` as the user's only message."""
        return Turn(
            run_id=new_run_id(),
            agent_id=new_agent_id(),
            conversation_id=None,
            model=self.model,
            system=system,
            history=history,
            input=[message(Role.USER, self.prompt if prompt is None else prompt)],
            settings=self.settings,
        )

    def run(self, turn: Turn) -> AsyncGenerator[Delta]:
        """Call the engine, and return its generator for ``turn``."""
        return cast(AsyncGenerator[Delta], self.engine.run(turn))


def message(role: Role, text: str) -> Message:
    """Create a stored message of one text part."""
    return Message(
        id=new_message_id(), role=role, parts=(TextPart(text),), created_at=datetime.now(UTC)
    )


async def collect(engine: Engine, turn: Turn) -> list[Delta]:
    """Collect everything that ``engine`` yields for ``turn``."""
    async with asyncio.timeout(ANSWER_SECONDS):
        return [delta async for delta in engine.run(turn)]


def text_of(deltas: Sequence[Delta]) -> str:
    """Join the text deltas of an answer."""
    return "".join(delta.text for delta in deltas if isinstance(delta, TextPart))


def prompt_tokens_of(deltas: Sequence[Delta]) -> int:
    """Sum the prompt tokens of an answer's steps."""
    return sum(delta.usage.prompt_tokens for delta in deltas if isinstance(delta, StepFinished))


class EngineConformance:
    """The test suite. ``subject`` may have any pytest scope that suits the engine."""

    @pytest.fixture
    def subject(self) -> Subject:
        """Provide the engine under test; a subclass must override it."""
        raise NotImplementedError

    async def test_the_model_is_offered_by_its_handle(self, subject: Subject) -> None:
        models = {model.handle: model for model in subject.engine.models()}
        model = models[subject.model]
        assert model.handle.partition("/")[::2] == (model.provider_name, model.name)
        assert model.context_window_tokens > 0

    async def test_an_answer_is_text_then_one_step_then_the_end(self, subject: Subject) -> None:
        deltas = await collect(subject.engine, subject.turn())
        assert text_of(deltas)
        assert isinstance(deltas[-1], Finished)
        assert isinstance(deltas[-2], StepFinished)
        assert deltas[-1].reason in {StopReason.END_TURN, StopReason.MAX_TOKENS}

    async def test_every_delta_has_the_shape_of_the_interface(self, subject: Subject) -> None:
        deltas = await collect(subject.engine, subject.turn())
        for delta in deltas:
            match delta:
                case TextPart(text):
                    assert text
                case ReasoningPart(text, signature):
                    assert text or signature
                case ToolCallDelta(tool_call_id, name, arguments):
                    assert tool_call_id
                    assert name or arguments
                case StepFinished(usage):
                    assert usage.step_count == 1
                    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
                case ToolStarting() | ToolReturnPart() | HiddenReasoningPart() | Finished():
                    pass
                case AnswerKept(upstream_id):
                    assert upstream_id
                case Compacting() | Compacted():
                    pytest.fail("an engine does not compact its own context")
        assert [d for d in deltas if isinstance(d, Finished)] == deltas[-1:]

    async def test_an_answer_comes_in_pieces(self, subject: Subject) -> None:
        deltas = await collect(subject.engine, subject.turn())
        assert len([d for d in deltas if isinstance(d, TextPart | ReasoningPart)]) >= 6

    @pytest.mark.parametrize("taken", [0, 1, 2, 5])
    async def test_a_turn_closes_within_a_second_after_any_delta(
        self, subject: Subject, taken: int
    ) -> None:
        deltas = subject.run(subject.turn())
        async with asyncio.timeout(ANSWER_SECONDS):
            for _ in range(taken):
                await anext(deltas)
        async with asyncio.timeout(CLOSE_SECONDS):
            await deltas.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(deltas)
        assert text_of(await collect(subject.engine, subject.turn()))

    async def test_a_cancelled_turn_passes_the_cancellation_on_within_a_second(
        self, subject: Subject
    ) -> None:
        started = asyncio.Event()

        async def answer() -> None:
            async with aclosing(subject.run(subject.turn())) as deltas:
                started.set()
                async for _ in deltas:
                    await asyncio.Event().wait()

        task = asyncio.create_task(answer())
        await started.wait()
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(CLOSE_SECONDS):
            with pytest.raises(asyncio.CancelledError):
                await task

    async def test_concurrent_turns_are_each_answered_to_the_end(self, subject: Subject) -> None:
        answers = await asyncio.gather(*(collect(subject.engine, subject.turn()) for _ in range(4)))
        for deltas in answers:
            assert text_of(deltas)
            assert isinstance(deltas[-1], Finished)

    async def test_closing_one_turn_does_not_affect_another(self, subject: Subject) -> None:
        closed = subject.run(subject.turn())
        other = asyncio.create_task(collect(subject.engine, subject.turn()))
        async with asyncio.timeout(ANSWER_SECONDS):
            await anext(closed)
        await closed.aclose()
        assert isinstance((await other)[-1], Finished)

    async def test_the_history_reaches_the_model(self, subject: Subject) -> None:
        history = [
            message(Role.USER, "My parrot is called Quetzalcoatl."),
            message(Role.ASSISTANT, "A fine name!"),
        ]
        if subject.history_prompt is None:
            without = await collect(subject.engine, subject.turn())
            having = await collect(subject.engine, subject.turn(history=history))
            assert prompt_tokens_of(having) > prompt_tokens_of(without) > 0
        else:
            turn = subject.turn(subject.history_prompt, history=history)
            answer = text_of(await collect(subject.engine, turn))
            assert "user: My parrot is called Quetzalcoatl." in answer
            assert "assistant: A fine name!" in answer

    async def test_the_system_prompt_reaches_the_model(self, subject: Subject) -> None:
        system = "You live on a lighthouse and speak of little else."
        if subject.system_prompt is None:
            shorter = await collect(subject.engine, subject.turn(system="Talk."))
            longer = await collect(subject.engine, subject.turn(system=system))
            assert prompt_tokens_of(longer) > prompt_tokens_of(shorter) > 0
        else:
            turn = subject.turn(subject.system_prompt, system=system)
            assert system in text_of(await collect(subject.engine, turn))
