"""Readers that were cut off, on every database."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from reattach.domain.ids import RunId, Seq, new_run_id
from reattach.records.records import Records
from reattach.records.runs.cut_offs import MAX_CUT_OFFS, KeptCutOff
from tests.support.record_samples import OURS, World, a_settlement, at


def cut_off(run_id: RunId, seconds: float) -> KeptCutOff:
    seq = Seq(int(seconds) + 1)
    return KeptCutOff(run_id, at(seconds), "stalled", seq, "phone/3.1", "get", "process-1")


async def test_cut_offs_come_back_oldest_first_as_they_were(records: Records, world: World) -> None:
    run = await world.start()
    assert await records.cut_offs.of_run(run.id) == []
    first, second = cut_off(run.id, 1), replace(cut_off(run.id, 2), reason="revoked")
    await records.cut_offs.add([second])
    await records.cut_offs.add([first])
    assert await records.cut_offs.of_run(run.id) == [first, second]


async def test_a_run_keeps_its_newest_cut_offs_only(records: Records, world: World) -> None:
    run, other = await world.start(), await world.start(world.default)
    for batch in range(3):
        cuts = [cut_off(run.id, batch * 60 + n) for n in range(60)]
        await records.cut_offs.add([*cuts, cut_off(other.id, batch)])
    kept = await records.cut_offs.of_run(run.id)
    assert [one.cursor for one in kept] == list(range(181 - MAX_CUT_OFFS, 181))
    assert len(await records.cut_offs.of_run(other.id)) == 3


async def test_cut_offs_go_with_the_log_and_with_the_run(records: Records, world: World) -> None:
    runs = [(await world.turn("hi"))[0] for _ in range(2)]
    await records.cut_offs.add([cut_off(run_id, 1) for run_id in runs])
    await records.runs.mark_log_deleted([runs[0]], at(9))
    await records.runs.delete(OURS, runs[1])
    for run_id in runs:
        assert await records.cut_offs.of_run(run_id) == []


async def test_cut_offs_of_deleted_logs_and_unknown_runs_are_dropped(
    records: Records, world: World
) -> None:
    gone, _ = await world.turn("hi")
    await records.runs.mark_log_deleted([gone], at(9))
    run = await world.start()
    await records.cut_offs.add([cut_off(one, 1) for one in (gone, new_run_id(), run.id)])
    assert await records.cut_offs.of_run(gone) == []
    assert len(await records.cut_offs.of_run(run.id)) == 1


async def test_processes_that_write_at_once_lose_none(
    records: Records, other_process: Records, world: World
) -> None:
    run = await world.start()
    await asyncio.gather(
        *(
            one.cut_offs.add([cut_off(run.id, 10 * place + n)])
            for place, one in enumerate((records, other_process))
            for n in range(5)
        )
    )
    assert len(await records.cut_offs.of_run(run.id)) == 10
    assert await records.runs.settle(run.id, a_settlement())
