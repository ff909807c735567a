"""Each process can show the runs and readers of all that share its stores."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from reattach.domain.ids import DEFAULT_TENANT
from reattach.runs.reports import reports
from reattach.runs.reports.report import ProcessReport, TenantShare
from reattach.runs.reports.reports import Process, Reports
from tests.cluster.nodes import CLOCK, Node, Nodes
from tests.support.in_process_readers import Reader
from tests.support.stores import eventually

WAIT_SECONDS = 20.0
OTHER_TENANT = "tenant-of-somebody-else"


@pytest.fixture(autouse=True)
def every_question_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was gathered before is returned again."""
    monkeypatch.setattr(reports, "FRESH_SECONDS", 0.0)


def reports_of(node: Node, worker: int) -> Reports:
    process = Process(worker=worker, connections=lambda: 7, host=f"host-{worker}")
    return Reports(node.runs, node.records, CLOCK, process)


async def gathered(asker: Reports, other: Node) -> ProcessReport:
    """The report of the other node, once that listens."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            own, *others = await asker.gather()
            assert own.worker == 0
            for report in others:
                if report.id == other.runs.ownership.owner:
                    return report


async def test_a_process_reports_the_runs_and_readers_of_another_at_the_moment_of_the_question(
    nodes: Nodes,
) -> None:
    asking, other = await nodes.node(), await nodes.node()
    async with aclosing(reports_of(asking, 0)) as asker, aclosing(reports_of(other, 1)):
        assert (await gathered(asker, other)).run_count == 0
        conversation = await nodes.stores.conversation()
        run = await other.runs.send(nodes.stores.send(conversation, "[hang=1]"))
        async with Reader(other.runs, run) as reader:
            await reader.until_seq(1)
            report = await gathered(asker, other)
            (line,) = report.runs
            assert (line.run_id, line.tenant, line.readers) == (run.id, DEFAULT_TENANT, 1)
            assert line.last_seq >= 1
            (seen,) = report.readers
            assert (seen.run_id, seen.lag_events) == (run.id, 0)
            assert report.tenants == {DEFAULT_TENANT: TenantShare(runs=1, readers=1)}
            assert (report.host, report.worker, report.connections) == ("host-1", 1, 7)
            assert report.lease is not None
            assert report.lease.margin_seconds is None or report.lease.margin_seconds > 0
        await eventually(lambda: len(other.runs.readers) == 0)
        await other.runs.cancel([run])
        assert (await gathered(asker, other)).run_count == 0


async def test_a_tenant_sees_nothing_of_the_runs_of_others(nodes: Nodes) -> None:
    node = await nodes.node()
    conversation = await nodes.stores.conversation()
    run = await node.runs.send(nodes.stores.send(conversation, "[hang=1]"))
    async with aclosing(reports_of(node, 0)) as asker, Reader(node.runs, run) as reader:
        await reader.until_seq(1)
        whole = await asker.own()
        shown = whole.for_tenant(OTHER_TENANT)  # type: ignore[arg-type]
        assert (shown.run_count, shown.reader_count, shown.runs, shown.readers) == (0, 0, [], [])
        assert (shown.host, shown.pid, shown.connections, shown.memory_bytes) == (None,) * 4
        assert run.id not in repr(shown)
        assert whole.for_tenant(DEFAULT_TENANT).run_count == 1
    await node.runs.cancel([run])


async def test_a_process_that_does_not_answer_is_shown_as_it_last_reported(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "ANSWER_SECONDS", 0.2)
    asking, other = await nodes.node(), await nodes.node()
    async with aclosing(reports_of(asking, 0)) as asker:
        async with aclosing(reports_of(other, 1)):
            before = await gathered(asker, other)
        after = await gathered(asker, other)
    assert after.reported_at == before.reported_at


async def test_a_report_that_this_version_cannot_read_is_left_out(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "ANSWER_SECONDS", 0.2)
    asking, other = await nodes.node(), await nodes.node()
    await other.records.owners.save_report(other.runs.ownership.owner, '{"id": 5}')
    async with aclosing(reports_of(asking, 0)) as asker:
        (own,) = [one for one in await asker.gather() if one.worker == 0]
        others = [one.id for one in await asker.gather()]
    assert own.id == asking.runs.ownership.owner
    assert other.runs.ownership.owner not in others
