"""An interrupted answer of the local model is continued in another process, to the same text."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from reattach.domain.events import StopReason
from reattach.domain.messages import ContentPart, Message, ReasoningPart, Role, TextPart
from reattach.engine import llama_process
from reattach.engine.base import (
    Delta,
    Finished,
    ModelSettings,
    Partial,
    StepFinished,
    Turn,
    Way,
)
from reattach.engine.local import LocalEngine
from reattach.engine.scripted import ScriptedEngine
from reattach.testing.conformance.engine import Subject, collect, message, text_of

pytestmark = pytest.mark.slow

MODEL = "local/smollm2-135m-instruct"
GREEDY = ModelSettings(temperature=0, max_output_tokens=40)


@asynccontextmanager
async def local_engine(context_window_tokens: int = 512) -> AsyncIterator[LocalEngine]:
    """An engine with a model process of its own."""
    engine = await asyncio.to_thread(
        LocalEngine, context_window_tokens=context_window_tokens, parallel_turns=1
    )
    try:
        yield engine
    finally:
        await engine.aclose()


def turn_of(prompt: str, *history: Message) -> Turn:
    subject = Subject(ScriptedEngine(), MODEL, settings=GREEDY)
    return subject.turn(prompt, history=history)


def after(turn: Turn, *parts: ContentPart, finished_steps: int = 0) -> Turn:
    """The turn after an interruption, with these parts as the output so far."""
    said = structs.replace(message(Role.ASSISTANT, ""), parts=parts)
    return replace(turn, partial=Partial([said], finished_steps))


async def continued(turn: Turn, text: str, context_window_tokens: int = 512) -> list[Delta]:
    """Continue ``text`` in a new model process, whose cache is empty."""
    async with local_engine(context_window_tokens) as engine:
        return await collect(engine, after(turn, TextPart(text)))


@dataclass(frozen=True)
class Reference:
    """An uninterrupted answer after an earlier turn, both of the same process."""

    turn: Turn
    deltas: Sequence[Delta]

    @property
    def pieces(self) -> list[str]:
        return [delta.text for delta in self.deltas if isinstance(delta, TextPart)]


@pytest.fixture(scope="module")
async def reference() -> Reference:
    async with local_engine() as engine:
        first = turn_of("Hello! I am Ada, and I keep a lighthouse on a small island in the north.")
        short = replace(GREEDY, max_output_tokens=8)
        earlier = text_of(await collect(engine, replace(first, settings=short)))
        turn = turn_of(
            "Write an email that invites a friend to dinner.",
            *(*first.input, message(Role.ASSISTANT, earlier)),
        )
        return Reference(turn, await collect(engine, turn))


@pytest.mark.parametrize("place", [7, 30])
async def test_a_greedy_answer_continued_by_a_new_process_has_the_uninterrupted_text_and_usage(
    reference: Reference, place: int
) -> None:
    """After each of these tokens the text differs if 64 tokens of a prompt are read at a time."""
    pieces = reference.pieces
    assert pieces[6:8] == ["\n", "\n"]  # The first cut is within the end of a paragraph.
    said = "".join(pieces[:place])
    deltas = await continued(reference.turn, said)
    step, end = deltas[-2:]
    assert said + text_of(deltas) == "".join(pieces)
    assert [step, end] == list(reference.deltas[-2:])
    assert isinstance(step, StepFinished)
    assert step.usage.prompt_tokens > 64


async def test_the_text_so_far_takes_tokens_of_the_answer_and_no_place_of_the_history() -> None:
    """The prompt is near its limit, so with the text so far it would be too long."""
    history = [message(Role.USER, "The sea is wide." + " It is deep." * 7)]
    history += [message(Role.ASSISTANT, "Yes.")]
    short = replace(GREEDY, max_output_tokens=12)
    turn = replace(turn_of("Tell me about the sea.", *history), settings=short)
    async with local_engine(96) as engine:
        whole = await collect(engine, turn)
        text, end = text_of(whole), whole[-2:]
        assert isinstance(end[0], StepFinished)
        assert 96 - 12 - 3 < end[0].usage.prompt_tokens <= 96 - 12
        assert end[1] == Finished(StopReason.MAX_TOKENS)
        rest = await collect(engine, after(turn, TextPart(text[:-10])))
        nothing = await collect(engine, after(turn, TextPart(text)))
        again = await collect(engine, after(turn, TextPart("\n")))
    assert rest[-2:] == nothing == end
    # Of whitespace alone nothing is sent: after an empty text the model would say its role.
    assert again == whole


def test_only_an_unfinished_answer_of_text_is_continued_by_prefix() -> None:
    engine = LocalEngine()
    turn = turn_of("Tell me about the sea.")
    text = TextPart("The sea")
    assert set(engine.ways(after(turn, text))) == {Way.PREFIX, Way.STEP}
    for other in (
        turn,
        after(turn),
        after(turn, ReasoningPart("Hm.")),
        after(turn, ReasoningPart("Hm."), text),
        after(turn, text, finished_steps=1),
        after(replace(turn, input=[message(Role.ASSISTANT, "It")]), text),
    ):
        assert set(engine.ways(other)) == {Way.STEP}


def parameters_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the parameters with which the file would be loaded."""
    loaded: list[Any] = []
    parameters = SimpleNamespace(model=SimpleNamespace(), cpuparams=SimpleNamespace())
    library = SimpleNamespace(CommonParams=lambda: parameters, Server=loaded.append)
    monkeypatch.setitem(sys.modules, "xllamacpp", library)
    llama_process._load(str(file), 512, 1, 1)
    assert loaded == [parameters]
    return parameters


def test_the_model_reads_a_prompt_as_exactly_as_it_generates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 64 tokens at a time on, llama.cpp rounds differently (see MICRO_BATCH_TOKENS)."""
    file = tmp_path / "model.gguf"
    file.touch()
    assert 2 <= parameters_for(file, monkeypatch).n_ubatch <= 63


@pytest.mark.parametrize("more_bytes", [0, 1])
def test_a_model_is_fitted_to_the_memory_only_if_it_is_large(
    more_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    os.truncate(file, llama_process.FITS_ANYWHERE_BYTES + more_bytes)  # It takes no space.
    assert parameters_for(file, monkeypatch).fit_params == bool(more_bytes)
