"""An application, a tool and tests of a user, typed: mypy checks what the public API promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type

import httpx
import pytest
from fastapi import FastAPI

import reattach
from reattach import ToolContext, ToolError, tool
from reattach.client import (
    Client,
    ConflictError,
    Event,
    FileStorage,
    GaveUpError,
    ManyStream,
    Retry,
    Snapshot,
    State,
    Stream,
    SyncClient,
    SyncManyStream,
    SyncStream,
    Takeover,
)
from reattach.embed import (
    Delta,
    FunctionEngine,
    ReasoningPart,
    Reattach,
    ReattachError,
    Run,
    RunStream,
    Settings,
    StepFinished,
    Turn,
    Usage,
)
from reattach.testing import (
    Cluster,
    EngineConformance,
    Recording,
    Relay,
    ServerProcess,
    Subject,
    seq_of,
    whole_frames,
)

assert_type(reattach.__version__, str)
if TYPE_CHECKING:  # Importing lazily hides no mistake.
    from reattach import no_such_name as _unknown  # type: ignore[attr-defined]  # noqa: F401


async def answer(turn: Turn) -> AsyncIterator[str | Delta]:
    yield ReasoningPart("a word at a time")
    for word in turn.input[-1].text.split():
        yield f"{word} "
    yield StepFinished(Usage(prompt_tokens=1, completion_tokens=1))


@tool(requires_approval=True, tenants=["tenant-1"])
def ledger(account: str, context: ToolContext) -> int:
    """Read an account."""
    if context.tenant is None:
        raise ToolError(f"Nobody asks for the account {account}.")
    return 0


checked: Callable[[str, ToolContext], int] = ledger
streams = Reattach(FunctionEngine(answer), data_dir=Path("data"), settings=Settings())
app = FastAPI(lifespan=streams.lifespan)
app.add_exception_handler(ReattachError, streams.on_error)
app.mount("/letta", streams.app)


async def ask(text: str, otid: str | None = None) -> RunStream:
    run = await streams.ask(text, otid=otid)
    assert_type(run, Run)
    async for event in streams.events(run, after=1):
        assert_type(event, dict[str, Any])
    return streams.stream(run, starting_after=1)


def report(retry: Retry) -> None:
    assert_type(retry.delay_seconds, float)


def note(takeover: Takeover) -> None:
    assert_type(takeover.gap_seconds, float)


def see(state: State) -> None:
    assert_type(state.delay_seconds, float)


def fetch_token(fresh: bool) -> dict[str, str]:
    answer = httpx.post("https://example.org/token", params={"fresh": fresh})
    token: dict[str, str] = answer.json()
    return token


async def fetch_token_over_asyncio(fresh: bool) -> str:
    return fetch_token(fresh)["token"]


async def follow(url: str) -> list[Event]:
    async with Client(url, api_key="secret", on_retry=report, on_takeover=note) as client:
        return [event async for event in client.follow("conv-1", starting_after=7)]


async def use_everything(url: str) -> None:
    async with Client(url, token=fetch_token_over_asyncio, storage={}) as client:
        async with client.send("conv-1", [{"role": "user", "content": "Hello"}]) as sent:
            assert_type(sent, Stream)
            assert_type(await anext(sent), Event)
        many = client.many({"run-1": 7}, on_state=see)
        assert_type(many, ManyStream)
        many.add("run-2")
        assert_type(await client.snapshot("conv-1"), Snapshot)
        assert_type(await client.cancel(run_id="run-1"), dict[str, str])


def use_everything_in_a_thread(url: str) -> int:
    with SyncClient(url, token=fetch_token, storage=FileStorage("positions")) as client:
        stream = client.follow(run_id="run-1", snapshot=True, on_state=see)
        assert_type(stream, SyncStream)
        try:
            for event in stream:
                assert_type(event, Event)
        except GaveUpError as error:
            assert_type(error.cursor, int)
        except ConflictError as error:
            assert_type(error.status, int)
        assert_type(client.many(["run-1"]), SyncManyStream)
        assert_type(client.cancel(), dict[str, str])
        return client.snapshot(run_id="run-1")["seq"]


async def refuse_an_asynchronous_function(url: str) -> None:
    SyncClient(url, token=fetch_token_over_asyncio)  # type: ignore[arg-type]


class TestOwnEngine(EngineConformance):
    __test__ = False

    @pytest.fixture
    def subject(self) -> Subject:
        return Subject(FunctionEngine(answer), "function/answer")


def record(folder: Path) -> list[int]:
    recording = Recording()
    with ServerProcess(folder, arguments=["--scripted"]) as server, Relay(("localhost", 1)):
        httpx.Client(transport=recording, base_url=server.url).post("/v1/agents/")
    return [seq_of(frame) for frame in whole_frames(recording.streams[0])]


def run_a_cluster() -> list[Event]:
    with Cluster(2) as cluster:
        return asyncio.run(follow(cluster.urls[0]))
