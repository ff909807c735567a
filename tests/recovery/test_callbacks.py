"""Callbacks whose receivers fail, and servers that go away between a run's end and its call."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme

from reattach.domain.clock import utc_text
from reattach.domain.ids import Seq
from reattach.domain.limits.outbound import (
    CALLBACK_GIVE_UP_SECONDS,
    CALLBACK_LEASE_SECONDS,
    CALLBACKS_PER_RECEIVER,
)
from reattach.http.schemas.run import run_state
from reattach.outbound.requests import Resolve
from reattach.records.base import Attempt, Run, RunNotes
from reattach.records.runs.lists.summaries import RunSummary
from reattach.testing.programs.server import ServerProcess
from reattach.webhooks.receivers import NO_ANSWER, NOT_CALLED, Receivers
from reattach.webhooks.sender import Callbacks
from tests.support.callback_receiver import receiving
from tests.support.live_server import WAIT_SECONDS, listening, message_body
from tests.support.record_samples import (
    OURS,
    HandClock,
    World,
    a_message,
    a_settlement,
    a_world,
    at,
)
from tests.support.records_files import open_records

TIMEOUT_SECONDS = 2.0


@pytest.fixture
def clock() -> HandClock:
    clock = HandClock()
    clock.time = at(60)
    return clock


@pytest.fixture
async def world(tmp_path: Path, clock: HandClock) -> AsyncIterator[World]:
    records = await open_records(tmp_path, clock)
    yield await a_world(records)
    await records.aclose()


def calling(world: World, clock: HandClock, receivers: Receivers | None = None) -> Callbacks:
    receivers = receivers or Receivers(to_private=True)
    return Callbacks(world.records, clock, receivers, uniform=lambda low, high: high)


async def ended(world: World, url: str) -> Run:
    run = await world.start(callback_url=url)
    assert await world.records.runs.settle(run.id, a_settlement(a_message("hi", run_id=run.id)))
    return run


async def called(callbacks: Callbacks) -> int:
    """Make the due calls and return their number."""
    async with asyncio.timeout(20):
        calls = await callbacks.start_due()
        await asyncio.gather(*calls)
    return len(calls)


async def outcome(world: World, run: Run) -> tuple[int | None, str | None]:
    found = await world.records.runs.get(OURS, run.id)
    assert found.callback_sent_at is not None
    return found.callback_status_code, found.callback_error


@pytest.mark.promise("P16")
async def test_a_receiver_that_fails_is_called_again_with_backoff_until_it_answers(
    world: World, clock: HandClock
) -> None:
    async with receiving("500 Oh", "503 No", "302 Found\r\nLocation: /x") as receiver:
        run = await ended(world, receiver.url)
        callbacks = calling(world, clock)
        for number, (wait_seconds, status) in enumerate([(2, 500), (4, 503), (8, 302)], 1):
            assert await called(callbacks) == 1
            code, error = await outcome(world, run)
            assert code == status
            assert error is not None
            assert f"answered {status}" in error
            clock.time += timedelta(seconds=wait_seconds - 0.001)
            assert await called(callbacks) == 0
            clock.time += timedelta(seconds=0.001)
            assert len(receiver.calls) == number
        assert await called(callbacks) == 1
        assert await outcome(world, run) == (200, None)
        assert [call.line for call in receiver.calls] == ["POST /done HTTP/1.1"] * 4
        assert len({call.body for call in receiver.calls}) == 1
        clock.time += timedelta(days=30)
        assert await called(callbacks) == 0


@pytest.mark.promise("P16", "P19")
async def test_a_receiver_gets_the_attempts_at_a_run_as_the_api_shows_them(
    world: World, clock: HandClock
) -> None:
    async with receiving() as receiver:
        run = await world.start(callback_url=receiver.url)
        attempt = Attempt(at(3), Seq(4), Seq(5), 0, "prefix", "crash", run.owner)
        runs = world.records.runs
        assert await runs.note(run.id, run.token, notes=RunNotes(), attempts=(attempt,))
        assert await runs.settle(run.id, a_settlement(a_message("hi", run_id=run.id)))
        assert await called(calling(world, clock)) == 1
        assert await outcome(world, run) == (200, None)
    sent = json.loads(receiver.calls[0].body)["metadata"]["attempts"]
    shown = run_state(RunSummary.of(await runs.get(OURS, run.id)))["metadata"]
    assert sent == shown["attempts"]
    assert sent[1]["began_at"] == utc_text(at(3), "microseconds")


async def test_a_call_without_an_answer_times_out_and_is_repeated(
    world: World, clock: HandClock
) -> None:
    async with receiving(None) as receiver:
        run = await ended(world, receiver.url)
        impatient = Receivers(to_private=True, timeout_seconds=TIMEOUT_SECONDS)
        await called(calling(world, clock, impatient))
        assert await outcome(world, run) == (None, NO_ANSWER)
        clock.time += timedelta(seconds=2)
        await called(calling(world, clock))
        assert await outcome(world, run) == (200, None)


async def test_a_receiver_that_refuses_connections_is_called_again(
    world: World, clock: HandClock
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        run = await ended(world, f"http://127.0.0.1:{taken.getsockname()[1]}/")
        callbacks = calling(world, clock)
        await called(callbacks)
        assert await outcome(world, run) == (None, NO_ANSWER)
        clock.time += timedelta(seconds=2)
        assert await called(callbacks) == 1


async def test_a_receiver_that_is_gone_or_fails_for_too_long_is_not_called_again(
    world: World, clock: HandClock
) -> None:
    async with receiving("410 Gone", "500 Oh") as receiver:
        gone = await ended(world, receiver.url)
        callbacks = calling(world, clock)
        await called(callbacks)
        clock.time += timedelta(seconds=CALLBACK_GIVE_UP_SECONDS)
        late = await ended(world, receiver.url)
        assert await called(callbacks) == 1
        clock.time += timedelta(days=1)
        assert await called(callbacks) == 0
        assert await outcome(world, gone) == (410, "answered 410")
        assert await outcome(world, late) == (500, "answered 500; given up")


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["10.0.0.7"],
        ["169.254.169.254"],
        ["::ffff:127.0.0.1"],
        ["93.184.215.14", "192.168.0.1"],
        ["fe80::1%lo"],
    ],
    ids=repr,
)
async def test_a_name_with_any_private_address_is_not_called(
    world: World, clock: HandClock, addresses: list[str]
) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        assert host == "rebound.example"
        return addresses

    async with receiving() as receiver:
        run = await ended(world, f"http://rebound.example:{receiver.port}/")
        await called(calling(world, clock, Receivers(to_private=False, resolve=resolve)))
        assert await outcome(world, run) == (None, NOT_CALLED)
        assert receiver.calls == []


async def test_the_connection_goes_to_the_address_that_was_checked_under_the_name(
    world: World, clock: HandClock
) -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"]

    async with receiving() as receiver:
        run = await ended(world, f"http://name.invalid:{receiver.port}/x?y=1")
        await called(calling(world, clock, Receivers(to_private=True, resolve=resolve)))
        assert await outcome(world, run) == (200, None)
        assert asked == ["name.invalid"]
        (call,) = receiver.calls
        assert call.line == "POST /x?y=1 HTTP/1.1"
        assert call.headers["host"] == f"name.invalid:{receiver.port}"


@pytest.mark.parametrize("found", [[], ["10.0.0.7"], ["93.184.215.14", "::1"], None], ids=repr)
async def test_internal_and_unknown_names_cannot_be_distinguished(
    world: World, clock: HandClock, found: list[str] | None
) -> None:
    """D7: text and number of attempts are equal, so no name is revealed to exist."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found

    run = await ended(world, "http://intranet.example:9200/")
    callbacks = calling(world, clock, Receivers(to_private=False, resolve=resolve))
    assert await called(callbacks) == 1
    assert await outcome(world, run) == (None, NOT_CALLED)
    clock.time += timedelta(seconds=2)
    assert await called(callbacks) == 1


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.9\r\n", b""])
async def test_open_and_closed_ports_cannot_be_distinguished(
    world: World, clock: HandClock, answer: bytes
) -> None:
    """D7: a port that speaks no HTTP and one that is closed give the same text."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        run = await ended(world, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        await called(calling(world, clock))
        assert await outcome(world, run) == (None, NO_ANSWER)


@pytest.mark.promise("P16")
async def test_a_call_of_a_process_that_died_is_made_by_another_process(
    world: World, clock: HandClock
) -> None:
    async with receiving() as receiver:
        run = await ended(world, receiver.url)
        assert len(await world.records.callbacks.claim(10, CALLBACK_LEASE_SECONDS)) == 1
        callbacks = calling(world, clock)
        assert await called(callbacks) == 0
        clock.time += timedelta(seconds=CALLBACK_LEASE_SECONDS)
        assert await called(callbacks) == 1
        assert await outcome(world, run) == (200, None)


async def test_two_processes_make_each_call_once(world: World, clock: HandClock) -> None:
    async with receiving() as receiver:
        runs = [await ended(world, receiver.url) for _ in range(CALLBACKS_PER_RECEIVER)]
        processes = [calling(world, clock), calling(world, clock)]
        await asyncio.gather(*(called(process) for process in processes))
        assert sorted(call.payload["run_id"] for call in receiver.calls) == sorted(
            run.id for run in runs
        )


@pytest.mark.promise("P16")
@pytest.mark.parametrize("column", ["callback_url", "callback_host"])
async def test_a_damaged_receiver_takes_no_slot_of_the_others(
    world: World, clock: HandClock, tmp_path: Path, column: str
) -> None:
    """A call whose receiver could not be matched kept the slots of all other due calls."""
    async with receiving() as receiver:
        runs = [await ended(world, receiver.url) for _ in range(CALLBACKS_PER_RECEIVER)]
        with sqlite3.connect(tmp_path / "records.db") as database:
            damage = f"UPDATE runs SET {column} = x'ff' WHERE id = ?"
            database.execute(damage, (runs[0].id,))
        callbacks = calling(world, clock)
        await called(callbacks)
        assert len(receiver.calls) >= CALLBACKS_PER_RECEIVER - 1
        for _ in range(2):
            later = [await ended(world, receiver.url) for _ in range(CALLBACKS_PER_RECEIVER)]
            await called(callbacks)
            for run in later:
                assert await outcome(world, run) == (200, None)


# Receivers by https and at IPv6 addresses.


@dataclass(frozen=True)
class Authority:
    """A certificate authority, and whether this process trusts it."""

    authority: trustme.CA

    def server(self, *names: str) -> ssl.SSLContext:
        """Return a server context with a certificate for these names or addresses."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*names).configure_cert(context)
        return context


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """Trust the authority, as an operator makes the system trust a company's authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    return Authority(authority)


def leading_to(*addresses: str) -> Resolve:
    """Resolve every name to these addresses."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolve


async def test_a_receiver_of_https_is_called_under_its_name(
    world: World, clock: HandClock, trusted: Authority
) -> None:
    names: list[str | None] = []
    tls = trusted.server("app.example")
    tls.sni_callback = lambda _, name, __: names.append(name)
    async with receiving(tls=tls) as receiver:
        run = await ended(world, f"https://app.example:{receiver.port}/done")
        receivers = Receivers(to_private=True, resolve=leading_to("127.0.0.1"))
        await called(calling(world, clock, receivers))
        assert await outcome(world, run) == (200, None)
    [call] = receiver.calls
    assert call.headers["host"] == f"app.example:{receiver.port}"
    assert call.payload["run_id"] == run.id
    assert names == ["app.example"]


async def test_a_receiver_without_a_valid_certificate_gets_no_request(
    world: World, clock: HandClock, trusted: Authority
) -> None:
    # One certificate has another name, and one has an untrusted issuer.
    stranger = Authority(trustme.CA())
    for tls in (trusted.server("other.example"), stranger.server("app.example")):
        async with receiving(tls=tls) as receiver:
            run = await ended(world, f"https://app.example:{receiver.port}/done")
            receivers = Receivers(to_private=True, resolve=leading_to("127.0.0.1"))
            await called(calling(world, clock, receivers))
            assert await outcome(world, run) == (None, NO_ANSWER)
        assert receiver.calls == []


@pytest.mark.parametrize("is_https", [False, True])
async def test_a_receiver_at_an_ipv6_address_is_called_if_private_ones_are_allowed(
    world: World, clock: HandClock, trusted: Authority, is_https: bool
) -> None:
    tls = trusted.server("::1") if is_https else None
    async with receiving(host="::1", tls=tls) as receiver:
        assert "://[::1]:" in receiver.url
        refused = await ended(world, receiver.url)
        await called(calling(world, clock, Receivers(to_private=False)))
        assert await outcome(world, refused) == (None, NOT_CALLED)
        assert receiver.calls == []
        allowed = await ended(world, receiver.url)
        await called(calling(world, clock))
        assert await outcome(world, allowed) == (200, None)
    [call] = receiver.calls
    assert call.headers["host"] == f"[::1]:{receiver.port}"


# Servers that end.


@pytest.mark.promise("P7", "P16")
async def test_the_receiver_of_a_run_whose_server_is_killed_is_called_once_after_the_next_start(
    tmp_path: Path,
) -> None:
    variables = {"REATTACH_CALLBACKS_TO_PRIVATE": "true", "REATTACH_CONTINUE": "false"}
    process = ServerProcess(
        tmp_path, arguments=["--scripted", "--log-level", "warning"], environment=variables
    )
    async with receiving() as receiver, httpx2.AsyncClient(timeout=WAIT_SECONDS) as client:
        with process:
            model = {"model": "scripted/echo"}
            agent = (await client.post(f"{process.url}/v1/agents/", json=model)).json()["id"]
            path = f"/v1/agents/{agent}/messages/async"
            body = message_body("[chunks=3][hang=2]", callback_url=receiver.url)
            run = (await client.post(process.url + path, json=body)).json()
            stream = f"{process.url}/v1/runs/{run['id']}/stream"
            async with client.stream("POST", stream, json={}) as response:
                async for line in response.aiter_lines():
                    if "assistant_message" in line:  # The run is active.
                        break
        assert receiver.calls == []
        async with listening(tmp_path, callbacks_to_private=True) as live:
            call = await receiver.call()
            async with asyncio.timeout(WAIT_SECONDS):
                noted: dict[str, Any] = {}
                while noted.get("callback_sent_at") is None:
                    noted = await live.run(run["id"])
                    await asyncio.sleep(0.02)
    assert (call.payload["run_id"], call.payload["status"]) == (run["id"], "failed")
    assert noted["status"] == "failed"
    assert (noted["callback_status_code"], noted["callback_error"]) == (200, None)
    assert len(receiver.calls) == 1


async def test_the_callback_of_a_run_whose_server_was_closed_is_made_by_the_next_server(
    tmp_path: Path,
) -> None:
    async with receiving() as receiver:
        async with listening(
            tmp_path, drains=False, callbacks_to_private=True, continue_runs=False
        ) as live:
            agent = (await live.agent())["id"]
            live.gates.hold(agent, 1)
            path = f"/v1/agents/{agent}/messages/async"
            run = await live.made(path, message_body("[chunks=3]", callback_url=receiver.url))
            await live.gates.reached(agent, 1)
        # Closing ended the run, and nothing makes its call.
        assert receiver.calls == []
        async with listening(tmp_path, callbacks_to_private=True):
            call = await receiver.call()
        assert (call.payload["run_id"], call.payload["status"]) == (run["id"], "failed")
        assert len(receiver.calls) == 1
