from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from reattach.engine.base import Delta, ModelSettings, Turn
from reattach.engine.function import FunctionEngine
from reattach.engine.local import LocalEngine
from reattach.engine.openai_responses import OpenAIResponsesEngine
from reattach.engine.pydantic_ai import PydanticAIEngine
from reattach.engine.scripted import ScriptedEngine
from reattach.testing.conformance.engine import EngineConformance, Subject
from tests.support.openai_server import openai_server
from tests.support.responses_server import responses_server


@pytest.fixture(scope="module")
def local_engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(context_window_tokens=512)
    yield engine
    asyncio.run(engine.aclose())


class TestScriptedEngine(EngineConformance):
    @pytest.fixture
    def subject(self) -> Subject:
        return Subject(
            engine=ScriptedEngine(),
            model="scripted/echo",
            history_prompt="[history]",
            system_prompt="[system]",
        )


class TestFunctionEngine(EngineConformance):
    @pytest.fixture
    def subject(self) -> Subject:
        async def answer(turn: Turn) -> AsyncIterator[str | Delta]:
            asked = turn.input[-1].text
            if asked == "[history]":
                for message in turn.history:
                    yield f"{message.role}: {message.text}\n"
            elif asked == "[system]":
                yield turn.system
            else:
                for word in asked.split():
                    yield word + " "

        return Subject(
            engine=FunctionEngine(answer),
            model="function/answer",
            history_prompt="[history]",
            system_prompt="[system]",
        )


@pytest.mark.slow
class TestLocalEngine(EngineConformance):
    @pytest.fixture
    def subject(self, local_engine: LocalEngine) -> Subject:
        return Subject(
            engine=local_engine,
            model="local/smollm2-135m-instruct",
            prompt="Tell me about the sea.",
            settings=ModelSettings(max_output_tokens=12),
        )


class TestPydanticAIEngine(EngineConformance):
    @pytest.fixture
    async def subject(self) -> AsyncIterator[Subject]:
        async with openai_server() as server:
            engine = PydanticAIEngine(["openai/small"], openai_base_url=server.base_url)
            yield Subject(
                engine=engine,
                model="openai/small",
                history_prompt="[history]",
                system_prompt="[system]",
            )
            await engine.aclose()


class TestOpenAIResponsesEngine(EngineConformance):
    @pytest.fixture
    async def subject(self) -> AsyncIterator[Subject]:
        async with responses_server() as server:
            engine = OpenAIResponsesEngine(
                ["openai-responses/small"], base_url=server.base_url, api_key="sk-test"
            )
            yield Subject(
                engine=engine,
                model="openai-responses/small",
                history_prompt="[history]",
                system_prompt="[system]",
            )
            await engine.aclose()
