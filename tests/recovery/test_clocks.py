"""Clocks that are wrong or jump must not delete logs early."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import httpx2
import pytest

from reattach.domain.clock import SharedClock, SystemClock
from reattach.domain.ids import DEFAULT_TENANT, RunId
from reattach.engine.scripted import ScriptedEngine
from reattach.http.app import create_app
from reattach.http.context import Context
from reattach.records.base import Page, Run
from reattach.runs.service import RunService
from reattach.server.assembly import assemble
from reattach.settings import Settings
from tests.support.clocks import NOON, JumpClock
from tests.support.faulty_stores import Faults, Outage
from tests.support.redis_server import shared_url
from tests.support.stores import Stores

HOUR: Final = 3600.0
DAY: Final = timedelta(hours=24)


async def ended_run(stores: Stores, service: RunService) -> Run:
    run = await service.send(stores.send(await stores.conversation(), "hello"))
    return await service.wait_until_settled(run)


@pytest.mark.promise("P14")
@pytest.mark.parametrize("jump_hours", [25, -25, 24 * 3650, -24 * 3650])
async def test_after_a_jump_of_the_clock_logs_are_kept_for_one_retention_and_then_deleted(
    stores: Stores, jump_hours: int
) -> None:
    """C9: after a jump the age of a log is unknown, whenever it ended."""
    clock = JumpClock()
    service = stores.service(clock=clock, retention=DAY)
    before = await ended_run(stores, service)
    assert await service.sweep() == 0
    clock.jump(jump_hours * HOUR)
    assert await service.sweep() == 0
    after = await ended_run(stores, service)
    clock.leap(23 * HOUR)
    assert await service.sweep() == 0
    for run in (before, after):
        assert await stores.frames(run)
    clock.leap(1 * HOUR + 2)
    assert await service.sweep() == 2
    assert await stores.head(before) is None
    assert await stores.head(after) is None


@pytest.mark.promise("P14")
async def test_a_clock_that_jumps_twice_between_two_sweeps_is_detected_by_ending_runs(
    stores: Stores,
) -> None:
    """C9: the run ended while the clock was 25 hours late, which is corrected before a sweep."""
    clock = JumpClock()
    service = stores.service(clock=clock, retention=DAY)
    clock.jump(-25 * HOUR)
    run = await ended_run(stores, service)
    clock.jump(25 * HOUR)
    assert await service.sweep() == 0
    assert await stores.frames(run)


@pytest.mark.promise("P14")
async def test_a_start_with_a_late_clock_deletes_nothing_for_one_retention(
    stores: Stores,
) -> None:
    """C9: runs that ended in the future show that the clock was or is wrong."""
    clock = JumpClock()
    early = await ended_run(stores, stores.service(clock=clock, retention=DAY))
    clock.jump(30 * HOUR)
    late = await ended_run(stores, stores.service(clock=clock, retention=DAY))
    clock.jump(-3 * HOUR)
    service = stores.service(clock=clock, retention=DAY)
    assert await service.sweep() == 0
    assert await stores.frames(early)
    clock.leap(24 * HOUR + 2)
    assert await service.sweep() >= 1
    assert await stores.head(early) is None
    clock.leap(24 * HOUR)
    await service.sweep()
    assert await stores.head(late) is None


@pytest.mark.promise("P14")
async def test_the_log_of_a_deleted_run_is_deleted_even_while_the_clock_is_distrusted(
    stores: Stores,
) -> None:
    """C9: no clock decides about it."""
    clock = JumpClock()
    service = stores.service(clock=clock, retention=DAY)
    run = await ended_run(stores, service)
    clock.jump(25 * HOUR)
    await stores.records.runs.delete(run.tenant, run.id)
    assert await service.sweep() == 1
    assert await stores.head(run) is None


async def test_small_corrections_of_the_clock_change_nothing(stores: Stores) -> None:
    """C9: NTP sets a clock by seconds."""
    clock = JumpClock()
    service = stores.service(clock=clock, retention=DAY)
    run = await ended_run(stores, service)
    for _ in range(10):
        clock.jump(30)
        assert await service.sweep() == 0
    clock.leap(24 * HOUR)
    assert await service.sweep() == 1
    assert await stores.head(run) is None


@pytest.mark.promise("P14")
async def test_the_pause_after_a_jump_survives_a_restart_and_ends_when_it_would_have(
    stores: Stores,
) -> None:
    """C9: the ended run is 1 hour old, whatever the clock of the second process says."""
    clock = JumpClock()
    service = stores.service(clock=clock, retention=DAY, boot="boot-1")
    run = await ended_run(stores, service)
    clock.jump(25 * HOUR)
    assert await service.sweep() == 0
    clock.leap(1 * HOUR)
    restarted = stores.service(clock=clock, retention=DAY, boot="boot-1")
    assert await restarted.sweep() == 0
    clock.leap(22 * HOUR)
    assert await restarted.sweep() == 0
    assert await stores.frames(run)
    clock.leap(1 * HOUR + 2)
    assert await restarted.sweep() == 1
    assert await stores.head(run) is None


@pytest.mark.promise("P14")
@pytest.mark.parametrize("jump_hours", [25, 24 * 20])
async def test_a_clock_that_is_set_right_between_two_processes_deletes_no_fresh_log(
    stores: Stores, jump_hours: int
) -> None:
    """C9: no process saw the jump, but both know when the machine was booted."""
    clock = JumpClock()
    clock.jump(-jump_hours * HOUR)
    run = await ended_run(stores, stores.service(clock=clock, retention=DAY, boot="boot-1"))
    clock.jump(jump_hours * HOUR)
    service = stores.service(clock=clock, retention=DAY, boot="boot-1")
    assert await service.sweep() == 0
    assert await stores.frames(run)
    clock.leap(24 * HOUR + 2)
    assert await service.sweep() == 1
    assert await stores.head(run) is None


@pytest.mark.promise("P14")
async def test_a_jump_is_noted_before_the_first_run_ends_after_it(stores: Stores) -> None:
    """C9: the process is killed before its next sweep, and the clock is right again."""
    clock = JumpClock()
    service = stores.service(clock=clock, retention=DAY, boot="boot-1")
    assert await service.sweep() == 0
    clock.jump(-25 * HOUR)
    run = await ended_run(stores, service)
    clock.jump(25 * HOUR)
    assert await stores.service(clock=clock, retention=DAY, boot="boot-1").sweep() == 0
    assert await stores.frames(run)


@pytest.mark.promise("P14")
@pytest.mark.parametrize("boot", ["boot-2", None])
async def test_a_boot_during_the_pause_starts_it_anew(stores: Stores, boot: str | None) -> None:
    """C9: nobody knows how long the machine was off."""
    clock = JumpClock()
    service = stores.service(clock=clock, retention=DAY, boot="boot-1")
    clock.jump(-25 * HOUR)
    run = await ended_run(stores, service)
    clock.jump(25 * HOUR)
    clock.passed_seconds, clock.wrong_seconds = 10.0, clock.passed_seconds - 10
    restarted = stores.service(clock=clock, retention=DAY, boot=boot)
    assert await restarted.sweep() == 0
    clock.leap(23 * HOUR)
    assert await restarted.sweep() == 0
    assert await stores.frames(run)
    clock.leap(1 * HOUR + 2)
    assert await restarted.sweep() == 1
    again = await ended_run(stores, restarted)
    clock.leap(24 * HOUR + 2)
    last = stores.service(clock=clock, retention=DAY, boot="boot-3")
    assert await last.sweep() == 1, "the pause is over"
    assert await stores.head(again) is None


@pytest.mark.promise("P14")
@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
async def test_a_server_that_was_off_for_long_deletes_old_logs_at_once(
    stores: Stores, boot: str
) -> None:
    """C9: time that passes while no process runs is no jump."""
    clock = JumpClock()
    service = stores.service(clock=clock, retention=DAY, boot="boot-1")
    run = await ended_run(stores, service)
    assert await service.sweep() == 0
    clock.leap(20 * 24 * HOUR)
    if boot != "boot-1":
        clock.passed_seconds, clock.wrong_seconds = 10.0, clock.passed_seconds - 10
    assert await stores.service(clock=clock, retention=DAY, boot=boot).sweep() == 1
    assert await stores.head(run) is None


@pytest.mark.promise("P14")
async def test_no_run_ends_after_a_jump_that_could_not_be_noted(stores: Stores) -> None:
    """C9, C4: the end waits until the records answer again."""
    clock = JumpClock()
    outage = Outage("clock_notes.keep", lasts=2)
    service = stores.service_upon(outage, clock=clock, retention=DAY, boot="boot-1")
    clock.jump(-25 * HOUR)
    run = await ended_run(stores, service)
    assert outage.attempts == 2
    clock.jump(25 * HOUR)
    assert await stores.service(clock=clock, retention=DAY, boot="boot-1").sweep() == 0
    assert await stores.frames(run)


async def test_a_steady_clock_is_noted_once_a_boot(stores: Stores) -> None:
    """P13: neither sweeps nor ends of runs write it again."""
    clock = JumpClock()
    faults = Faults()
    for _ in range(2):
        service = stores.service_upon(faults, clock=clock, retention=DAY, boot="boot-1")
        for _ in range(3):
            await ended_run(stores, service)
            clock.leap(10 * HOUR)
            await service.sweep()
    assert faults.calls["clock_notes.keep"] == 1
    assert faults.calls["clock_notes.latest"] == 2


class WrongClock(SystemClock):
    """The machine's clock, far ahead or late."""

    def __init__(self, hours: float) -> None:
        self.wrong = timedelta(hours=hours)

    def now(self) -> datetime:
        return super().now() + self.wrong


@asynccontextmanager
async def sharing(database_url: str, prefix: str, hours: float) -> AsyncIterator[Context]:
    """A server on shared stores, on a machine whose clock is wrong."""
    settings = Settings(database_url=database_url, log_url=f"{shared_url()}?prefix={prefix}")
    engine = ScriptedEngine()
    async with assemble(settings, engines=[engine], clock=WrongClock(hours)) as context:
        yield context


async def answered(context: Context, text: str) -> Run:
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(create_app(context)), base_url="http://localhost"
    ) as client:
        agent = (await client.post("/v1/agents/", json={"model": "scripted/echo"})).json()
        answer = await client.post(
            f"/v1/agents/{agent['id']}/messages/stream",
            json={"messages": [{"role": "user", "content": text}], "background": True},
        )
        assert answer.status_code == 200, answer.text
        found = await client.get(f"/v1/runs/{answer.headers['x-run-id']}")
    run_id = RunId(found.json()["id"])
    return next(run for run in await runs_of(context) if run.id == run_id)


async def runs_of(context: Context) -> list[Run]:

    return await context.records.runs.list(DEFAULT_TENANT, Page(limit=100, ascending=True))


@pytest.mark.promise("P14")
async def test_servers_with_wrong_clocks_delete_no_fresh_log_of_shared_stores(
    postgresql_url: str, tmp_path: Path
) -> None:
    """C9: one server is 25 hours ahead and one 25 hours late; the database's clock judges."""
    prefix = f"test-{tmp_path.name}"
    async with (
        sharing(postgresql_url, prefix, 0) as right,
        sharing(postgresql_url, prefix, 25) as ahead,
        sharing(postgresql_url, prefix, -25) as late,
    ):
        servers = (right, ahead, late)
        runs = [await answered(context, "hello") for context in servers]
        for run in runs:
            assert run.completed_at is not None
            for moment in (run.created_at, run.completed_at):
                assert abs(moment - datetime.now(UTC)) < timedelta(hours=1)
        for context in servers:
            assert await context.runs.sweep() == 0
        for run in runs:
            assert (await right.runs.log.head(run.id)).closed
        await right.runs.delete_logs([run.id for run in runs])


def test_a_shared_clock_follows_the_store_and_advances_with_the_monotonic_clock() -> None:
    """C9: whatever happens to the clock of the machine."""
    machine = JumpClock()
    machine.jump(25 * HOUR)
    clock = SharedClock(machine)
    assert clock.now() == NOON + timedelta(hours=25)
    clock.set(NOON, machine.monotonic_seconds())
    machine.jump(-50 * HOUR)
    machine.leap(5)
    assert clock.now() == NOON + timedelta(seconds=5)


async def test_a_sqlite_file_has_no_clock_of_its_own(stores: Stores) -> None:
    assert await stores.records.time() is None
