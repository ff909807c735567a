"""Replays of ended runs: the whole run, its second half, and its last ten events."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.contenders.contender import Contender, Server, Stream, fresh
from bench.contenders.contestants import is_subject, missing, others, wanted
from bench.contenders.product import Reattach
from bench.following import Following
from bench.measuring.against import ratios, versions
from bench.measuring.charts import Chart
from bench.measuring.load import Reader, Request
from bench.measuring.reading import repeated, settle
from bench.measuring.results import Chapter, Goal, at_least, at_most, below, table
from bench.measuring.rounds import (
    Figures,
    Measurement,
    Results,
    Turn,
    interleaved,
    never_lost,
    until_one_fails,
)
from bench.options import Options
from bench.yardsticks.local import CEILING, EMPTY
from bench.yardsticks.published import DURABLE_STREAMS

EVENTS, QUICK_EVENTS = 10_000, 2_000
READERS, QUICK_READERS = (1, 10, 100), (1, 10)
SECONDS, QUICK_SECONDS = 2.0, 0.4
ROUNDS = 3
LAST = 10
RESUMING = 16
UPKEEP_SECONDS = 5.0
COLD_RUNS = 16
"""Of 3.5 MB each, so that all of them fit into the 64 MiB for closed runs."""
FROM_START, FROM_MIDDLE = "from the start", "from the middle"
EMPTY_REPLY = f"empty, {RESUMING} readers"
END = f"last {LAST}, {RESUMING} readers"
COLD, COLD_AGAIN = "cold, from the start, 1 readers", "cold, the same again"
LOST_MS = 1000.0
"""The time of a whole replay above which another project's server is not given more readers."""
RETIRED_SERVER_US_PER_EVENT = 72.0
"""CPU per replayed event of the server that Reattach replaces, measured earlier."""


def after(stream: Stream, cursor: int) -> Reader:
    return Reader(stream.at(cursor), after=cursor, last=stream.last)


def from_middle(options: Options) -> str:
    return f"{FROM_MIDDLE}, {(QUICK_READERS if options.quick else READERS)[1]} readers"


def is_lost(figures: Figures) -> bool:
    return figures["whole p50 ms"] > LOST_MS


def warm(contender: Contender, options: Options) -> Iterator[Measurement]:
    """Measure every start and number of readers of a run that was read before."""
    events = QUICK_EVENTS if options.quick else EVENTS
    seconds = QUICK_SECONDS if options.quick else SECONDS
    with fresh(contender, options.cores) as server:
        (stream,) = server.ended(events)
        again = partial(repeated, server, cores=options.cores, seconds=seconds)
        cursors = {END: stream.last - LAST} if "replay from a cursor" in contender.works else {}
        whole = after(stream, 0)
        again(whole, readers=1, seconds=0.1)
        numbers = QUICK_READERS if options.quick else READERS
        yield from until_one_fails(
            (
                (f"{FROM_START}, {readers} readers", partial(again, whole, readers=readers))
                for readers in numbers
            ),
            never_lost if is_subject(contender) else is_lost,
        )
        if cursors:
            half = after(stream, events // 2)
            yield from_middle(options), partial(again, half, readers=numbers[1])
        for name, cursor in cursors.items():
            yield name, partial(again, after(stream, cursor), readers=RESUMING)


def cold(contender: Contender, options: Options) -> Iterator[Measurement]:
    """Measure the first reads of runs after a restart of the server."""
    with TemporaryDirectory() as directory:
        events = QUICK_EVENTS if options.quick else EVENTS
        with contender.serving(Path(directory), options.cores) as server:
            streams = server.ended(events, 3 if options.quick else COLD_RUNS)
        with contender.serving(Path(directory), options.cores) as server:
            settle(server, most_seconds=UPKEEP_SECONDS)  # It copies what its WAL has.
            yield COLD, partial(each_once, server, streams, 0, options)
            yield COLD_AGAIN, partial(each_once, server, streams, 0, options)
        with contender.serving(Path(directory), options.cores) as server:
            last = streams[0].last - LAST
            yield (
                f"cold, last {LAST}, 1 readers",
                partial(each_once, server, streams, last, options),
            )


def cold_elsewhere(contender: Following, options: Options) -> Iterator[Measurement]:
    """Measure the first reads of another server's runs over Redis."""
    with fresh(contender, options.cores) as server:
        events = QUICK_EVENTS if options.quick else EVENTS
        streams = server.ended(events, 3 if options.quick else COLD_RUNS)
        yield COLD, partial(each_once, server, streams, 0, options)
        yield COLD_AGAIN, partial(each_once, server, streams, 0, options)


def each_once(
    server: Server, streams: list[Stream], cursor: int, options: Options
) -> dict[str, float]:
    """Read every run once, one after the other."""
    gap_seconds = 0.2
    readers = [
        Reader(
            stream.at(cursor), after=cursor, last=stream.last, start_seconds=gap_seconds * number
        )
        for number, stream in enumerate(streams)
    ]
    return dict(repeated(server, readers, options.cores, mode="once", seconds=60.0))


def empty(options: Options) -> Iterator[Measurement]:
    with fresh(EMPTY, options.cores) as server:
        seconds = QUICK_SECONDS if options.quick else SECONDS
        reader, plain = Reader(Request.of("GET", "/empty")), frozenset({"plain"})
        yield EMPTY_REPLY, partial(
            repeated, server, reader, options.cores,
            readers=RESUMING, seconds=seconds, flags=plain,
        )  # fmt: skip


def main(options: Options) -> Chapter:
    product_itself, *before = versions(options)
    contenders = [product_itself, *before, *others(options, "replay")]
    turns = [
        Turn(one.name, partial(warm, one, options), tries_again=is_subject(one))
        for one in contenders
    ]
    if wanted(options, EMPTY):
        turns.insert(1, Turn(EMPTY.name, partial(empty, options)))
    turns += [Turn(one.name, partial(cold, one, options)) for one in (product_itself, *before)]
    if not options.contenders or any(word in Following.name for word in options.contenders):
        turns.append(Turn(Following.name, partial(cold_elsewhere, Following(), options)))
    results = interleaved(turns, options.times(ROUNDS))
    return chapter_of(results, [*(one.name for one in contenders), Following.name], options)


def chapter_of(results: Results, contenders: list[str], options: Options) -> Chapter:
    events = QUICK_EVENTS if options.quick else EVENTS
    numbers = QUICK_READERS if options.quick else READERS
    names = [f"{FROM_START}, {readers} readers" for readers in numbers]
    names += [
        from_middle(options),
        COLD,
        COLD_AGAIN,
        END,
        f"cold, last {LAST}, 1 readers",
        EMPTY_REPLY,
    ]
    heads = {
        "events per CPU second": "events per CPU s",
        "µs of CPU per request": "CPU µs per request",
        "requests/s": "requests per s",
        "first byte p50 ms": "first byte p50 ms",
        "p99 ms": "first byte p99 ms",
        "server CPU %": "server CPU %",
        "load CPU %": "load CPU %",
    }
    chapter = Chapter(
        "replay",
        "Replay",
        f"An ended run of {events:,} events of about 350 bytes, read again and again over "
        "connections that stay open. Cold: the first reads after a start.",
        [table(results, "Replays", names, heads), *ratios(results, options, names, heads)],
        goals(results, numbers[1]),
        notes=results.failures() + missing(options, "replay"),
    )
    bars = {
        one: [
            (float(place), value)
            for place, readers in enumerate(numbers)
            if (
                value := results.middle(one, f"{FROM_START}, {readers} readers", "events per CPU s")
            )
        ]
        for one in contenders
    }
    chapter.charts.append(
        Chart("replay", f"Replay of {events:,} events from the start", "readers",
              "events per CPU second of the server", bars, [str(number) for number in numbers])
    )  # fmt: skip
    return chapter


def goals(results: Results, readers: int) -> list[Goal]:
    whole = f"{FROM_START}, {readers} readers"
    own, rate, cpu = (Reattach().name, whole), "events per CPU s", "CPU µs per request"
    us_per_event = results.middle(*own, "CPU µs per event")
    retired = RETIRED_SERVER_US_PER_EVENT / us_per_event if us_per_event else None
    end = (Reattach().name, END)
    return [
        Goal("replay, warm: events per CPU second", "≥ 0.8 × ceiling",
             results.ratio(rate, own, (CEILING.name, whole)), at_least(0.8), "× ceiling"),
        Goal("the same", "≥ 100 × nchan",
             results.ratio(rate, own, ("nchan", whole)), at_least(100), "× nchan"),
        Goal("the same", "≥ 500 × the retired server's 72 µs per event", retired, at_least(500),
             "× the retired server"),
        Goal(f"resume {LAST} from the end: CPU", "≤ 40 µs",
             results.middle(*end, cpu), at_most(40), "µs"),
        Goal("the same", f"< {DURABLE_STREAMS.name}",
             results.ratio(cpu, end, (DURABLE_STREAMS.name, END)), below(1),
             f"× {DURABLE_STREAMS.name}"),
        Goal("the same", "≤ 2 × an empty raw ASGI reply",
             results.ratio(cpu, end, (EMPTY.name, EMPTY_REPLY)), at_most(2), "× empty reply"),
        Goal("the same: first byte p99 at 16 connections", "≤ 2 ms",
             results.middle(*end, "first byte p99 ms"), at_most(2), "ms"),
        *(
            goal
            for name in (Reattach().name, Following.name)
            for goal in (
                Goal(f"{name}, cold: CPU of the first replay", "≤ 4,000 µs",
                     results.middle(name, COLD, cpu), at_most(4000), "µs"),
                Goal("the same: first byte p50", "≤ 2 ms",
                     results.middle(name, COLD, "first byte p50 ms"), at_most(2), "ms"),
            )
        ),
    ]  # fmt: skip
