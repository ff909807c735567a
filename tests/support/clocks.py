"""Clocks whose time a test controls."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

NOON = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


class LeapClock:
    """A clock on which waiting takes no real time; ``leap`` advances it."""

    def __init__(self) -> None:
        self.passed_seconds = 0.0

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.passed_seconds)

    def monotonic_seconds(self) -> float:
        return self.passed_seconds

    async def sleep(self, seconds: float) -> None:
        self.passed_seconds += seconds
        await asyncio.sleep(0)

    def leap(self, seconds: float) -> None:
        self.passed_seconds += seconds


class JumpClock(LeapClock):
    """A clock whose wall time ``jump`` changes without elapsed time."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong_seconds = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.wrong_seconds)

    def jump(self, seconds: float) -> None:
        self.wrong_seconds += seconds
