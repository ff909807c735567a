"""Runs after the retention of their logs."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.engine.scripted import ScriptedEngine
from reattach.http.app import create_app
from reattach.http.context import Context
from reattach.server.assembly import assemble
from reattach.server.datadir import events_file
from reattach.settings import Settings
from tests.support.clocks import LeapClock
from tests.support.in_process_readers import Reader
from tests.support.stores import Stores, eventually

HOUR_SECONDS = 3600.0


class RetentionClock(LeapClock):
    """A clock whose waits never end, so that only the test triggers upkeep."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.Event().wait()


@dataclass
class Server:
    context: Context
    clock: RetentionClock
    client: httpx2.AsyncClient
    file: Path

    async def post(self, path: str, body: Any) -> httpx2.Response:
        return await self.client.post(path, json=body)

    async def conversation(self) -> str:
        agent = (await self.post("/v1/agents/", {"model": "scripted/echo"})).json()
        made = await self.post(f"/v1/conversations/?agent_id={agent['id']}", {})
        return str(made.json()["id"])

    async def send(self, conversation_id: str, text: str, otid: str, **body: Any) -> Any:
        message = {"role": "user", "content": text, "otid": otid}
        return await self.post(
            f"/v1/conversations/{conversation_id}/messages",
            {"messages": [message], "background": True, "stream_tokens": True, **body},
        )

    def rows(self, table: str) -> int:
        with closing(sqlite3.connect(self.file)) as connection:
            (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Server]:
    clock = RetentionClock()
    settings = Settings(data_dir=directory, retention_seconds=HOUR_SECONDS)
    async with (
        assemble(settings, engines=[ScriptedEngine(clock=clock)], clock=clock) as context,
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(create_app(context)), base_url="http://localhost"
        ) as client,
    ):
        yield Server(context, clock, client, events_file(directory))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as server:
        yield server


@pytest.mark.promise("P14")
async def test_after_the_retention_a_resume_gets_410_with_the_time_of_expiry(
    server: Server,
) -> None:
    conversation_id = await server.conversation()
    sent = await server.send(conversation_id, "one two three", "mine")
    run_id = sent.headers["x-run-id"]
    ended_at = server.clock.now()
    stream = f"/v1/conversations/{conversation_id}/stream"

    server.clock.leap(HOUR_SECONDS - 1)
    assert await server.context.runs.sweep() == 0
    assert (await server.post(stream, {"run_id": run_id})).content == sent.content

    server.clock.leap(2)
    assert await server.context.runs.sweep() == 1
    assert await server.context.runs.sweep() == 0
    for path, body in [
        (stream, {"run_id": run_id}),
        (stream, {"otid": "mine"}),
        (stream, {"run_id": run_id, "starting_after": 3}),
        (f"/v1/runs/{run_id}/stream", {}),
    ]:
        answer = await server.post(path, body)
        assert answer.status_code == 410, answer.text
        error = answer.json()
        assert error["code"] == "expired"
        expired_at = ended_at + timedelta(seconds=HOUR_SECONDS)
        assert error["expired_at"] == expired_at.isoformat().replace("+00:00", "Z")


@pytest.mark.promise("P14", "P9")
async def test_after_the_retention_the_messages_stay_and_a_duplicate_makes_no_second_run(
    server: Server,
) -> None:
    conversation_id = await server.conversation()
    await server.send(conversation_id, "one two three", "mine")
    messages = f"/v1/conversations/{conversation_id}/messages"
    before = (await server.client.get(messages)).json()
    server.clock.leap(HOUR_SECONDS + 1)
    await server.context.runs.sweep()
    again = await server.send(conversation_id, "one two three", "mine")
    assert again.status_code == 410
    assert len((await server.client.get("/v1/runs/")).json()) == 1
    assert (await server.client.get(messages)).json() == before
    assert [message["message_type"] for message in before].count("assistant_message") == 1
    whole = await server.send(conversation_id, "one two three", "mine", streaming=False)
    assert whole.status_code == 200
    assert whole.json()["messages"][0]["content"] == "one two three"


@pytest.mark.promise("P14")
async def test_expired_logs_leave_the_file(server: Server) -> None:
    conversation_id = await server.conversation()
    for number in range(5):
        text = "[chunks=500][size=500]"
        assert (await server.send(conversation_id, text, f"{number}")).status_code == 200
    await eventually(lambda: server.rows("log_run") == 5)
    assert server.rows("log_chunk") > 0
    server.clock.leap(HOUR_SECONDS + 1)
    assert await server.context.runs.sweep() == 5
    await eventually(lambda: server.rows("log_run") == server.rows("log_chunk") == 0)
    assert (await server.send(conversation_id, "after that", "new")).status_code == 200


@pytest.mark.promise("P14")
async def test_a_live_run_never_expires(stores: Stores) -> None:
    clock = LeapClock()
    service = stores.service(retention=timedelta(seconds=HOUR_SECONDS), clock=clock)
    run = await service.send(stores.send(await stores.conversation(), "[hang=2]"))
    async with Reader(service, run) as reader:
        await reader.until_seq(2)
        clock.leap(100 * HOUR_SECONDS)
        assert await service.sweep() == 0
        assert await service.cancel([run]) == {run.id: "cancelled"}
        received = await reader.to_end()
    assert received.end()["stop_reason"] == "cancelled"
    assert await service.sweep() == 0
    async with Reader(service, run) as late:
        assert (await late.to_end()).frames == received.frames
    clock.leap(HOUR_SECONDS + 1)
    assert await service.sweep() == 1


@pytest.mark.promise("P14")
async def test_a_reader_whose_log_expires_is_disconnected_without_done(stores: Stores) -> None:
    service = stores.service(retention=timedelta(seconds=HOUR_SECONDS), clock=LeapClock())
    run = await service.send(stores.send(await stores.conversation(), "[chunks=2000][size=500]"))
    await service.wait_until_settled(run)
    async with Reader(service, run) as reader:
        await reader.until_seq(1)
        reader.taking.clear()
        await service.delete_logs([run.id])
        await stores.records.runs.mark_log_deleted([run.id], stores.clock.now())
        reader.taking.set()
        received = await reader.to_end()
        if not received.done:
            assert reader.aborted
            assert not reader.whole
    async with Reader(service, run) as late:
        await late.to_end()
    assert (late.status, late.error["code"]) == (410, "expired")
