"""Traces of runs whose process is killed, and of several processes, from real servers."""

from __future__ import annotations

import asyncio
from pathlib import Path

from reattach.testing.programs.redis import RedisServer
from reattach.testing.programs.server import ServerProcess
from tests.support.collector import collecting
from tests.support.raw_clients import WAIT_SECONDS, client_of, start
from tests.support.received import Received

STEP_EVENTS = 20


async def test_the_attempt_of_a_killed_process_is_reported_by_the_next_one(
    tmp_path: Path,
) -> None:
    """The spans that the killed process had exported are below the attempt that it never ended."""
    async with collecting() as collector, asyncio.timeout(2 * WAIT_SECONDS):
        server = ServerProcess(
            tmp_path, arguments=["--scripted"], environment=collector.environment
        )
        with server:
            received = Received()
            async with client_of(server) as client:
                conversation_id = await client.conversation()
                text = f"[steps=2][chunks={STEP_EVENTS}][rate=100]"
                in_second_step = asyncio.Event()

                def on_read() -> None:
                    if received.cursor > STEP_EVENTS + 1:
                        in_second_step.set()

                sending = asyncio.create_task(
                    client.send(conversation_id, text, received, otid="killed", on_read=on_read)
                )
                (first_step,) = await collector.wait(lambda one: one.name.startswith("chat"))
                await in_second_step.wait()
                await asyncio.to_thread(server.kill)
                run_id = await sending
                assert run_id is not None
            (send,) = await collector.of_run(run_id, "POST /v1/conversations")
            assert collector.found(lambda one: one.name.startswith("invoke_agent")) == []

            await start(server)
            async with client_of(server) as client:
                await client.resume(run_id, received)
            lost, next_one = await collector.of_run(run_id, "invoke_agent", 2)
            assert await asyncio.to_thread(server.stop) == 0

        assert lost.attributes["reattach.recovered"] is True
        assert lost.attributes["reattach.attempt"] == 1
        assert lost.attributes["error.type"] == "owner_lost"
        assert lost.is_error
        assert lost.span_id == first_step.parent_id
        assert lost.start_ns <= first_step.start_ns <= lost.end_ns
        assert lost.end_ns <= next_one.start_ns
        assert lost.name == next_one.name

        assert next_one.attributes["reattach.attempt"] == 2
        assert next_one.attributes["reattach.attempt.interruption"] == "crash"
        assert next_one.attributes["reattach.attempt.outcome"] == "run_ended"
        assert "reattach.recovered" not in next_one.attributes
        assert not next_one.is_error

        spans = collector.found(lambda one: one.trace_id == send.trace_id)
        assert {one.parent_id for one in spans if one.name == lost.name} == {send.span_id}
        assert len({one.span_id for one in spans}) == len(spans)
        instances = [one.resource["service.instance.id"] for one in (send, lost, next_one)]
        assert instances[0] != instances[1] == instances[2]
        (resume,) = await collector.of_run(run_id, "POST /v1/runs/{run_id}/stream")
        assert resume.links == [(send.trace_id, send.span_id)]


async def test_a_handed_over_attempt_is_reported_by_the_process_that_made_it(
    tmp_path: Path,
) -> None:
    async with collecting() as collector, asyncio.timeout(2 * WAIT_SECONDS):
        server = ServerProcess(
            tmp_path,
            arguments=["--scripted"],
            environment={**collector.environment, "REATTACH_DRAIN_SECONDS": "0"},
        )
        with server:
            received = Received()
            has_begun = asyncio.Event()
            async with client_of(server) as client:
                conversation_id = await client.conversation()
                sending = asyncio.create_task(
                    client.send(
                        conversation_id,
                        f"[chunks={4 * STEP_EVENTS}][rate=100]",
                        received,
                        otid="handed over",
                        on_read=has_begun.set,
                    )
                )
                await has_begun.wait()
                assert await asyncio.to_thread(server.stop) == 0
                run_id = await sending
            assert run_id is not None
            (first,) = await collector.of_run(run_id, "invoke_agent")
            await start(server)
            async with client_of(server) as client:
                await client.resume(run_id, received)
            first, second = await collector.of_run(run_id, "invoke_agent", 2)
        assert first.attributes["reattach.attempt.outcome"] == "handed_over"
        assert second.attributes["reattach.attempt.interruption"] == "handover"
        assert not first.is_error
        assert "reattach.recovered" not in first.attributes
        assert first.trace_id == second.trace_id
        assert first.attributes["reattach.attempt.last_seq"] >= 1


async def test_a_tool_of_a_server_has_its_own_spans_below_its_call(tmp_path: Path) -> None:
    async with collecting() as collector, asyncio.timeout(2 * WAIT_SECONDS):
        server = ServerProcess(
            tmp_path,
            arguments=["--scripted"],
            environment={
                **collector.environment,
                "REATTACH_TOOLS": "tests.support.tool_functions:look_up",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
        )
        with server:
            async with client_of(server) as client:
                made = await client.post(
                    "/v1/agents/", {"model": "scripted/echo", "tools": ["look_up"]}
                )
                path = f"/v1/agents/{made.json()['id']}/messages"
                body = {"input": "[tool=look_up]", "streaming": False}
                answer = await client.post(path, body)
                assert answer.status_code == 200, answer.text
            (own,) = await collector.wait(lambda one: one.name == "look up")
            (call,) = await collector.wait(lambda one: one.name == "execute_tool look_up")
        assert own.parent_id == call.span_id
        assert own.scope == "tool"
        # FastAPI's own spans would last as long as a stream.
        assert {one.scope for one in collector.spans} == {"reattach", "tool"}


async def test_each_worker_exports_its_spans_under_its_own_instance(
    tmp_path: Path, postgresql_url: str, redis: RedisServer
) -> None:
    async with collecting() as collector, asyncio.timeout(2 * WAIT_SECONDS):
        server = ServerProcess(
            tmp_path,
            arguments=["--scripted", "--workers", "2"],
            environment={
                **collector.environment,
                "REATTACH_DATABASE_URL": postgresql_url,
                "REATTACH_LOG_URL": redis.url,
            },
        )
        with server:
            for _ in range(40):  # The kernel chooses the worker of each connection.
                async with client_of(server) as client:
                    await client.post("/v1/streams", {"runs": [{"run_id": "x"}]})
                spans = await collector.wait(lambda one: one.name == "POST /v1/streams")
                instances = {one.resource["service.instance.id"] for one in spans}
                if len(instances) == 2:
                    break
        assert len(instances) == 2
