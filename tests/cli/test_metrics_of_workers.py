"""The metrics of several workers: one scrape has all of them, whichever of them is asked."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from reattach.testing.programs.redis import RedisServer
from reattach.testing.programs.server import ServerProcess
from tests.cli.test_supervisor import children_of, until
from tests.support.commands import reattach_here
from tests.support.raw_clients import client_of
from tests.support.received import Received
from tests.support.scraped import Scraped, parse


@pytest.fixture
def server(
    tmp_path: Path, postgresql_url: str, redis_server: RedisServer
) -> Iterator[ServerProcess]:
    server = ServerProcess(
        tmp_path,
        arguments=["--workers", "2", "--scripted"],
        environment={
            "REATTACH_DATABASE_URL": postgresql_url,
            "REATTACH_LOG_URL": redis_server.url,
            "REATTACH_METRICS_PORT": "0",
            # Secrets must reach the workers as they are.
            "REATTACH_TOKEN_KEYS": "k" * 40,
        },
    )
    with server:
        yield server


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=20.0) as client:
        yield client


def own_port(server: ServerProcess) -> str:
    """Return the URL of the port for metrics, as the log says it."""
    found = re.search(r"http://127\.0\.0\.1:\d+/metrics", server.output)
    assert found is not None, server.output
    return found[0]


async def scraped(client: httpx2.AsyncClient, url: str) -> Scraped:
    answer = await client.get(url, headers={"connection": "close"})
    assert answer.status_code == 200, answer.text
    return parse(answer.text)


async def events_of_a_run(server: ServerProcess, otid: str) -> int:
    async with client_of(server) as client:
        received = Received()
        await client.send(await client.conversation(), "[chunks=9]", received, otid=otid)
    received.end()
    return received.cursor


def events(found: Scraped) -> dict[str, float]:
    return found.workers("reattach_events_total")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def replaced(client: httpx2.AsyncClient, url: str, before: Scraped) -> str:
    """Wait until a worker was replaced, and return its slot."""
    name = "process_start_time_seconds"
    async with asyncio.timeout(60):
        while True:
            found = await scraped(client, url)
            began, now = before.workers(name), found.workers(name)
            new = [worker for worker in now if now[worker] != began[worker]]
            if new and len(now) == len(began):
                return new[0]
            await asyncio.sleep(0.1)


async def test_one_scrape_has_all_workers_and_a_replaced_worker_keeps_its_slot(
    server: ServerProcess, client: httpx2.AsyncClient
) -> None:
    sent = sum([await events_of_a_run(server, f"otid {number}") for number in range(4)])
    port = own_port(server)
    own = await scraped(client, port)
    assert set(events(own)) == {"0", "1"}
    assert own.value("reattach_events_total") == sent
    assert own.value("reattach_runs_ended_total", status="completed") == 4
    for _ in range(6):  # Each of them asks one of the workers.
        assert events(await scraped(client, f"{server.url}/metrics")) == events(own)
    assert own.workers("reattach_scrape_age_seconds") == {"0": 0, "1": 0}
    assert own.workers("reattach_build_info", store="postgresql+redis") == {"0": 1, "1": 1}
    assert own.value("reattach_store_seconds_count", store="log", operation="append") >= 4
    assert all(own.value("reattach_lease_margin_seconds", worker=one) > 0 for one in "01")

    assert server.pid is not None
    with stopped(server.pid):  # The supervisor itself: its workers go on without it.
        refused = await client.get(f"{server.url}/metrics", headers={"connection": "close"})
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    assert events(await scraped(client, f"{server.url}/metrics")) == events(own)

    killed, kept = children_of(server)
    with stopped(kept):
        late = await scraped(client, port)
    ages = late.workers("reattach_scrape_age_seconds")
    assert sorted(age > 0 for age in ages.values()) == [False, True]
    assert events(late) == events(own)

    os.kill(killed, signal.SIGKILL)
    await asyncio.to_thread(until, lambda: "child process ended" in server.output)
    left = await scraped(client, port)
    assert len(events(left)) < 2 or left.value("reattach_events_total") < sent
    slot = await replaced(client, port, own)
    again = await scraped(client, port)
    other = "1" if slot == "0" else "0"
    assert events(again)[other] == events(own)[other]
    # The events of a new process begin at 0, so that no rate is wrong.
    assert events(again)[slot] == 0
    assert again.workers("reattach_readers") == {"0": 0, "1": 0}


async def test_the_port_for_metrics_serves_nothing_else(
    server: ServerProcess, client: httpx2.AsyncClient
) -> None:
    port = own_port(server)
    for path in ("/", "/v1/health/", "/v1/agents/"):
        answer = await client.get(port.replace("/metrics", path))
        assert (answer.status_code, answer.text.count("/metrics")) == (404, 1)
    assert (await client.post(port)).status_code == 405


def test_a_port_for_metrics_that_is_taken_is_named_with_its_setting(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "first", environment={"REATTACH_METRICS_PORT": "0"}) as first:
        taken = re.search(r":(\d+)/metrics", first.output)
        assert taken is not None
        ended = reattach_here(
            *("serve", "--port", "0", "--data-dir", str(tmp_path / "second")),
            REATTACH_METRICS_PORT=taken[1],
        )
    assert ended.status == 1
    assert "REATTACH_METRICS_PORT" in ended.err
    assert "Traceback" not in ended.err


def test_a_port_for_metrics_without_metrics_is_refused(tmp_path: Path) -> None:
    ended = reattach_here(
        *("serve", "--port", "0", "--data-dir", str(tmp_path)),
        REATTACH_METRICS_PORT="0",
        REATTACH_METRICS="false",
    )
    assert ended.status == 1
    assert "REATTACH_METRICS is false" in ended.err
