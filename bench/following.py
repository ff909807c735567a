"""The cost of following over Redis: runs of one server, read on another that only follows."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.contenders.contender import Contender, Pace, Stream, asked, fresh, program, python
from bench.contenders.contestants import wanted
from bench.contenders.product import NO_DRAIN, ReattachServer, shared_stores
from bench.live import IN_THE_BACKGROUND, QUICK_SECONDS, RATE, SECONDS, many_runs
from bench.measuring.machine import Cores
from bench.measuring.reading import live
from bench.measuring.results import Chapter, Goal, at_most, table
from bench.measuring.rounds import Measurement, Turn, interleaved
from bench.options import Options
from bench.yardsticks.local import CEILING

RUNS, QUICK_RUNS = (50, 150), (20,)
"""With more runs, their server would need the core that it shares."""
ROUNDS = 3
WANTED_RUNS, WANTED_SHARE = 1000, 0.45


class FollowingServer(ReattachServer):
    """A server that only follows runs of another one over shared stores."""

    def __init__(self, port: int, pid: int, other: ReattachServer) -> None:
        super().__init__(port, pid)
        self._other = other

    def ended(self, events: int, runs: int = 1) -> list[Stream]:
        return self._other.ended(events, runs)

    def paced(self, pace: Pace) -> list[Stream]:
        streams = self._other.paced(pace)
        for stream in streams:
            assert stream.begin is not None
            asked(self._other.port, stream.begin, whole=False)
        return [replace(stream, begin=None) for stream in streams]


class Following(Contender):
    """The pair of servers. The owner of the runs shares its core with the stores and readers."""

    name = "Reattach, Redis, following"
    about = "a server that reads from Redis what another one writes there"
    works = frozenset()

    @contextmanager
    def serving(self, directory: Path, cores: Cores) -> Iterator[FollowingServer]:  # noqa: ARG002
        with ExitStack() as stack:
            environment = shared_stores(stack, cores) | NO_DRAIN
            beside = replace(cores, server=cores.store)
            serving = [
                stack.enter_context(program(python("bench.server"), where, environment))
                for where in (beside, cores)
            ]
            yield FollowingServer(*serving[1], ReattachServer(*serving[0]))


def measurements(contender: Contender, options: Options) -> Iterator[Measurement]:
    for runs in QUICK_RUNS if options.quick else RUNS:
        yield many_runs(runs), partial(followed, contender, options, runs)


def followed(contender: Contender, options: Options, runs: int) -> dict[str, float]:
    seconds = QUICK_SECONDS if options.quick else SECONDS
    with fresh(contender, options.cores) as server:
        return live(server, options.cores, runs=runs, readers=1, per_second=RATE, seconds=seconds)


def main(options: Options) -> Chapter:
    contenders = [Following(), *([CEILING] if wanted(options, CEILING) else [])]
    turns = [Turn(each.name, partial(measurements, each, options)) for each in contenders]
    results = interleaved(turns, options.times(ROUNDS))
    names = [many_runs(runs) for runs in (QUICK_RUNS if options.quick else RUNS)]
    cost, most = "CPU µs per delivery", names[-1]
    own = results.middle(Following.name, most, cost)
    written = results.middle(CEILING.name, most, cost)
    following_us = None if own is None or written is None else own - written
    most_us = 1e6 * WANTED_SHARE / (WANTED_RUNS * RATE)
    return Chapter(
        "following",
        "Following over Redis",
        f"Runs of {RATE:.0f} events a second at a server that shares its core with the stores and "
        "the readers; the server that is measured has a core of its own, and has none of the runs. "
        "Lag holds what the other one takes.",
        [table(results, "Live streams of another server's runs", names, IN_THE_BACKGROUND)],
        [
            Goal(
                f"Redis, {most}: CPU of an event, beyond the ceiling's for its write",
                f"≤ {most_us:.0f} µs, {100 * WANTED_SHARE:.0f} % of a core with "
                f"{WANTED_RUNS:,} runs × {RATE:.0f}/s",
                following_us,
                at_most(most_us),
                "µs",
            ),
            Goal(
                "the same: p99 from the yield",
                "≤ 10 ms",
                results.middle(Following.name, most, "from yield p99 ms"),
                at_most(10),
                "ms",
            ),
        ],
        notes=results.failures(),
    )
