"""An embedded Reattach fits into the application around it: its log, its server, its responses."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.background import BackgroundTask

from reattach.domain.errors import CursorAheadError, InvalidArgumentError, NotFoundError
from reattach.embed import Reattach, RunStream, Turn
from reattach.settings import Settings

BOUND_SECONDS = 30

PROGRAM = """
import asyncio
import sys

import uvicorn
from fastapi import FastAPI

from reattach.embed import Reattach
from reattach.settings import Settings

async def answer(turn):
    yield "begun "
    if turn.input[-1].text == "fail":
        raise RuntimeError("the generator is broken")
    await asyncio.Event().wait()

settings = Settings(data_dir=sys.argv[1], drain_seconds=0.2)
streams = Reattach(answer, settings=settings)
app = FastAPI(lifespan=streams.lifespan)

@app.get("/{text}")
async def ask(text: str):
    return streams.stream(await streams.ask(text))

uvicorn.run(app, port=0, log_level="info")
"""


async def shout(turn: Turn) -> AsyncIterator[str]:
    for word in turn.input[-1].text.split():
        yield f"{word.upper()} "


class Application:
    """The program above as a process, by the port that uvicorn names."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(directory)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.ready = threading.Event()
        self.port = 0
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                self.lines.append(line)
                if "running on http://127.0.0.1:" in line:
                    self.port = int(line.partition("127.0.0.1:")[2].split()[0])
                    self.ready.set()

    def ended(self) -> int:
        status = self.process.wait(BOUND_SECONDS)
        self._reading.join(BOUND_SECONDS)
        return status


@pytest.mark.slow
@pytest.mark.promise("P15")
def test_a_stopped_uvicorn_drains_and_logs_the_exception_of_the_generator(tmp_path: Path) -> None:
    """E6: open streams get their end at shutdown, and an exception is in the application's log."""
    application = Application(tmp_path)
    try:
        assert application.ready.wait(BOUND_SECONDS), application.lines
        url = f"http://127.0.0.1:{application.port}"
        with httpx2.Client(base_url=url, timeout=BOUND_SECONDS) as http:
            failed = http.get("/fail")
            with http.stream("GET", "/hang") as response:
                pieces = response.iter_bytes()
                first = next(pieces)
                application.process.send_signal(signal.SIGTERM)
                rest = first + b"".join(pieces)
        status = application.ended()
    finally:
        application.process.kill()
    log = "".join(application.lines)

    assert rest.endswith(b"data: [DONE]\n\n")
    assert status in {0, -signal.SIGTERM}
    assert "RuntimeError: the generator is broken" in log
    assert "Traceback" in log
    assert f"run_id={failed.headers['x-run-id']}" in log


async def get(app: FastAPI, path: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        async with asyncio.timeout(BOUND_SECONDS):
            return await http.get(path)


async def test_a_stream_keeps_the_headers_cookies_and_background_of_the_application(
    tmp_path: Path,
) -> None:
    """E6: headers and cookies that the application sets reach the client."""
    done: list[str] = []
    async with Reattach(shout, data_dir=tmp_path) as streams:
        app = FastAPI()

        @app.get("/{run_id}", response_model=None)
        async def resume(run_id: str) -> RunStream:
            headers = {"x-mine": "1", "cache-control": "no-store", "x-run-id": "not this"}
            response = streams.stream(await streams.run(run_id), headers=headers)
            response.set_cookie("session", "abc")
            response.set_cookie("other", "def")
            response.headers["x-later"] = "2"
            response.background = BackgroundTask(done.append, "ran")
            return response

        run = await streams.ask("hello")
        answer = await get(app, f"/{run.id}")
        again = await get(app, f"/{run.id}")

    for one in (answer, again):
        assert (one.headers["x-mine"], one.headers["x-later"]) == ("1", "2")
        assert one.headers["cache-control"] == "no-store"
        assert one.headers["content-type"].startswith("text/event-stream")
        assert one.headers.get_list("x-run-id") == [run.id]
        assert one.headers["x-conversation-id"] == run.conversation_id
        assert [value.partition("=")[0] for value in one.headers.get_list("set-cookie")] == [
            "session",
            "other",
        ]
    assert done == ["ran", "ran"]


@pytest.mark.promise("P4")
async def test_events_come_as_values_once_and_in_order_from_any_cursor(tmp_path: Path) -> None:
    """E6: `streams.events(run, after)` serves WebSockets and other frameworks."""
    go_on = asyncio.Event()

    async def halting(_turn: Turn) -> AsyncIterator[str]:
        yield "one "
        await go_on.wait()
        yield "two"

    async with Reattach(halting, data_dir=tmp_path) as streams, asyncio.timeout(BOUND_SECONDS):
        run = await streams.ask("hello")
        live: list[dict[str, Any]] = []
        async for event in streams.events(run):
            live.append(event)
            go_on.set()
        replayed = [event async for event in streams.events(run)]
        rest = [event async for event in streams.events(run, live[0]["seq_id"])]
        nothing = [event async for event in streams.events(run, live[-1]["seq_id"])]
        abandoned = streams.events(run)
        await anext(abandoned)
        await abandoned.aclose()  # type: ignore[attr-defined]

    assert [event["seq_id"] for event in live] == list(range(1, len(live) + 1))
    assert "".join(event.get("content", "") for event in live) == "one two"
    assert replayed == live
    assert rest == live[1:]
    assert nothing == []


async def test_a_cursor_that_an_open_run_does_not_have_is_an_error(tmp_path: Path) -> None:
    """E6: the errors of `events` are those of a stream."""

    async def hang(_turn: Turn) -> AsyncIterator[str]:
        yield "one"
        await asyncio.Event().wait()

    async with Reattach(hang, data_dir=tmp_path) as streams, asyncio.timeout(BOUND_SECONDS):
        run = await streams.ask("hello")
        with pytest.raises(CursorAheadError):
            await anext(streams.events(run, 1000))


@pytest.mark.promise("P11")
async def test_tenants_share_otids_and_see_nothing_of_each_other(tmp_path: Path) -> None:
    """E6: `tenant=` on every call."""
    async with Reattach(shout, data_dir=tmp_path) as streams, asyncio.timeout(BOUND_SECONDS):
        mine = await streams.ask("hello", otid="k", tenant="ann")
        theirs = await streams.ask("goodbye", otid="k", tenant="bob")
        nobodys = await streams.ask("hello", otid="k")

        assert len({mine.id, theirs.id, nobodys.id}) == 3
        assert len({mine.conversation_id, theirs.conversation_id, nobodys.conversation_id}) == 3
        assert (await streams.run_of("k", tenant="bob")).id == theirs.id
        assert (await streams.run(mine.id, tenant="ann")).id == mine.id
        for other in ("bob", None):
            with pytest.raises(NotFoundError):
                await streams.run(mine.id, tenant=other)
        with pytest.raises(NotFoundError):
            await streams.ask("more", conversation_id=mine.conversation_id, tenant="bob")
        with pytest.raises(NotFoundError):
            streams.stream(mine, tenant="bob")
        with pytest.raises(NotFoundError):
            await streams.cancel(mine, tenant="bob")
        with pytest.raises(NotFoundError):
            await anext(streams.events(mine, tenant="bob"))
        for wrong in ("", "x" * 1000, "a\0b"):
            with pytest.raises(InvalidArgumentError):
                await streams.ask("hello", tenant=wrong)


async def test_the_directory_that_code_names_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E6: `data_dir=` wins over stores and directories of the environment."""
    monkeypatch.setenv("REATTACH_DATA_DIR", str(tmp_path / "other"))
    monkeypatch.setenv("REATTACH_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    monkeypatch.setenv("REATTACH_LOG_URL", "redis://127.0.0.1:9/0")
    async with Reattach(shout, data_dir=tmp_path / "mine") as streams:
        assert (await streams.ask("hello")).id

    assert (tmp_path / "mine" / "records.db").exists()
    assert not (tmp_path / "other").exists()
    given = Settings(data_dir=tmp_path / "third", database_url=None, log_url=None)
    async with Reattach(shout, settings=given) as streams:
        assert (await streams.ask("hello")).id
    assert (tmp_path / "third" / "records.db").exists()
