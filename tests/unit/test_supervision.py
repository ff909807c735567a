"""The messages between a supervisor and its children, and the figures that they carry."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from reattach.meters.meters import Snapshot
from reattach.server.metrics import all_children
from reattach.server.metrics.all_children import LatestFigures, collect
from reattach.server.supervision import Start
from reattach.settings import Settings

SECRET = "s" * 40


def test_a_child_gets_all_settings_of_its_supervisor_also_secret_ones() -> None:
    given = Settings(
        data_dir=Path("/data"),
        database_url="postgresql://user:password@host/database",
        token_keys=f"{SECRET},{SECRET}2",
        mcp={"search": {"url": "https://mcp.example", "headers": {"Authorization": SECRET}}},
        models="openai/a,openai/b",
    )
    received = Start.parse(Start(given, 3).dump().decode())
    assert received == Start(given, 3)
    assert received.settings.token_keys[0].get_secret_value() == SECRET
    headers = received.settings.mcp["search"].headers
    assert headers["Authorization"].get_secret_value() == SECRET


class Child:
    """A child that answers only when the test lets it."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.questions = 0
        self.figures = LatestFigures()

    def write(self, line: bytes) -> None:
        assert line == b"figures\n"
        self.questions += 1

    def answer(self, events: int) -> None:
        self.figures.receive({"reattach_events_total": [((), events)]})


def events_and_age(figures: Snapshot) -> tuple[int, bool]:
    age = figures["reattach_scrape_age_seconds"][0][1]
    return figures["reattach_events_total"][0][1], age > 0


async def test_a_child_that_does_not_answer_in_time_is_shown_as_it_was_with_its_age(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(all_children, "FIGURES_SECONDS", 0.05)
    quick, slow, silent = (Child(number) for number in range(3))
    slow.answer(7)

    async def scrape() -> dict[str, tuple[int, bool]]:
        collecting = asyncio.create_task(collect(lambda: [silent, slow, quick]))
        while not quick.questions:
            await asyncio.sleep(0)
        quick.answer(5)
        found = await collecting
        return {worker: events_and_age(figures) for worker, figures in found.items()}

    assert await scrape() == {"0": (5, False), "1": (7, True)}
    slow.answer(8)
    quick.questions = 0
    assert await scrape() == {"0": (5, False), "1": (8, True)}
    assert (slow.questions, silent.questions) == (2, 1)  # Nobody is asked twice at a time.


async def test_a_child_that_has_died_is_not_shown() -> None:
    living, dead = Child(0), Child(1)
    children = [living, dead]
    collecting = asyncio.create_task(collect(lambda: children))
    while not dead.questions:
        await asyncio.sleep(0)
    living.answer(1)
    dead.answer(2)
    children.remove(dead)
    assert list(await collecting) == ["0"]
