"""The cost of dialects: CPU of a live event and of a replayed one, in one process in turn.

The log is in memory and nothing is sent, so the figures are those of reading, translating and
framing an event. The frames of the Letta dialect are those of the log, which its writer has
encoded; ``sockets`` measures the whole way of a live event.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Final

import uvloop

from bench.dialects import sockets
from bench.measuring.results import Chapter, Goal, Table, at_most, shown
from bench.options import Options
from reattach.domain.events import Event, Output, Place, RunStatus, Stopped, StopReason, Usage
from reattach.domain.ids import (
    DEFAULT_TENANT,
    AgentId,
    MessageId,
    RunId,
    Seq,
    StepId,
    Token,
    new_run_id,
    new_uuid,
)
from reattach.domain.limits import REPLAY_SLICE_EVENTS
from reattach.domain.messages import TextPart
from reattach.http.dialects.durable_streams.events import ControlledFraming
from reattach.http.stream.framing import LETTA, EventSourceFraming, Framing
from reattach.log.memory import MemoryLog
from reattach.records.base import Target
from reattach.runs.following.follow import Following, Watch, follow
from reattach.runs.translation.translations import Translations
from reattach.wire import letta
from reattach.wire.dialects.ag_ui import AgUi
from reattach.wire.dialects.chat_completions import ChatCompletions
from reattach.wire.dialects.dialect import Dialect, RunFacts
from reattach.wire.dialects.durable_streams import EVENTS
from reattach.wire.dialects.openai_responses import Responses
from reattach.wire.dialects.ui_messages import UiMessages
from reattach.wire.event_source import EventIds

EVENT_COUNT, QUICK_EVENT_COUNT = 2_000, 200
ROUNDS: Final = 3
READERS: Final = 9
"""The readers of a live run when there are several."""
MOST_LIVE: Final = 1.5
MOST_REPLAYED_US: Final = 3.0

AT: Final = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)

FRAMINGS: Final[Mapping[str, Callable[[], Framing]]] = {
    "Letta": lambda: LETTA,
    "Letta, for EventSource": lambda: EventSourceFraming(EventIds(), pings=False),
    "Durable Streams": lambda: ControlledFraming(EVENTS, lambda: "1"),
}
"""The forms of the log itself."""

DIALECTS: Final[Mapping[str, Callable[[], Dialect]]] = {
    "OpenAI Responses": Responses,
    "Chat Completions": ChatCompletions,
    "AI SDK UI messages": UiMessages,
    "AG-UI": AgUi,
}

FIRST, FURTHER = "first reader", "each further reader"


class _Run:
    """One run in a log of its own, and its readers."""

    def __init__(self, count: int) -> None:
        self.log = MemoryLog()
        self.id = RunId(new_run_id())
        self.target = Target(self.id, DEFAULT_TENANT, RunStatus.RUNNING, background=True)
        self.facts = RunFacts(
            run_id=self.id,
            created_at=AT,
            agent_id=AgentId(f"agent-{new_uuid()}"),
            conversation_id=None,
            model="bench",
            background=True,
        )
        self.translations = Translations(self._follow, Watch(60.0))
        encoder = letta.Encoder(self.id)
        self.frames = [
            encoder.encode(event, Seq(seq)) for seq, event in enumerate(_events(count), 1)
        ]

    async def _follow(self, target: Target, cursor: int, *, prefetches: bool = True) -> Following:
        return await follow(
            self.log,
            target.run_id,
            Seq(cursor),
            max_events=REPLAY_SLICE_EVENTS,
            prefetches=prefetches,
        )

    async def reader(self, name: str) -> Following:
        """Return a reader in a dialect, that encodes events but sends them nowhere."""
        if name in DIALECTS:
            return await self.translations.follow(self.target, DIALECTS[name](), self.facts, 0)
        following = await self._follow(self.target, 0)
        framing = FRAMINGS[name]()
        following.splice = framing.splice
        framing.attach(following)
        framing.close()
        return following

    async def live(self, name: str, readers: int) -> float:
        """Return the CPU µs of an event that is appended while ``readers`` wait for it."""
        writer = await self.log.open(self.id, Token(1))
        followings = [await self.reader(name) for _ in range(readers)]
        for following in followings:
            while (await following.read()).frames:
                pass
            following.sink = _take
        began = time.process_time()
        for frame in self.frames:
            writer.put([frame])
            await writer.flush()
        used = time.process_time() - began
        for following in followings:
            await following.aclose()
        return 1e6 * used / len(self.frames)

    async def replayed(self, name: str) -> tuple[float, float]:
        """Return the CPU µs of an event of an ended run for its first reader and for a second."""
        writer = await self.log.open(self.id, Token(1))
        await writer.append(Seq(1), self.frames, close=True)
        return await self._read(name), await self._read(name)

    async def _read(self, name: str) -> float:
        began = time.process_time()
        following = await self.reader(name)
        while (piece := await following.read()).frames:
            if following.splice is not None:
                following.splice(piece)
        used = time.process_time() - began
        await following.aclose()
        return 1e6 * used / len(self.frames)


def _take(_: bytes) -> bool:
    return True


def _events(count: int) -> Sequence[Event]:
    place = Place(MessageId(f"message-{new_uuid()}"), StepId(f"step-{new_uuid()}"), 0, AT)
    texts = [Output(place, (TextPart(f"word{number} "),)) for number in range(count - 2)]
    return [*texts, Stopped(StopReason.END_TURN), Usage(completion_tokens=count - 2)]


async def _rounds(count: int, rounds: int) -> Mapping[str, Mapping[str, float]]:
    """Measure every dialect in each round; return the medians by dialect and figure."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    async def note(name: str) -> None:
        alone = await _Run(count).live("Letta", 0)
        one = await _Run(count).live(name, 1)
        several = await _Run(count).live(name, READERS)
        first, further = await _Run(count).replayed(name)
        figures = found[name]
        figures[f"live, {FIRST}"].append(one - alone)
        figures[f"live, {FURTHER}"].append((several - one) / (READERS - 1))
        figures[f"replayed, {FIRST}"].append(first)
        figures[f"replayed, {FURTHER}"].append(further)

    names: Sequence[str] = [*FRAMINGS, *DIALECTS]
    for number in range(rounds + 1):
        for name in names:
            await note(name)
        if number == 0:
            found.clear()  # The first round warms up.
    return {
        name: {figure: median(values) for figure, values in figures.items()}
        for name, figures in found.items()
    }


def chapter_of(found: Mapping[str, Mapping[str, float]]) -> Chapter:
    figures = list(next(iter(found.values())))
    rows = [
        [name, *(shown(values[figure]) for figure in figures)] for name, values in found.items()
    ]
    goals = [
        goal
        for name in DIALECTS
        for goal in (
            Goal(f"{name}: a live event at a reader, whole server", f"≤ {MOST_LIVE} × Letta's",
                 found[name][sockets.BESIDE_LETTA], at_most(MOST_LIVE), "× Letta's"),
            Goal(f"{name}: a replayed event after the first reader", f"≤ {MOST_REPLAYED_US:g} µs",
                 found[name][f"replayed, {FURTHER}"], at_most(MOST_REPLAYED_US), "µs"),
        )
    ]  # fmt: skip
    return Chapter(
        "dialects",
        "Dialects",
        "CPU of an event in each dialect. In one process with a log in memory: beyond its append, "
        "while readers wait for it, and of an ended run. Over a socket: of a server with "
        f"{sockets.RUNS} runs of {sockets.PER_SECOND:g} events a second and one reader of each, "
        "and the median of the rounds' ratios to Letta's. The frames of the Letta dialect are "
        "those of the log.",
        [Table("CPU µs per event", ["dialect", *figures], rows)],
        goals,
    )


def main(options: Options) -> Chapter:
    count = QUICK_EVENT_COUNT if options.quick else EVENT_COUNT
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(_rounds(count, options.times(ROUNDS)))
    over_a_socket = sockets.measured([*found], options)
    return chapter_of({name: {**one, **over_a_socket[name]} for name, one in found.items()})
