from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from reattach.domain.errors import NotFoundError, StartupError
from reattach.engine.base import Turn
from reattach.engine.catalog import Catalog
from reattach.engine.function import FunctionEngine
from reattach.engine.scripted import ScriptedEngine


async def answer(turn: Turn) -> AsyncIterator[str]:
    yield "x"


class ClosingEngine(FunctionEngine):
    closed = False

    async def aclose(self) -> None:
        self.closed = True


class StubbornEngine(FunctionEngine):
    async def aclose(self) -> None:
        raise OSError("does not close")


def test_a_handle_leads_to_its_engine_and_model() -> None:
    scripted, function = ScriptedEngine(), FunctionEngine(answer)
    catalog = Catalog([function, scripted])
    assert catalog.engine("scripted/echo") is scripted
    assert catalog.engine("function/answer") is function
    assert catalog.model("scripted/slow").name == "slow"
    assert [model.handle for model in catalog.models()] == [
        "function/answer",
        "scripted/echo",
        "scripted/slow",
    ]


def test_the_error_for_an_unknown_handle_lists_the_known_handles() -> None:
    with pytest.raises(NotFoundError) as raised:
        Catalog([ScriptedEngine()]).engine("openai/gpt-4o")
    assert str(raised.value) == (
        "NOT_FOUND: Handle openai/gpt-4o not found, must be one of [scripted/echo, scripted/slow]"
    )


def test_an_endless_handle_is_not_repeated_whole() -> None:
    with pytest.raises(NotFoundError) as raised:
        Catalog([ScriptedEngine()]).model("x" * 10_000)
    assert len(str(raised.value)) < 250


def test_a_model_registered_later_is_found() -> None:
    engine = FunctionEngine()
    catalog = Catalog([engine])
    engine.model("late")(answer)
    assert catalog.engine("function/late") is engine


def test_two_engines_may_not_offer_the_same_handle() -> None:
    with pytest.raises(StartupError, match="scripted/echo, scripted/slow"):
        Catalog([ScriptedEngine(), ScriptedEngine()])


async def test_closing_closes_every_engine_even_if_one_fails() -> None:
    first, last = ClosingEngine(), ClosingEngine()
    catalog = Catalog([first, StubbornEngine(), last])
    with pytest.raises(OSError, match="does not close"):
        await catalog.aclose()
    assert first.closed
    assert last.closed
