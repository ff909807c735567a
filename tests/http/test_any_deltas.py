"""For any deltas of an engine, the run ends, its log is dense, and the conversation is usable."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reattach.domain.errors import EngineError
from reattach.domain.events import StopReason, Usage
from reattach.domain.ids import DEFAULT_TENANT, ConversationId, RunId, Seq
from reattach.domain.messages import (
    CompactionStats,
    HiddenReasoningPart,
    ReasoningPart,
    Role,
    SummaryPart,
    TextPart,
    ToolCallDelta,
    ToolReturnPart,
)
from reattach.engine.base import (
    Compacted,
    Compacting,
    Delta,
    Engine,
    Finished,
    Model,
    StepFinished,
    ToolStarting,
    Turn,
)
from reattach.log.redis.log import RedisLog
from reattach.records.base import (
    Span,
    Thread,
)
from reattach.runs.transcript import Transcript
from reattach.wire import letta
from reattach.wire.sse import split_frames
from tests.http.test_odd_deltas import events_of
from tests.support.asgi_server import Server, serving
from tests.support.redis_server import shared_url

# Deltas that an engine may yield.

ODD = st.text(st.sampled_from('\ud83d\ude00\0\u2028\n"\\{}[]aé😀'), max_size=6)
TEXTS = st.one_of(ODD, st.text(max_size=6), st.just("plain "))
IDS = st.one_of(st.sampled_from(["a", "b", "", "a\0", "a\ud83d", "c" * 5000]), ODD)
COUNTS: st.SearchStrategy[Any] = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.none(), ODD, st.just(2**70)
)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
STATS = st.builds(CompactionStats, TEXTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
MAYBE = st.one_of(st.none(), TEXTS)
DELTAS: st.SearchStrategy[Any] = st.one_of(
    st.builds(TextPart, TEXTS),
    st.builds(ReasoningPart, TEXTS, MAYBE),
    st.builds(HiddenReasoningPart, st.sampled_from(["redacted", "omitted"]), MAYBE),
    st.builds(ToolCallDelta, IDS, MAYBE, MAYBE, st.booleans()),
    st.builds(ToolStarting, IDS),
    st.builds(
        ToolReturnPart,
        IDS,
        TEXTS,
        st.sampled_from(["success", "error"]),
        TEXTS,
        st.one_of(st.none(), st.tuples(TEXTS)),
    ),
    st.builds(StepFinished, USAGES),
    st.builds(Compacting, TEXTS, COUNTS, COUNTS),
    st.builds(
        Compacted,
        st.builds(SummaryPart, TEXTS, MAYBE, st.one_of(st.none(), STATS)),
        USAGES,
        MAYBE,
        st.one_of(st.none(), st.integers(-3, 3)),
    ),
    st.builds(Finished, st.sampled_from(StopReason)),
    st.builds(EngineError, TEXTS),
    st.builds(ValueError, TEXTS),
    st.sampled_from([None, 5, TextPart(5), Finished("odd"), StepFinished(None)]),  # type: ignore[arg-type]
)
SENDS = st.fixed_dictionaries(
    {
        "stream_tokens": st.booleans(),
        "include_pings": st.booleans(),
        "include_compaction_messages": st.booleans(),
        "include_return_message_types": st.sampled_from(
            [None, None, ["assistant_message"], ["tool_return_message", "reasoning_message"]]
        ),
    }
)


class AnyEngine(Engine):
    """Yields the deltas of a test once, then plain answers."""

    announces_tools = True

    def __init__(self) -> None:
        self.deltas: Sequence[Any] | None = None

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        deltas, self.deltas = self.deltas, None
        if deltas is None:
            deltas = [TextPart("fine"), StepFinished(Usage(1, 1, 2, 1))]
        for delta in deltas:
            if isinstance(delta, Exception):
                raise delta
            yield delta

    def models(self) -> Sequence[Model]:
        return [Model("any/any", "any", "any", "openai", 100_000)]


@pytest.fixture(scope="module")
def engine() -> AnyEngine:
    return AnyEngine()


@pytest.fixture(scope="module")
async def alone(
    tmp_path_factory: pytest.TempPathFactory, engine: AnyEngine
) -> AsyncIterator[Server]:
    async with serving(tmp_path_factory.mktemp("any"), engine=engine) as server:
        yield server


@pytest.fixture
async def shared(
    tmp_path_factory: pytest.TempPathFactory, engine: AnyEngine, postgresql_url: str
) -> AsyncIterator[Server]:
    url = await asyncio.to_thread(shared_url)
    log = await RedisLog.connect(url, prefix=f"test-{uuid.uuid4().hex}")
    directory = tmp_path_factory.mktemp("any")
    async with serving(directory, engine=engine, records_url=postgresql_url, log=log) as server:
        yield server


async def assert_the_rules_hold(
    server: Server, engine: AnyEngine, deltas: Sequence[Any], body: dict[str, Any]
) -> None:
    agent = await server.agent()
    thread_id = (await server.conversation(agent["id"]))["id"]
    engine.deltas = deltas
    sent = {"messages": [{"role": "user", "content": "go"}], "background": True, **body}
    response = await server.client.post(f"/v1/conversations/{thread_id}/messages", json=sent)
    assert response.status_code == 200, response.text
    events = [one for one in events_of(response.text) if one["message_type"] != "ping"]
    first = events[0]["seq_id"]
    run_id = events[-1]["run_id"]

    # The log is dense and ends once.
    assert [event["seq_id"] for event in events] == list(range(first, first + len(events)))
    kinds = [event["message_type"] for event in events]
    assert kinds.count("stop_reason") == 1
    assert kinds[-1] == "usage_statistics"
    assert "stop_reason" in kinds[-3:]

    # A replay gives the same bytes, from everywhere.
    path = f"/v1/runs/{run_id}/stream"
    replay = await server.client.post(path, json={"starting_after": 0})
    assert replay.text == response.text
    later = await server.client.post(path, json={"starting_after": first})
    assert events_of(later.text) == events[1:]

    # Everything that shows it answers.
    for shown in (f"/v1/runs/{run_id}", f"/v1/runs/{run_id}/messages", f"/v1/runs/{run_id}/steps"):
        await server.got(shown)
    await server.got("/v1/runs/", limit=3)
    await server.got(f"/v1/conversations/{thread_id}/messages")
    thread = Thread(agent["id"], ConversationId(thread_id))
    if body["include_return_message_types"] is None and body["include_compaction_messages"]:
        await assert_recovery_would_keep_the_same(server, RunId(run_id), thread)

    # The conversation takes the next message.
    if await server.context.records.messages.pending(DEFAULT_TENANT, thread) is not None:
        assert events[-2]["stop_reason"] == "requires_approval"
        cancelled = await server.client.post(f"/v1/conversations/{thread_id}/cancel")
        assert cancelled.status_code == 200, cancelled.text
    after = await server.send(thread_id, "again")
    assert after["stop_reason"]["stop_reason"] == "end_turn"


async def assert_recovery_would_keep_the_same(
    server: Server, run_id: RunId, thread: Thread
) -> None:
    """The log read back folds into the messages that the conversation keeps."""
    records = server.context.records
    run = await records.runs.get(DEFAULT_TENANT, run_id)
    piece = await server.context.runs.log.read(run_id, Seq(0), max_bytes=2**24, max_events=10_000)
    transcript = Transcript()
    for frame in split_frames(piece.frames):
        transcript.add(letta.decode(frame))
    transcript.begun = run.begun_calls
    assert run.completed_at is not None
    folded = transcript.settlement(run, transcript.steps_seen(), run.completed_at)
    stored = await records.messages.of_run(DEFAULT_TENANT, run_id, Span(1000, ascending=True))
    assert [(one.role, one.parts) for one in folded.messages if one.role is not Role.USER] == [
        (one.role, one.parts) for one in stored if one.role is not Role.USER
    ]


@pytest.mark.promise("P1", "P3", "P4")
@given(deltas=st.lists(DELTAS, max_size=10), body=SENDS)
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
async def test_after_any_deltas_the_run_ends_and_the_conversation_is_usable(
    alone: Server, engine: AnyEngine, deltas: list[Any], body: dict[str, Any]
) -> None:
    """A1, A2, A6, A7"""
    await assert_the_rules_hold(alone, engine, deltas, body)


@pytest.mark.promise("P1", "P3", "P4")
@given(deltas=st.lists(DELTAS, max_size=10), body=SENDS)
@settings(max_examples=5, suppress_health_check=list(HealthCheck))
async def test_any_deltas_on_shared_stores(
    shared: Server, engine: AnyEngine, deltas: list[Any], body: dict[str, Any]
) -> None:
    """A1, A2, A6, A7"""
    await assert_the_rules_hold(shared, engine, deltas, body)
