"""Runs as operators list them, on every database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Connection

from reattach.domain.errors import NotFoundError
from reattach.domain.events import RunStatus, StopReason
from reattach.domain.ids import new_run_id
from reattach.records.base import LogSummary, Run, RunError
from reattach.records.database.database import Database
from reattach.records.records import Records
from reattach.records.runs.lists import overview
from reattach.records.runs.lists.overview import RunFilter, _page
from tests.support.record_samples import (
    OURS,
    THEIRS,
    World,
    a_message,
    a_run,
    a_settlement,
    a_world,
    at,
)


@dataclass(frozen=True)
class Runs:
    """One run of each kind, the oldest first."""

    done: Run
    failed: Run
    cancelled: Run
    theirs: Run
    running: Run


@pytest.fixture
async def runs(world: World) -> Runs:
    records = world.records
    texts = iter(["An island\nwith 100% sun", "second", "third", "running one"])
    made: dict[str, Run] = {}
    ends = {
        "done": StopReason.END_TURN,
        "failed": StopReason.ERROR,
        "cancelled": StopReason.CANCELLED,
    }
    for seconds, (name, stop) in enumerate(ends.items()):
        message = a_message(next(texts))
        run = await world.start(input=(message,), created_at=at(seconds), model=f"model/{seconds}")
        error = RunError(run.id, "llm_error", "It failed.") if stop is StopReason.ERROR else None
        log = LogSummary(12, 3456, at(seconds + 0.25), None)
        settlement = a_settlement(stop_reason=stop, error=error, log=log)
        assert await records.runs.settle(run.id, settlement)
        made[name] = run
    other = await a_world(records, THEIRS)
    theirs = a_run(other.default, THEIRS, created_at=at(3))
    await records.runs.create(THEIRS, theirs, None, ())
    running = await world.start(input=(a_message(next(texts)),), created_at=at(4))
    return Runs(theirs=theirs, running=running, **made)


async def listed(records: Records, limit: int = 10, after: str | None = None, **wanted: Any) -> Any:
    found = await records.overview.list(RunFilter(**wanted), limit=limit, after=after)
    return [line.id for line in found]


async def test_a_line_has_the_end_of_the_run_and_the_facts_of_its_log(
    records: Records, runs: Runs, world: World
) -> None:
    (line,) = await records.overview.list(
        RunFilter(statuses={RunStatus.FAILED}), limit=5, after=None
    )
    assert line.id == runs.failed.id
    assert (line.tenant, line.agent_name, line.attempts) == (OURS, world.agent.name, 1)
    assert (line.event_count, line.log_bytes, line.first_event_at) == (12, 3456, at(1.25))
    assert line.error is not None
    assert line.error.error_type == "llm_error"
    assert line.input_text == "second"
    same, run = await records.overview.get(OURS, runs.failed.id)
    assert (same, run.id) == (line, runs.failed.id)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({}, ["running", "theirs", "cancelled", "failed", "done"]),
        ({"tenant": OURS}, ["running", "cancelled", "failed", "done"]),
        ({"tenant": THEIRS}, ["theirs"]),
        ({"statuses": {RunStatus.FAILED, RunStatus.CANCELLED}}, ["cancelled", "failed"]),
        ({"statuses": {RunStatus.CREATED, RunStatus.RUNNING}}, ["running", "theirs"]),
        ({"tenant": OURS, "statuses": {RunStatus.CREATED}}, ["running"]),
        ({"tenant": OURS, "statuses": {RunStatus.COMPLETED, RunStatus.FAILED}}, ["failed", "done"]),
        ({"model": "model/1"}, ["failed"]),
        ({"text": "ISLAND"}, ["done"]),
        ({"text": "100%"}, ["done"]),
        ({"text": "1_0%"}, []),
        ({"tenant": THEIRS, "text": "island"}, []),
        ({"text": "one", "statuses": {RunStatus.CREATED}}, ["running"]),
    ],
)
async def test_each_filter_finds_its_runs_newest_first_and_page_by_page(
    records: Records, runs: Runs, wanted: dict[str, Any], names: list[str]
) -> None:
    expected = [getattr(runs, name).id for name in names]
    assert await listed(records, **wanted) == expected
    seen: list[str] = []
    while page := await listed(records, limit=1, after=seen[-1] if seen else None, **wanted):
        seen += page
    assert seen == expected


async def test_a_run_is_found_by_a_part_of_each_id(
    records: Records, runs: Runs, world: World
) -> None:
    assert await listed(records, text=runs.done.id) == [runs.done.id]
    assert await listed(records, text=runs.done.id[8:30]) == [runs.done.id]
    ours = [runs.running.id, runs.cancelled.id, runs.failed.id, runs.done.id]
    assert await listed(records, text=world.agent.id[-12:]) == ours
    assert await listed(records, conversation_id=world.conversation.id) == ours
    assert await listed(records, agent_id=world.agent.id) == ours


async def test_runs_are_counted_only_where_that_is_cheap(
    records: Records, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = records.overview.count
    assert await count(RunFilter()) == 5
    assert await count(RunFilter(tenant=OURS)) == 4
    assert await count(RunFilter(text="island")) is None
    monkeypatch.setattr(overview, "COUNTED_RUNS", 4)
    assert await count(RunFilter()) is None
    assert await records.overview.count_active(None) == 2
    assert await records.overview.count_active(THEIRS) == 1


async def test_texts_are_looked_for_among_the_newest_runs_only(
    records: Records, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "SEARCHED_RUNS", 4)
    assert await listed(records, text="island") == []
    assert await listed(records, text="second") == [runs.failed.id]
    assert await listed(records, text="island", after=runs.running.id) == [runs.done.id]


async def test_runs_of_another_tenant_are_not_found(records: Records, runs: Runs) -> None:
    for unknown in (runs.theirs.id, new_run_id()):
        with pytest.raises(NotFoundError):
            await records.overview.get(OURS, unknown)
        with pytest.raises(NotFoundError):
            await listed(records, tenant=OURS, after=unknown)
    _, found = await records.overview.get(None, runs.theirs.id)
    assert found.tenant == THEIRS


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (RunFilter(tenant=OURS), "ix_runs_tenant_created_at"),
        (RunFilter(statuses={RunStatus.FAILED}), "ix_runs_unsuccessful"),
        (RunFilter(tenant=OURS, statuses={RunStatus.CANCELLED}), "ix_runs_unsuccessful"),
        (RunFilter(tenant=OURS, statuses={RunStatus.RUNNING}), "_active_"),
    ],
)
async def test_sqlite_reads_no_other_runs_where_an_index_has_those_that_are_wanted(
    shared_database: Database, records: Records, wanted: RunFilter, index: str
) -> None:
    if shared_database.backend != "sqlite":
        return

    def explain(connection: Connection) -> str:
        statement = (
            _page(wanted, has_last=False)
            .params(limit=10)
            .compile(connection, compile_kwargs={"literal_binds": True})
        )
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}")
        return "\n".join(row[-1] for row in plan)

    plan = await shared_database.in_read(explain)
    assert index in plan
    if index != "_active_":  # Either index of the active runs, which are few.
        assert "USE TEMP B-TREE" not in plan
