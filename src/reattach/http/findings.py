"""The results of a server's own checks, made when somebody asks and shared for some seconds."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from reattach.diagnostics import Diagnostic
from reattach.domain.clock import Clock
from reattach.single_flight import Recent

Checks = Callable[[], Awaitable[Sequence[Diagnostic]]]

FRESH_SECONDS: Final = 10.0
"""Age up to which the results are returned again: the checks ask stores and providers."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The results of all checks, and when they were made; None: there are no checks."""

    diagnostics: Sequence[Diagnostic]
    at: datetime | None


class Findings:
    """The checks of one server. An application that embeds it may have none."""

    def __init__(self, checks: Checks | None, clock: Clock) -> None:
        self._checks = checks
        self._clock = clock
        self._checked = Recent(
            "check the server",
            self._check,
            fresh_seconds=FRESH_SECONDS,
            time=clock.monotonic_seconds,
        )

    async def get(self) -> Checked:
        """Return the results, at most FRESH_SECONDS old. All who wait share one round."""
        return await self._checked.get()

    async def _check(self) -> Checked:
        diagnostics = () if self._checks is None else await self._checks()
        return Checked(diagnostics, None if self._checks is None else self._clock.now())
