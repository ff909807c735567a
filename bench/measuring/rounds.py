"""Rounds of measurements, in which every contender takes its turn, and their medians."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from statistics import median

from bench.measuring.load import SpoiledError

Figures = Mapping[str, float]
"""The figures of one measurement by name, with the unit in the name."""

Measurement = tuple[str, Callable[[], Figures]]
"""A measurement's name, and the function that performs it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The measurements of one contender in a round, each performed before the next."""

    contender: str
    measurements: Callable[[], Iterator[Measurement]]
    tries_again: bool = True
    """Whether a measurement without a figure in earlier rounds is repeated in the next one."""


@dataclass(slots=True)
class Measured:
    """The rounds of one measurement. A round with an error gives a failure, not a figure."""

    rounds: list[Figures] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def middle(self, name: str) -> float | None:
        """Return the median of all rounds, or None without rounds."""
        values = self._values(name)
        return median(values) if values else None

    def spread(self, name: str) -> tuple[float, float] | None:
        """Return the minimum and the maximum."""
        values = self._values(name)
        return (min(values), max(values)) if values else None

    def _values(self, name: str) -> list[float]:
        return [figures[name] for figures in self.rounds if name in figures]


class Results(defaultdict[tuple[str, str], Measured]):
    """Results by contender and measurement."""

    def __init__(self) -> None:
        super().__init__(Measured)

    def middle(self, contender: str, measurement: str, name: str) -> float | None:
        found = self.get((contender, measurement))
        return None if found is None else found.middle(name)

    def ratio(
        self, name: str, of: tuple[str, str], to: tuple[str, str], *, inverse: bool = False
    ) -> float | None:
        """Divide the median of ``of`` by that of ``to``."""
        above, below = self.middle(*of, name), self.middle(*to, name)
        if inverse:
            above, below = below, above
        return above / below if above is not None and below else None

    def failures(self) -> list[str]:
        """List the failures, one a line."""
        return [
            f"{contender}, {name}: {len(measured.failures)} of "
            f"{len(measured.failures) + len(measured.rounds)} rounds have no figure: {why}"
            for (contender, name), measured in self.items()
            for why in dict.fromkeys(measured.failures)
        ]


def never_lost(_: Figures) -> bool:
    return False


def until_one_fails(
    sizes: Iterable[Measurement], is_lost: Callable[[Figures], bool] = never_lost
) -> Iterator[Measurement]:
    """Measure growing sizes, and skip all sizes after one that fails or is lost.

    A server that is too slow for a size would take minutes of time limits to fail at the next.
    """
    reason = ""
    for name, measure in sizes:

        def tried(name: str = name, measure: Callable[[], Figures] = measure) -> Figures:
            nonlocal reason
            if reason:
                raise SpoiledError(f"skipped, because {reason}")
            try:
                figures = measure()
            except (SpoiledError, OSError):
                reason = f"{name} failed"
                raise
            if is_lost(figures):
                reason = f"it was too slow for {name}"
            return figures

        yield name, tried


def interleaved(turns: Sequence[Turn], rounds: int) -> Results:
    """Measure every contender once in each round."""
    results = Results()
    for number in range(rounds):
        for turn in turns:
            begin = time.monotonic()
            failures = _once(turn, results)
            print(
                f"  round {number + 1} of {rounds}, {turn.contender}: "
                f"{time.monotonic() - begin:.1f} s{''.join(failures)}",
                file=sys.stderr,
                flush=True,
            )
    return results


def side_by_side(turns: Sequence[Turn], rounds: int) -> Results:
    """Perform each measurement with all contenders at the same time.

    They share whatever the machine does meanwhile. All have the same measurements.
    """
    results = Results()
    for number in range(rounds):
        begin = time.monotonic()
        with ExitStack() as stack:
            threads = stack.enter_context(ThreadPoolExecutor(len(turns)))
            listed = [stack.enter_context(closing(_generated(turn))) for turn in turns]
            for measurements in zip(*listed, strict=True):
                futures = [
                    threads.submit(_measure, results[turn.contender, name], name, measure)
                    for turn, (name, measure) in zip(turns, measurements, strict=True)
                ]
                for turn, future in zip(turns, futures, strict=True):
                    for failure in future.result():
                        print(f"    {turn.contender}:{failure}", file=sys.stderr)
        print(
            f"  round {number + 1} of {rounds}: {time.monotonic() - begin:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    return results


def _generated(turn: Turn) -> Generator[Measurement, None, None]:
    yield from turn.measurements()


def _measure(measured: Measured, name: str, measure: Callable[[], Figures]) -> list[str]:
    try:
        measured.rounds.append(measure())
    except (SpoiledError, OSError) as error:
        measured.failures.append(str(error))
        return [f"\n    no figure for {name}: {error}"]
    return []


def _once(turn: Turn, results: Results) -> list[str]:
    failures = []
    name = "start"
    try:
        for name, measure in turn.measurements():
            measured = results[turn.contender, name]
            if turn.tries_again or measured.rounds or not measured.failures:
                failures += _measure(measured, name, measure)
    except (SpoiledError, OSError) as error:
        results[turn.contender, f"after {name}"].failures.append(str(error))
        failures.append(f"\n    after {name}: {error}")
    return failures
