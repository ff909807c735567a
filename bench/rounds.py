"""Rounds: every contender in turn, again and again, and what came of it in the middle."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.load import Spoiled

Figures = Mapping[str, float]
"""What one measurement gave, by name; the unit stands in the name."""

Measurement = tuple[str, Callable[[], Figures]]
"""Its name, and how it is made."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one contender does in a round: it yields measurements, each made before the next."""

    contender: str
    measurements: Callable[[], Iterator[Measurement]]


@dataclass(slots=True)
class Measured:
    """The rounds of one measurement. Those with an error are no figures, and say why."""

    rounds: list[Figures] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def middle(self, name: str) -> float | None:
        """The median of all rounds; None if there is none."""
        values = self._values(name)
        return median(values) if values else None

    def spread(self, name: str) -> tuple[float, float] | None:
        """The smallest and the largest."""
        values = self._values(name)
        return (min(values), max(values)) if values else None

    def _values(self, name: str) -> list[float]:
        return [figures[name] for figures in self.rounds if name in figures]


class Results(defaultdict[tuple[str, str], Measured]):
    """By contender and measurement."""

    def __init__(self) -> None:
        super().__init__(Measured)

    def middle(self, contender: str, measurement: str, name: str) -> float | None:
        found = self.get((contender, measurement))
        return None if found is None else found.middle(name)

    def ratio(
        self, name: str, of: tuple[str, str], to: tuple[str, str], *, inverse: bool = False
    ) -> float | None:
        """The median of ``of`` in units of that of ``to``."""
        above, below = self.middle(*of, name), self.middle(*to, name)
        if inverse:
            above, below = below, above
        return above / below if above is not None and below else None

    def failures(self) -> list[str]:
        """What went wrong, a line each."""
        return [
            f"{contender}, {name}: {len(measured.failures)} of "
            f"{len(measured.failures) + len(measured.rounds)} rounds have no figure: {why}"
            for (contender, name), measured in self.items()
            for why in dict.fromkeys(measured.failures)
        ]


def until_one_fails(sizes: Iterable[Measurement]) -> Iterator[Measurement]:
    """The same work, larger each time. What is larger than one without a figure is not tried.

    A server that can not hold a size takes minutes of time limits to say so of the next.
    """
    failed = ""
    for name, measure in sizes:

        def tried(name: str = name, measure: Callable[[], Figures] = measure) -> Figures:
            nonlocal failed
            if failed:
                raise Spoiled(f"not tried, since there is none for {failed}")
            try:
                return measure()
            except (Spoiled, OSError):
                failed = name
                raise

        yield name, tried


def interleaved(turns: Sequence[Turn], rounds: int) -> Results:
    """Every contender once in each round."""
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


def _once(turn: Turn, results: Results) -> list[str]:
    failures = []
    name = "start"
    try:
        for name, measure in turn.measurements():
            measured = results[turn.contender, name]
            try:
                measured.rounds.append(measure())
            except (Spoiled, OSError) as error:
                measured.failures.append(str(error))
                failures.append(f"\n    no figure for {name}: {error}")
    except (Spoiled, OSError) as error:
        results[turn.contender, f"after {name}"].failures.append(str(error))
        failures.append(f"\n    after {name}: {error}")
    return failures
