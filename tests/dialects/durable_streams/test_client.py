"""The client of Durable Streams, unmodified; one process makes all its reads."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.engine.scripted import ScriptedEngine
from reattach.server import datadir
from reattach.server.assembly import assemble
from reattach.settings import Settings
from tests.dialects.node_programs import DIRECTORY, printed_by, require_node
from tests.support.live_server import InLoop
from tests.support.records_files import prepare_records

PAGE = Path(__file__).parents[3] / "docs" / "durable-streams.md"


@pytest.fixture(scope="module")
async def url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    directory = tmp_path_factory.mktemp("live")
    settings = Settings(data_dir=directory, port=0, default_model="scripted/echo")
    await prepare_records(datadir.records_file(directory))
    async with assemble(settings, engines=[ScriptedEngine()]) as context:
        server = InLoop(context, "", None)
        async with server.running(settings, drains=True):
            yield server._url


@pytest.fixture(scope="module")
async def outcome(url: str) -> dict[str, Any]:
    found: dict[str, Any] = await printed_by(
        "durable_streams.mjs", url, package="@durable-streams/client"
    )
    return found


async def test_an_event_stream_that_breaks_at_any_frame_goes_on_exactly_after_the_last_event(
    outcome: dict[str, Any],
) -> None:
    broken = outcome["broken"]
    assert broken["differing"] == []
    assert broken["opened"] == [2]  # The client gives up once, and is opened again once.
    assert broken["cuts"] > 10


async def test_the_client_reconnects_by_itself_after_a_body_that_ends_and_doubles_nothing(
    outcome: dict[str, Any],
) -> None:
    ended = outcome["endedEarly"]
    assert ended["differing"] == []
    assert ended["opened"] == [1]
    assert ended["reconnected"]
    assert ended["cuts"] > 5


async def test_a_long_poll_whose_answers_are_lost_has_every_event_once(
    outcome: dict[str, Any],
) -> None:
    polled = outcome["polled"]
    assert (polled["differs"], polled["opened"]) == (False, 1)
    assert polled["requests"] > 2  # At least one answer with events was lost.


async def test_an_ended_run_is_read_from_every_offset_in_every_mode(
    outcome: dict[str, Any],
) -> None:
    assert outcome["atEnd"] == {
        "true": True,
        "sse": True,
        "long-poll": True,
        "rests": True,
        "closed": "usage_statistics",
    }


async def test_a_run_that_does_not_exist_is_an_error_with_its_status(
    outcome: dict[str, Any],
) -> None:
    assert outcome["missing"] == 404


async def test_the_program_of_the_page_prints_the_answer_of_a_run(url: str) -> None:
    program = re.findall(
        r"^```javascript.*?\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )[0]
    async with httpx2.AsyncClient(base_url=url, verify=False) as client:
        agent = (await client.post("/v1/agents/", json={})).json()["id"]
        thread = (await client.post(f"/v1/conversations/?agent_id={agent}", json={})).json()["id"]
        body = {"input": "an island", "background": True}
        sent = await client.post(f"/v1/conversations/{thread}/messages", json=body)
        run = sent.headers["x-run-id"]
    process = await asyncio.create_subprocess_exec(
        require_node("@durable-streams/client"),
        *("--input-type=module", "--eval", program, "durable.mjs", url, run, "any"),
        cwd=DIRECTORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert re.fullmatch(r"an island ?\nread up to offset \d{16}\n", output.decode())
