"""Turns: the cost of a send by the length of its conversation, in memory or not."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

from bench.contenders.product import Reattach, ReattachServer
from bench.growth import SEND_EVENTS, sent
from bench.measuring.machine import memory
from bench.measuring.results import Chapter, Goal, Table, at_most, shown
from bench.measuring.rounds import Figures
from bench.options import Options
from reattach.domain.ids import (
    DEFAULT_TENANT,
    AgentId,
    ConversationId,
    new_message_id,
    new_run_id,
    new_step_id,
    new_uuid,
)
from reattach.domain.messages import Message, Role, TextPart
from reattach.records import threads
from reattach.records.base import Thread
from reattach.records.database.database import Database

LENGTHS, QUICK_LENGTHS = (1, 100, 1200, 5000), (100, 1200)
"""Lengths of the conversations in turns."""
TURNS, QUICK_TURNS = 24, 6
"""Sends in each conversation, and first turns of as many new ones, in one measurement."""
COLD, QUICK_COLD = 5, 1
"""Forks of each conversation that are sent to for the first time."""
ROUNDS, QUICK_ROUNDS = 5, 2
MODEL: Final = "scripted/echo"
ASKED: Final = f"[chunks={SEND_EVENTS}]"
ANSWERED: Final = "".join(f"t{number} " for number in range(SEND_EVENTS))
CPU: Final = "CPU µs per request"
FIRST_BYTE: Final = "first byte p50 ms"
MOST: Final = 1.2
"""The goal of a late turn's cost, in first turns."""


def main(options: Options) -> Chapter:
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    lengths = QUICK_LENGTHS if options.quick else LENGTHS
    with (
        TemporaryDirectory(prefix="bench-data-") as directory,
        Reattach().serving(Path(directory), options.cores) as server,
    ):
        talks = {length: server.conversation(MODEL) for length in lengths}
        asyncio.run(fill(Path(directory), server, talks))
        before = memory(server.pids).proportional_bytes
        cold = {length: first_reads(server, talk, options) for length, talk in talks.items()}
        warm: dict[int, list[Figures]] = {length: [] for length in lengths}
        for _ in range(rounds):
            for length, talk in talks.items():
                warm[length].append(beside_first_turns(server, talk, options))
        grown = memory(server.pids).proportional_bytes - before
    return chapter_of(cold, warm, grown)


async def fill(directory: Path, server: ReattachServer, talks: Mapping[int, str]) -> None:
    """Store the messages of turns in the server's file, as their settlements would."""
    database = await Database.open(f"sqlite:///{directory / 'records.db'}")
    for turns, conversation_id in talks.items():
        thread = Thread(AgentId(server.agent(MODEL)), ConversationId(conversation_id))
        messages = [message for _ in range(turns) for message in turn()]
        await database.in_write(threads.append, DEFAULT_TENANT, thread, messages)
    await database.aclose()


def turn() -> tuple[Message, Message]:
    """Return the messages of a turn as the server stores them."""
    now, run_id = datetime.now(UTC), new_run_id()
    asked, answered = (TextPart(ASKED),), (TextPart(ANSWERED),)
    return (
        Message(
            id=new_message_id(),
            role=Role.USER,
            parts=asked,
            created_at=now,
            otid=new_uuid(),
            run_id=run_id,
        ),
        Message(
            id=new_message_id(),
            role=Role.ASSISTANT,
            parts=answered,
            created_at=now,
            run_id=run_id,
            step_id=new_step_id(),
        ),
    )


def first_reads(server: ReattachServer, conversation_id: str, options: Options) -> list[Figures]:
    """Measure the first turns of forks, whose context no process has in memory."""
    forks = [server.fork(conversation_id) for _ in range(QUICK_COLD if options.quick else COLD)]
    return [send_once(server, fork, options) for fork in forks]


def beside_first_turns(
    server: ReattachServer, conversation_id: str, options: Options
) -> dict[str, float]:
    """Measure sends in the conversation and in new ones alternately, one at a time."""
    late, first = [], []
    for _ in range(QUICK_TURNS if options.quick else TURNS):
        late.append(send_once(server, conversation_id, options))
        first.append(send_once(server, server.conversation(MODEL), options))
    return {name: median(one[name] for one in late) for name in late[0]} | {
        f"{name} of a first turn": median(one[name] for one in first) for name in first[0]
    }


def send_once(server: ReattachServer, conversation_id: str, options: Options) -> dict[str, float]:
    return sent(server, [conversation_id], ASKED, 1, options.cores)


def chapter_of(
    cold: Mapping[int, Sequence[Figures]], warm: Mapping[int, Sequence[Figures]], grown_bytes: int
) -> Chapter:
    rows, goals = [], []
    for length, rounds in warm.items():
        ratio = median(one[CPU] / one[f"{CPU} of a first turn"] for one in rounds)
        columns = (CPU, f"{CPU} of a first turn", FIRST_BYTE, f"{FIRST_BYTE} of a first turn")
        figures = [median(one[name] for one in rounds) for name in columns]
        read = median(one[CPU] for one in cold[length])
        rows.append([f"{length:,}", *map(shown, (*figures[:2], ratio, *figures[2:], read))])
        work = f"a send after {length:,} turns, beside a first turn: CPU"
        goals.append(Goal(work, f"≤ {MOST} ×", ratio, at_most(MOST), "×"))
    heads = [
        "turns before",
        "µs of CPU",
        "of a first turn",
        "ratio",
        "first byte p50 ms",
        "of a first turn",
        "µs, read for the first time",
    ]
    return Chapter(
        "turns",
        "Turns",
        f"Sends with an answer of {SEND_EVENTS} events in conversations that have so many turns "
        "already, one at a time and in turn with first turns of new conversations. The ratio is "
        "the median of the rounds' ratios. The last column is a send for which the process reads "
        "the conversation for the first time. The memory of the server grew by "
        f"{grown_bytes / 2**20:.0f} MiB.",
        [Table("A send by the length of its conversation", heads, rows)],
        goals,
    )
