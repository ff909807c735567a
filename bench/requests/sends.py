"""Sends: the CPU of a run that is stored, streamed and settled, and when its first event comes."""

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median
from typing import Final

from bench import growth
from bench.contenders.contender import fresh
from bench.contenders.product import Reattach
from bench.measuring.results import Chapter, Goal, at_most, table
from bench.measuring.rounds import Figures, Measurement, Results, Turn, interleaved
from bench.options import Options

ROUNDS: Final = 3
CONNECTIONS: Final = (1, 16)
TURNS, QUICK_TURNS = 12, 3
"""Sends over one connection, all to one new conversation."""
SENDS, QUICK_SENDS = 192, 16
"""Sends of one measurement."""
CPU, FIRST_EVENT = "CPU µs per request", "first byte p50 ms"
ON_SQLITE, ON_SERVERS = "Reattach", "Reattach on PostgreSQL and Redis"
GOALS: Final = {ON_SQLITE: 2_000.0, ON_SERVERS: 3_000.0}
"""The CPU µs of a send over one connection."""
FIRST_EVENT_MS: Final = 4.0


def send_over(connections: int) -> str:
    return f"send over {connections} connection{'s' if connections > 1 else ''}"


def contenders(options: Options) -> Sequence[Reattach]:
    """List the servers of this checkout and of those that it is compared with, on both stores."""
    own = [Reattach(ON_SQLITE), Reattach(ON_SERVERS, store="redis")]
    others = [
        one
        for checkout in options.against
        for one in (
            Reattach(f"{ON_SQLITE} in {checkout.name}", checkout=checkout),
            Reattach(f"{ON_SERVERS} in {checkout.name}", "redis", checkout=checkout),
        )
    ]
    return [
        one
        for one in (*own, *others)
        if not options.contenders or any(word in one.name for word in options.contenders)
    ]


def measurements(contender: Reattach, options: Options) -> Iterator[Measurement]:
    turns = QUICK_TURNS if options.quick else TURNS
    sends = QUICK_SENDS if options.quick else SENDS
    with fresh(contender, options.cores) as server:
        for connections in CONNECTIONS:  # The first sends over each connection are dearer.
            growth.send(server, connections, 2, options.cores)
        for connections in CONNECTIONS:

            def measure(connections: int = connections) -> Figures:
                passes = max(sends // (connections * turns), 1)
                found = [
                    growth.send(server, connections, turns, options.cores) for _ in range(passes)
                ]
                return {name: median(one[name] for one in found) for name in found[0]}

            yield send_over(connections), measure


def main(options: Options) -> Chapter:
    turns = [Turn(one.name, partial(measurements, one, options)) for one in contenders(options)]
    results = interleaved(turns, options.times(ROUNDS))
    return Chapter(
        "sends",
        "Sends",
        f"A send to a conversation of at most {TURNS} turns: its run has {growth.SEND_EVENTS} "
        "events of an engine that yields them at once. It is stored, streamed to its sender and "
        "settled. CPU is that of the server's process, without its stores.",
        [
            table(
                results,
                "Sends",
                [*map(send_over, CONNECTIONS)],
                {
                    "µs of CPU per send": CPU,
                    "first event p50 ms": FIRST_EVENT,
                    "p99 ms": "first byte p99 ms",
                    "sends per s": "requests per s",
                },
            )
        ],
        goals(results),
        notes=results.failures(),
    )


def goals(results: Results) -> list[Goal]:
    one = send_over(1)
    found = []
    for server, most in GOALS.items():
        used = results.middle(server, one, CPU)
        found.append(
            Goal(f"{server}: CPU of a send", f"≤ {most / 1000:g} ms", used, at_most(most), "µs")
        )
    first_ms = results.middle(ON_SQLITE, one, FIRST_EVENT)
    wanted = f"≤ {FIRST_EVENT_MS:g} ms"
    found.append(
        Goal(f"{ON_SQLITE}: first event p50", wanted, first_ms, at_most(FIRST_EVENT_MS), "ms")
    )
    return found
