"""Engines that misbehave or that a test steps through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from reattach.domain.messages import TextPart
from reattach.engine.base import Delta, Engine, Model, Turn
from reattach.engine.scripted import ScriptedEngine


class _OneModel(Engine):
    def models(self) -> Sequence[Model]:
        return [model for model in ScriptedEngine().models() if model.name == "echo"]


class SteppedEngine(_OneModel):
    """Yields one of ``texts`` for each call of ``step``, then ends.

    ``closed`` is set when its generator has ended for any reason.
    """

    def __init__(self, *texts: str) -> None:
        self._texts = texts
        self._steps = asyncio.Semaphore(0)
        self.closed = asyncio.Event()
        self.yielded = 0

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self._steps.release()

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        try:
            for text in self._texts:
                await self._steps.acquire()
                self.yielded += 1
                yield TextPart(text)
            await self._steps.acquire()
        finally:
            self.closed.set()


class EndlessEngine(_OneModel):
    """Yields ``text`` for ever without pauses."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.yielded = 0
        self.closed = asyncio.Event()

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        try:
            while True:
                self.yielded += 1
                yield TextPart(self._text)
                await asyncio.sleep(0)
        finally:
            self.closed.set()


class StubbornEngine(_OneModel):
    """Yields once, and then ignores every cancellation until ``give_in``."""

    def __init__(self) -> None:
        self.given_in = asyncio.Event()
        self.refusals = 0

    def give_in(self) -> None:
        self.given_in.set()

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        yield TextPart("said ")
        while not self.given_in.is_set():
            try:
                await self.given_in.wait()
            except asyncio.CancelledError:
                self.refusals += 1
        yield TextPart("too late")


class CancellingEngine(_OneModel):
    """Yields once, and then raises CancelledError by itself."""

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        yield TextPart("said ")
        raise asyncio.CancelledError
