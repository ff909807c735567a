from __future__ import annotations

import asyncio
import random
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reattach.domain.errors import LogClosedError, LogNotFoundError
from reattach.domain.ids import Seq, Token
from reattach.log.base import Head
from reattach.log.sqlite.log import SqliteLog
from reattach.testing.conformance.log_samples import append
from tests.recovery.appending_process import SIZES, frame

PROCESS = Path(__file__).with_name("appending_process.py")
LARGE = 2**40


@dataclass
class RunHistory:
    """The reports of a process about one run. An append in flight has several possible ends."""

    acknowledged: tuple[int, bool] = (0, False)
    possible: set[tuple[int, bool]] = field(default_factory=set)
    deleting: bool = False
    deleted: bool = False


def listen(runs: dict[str, RunHistory], line: str) -> None:
    match line.split():
        case ["appending", run_id, last_seq, closed]:
            history = runs.setdefault(run_id, RunHistory())
            history.possible = {history.acknowledged, (int(last_seq), closed == "1")}
        case ["appended", run_id, last_seq, closed]:
            history = runs[run_id]
            history.acknowledged = (int(last_seq), closed == "1")
            history.possible = {history.acknowledged}
        case ["deleting", run_id]:
            runs[run_id].deleting = True
        case ["deleted", run_id]:
            runs[run_id].deleted = True
        case _:
            raise AssertionError(line)


async def append_until_killed(
    path: Path, seed: int, lines: int, runs: dict[str, RunHistory]
) -> None:
    """Kill the process after a number of lines, and read all lines up to then."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROCESS), str(path), str(seed), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        for _ in range(lines):
            listen(runs, (await process.stdout.readline()).decode())
        process.send_signal(signal.SIGKILL)
        rest = (await process.stdout.read()).decode()
        for line in rest.splitlines(keepends=True):
            if line.endswith("\n"):
                listen(runs, line)
        assert await process.wait() == -signal.SIGKILL


async def check(log: SqliteLog, run_id: str, history: RunHistory) -> None:
    try:
        head = await log.head(run_id)
    except LogNotFoundError:
        assert history.deleting or history.acknowledged == (0, False), run_id
        return
    assert not history.deleted, run_id
    assert (head.last_seq, head.closed) in history.possible, run_id
    expected = [frame(run_id, seq) for seq in range(1, head.last_seq + 1)]
    for after in {0, head.last_seq // 2, head.last_seq}:
        cut = await log.read(run_id, Seq(after), max_bytes=LARGE, max_events=LARGE)
        assert (cut.first_seq, cut.last_seq) == (after + 1, head.last_seq)
        assert cut.frames == b"".join(expected[after:])
    if head.closed:
        with pytest.raises(LogClosedError):
            await append(log, run_id, Token(1), head.last_seq + 1, [b"more"])
    history.possible = {(head.last_seq, head.closed)}
    history.acknowledged = (head.last_seq, head.closed)


@pytest.mark.promise("P1")
@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
@pytest.mark.promise("P4")
async def test_a_killed_process_leaves_every_acknowledged_append_whole_and_in_its_place(
    tmp_path: Path,
) -> None:
    chance = random.Random(20)
    runs: dict[str, RunHistory] = {}
    path = tmp_path / "log.db"
    for seed in range(5):
        await append_until_killed(path, seed, chance.choice([1, 30, 300, 1500]), runs)
        log = await SqliteLog.open_file(path, sizes=SIZES)
        for run_id, history in runs.items():
            await check(log, run_id, history)
        await log.aclose()
    assert sum(history.acknowledged[0] for history in runs.values()) > 500


@pytest.mark.promise("P7")
async def test_an_open_run_of_a_killed_process_is_closed_by_the_next_owner(tmp_path: Path) -> None:
    runs: dict[str, RunHistory] = {}
    path = tmp_path / "log.db"
    await append_until_killed(path, 1, 200, runs)
    log = await SqliteLog.open_file(path)
    closed = 0
    for run_id, history in runs.items():
        if not history.deleting and not (await log.head(run_id)).closed:
            head = (await log.open(run_id, Token(2))).head
            await append(log, run_id, Token(2), head.last_seq + 1, [b"the end"], close=True)
            closed += 1
            assert await log.head(run_id) == Head(Seq(1), head.last_seq + 1, closed=True)
    assert closed > 0
    await log.aclose()
