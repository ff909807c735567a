"""How fast runs add events, measured between two looks at them."""

from collections.abc import Mapping
from typing import Final

from reattach.domain.ids import Seq

OLD_SECONDS: Final = 10.0
"""Age of a look after which the events since then say little about the present."""

YOUNG_SECONDS: Final = 0.5
"""Age of a look under which few events would make a large error."""


class Rates:
    """The positions of runs at an earlier look. They cost nothing between looks."""

    def __init__(self) -> None:
        self._at_seconds = float("-inf")
        self._before: Mapping[str, Seq] = {}
        self._rates: dict[str, float] = {}

    def look(self, positions: Mapping[str, Seq], now_seconds: float) -> Mapping[str, float]:
        """Return the events per second of each run since the last look.

        A run that was not there then, or a look that is too long ago, gives none. Looks within
        YOUNG_SECONDS return the rates of the last one.
        """
        age_seconds = now_seconds - self._at_seconds
        if age_seconds < YOUNG_SECONDS:
            return self._rates
        self._rates = {}
        if age_seconds <= OLD_SECONDS:
            self._rates = {
                run_id: (last_seq - before) / age_seconds
                for run_id, last_seq in positions.items()
                if (before := self._before.get(run_id)) is not None
            }
        self._before, self._at_seconds = dict(positions), now_seconds
        return self._rates
