"""Traces as a collector gets them from a real server, over sockets."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from reattach.telemetry.checks import check_traces
from reattach.telemetry.setup import traces_of
from tests.support.callback_receiver import receiving
from tests.support.collector import Collector, collecting
from tests.support.live_server import (
    LiveServer,
    listening,
    message_body,
    new_threads,
    sent,
    thread_with,
    to,
)

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID, CALLER_ID = PARENT.split("-")[1:3]


@pytest.fixture(scope="module")
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
async def traced(
    tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> AsyncIterator[LiveServer]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in collector.environment.items():
            patch.setenv(name, value)
        async with listening(
            tmp_path_factory.mktemp("traced"),
            access_log=True,
            callbacks_to_private=True,
            tools=["tests.support.tool_functions:add"],
        ) as live:
            yield live


async def ended(live: LiveServer, message: str, **headers: str) -> str:
    """Send to a new conversation with these headers, and return the id of the ended run."""
    _, thread_id = await new_threads(live)
    async with live.client.stream(
        "POST", to(thread_id), json=message_body(message), headers=headers
    ) as response:
        await response.aread()
    assert response.status_code == 200
    return response.headers["x-run-id"]


async def test_a_run_continues_the_trace_of_its_sender(
    traced: LiveServer, collector: Collector
) -> None:
    run_id = await ended(traced, "hello", traceparent=PARENT)
    (send,) = await collector.of_run(run_id, "POST ")
    (attempt,) = await collector.of_run(run_id, "invoke_agent")
    (step,) = await collector.of_run(run_id, "chat")

    assert send.name == "POST /v1/conversations/{conversation_id}/messages"
    assert (send.kind, send.trace_id, send.parent_id) == ("SERVER", TRACE_ID, CALLER_ID)
    assert send.attributes["http.response.status_code"] == 200
    assert (send.links, send.is_error) == ([], False)
    assert (attempt.kind, attempt.trace_id, attempt.parent_id) == (
        "INTERNAL",
        TRACE_ID,
        send.span_id,
    )
    assert (step.kind, step.trace_id, step.parent_id) == ("CLIENT", TRACE_ID, attempt.span_id)
    assert attempt.attributes["reattach.attempt"] == 1
    assert attempt.attributes["reattach.attempt.outcome"] == "run_ended"
    assert attempt.attributes["reattach.run.status"] == "completed"
    assert attempt.attributes["gen_ai.operation.name"] == "invoke_agent"
    assert step.name == "chat echo"
    assert step.attributes["gen_ai.operation.name"] == "chat"
    assert step.attributes["gen_ai.provider.name"] == "scripted"
    assert step.attributes["gen_ai.request.model"] == "echo"
    assert step.attributes["gen_ai.usage.output_tokens"] > 0
    assert step.attributes["gen_ai.response.time_to_first_chunk"] >= 0
    assert not attempt.is_error
    assert step.start_ns <= step.end_ns


async def test_the_span_of_a_send_waits_for_no_answer_that_comes_late(
    traced: LiveServer, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reattach.telemetry.sends.HEAD_SECONDS", 0.01)
    agent_id, thread_id = await new_threads(traced)
    traced.gates.hold(agent_id)
    body = {"input": "[chunks=5]", "streaming": False}
    answering = asyncio.create_task(traced.client.post(to(thread_id), json=body))
    (send,) = await collector.wait(lambda one: one.attributes.get("url.path") == to(thread_id))
    assert not answering.done()
    traced.gates.open(agent_id)
    assert (await answering).status_code == 200
    assert "http.response.status_code" not in send.attributes
    run_id = send.attributes["reattach.run.id"]
    (attempt,) = await collector.of_run(run_id, "invoke_agent")
    assert (attempt.parent_id, send.end_ns < attempt.end_ns) == (send.span_id, True)
    assert len(await collector.of_run(run_id, "POST ")) == 1


async def test_every_span_names_the_process_and_the_convention(
    traced: LiveServer, collector: Collector
) -> None:
    run_id = await ended(traced, "hello")
    (attempt,) = await collector.of_run(run_id, "invoke_agent")
    assert attempt.resource["service.name"] == "reattach"
    assert attempt.resource["service.version"]
    assert attempt.resource["service.instance.id"]
    assert attempt.scope == "reattach"
    assert attempt.schema_url == "https://opentelemetry.io/schemas/gen-ai/0.1.0"


async def test_a_tool_is_a_span_between_two_model_calls(
    traced: LiveServer, collector: Collector
) -> None:
    agent = await traced.client.post("/v1/agents/", json={"name": "Ada", "tool_ids": []})
    agent_id = agent.json()["id"]
    attached = await traced.client.patch(f"/v1/agents/{agent_id}", json={"tools": ["add"]})
    assert attached.status_code == 200, attached.text
    response = await traced.client.post(
        f"/v1/agents/{agent_id}/messages",
        json={"messages": [{"role": "user", "content": "[tool=add]"}], "streaming": False},
    )
    assert response.status_code == 200, response.text
    (tool,) = await collector.wait(lambda one: one.name == "execute_tool add")
    run_id = tool.attributes["reattach.run.id"]
    first, second = await collector.of_run(run_id, "chat", 2)
    (attempt,) = await collector.of_run(run_id, "invoke_agent")
    assert tool.kind == "INTERNAL"
    assert tool.parent_id == first.parent_id == second.parent_id == attempt.span_id
    assert first.end_ns <= tool.start_ns <= tool.end_ns <= second.start_ns
    assert tool.attributes["gen_ai.tool.name"] == "add"
    assert tool.attributes["gen_ai.tool.call.id"]
    assert attempt.name == "invoke_agent Ada"


async def test_model_calls_with_a_summary_in_their_context_say_so(
    traced: LiveServer, collector: Collector
) -> None:
    agent = await traced.agent(system="Be brief.", context_window_limit=100)
    thread_id = (await traced.conversation(agent["id"]))["id"]
    for turn in range(4):
        await sent(traced, thread_id, f"turn {turn} " + "information " * 8)
    await sent(traced, thread_id, "now " * 30)
    (run_id, *_) = await traced.run_ids(conversation_id=thread_id)
    await collector.of_run(run_id, "invoke_agent")
    summary, answer = await collector.of_run(run_id, "chat", 2)
    assert "gen_ai.conversation.compacted" not in summary.attributes
    assert answer.attributes["gen_ai.conversation.compacted"] is True
    assert summary.attributes["gen_ai.usage.input_tokens"] > 0


async def test_no_span_has_an_event_or_a_word_of_the_conversation(
    traced: LiveServer, collector: Collector
) -> None:
    run_id = await ended(traced, "a secret word [think=3][chunks=20]")
    await collector.of_run(run_id, "invoke_agent")
    spans = collector.found(lambda one: one.attributes.get("reattach.run.id") == run_id)
    assert len(spans) == 3
    assert [one.events for one in spans] == [0, 0, 0]
    assert "secret" not in str(spans)


async def test_a_resume_is_a_short_span_with_a_link_to_its_run(
    traced: LiveServer, collector: Collector
) -> None:
    _, thread_id = await new_threads(traced)
    run_id = await traced.background_run(thread_id, "hello")
    await traced.ended(run_id)
    (send,) = await collector.of_run(run_id, "POST /v1/conversations/{conversation_id}/messages")
    for path, body in (
        (f"/v1/runs/{run_id}/stream", {"starting_after": 2}),
        (f"/v1/conversations/{thread_id}/stream", {"run_id": run_id, "starting_after": 2}),
    ):
        await traced.streamed(path, body)
    for route in (
        "/v1/runs/{run_id}/stream",
        "/v1/conversations/{conversation_id}/stream",
    ):
        (resume,) = await collector.of_run(run_id, f"POST {route}")
        assert resume.kind == "SERVER"
        assert resume.links == [(send.trace_id, send.span_id)]
        assert resume.trace_id != send.trace_id
        assert resume.attributes["reattach.cursor"] == 2
        assert resume.attributes["http.response.status_code"] == 200


async def test_the_span_of_a_resume_has_the_cursor_that_its_client_named(
    traced: LiveServer, collector: Collector
) -> None:
    _, thread_id = await new_threads(traced)
    run_id = await traced.background_run(thread_id, "hello")
    await traced.ended(run_id)
    await traced.streamed(f"/v1/runs/{run_id}/stream", {"starting_after": 5000})
    (resume,) = await collector.of_run(run_id, "POST /v1/runs/{run_id}/stream")
    assert resume.attributes["reattach.cursor"] == 5000


async def test_a_resume_of_an_open_run_ends_its_span_at_the_head(
    traced: LiveServer, collector: Collector
) -> None:
    agent_id, thread_id = await new_threads(traced)
    async with traced.stream(to(thread_id), message_body("[chunks=5]", background=True)) as first:
        run_id = first.run_id
        traced.gates.hold(agent_id)
        async with traced.stream(f"/v1/runs/{run_id}/stream", {"starting_after": 0}):
            resumes = await collector.of_run(run_id, "POST /v1/runs/{run_id}/stream")
        traced.gates.open(agent_id)
    assert len(resumes) == 1


async def test_many_runs_on_one_connection_are_named_by_one_span(
    traced: LiveServer, collector: Collector
) -> None:
    _, thread_id = await new_threads(traced)
    run_ids = [await traced.background_run(thread_id, "hello")]
    await traced.ended(run_ids[0])
    run_ids.append(await traced.background_run(thread_id, "hello"))
    await traced.ended(run_ids[1])
    followed = {"runs": [{"run_id": one, "starting_after": 0} for one in run_ids]}
    response = await traced.client.post("/v1/streams", json=followed)
    assert response.status_code == 200
    (span,) = await collector.wait(lambda one: one.name == "POST /v1/streams")
    assert span.attributes["reattach.run.ids"] == run_ids


async def test_an_mcp_server_gets_the_trace_of_the_call(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in collector.environment.items():
        monkeypatch.setenv(name, value)
    journal = tmp_path / "journal"
    server = {
        "command": sys.executable,
        "args": ["-m", "tests.support.plain_mcp_server"],
        "cwd": str(Path(__file__).parents[2]),
        "env": {"MCP_JOURNAL": str(journal)},
    }
    (tmp_path / "data").mkdir()
    async with listening(tmp_path / "data", mcp={"plain": server}) as live:
        _, thread_id = await thread_with(live, "plain__add")
        await sent(live, thread_id, "[tool=plain__add]")
    (tool,) = await collector.wait(lambda one: one.name == "execute_tool plain__add")
    (line,) = [one for one in journal.read_text("utf-8").splitlines() if "traced" in one]
    assert tool.trace_id in line


async def test_a_callback_names_the_trace_of_its_run(
    traced: LiveServer, collector: Collector
) -> None:
    agent_id, _ = await new_threads(traced)
    async with receiving() as receiver:
        response = await traced.client.post(
            f"/v1/agents/{agent_id}/messages/async",
            json={**message_body("hello"), "callback_url": receiver.url},
            headers={"traceparent": PARENT},
        )
        assert response.status_code == 200, response.text
        call = await receiver.call()
    (send,) = await collector.of_run(response.json()["id"], "POST ")
    assert send.name == "POST /v1/agents/{agent_id}/messages/async"
    assert call.headers["traceparent"] == f"00-{TRACE_ID}-{send.span_id}-01"


async def test_a_refused_send_is_a_span_with_its_status_and_no_run(
    traced: LiveServer, collector: Collector
) -> None:
    unknown = "conv-00000000-0000-4000-8000-000000000000"
    response = await traced.client.post(to(unknown), json=message_body("hello"))
    assert response.status_code == 404
    (span,) = await collector.wait(lambda one: one.attributes.get("url.path") == to(unknown))
    assert span.attributes["http.response.status_code"] == 404
    assert "reattach.run.id" not in span.attributes
    assert not span.is_error

    invalid = await traced.client.post(
        to(unknown), json={"messages": 1}, headers={"traceparent": PARENT}
    )
    assert (invalid.status_code, invalid.json()["trace_id"]) == (422, TRACE_ID)


async def test_a_repeated_send_links_to_the_run_that_it_gets(
    traced: LiveServer, collector: Collector
) -> None:
    _, thread_id = await new_threads(traced)
    body = message_body("hello", background=True)
    body["messages"][0]["otid"] = "repeated"
    for _ in range(2):
        response = await traced.client.post(to(thread_id), json=body)
        assert response.status_code == 200
    run_id = response.headers["x-run-id"]
    first, second = await collector.of_run(run_id, "POST ", 2)
    assert second.links == [(first.trace_id, first.span_id)]
    assert first.links == []


async def test_a_failed_run_shows_its_error_on_the_model_call_and_on_the_attempt(
    traced: LiveServer, collector: Collector
) -> None:
    run_id = await ended(traced, "[fail]")
    (attempt,) = await collector.of_run(run_id, "invoke_agent")
    (step,) = await collector.of_run(run_id, "chat")
    assert attempt.is_error
    assert step.is_error
    assert attempt.attributes["error.type"] == step.attributes["error.type"] == "llm_error"
    assert attempt.attributes["reattach.run.status"] == "failed"


async def test_a_malformed_traceparent_begins_a_trace_of_its_own(
    traced: LiveServer, collector: Collector
) -> None:
    run_id = await ended(traced, "hello", traceparent="00-zz-1-01")
    (send,) = await collector.of_run(run_id, "POST ")
    assert send.parent_id == ""


async def test_a_caller_that_does_not_sample_gets_no_spans(
    traced: LiveServer, collector: Collector
) -> None:
    unsampled = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    await ended(traced, "hello", traceparent=unsampled)
    later = await ended(traced, "hello")
    await collector.of_run(later, "invoke_agent")
    assert collector.found(lambda one: one.trace_id == unsampled.split("-")[1]) == []


async def test_log_lines_of_a_run_and_its_requests_have_the_trace(
    traced: LiveServer, collector: Collector
) -> None:
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as lines:
        run_id = await ended(traced, "hello", traceparent=PARENT)
        await traced.client.get("/v1/agents/")
    events = {one["event"]: one for one in lines if one.get("run_id") == run_id}
    for event in ("run began", "run ended", "request"):
        assert events[event]["trace_id"] == TRACE_ID
    assert "cursor" in events["request"]
    (other,) = [one for one in lines if one.get("method") == "GET"]
    assert "trace_id" not in other


async def test_content_is_in_the_spans_only_if_it_is_switched_on(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
    for name, value in {**collector.environment, switch: "true"}.items():
        monkeypatch.setenv(name, value)
    async with listening(tmp_path) as live:
        run_id = await ended(live, "a word to trace")
    (step,) = await collector.of_run(run_id, "chat")
    sent = json.loads(step.attributes["gen_ai.input.messages"])
    assert sent[-1] == {"role": "user", "parts": [{"type": "text", "content": "a word to trace"}]}
    answer = json.loads(step.attributes["gen_ai.output.messages"])
    assert answer[0]["role"] == "assistant"
    assert answer[0]["parts"][0]["content"]
    assert json.loads(step.attributes["gen_ai.system_instructions"])


async def test_a_server_that_stops_exports_its_last_spans(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch, log_lines: list[Any]
) -> None:
    slow = {**collector.environment, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    for name, value in slow.items():
        monkeypatch.setenv(name, value)
    async with listening(tmp_path) as live:
        run_id = await ended(live, "hello")
        counts = live.context.traces.counts
    assert len(collector.found(lambda one: one.attributes.get("reattach.run.id") == run_id)) == 3
    assert (counts.exported, counts.dropped, counts.failed) == (counts.ended, 0, 0)
    (line,) = [one for one in log_lines if one["event"] == "traces ended"]
    assert line["exported"] == counts.ended


async def test_a_collector_that_does_not_answer_drops_spans_and_holds_up_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: list[Any]
) -> None:
    monkeypatch.setattr("reattach.telemetry.spans.FLUSH_SECONDS", 0.2)
    async with collecting() as deaf:
        deaf.is_open.clear()
        small = {"OTEL_BSP_MAX_QUEUE_SIZE": "4", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2"}
        for name, value in {**deaf.environment, **small}.items():
            monkeypatch.setenv(name, value)
        async with listening(tmp_path) as live:
            for _ in range(3):
                await ended(live, "hello")
            counts = live.context.traces.counts
            assert counts.dropped == counts.ended - 4 > 0
        assert [one["event"] for one in log_lines if one["event"] == "spans dropped"]
        assert [one["event"] for one in log_lines if one["event"] == "last spans not exported"]


async def test_a_collector_that_refuses_spans_is_one_warning_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: list[Any]
) -> None:
    async with collecting() as strict:
        strict.answers = ["401 Unauthorized"] * 100
        for name, value in strict.environment.items():
            monkeypatch.setenv(name, value)
        async with listening(tmp_path) as live:
            for _ in range(2):
                await ended(live, "hello")
            counts = live.context.traces.counts
    assert strict.requests >= 1
    assert (counts.failed, counts.exported) == (counts.ended, 0)
    (line,) = [one for one in log_lines if one["event"] == "spans not exported"]
    assert "401" in line["reason"]
    assert "reattach doctor" in line["remedy"]


async def test_the_sdk_is_not_imported_unless_a_variable_asks_for_it() -> None:
    program = """
import os
import sys
from reattach.telemetry.setup import traces_of
import reattach.server.assembly

for environ in (
    {},
    {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"},
):
    assert not traces_of(environ, version="1").is_on
assert "opentelemetry.sdk" not in sys.modules  # FastAPI imports the API.
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await process.wait() == 0


EMBEDDING = """
import asyncio, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from reattach.embed import Reattach

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

async def answer(turn):
    yield "hello"

async def main():
    async with Reattach(answer, data_dir=sys.argv[1]) as streams:
        with trace.get_tracer("application").start_as_current_span("question"):
            run = await streams.ask("hello")
        async for _ in streams.events(run):
            pass
    spans = {span.name.partition(" ")[0]: span for span in exporter.get_finished_spans()}
    question, attempt, chat = spans["question"], spans["invoke_agent"], spans["chat"]
    assert attempt.parent.span_id == question.context.span_id
    assert chat.parent.span_id == attempt.context.span_id
    assert provider.get_tracer("application").start_span("later").is_recording()

asyncio.run(main())
"""


async def test_an_application_that_traces_has_the_runs_below_its_own_spans(
    tmp_path: Path,
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", EMBEDDING, str(tmp_path), stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


async def test_the_doctor_says_whether_the_collector_takes_spans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await check_traces({}) == []
    async with collecting() as own:
        own.answers = ["200 OK", "401 Unauthorized"]
        for name, value in own.environment.items():
            monkeypatch.setenv(name, value)
        (takes,) = await check_traces()
        (refuses,) = await check_traces()
    (gone,) = await check_traces({**os.environ, "OTEL_EXPORTER_OTLP_TIMEOUT": "1"})
    (unknown,) = await check_traces({"OTEL_TRACES_EXPORTER": "pigeon"})
    assert (takes.level, takes.detail) == ("ok", f"the collector at {own.url} takes spans")
    assert (refuses.level, gone.level) == ("warning", "warning")
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in refuses.remedy
    assert unknown.level == "wrong"
    assert "otlp_proto_http" in unknown.remedy


@pytest.mark.parametrize("endpoint", ["garbage", "localhost:4318", "http://", "http://host:port"])
async def test_an_endpoint_that_is_no_url_is_named_at_the_start_and_by_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: list[Any], endpoint: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    traces = await asyncio.to_thread(traces_of, version="1")
    await traces.aclose()
    (line,) = [one for one in log_lines if one["event"] == "spans cannot be exported"]
    (found,) = await check_traces()
    assert found.level == "warning"
    for text in (line["reason"], found.detail):
        assert f"OTEL_EXPORTER_OTLP_ENDPOINT is '{endpoint}'" in text
    assert "http://127.0.0.1:4318" in found.remedy


async def test_an_endpoint_that_is_no_url_shows_no_password() -> None:
    (found,) = await check_traces({"OTEL_EXPORTER_OTLP_ENDPOINT": "user:hush@host:4318"})
    assert "hush" not in found.detail


async def test_the_protocol_grpc_without_its_exporter_names_the_package() -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    (found,) = await check_traces(environ)
    assert found.level == "wrong"
    assert "`opentelemetry-exporter-otlp-proto-grpc`" in found.remedy
