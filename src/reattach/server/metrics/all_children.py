"""The figures of all children of a supervisor, collected for one scrape."""

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from reattach.domain.limits import FIGURES_SECONDS
from reattach.meters.meters import Snapshot
from reattach.meters.scrape import Workers
from reattach.server.supervision import FIGURES

QUESTION: Final = FIGURES.encode() + b"\n"


class Asked(Protocol):
    """A child that can be asked."""

    worker: int

    figures: "LatestFigures"

    def write(self, line: bytes) -> None:
        """Send a message."""


class LatestFigures:
    """The latest figures of one child, and the question that it has not answered yet."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._latest: Snapshot | None = None
        self._received_at = 0.0
        self._pending: asyncio.Future[None] | None = None

    def ask(self, child: Asked) -> "asyncio.Future[None]":
        """Ask the child, unless it owes an answer; the future is done when the answer is here."""
        if self._pending is None or self._pending.done():
            self._pending = self._loop.create_future()
            child.write(QUESTION)
        return self._pending

    def receive(self, figures: Snapshot) -> None:
        self._latest, self._received_at = figures, self._loop.time()
        if self._pending is not None and not self._pending.done():
            self._pending.set_result(None)

    def show(self, *, are_new: bool) -> Snapshot | None:
        """Return the latest figures with their age; None if there are none."""
        if self._latest is None:
            return None
        age_seconds = 0.0 if are_new else round(self._loop.time() - self._received_at, 3)
        return {**self._latest, "reattach_scrape_age_seconds": [((), age_seconds)]}


async def collect(children: Callable[[], Iterable[Asked]]) -> Workers:
    """Return the figures of each child, by its slot.

    A child that does not answer within FIGURES_SECONDS is shown with its last known figures, and
    their age. One that never answered is left out.
    """
    pending = {child: child.figures.ask(child) for child in children()}
    if pending:
        await asyncio.wait(pending.values(), timeout=FIGURES_SECONDS)
    alive = set(children())  # A child that died meanwhile reads and drives nothing any more.
    found = {
        str(child.worker): child.figures.show(are_new=answered.done())
        for child, answered in sorted(pending.items(), key=lambda item: item[0].worker)
        if child in alive
    }
    return {worker: figures for worker, figures in found.items() if figures is not None}


def answer_line(workers: Mapping[str, Snapshot]) -> bytes:
    """Return the message to a child that asked for the figures of all."""
    return b"%b %b\n" % (FIGURES.encode(), json.dumps(workers).encode())
