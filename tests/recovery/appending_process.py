"""Append to a log file as fast as possible, and print each attempt and each result.

Arguments: the file, and a seed, which also names its runs. Tests kill it.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys

from reattach.domain.ids import Token
from reattach.log.sqlite.log import Sizes, SqliteLog
from reattach.testing.conformance.log_samples import append

SIZES = Sizes(
    chunk_bytes=1000,
    step_bytes=3000,
    journal_bytes=8000,
    closed_runs_bytes=2000,
    checkpoint_bytes=50_000,
)
"""Limits so small that upkeep of every kind runs all the time."""


def frame(run_id: str, seq: int) -> bytes:
    return f"{run_id}:{seq}:".encode() + b"." * (seq * 37 % 211)


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def work(log: SqliteLog, name: str, chance: random.Random) -> None:
    count = 0
    while True:
        count += 1
        run_id = f"{name}-{count}"
        await log.open(run_id, Token(1))
        length, last_seq = chance.choice([0, 3, 40, 400]), 0
        closed = False
        while not closed:
            first_seq, last_seq = last_seq + 1, last_seq + chance.randint(1, 4)
            closed = last_seq >= length
            frames = [frame(run_id, seq) for seq in range(first_seq, last_seq + 1)]
            say("appending", run_id, last_seq, int(closed))
            await append(log, run_id, Token(1), first_seq, frames, close=closed)
            say("appended", run_id, last_seq, int(closed))
        if chance.random() < 0.2:
            say("deleting", run_id)
            await log.delete(run_id)
            say("deleted", run_id)


async def main() -> None:
    path, seed = sys.argv[1:]
    log = await SqliteLog.open_file(path, sizes=SIZES)
    async with asyncio.TaskGroup() as group:
        for number in range(5):
            name = f"{seed}-{number}"
            group.create_task(work(log, name, random.Random(name)))


if __name__ == "__main__":
    asyncio.run(main())
