"""Growth: costs as runs get longer, as more runs are stored, and over many retentions."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench.contenders.contender import fresh
from bench.contenders.kept import copy_runs, wait_until_folded
from bench.contenders.product import Reattach, ReattachServer
from bench.measuring.charts import Chart
from bench.measuring.load import Group, Load, Reader, SpoiledError
from bench.measuring.machine import Cores, cpu_seconds, memory
from bench.measuring.reading import LIMIT_SECONDS, repeated
from bench.measuring.results import Chapter, Goal, at_most, table
from bench.measuring.rounds import Measurement, Results, Turn, interleaved
from bench.options import Options

EVENTS, QUICK_EVENTS = (100, 1000, 10_000, 100_000), (100, 10_000)
KEPT, QUICK_KEPT, LONG_KEPT = (1000, 100_000), (32, 960), (500_000,)
SECONDS, QUICK_SECONDS = 1.0, 0.3
ROUNDS = 3
PASSES = 2
"""Measurements of all sizes on one server in each round."""
LAST = 10
RESUMING = 16
SENDING = 16
"""Conversations in which runs are started concurrently."""
TURNS, QUICK_TURNS = 12, 2
"""Runs in each conversation."""
SENT_SHARE, MOST_SENT = 7, 14_000
"""One in so many of the runs kept is sent, and the others are copied, which fills no memory. The
most that are sent fill the server's memory for ended runs."""
PAIRS = 4
"""Measurements on the filled server, alternating with as many on a new one."""
NEW = "CPU µs per request on a new server"
LOOKED_AT = 100
"""The newest stored runs, of which some are read again, evenly spaced."""
LENGTHS, QUICK_LENGTHS = (100, 1200), (20, 60)
"""Lengths of a conversation in turns."""
SEND_EVENTS = 10
PERIODS, QUICK_PERIODS = 4, 2
"""Retention periods with equal numbers of runs. Memory and files must not grow over them."""
RUNS_A_PERIOD, QUICK_RUNS_A_PERIOD = 1000, 32
RETENTION_SECONDS, QUICK_RETENTION_SECONDS = 8.0, 0.5
OWN = Reattach().name


def resume_at(events: int) -> str:
    return f"resume {LAST} from the end of {events:,} events"


def replay_of(events: int) -> str:
    return f"replay of {events:,} events"


def by_events(options: Options) -> Iterator[Measurement]:
    """Measure longer and longer runs on one server, forth and back to average the machine out."""
    seconds = QUICK_SECONDS if options.quick else SECONDS
    sizes = QUICK_EVENTS if options.quick else EVENTS
    with fresh(Reattach(), options.cores) as server:
        again = partial(repeated, server, cores=options.cores, seconds=seconds)
        runs = [(events, server.ended(events)[0]) for events in sizes]
        for number in range(1 if options.quick else PASSES):
            for events, stream in reversed(runs) if number % 2 else runs:
                cursor = stream.last - LAST
                end = Reader(stream.at(cursor), after=cursor, last=stream.last)
                yield resume_at(events), partial(again, end, readers=RESUMING)
                whole = Reader(stream.at(0), last=stream.last)
                yield replay_of(events), partial(again, whole, readers=1)


def send_with(kept: int) -> str:
    return f"send a run with {kept:,} runs kept"


def resume_with(kept: int) -> str:
    return f"resume one of {kept:,} runs kept"


def by_runs(options: Options) -> Iterator[Measurement]:
    """Measure the cost of a new run and of a stored run while a server stores more and more."""
    with TemporaryDirectory(prefix="bench-data-") as folder:
        few, contender = Path(folder, "few"), Reattach()
        few.mkdir()
        with contender.serving(few, options.cores) as server:
            send_again(server, options)
            wait_until_folded(few, SENDING * turns(options))
        for kept in kept_runs(options):
            many = Path(folder, "many")
            shutil.copytree(few, many)
            sent_runs = min(kept // SENT_SHARE, MOST_SENT)
            copy_runs(many, kept - sent_runs)
            with (
                contender.serving(many, options.cores) as server,
                fresh(contender, options.cores) as new,
            ):
                fill(server, sent_runs, options)
                for one in (server, new):
                    send_again(one, options)
                both = partial(in_turn, server, new, options=options)
                yield send_with(kept), partial(both, send_again)
                yield resume_with(kept), partial(both, look_again)
            shutil.rmtree(many)


def kept_runs(options: Options) -> tuple[int, ...]:
    """List the numbers of stored runs to measure at."""
    if options.quick:
        return QUICK_KEPT
    return KEPT + LONG_KEPT if options.long else KEPT


def pairs(options: Options) -> int:
    return 1 if options.quick else PAIRS


def turns(options: Options) -> int:
    return QUICK_TURNS if options.quick else TURNS


def in_turn(
    server: ReattachServer,
    new: ReattachServer,
    work: Callable[[ReattachServer, Options], dict[str, float]],
    options: Options,
) -> dict[str, float]:
    """Measure the work on this server and on a new one, because the machine's speed changes."""
    grown: list[dict[str, float]] = []
    young: list[dict[str, float]] = []
    both = [(server, grown), (new, young)]
    for _ in range(pairs(options)):
        for one, figures in both:
            figures.append(work(one, options))
        both.reverse()
    return {name: median(each[name] for each in grown) for name in grown[0]} | {
        NEW: median(each["CPU µs per request"] for each in young)
    }


def turn_after(length: int) -> str:
    return f"turn of a conversation of {length:,} turns"


def by_turns(options: Options) -> Iterator[Measurement]:
    """Measure a conversation that grows, alternating with first turns of new conversations."""
    with fresh(Reattach(), options.cores) as server:
        conversation = server.conversation("burst")
        there = 0
        for length in QUICK_LENGTHS if options.quick else LENGTHS:
            talk(server, conversation, length - there, options.cores)
            yield turn_after(length), partial(later_and_first, server, conversation, options)
            there = length + pairs(options) * turns(options)


def later_and_first(
    server: ReattachServer, conversation: str, options: Options
) -> dict[str, float]:
    """Measure turns of the long conversation and of new ones alternately."""
    later: list[dict[str, float]] = []
    first: list[float] = []
    for _ in range(pairs(options)):
        later.append(talk(server, conversation, turns(options), options.cores))
        first.append(send(server, SENDING, 1, options.cores)["CPU µs per request"])
    return {name: median(each[name] for each in later) for name in later[0]} | {NEW: median(first)}


def fill(server: ReattachServer, runs: int, options: Options) -> None:
    """Start about this many runs, several at a time, and read each to its end.

    Each conversation gets only a few turns, because every turn reads the earlier ones.
    """
    while runs > 0:
        turns = max(min(TURNS, runs // SENDING), 1)
        send(server, min(SENDING, runs), turns, options.cores)
        runs -= SENDING * turns


def send_again(server: ReattachServer, options: Options) -> dict[str, float]:
    return send(server, SENDING, turns(options), options.cores)


def send(server: ReattachServer, conversations: int, turns: int, cores: Cores) -> dict[str, float]:
    """Start runs in new conversations, one after the other, and read each to its end."""
    new = [server.conversation("burst") for _ in range(conversations)]
    return sent(server, new, str(SEND_EVENTS), turns, cores)


def talk(server: ReattachServer, conversation: str, turns: int, cores: Cores) -> dict[str, float]:
    """Start runs in one conversation, one after the other, and read each to its end."""
    return sent(server, [conversation], str(SEND_EVENTS), turns, cores)


def sent(
    server: ReattachServer, conversations: Sequence[str], text: str, turns: int, cores: Cores
) -> dict[str, float]:
    """Send the text, which is answered by SEND_EVENTS events, and read each run to its end."""
    readers = [
        Reader(server.send(conversation, text), last=SEND_EVENTS + 2)
        for conversation in conversations
    ]
    before = cpu_seconds(server.pids)
    group = Group("send", "loop", readers, server.flags | {f"count={turns}"})
    with Load(server.port, [group], cores.load) as load:
        report = load.done(len(conversations) * turns * 0.05 + LIMIT_SECONDS)
    used = cpu_seconds(server.pids) - before
    totals = report.groups["send"]
    return {
        "CPU µs per request": 1e6 * used / totals.responses,
        "first byte p50 ms": totals.first_byte.p50 / 1e6,
        "first byte p99 ms": totals.first_byte.p99 / 1e6,
        "requests per s": totals.responses / (report.wall_ns / 1e9),
    }


def look_again(server: ReattachServer, options: Options) -> dict[str, float]:
    """Replay some of the runs from their first event."""
    streams = [server.run_stream(run_id, SEND_EVENTS) for run_id in server.listed_runs(LOOKED_AT)]
    cursor = 1
    readers = [
        Reader(stream.at(cursor), after=cursor, last=stream.last)
        for stream in streams[:: max(len(streams) // RESUMING, 1)]
    ]
    seconds = QUICK_SECONDS if options.quick else SECONDS
    return repeated(server, readers, options.cores, seconds=seconds)


def day(options: Options) -> Iterator[Measurement]:
    """Measure the sizes at the end of each of several retention periods with equally many runs."""
    retention = QUICK_RETENTION_SECONDS if options.quick else RETENTION_SECONDS
    runs = QUICK_RUNS_A_PERIOD if options.quick else RUNS_A_PERIOD
    contender = Reattach(settings={"retention_seconds": str(retention)})
    with (
        TemporaryDirectory() as directory,
        contender.serving(Path(directory), options.cores) as server,
    ):
        for period in range(1, (QUICK_PERIODS if options.quick else PERIODS) + 1):
            yield (
                f"period {period}",
                partial(after_period, server, Path(directory), runs, retention, options),
            )


def after_period(
    server: ReattachServer, data: Path, runs: int, retention: float, options: Options
) -> dict[str, float]:
    """Create the runs, and measure once all of them have expired and been deleted."""
    fill(server, runs, options)
    full = sizes(server, data)
    deadline = time.monotonic() + 4 * retention + LIMIT_SECONDS
    last = server.listed_runs(1)[0]
    while not server.is_gone(last):
        if time.monotonic() > deadline:
            raise SpoiledError("the retention is over and the log still there")
        time.sleep(0.2)
    time.sleep(retention / 2 + 1)
    swept = sizes(server, data)
    return {f"{name}, full": value for name, value in full.items()} | {
        f"{name}, swept": value for name, value in swept.items()
    }


def sizes(server: ReattachServer, data: Path) -> dict[str, float]:
    """Sizes of the process, of the event log's files, and of the records, which do not expire."""
    sizes = {
        name: sum(file.stat().st_size for file in data.glob(f"{database}*"))
        for name, database in (("log", "events.db"), ("records", "records.db"))
    }
    sizes["memory"] = memory(server.pids).proportional_bytes
    return {f"{name} MiB": size_bytes / 2**20 for name, size_bytes in sizes.items()}


def main(options: Options) -> Chapter:
    turns = [
        Turn(OWN, partial(by_events, options)),
        Turn(OWN, partial(by_runs, options)),
        Turn(OWN, partial(by_turns, options)),
        Turn(OWN, partial(day, options)),
    ]
    results = interleaved(turns[:1], options.times(ROUNDS))
    for (contender, name), measured in interleaved(turns[1:], 1).items():
        results[contender, name] = measured
    return chapter_of(results, options)


def chapter_of(results: Results, options: Options) -> Chapter:
    events, kept = (QUICK_EVENTS if options.quick else EVENTS), kept_runs(options)
    lengths = QUICK_LENGTHS if options.quick else LENGTHS
    periods = range(1, (QUICK_PERIODS if options.quick else PERIODS) + 1)
    request = {"µs of CPU per request": "CPU µs per request"}
    first_byte = {"first byte p50 ms": "first byte p50 ms", "p99 ms": "first byte p99 ms"}
    held = ("memory", "log", "records")
    chapter = Chapter(
        "growth",
        "Growth",
        "The same work on longer runs, on a server that stores more runs (alternating with a new "
        f"one), and on a server whose runs of {SEND_EVENTS} events expire over and over. Records "
        "do not expire. The chapter on live streams has the cost of readers.",
        [
            table(
                results,
                "Costs by events of a run",
                [*map(resume_at, events), *map(replay_of, events)],
                request | {"µs of CPU per event": "CPU µs per event"} | first_byte,
            ),
            table(
                results,
                "Costs by runs kept",
                [*map(send_with, kept), *map(resume_with, kept)],
                request | {"on a new server": NEW} | first_byte,
            ),
            table(
                results,
                "Costs by turns of a conversation",
                [*map(turn_after, lengths)],
                request | {"first turn of a new one": NEW} | first_byte,
            ),
            table(
                results,
                "Sizes in MiB when a period's runs are there, and when they were forgotten",
                [f"period {period}" for period in periods],
                {
                    f"{name}, {when}": f"{name} MiB, {when}"
                    for name in held
                    for when in ("full", "swept")
                },
            ),
        ],
        goals(results, options),
        notes=results.failures(),
    )
    by = {
        f"resume {LAST} from the end, by its events": [(n, resume_at(n)) for n in events],
        "replay, by its events": [(n, replay_of(n)) for n in events],
        "send, by runs kept": [(n, send_with(n)) for n in kept],
        "resume, by runs kept": [(n, resume_with(n)) for n in kept],
        "send, by turns of its conversation": [(n, turn_after(n)) for n in lengths],
    }
    lines = {
        line: [
            (float(number), cost)
            for number, name in points
            if (cost := results.middle(OWN, name, "CPU µs per request"))
        ]
        for line, points in by.items()
    }
    title = "CPU of the server for one request"
    chapter.charts.append(Chart("growth", title, "events, runs or turns", "µs", lines))
    return chapter


def goals(results: Results, options: Options) -> list[Goal]:
    events, kept = (QUICK_EVENTS if options.quick else EVENTS), kept_runs(options)[-1]
    longest_talk = (QUICK_LENGTHS if options.quick else LENGTHS)[-1]
    last, second = (OWN, last_period(results)), (OWN, "period 2")
    longest, shortest = (OWN, resume_at(events[-1])), (OWN, resume_at(events[0]))
    # So few runs are all in the journal, which only grows at first.
    logs = None if options.quick else results.ratio("log MiB, swept", last, second)
    return [
        same(
            f"resume near the end of {events[-1]:,} events, and of {events[0]:,}: CPU",
            results.ratio("CPU µs per request", longest, shortest),
            1.25,
        ),
        same(
            f"send with {kept:,} runs kept, and on a new server: CPU",
            to_new(results, send_with(kept)),
            1.1,
        ),
        same(
            f"resume one of {kept:,} runs kept, and one on a new server: CPU",
            to_new(results, resume_with(kept)),
            1.25,
        ),
        same(
            f"a turn after {longest_talk:,} turns, and the first of a conversation: CPU",
            to_new(results, turn_after(longest_talk)),
            1.5,
        ),
        same(
            "memory after the last period, and after the second",
            results.ratio("memory MiB, swept", last, second),
            1.1,
        ),
        same("files of the log after the last period, and after the second", logs, 1.1),
    ]


def same(work: str, ratio: float | None, most: float) -> Goal:
    return Goal(work, f"the same (≤ {most} ×)", ratio, at_most(most), "×")


def to_new(results: Results, name: str) -> float | None:
    """Divide the cost on the filled server by the cost on a new one."""
    kept, new = (results.middle(OWN, name, cost) for cost in ("CPU µs per request", NEW))
    return kept / new if kept and new else None


def last_period(results: Results) -> str:
    periods = [name for _, name in results if name.startswith("period ")]
    return max(periods, default="period 1")
