"""Runs that resumes find without a query, until anything is committed to the file."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from reattach.domain.ids import DEFAULT_TENANT, RunId, TenantId, new_run_id
from reattach.records.base import Target
from reattach.records.database import sqlite
from reattach.records.runs.targets import known
from reattach.records.runs.targets.known import KnownTargets
from reattach.server import datadir
from tests.support.asgi_server import OTHER_TENANT
from tests.support.live_server import LiveServer, listening, new_threads


class Queries:
    """Counts the queries of the known targets."""

    def __init__(self) -> None:
        self.count = 0


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> Queries:
    counts, read = Queries(), KnownTargets._read

    def counted(
        self: KnownTargets, tenant: TenantId, run_id: RunId | None, otid: str | None
    ) -> Target | None:
        counts.count += 1
        return read(self, tenant, run_id, otid)

    monkeypatch.setattr(KnownTargets, "_read", counted)
    return counts


@pytest.fixture(autouse=True)
def nothing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a busy machine send no look-up to a thread."""
    monkeypatch.setattr(sqlite, "SHORT_SECONDS", 60.0)


async def ended_run(live: LiveServer) -> RunId:
    agent, conversation = await new_threads(live)
    live.gates.open(agent)
    run = await live.background_run(conversation, "hello")
    await live.ended(run)
    return RunId(run)


def commit(live: LiveServer, statement: str, *values: str) -> None:
    """Change the records as another program would."""
    with closing(sqlite3.connect(datadir.records_file(live.directory))) as connection, connection:
        connection.execute(statement, values)


async def next_tick() -> None:
    """Return in a later tick, after everything that was scheduled before."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_a_run_is_queried_once_while_nothing_is_committed(
    tmp_path: Path, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(tmp_path) as live:
        run, targets = await ended_run(live), live.context.records.known_targets
        monkeypatch.setattr(live.context.records._database, "version_at_once", lambda: 1)
        for _ in range(3):
            found = targets.find(DEFAULT_TENANT, run_id=run)
            assert found is not None
            assert found.run_id == run
            await next_tick()
        assert queries.count == 1


async def test_a_commit_of_another_program_is_seen_in_the_next_tick(tmp_path: Path) -> None:
    async with listening(tmp_path) as live:
        run, targets = await ended_run(live), live.context.records.known_targets
        for background in (1, 0, 1):
            commit(live, f"UPDATE runs SET background = {background} WHERE id = ?", run)
            await next_tick()
            found = targets.find(DEFAULT_TENANT, run_id=run)
            assert found is not None
            assert found.background == bool(background)


async def test_a_known_run_that_another_program_deletes_is_gone_for_the_next_request(
    tmp_path: Path, queries: Queries
) -> None:
    async with listening(tmp_path) as live:
        run = await ended_run(live)
        path = f"/v1/runs/{run}/stream"
        for _ in range(2):
            assert (await live.client.post(path, json={})).status_code == 200
        assert queries.count >= 1
        commit(live, "DELETE FROM runs WHERE id = ?", run)
        assert (await live.client.post(path, json={})).status_code == 404


async def test_a_run_that_is_known_to_its_tenant_is_missing_for_another_one(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path) as live:
        run, targets = await ended_run(live), live.context.records.known_targets
        assert targets.find(DEFAULT_TENANT, run_id=run) is not None
        assert targets.find(OTHER_TENANT, run_id=run) is None


async def test_a_run_that_does_not_exist_is_not_remembered(
    tmp_path: Path, queries: Queries
) -> None:
    async with listening(tmp_path) as live:
        targets, missing = live.context.records.known_targets, new_run_id()
        assert [targets.find(DEFAULT_TENANT, run_id=missing) for _ in range(2)] == [None, None]
        assert queries.count == 2
        assert not targets._targets


async def test_no_more_runs_are_known_than_the_limit(
    tmp_path: Path, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "KNOWN_TARGETS", 2)
    async with listening(tmp_path) as live:
        runs = [await ended_run(live) for _ in range(3)]
        targets = live.context.records.known_targets
        for run in runs:
            assert targets.find(DEFAULT_TENANT, run_id=run) is not None
            assert len(targets._targets) <= 2
        assert queries.count == 3


async def test_runs_are_queried_each_time_while_the_file_is_locked(
    tmp_path: Path, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(tmp_path) as live:
        run, targets = await ended_run(live), live.context.records.known_targets
        monkeypatch.setattr(live.context.records._database, "version_at_once", lambda: None)
        for _ in range(2):
            assert targets.find(DEFAULT_TENANT, run_id=run) is not None
        assert queries.count == 2
