"""Wrappers of stores that fail, block, count or stop at a step that a test chooses.

Steps are named after calls: ``log.open``, ``log.append``, ``log.close`` (the closing append),
``runs.create``, ``runs.settle`` and so on.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from reattach.domain.errors import StoreUnavailableError
from reattach.domain.ids import FIRST_SEQ, Seq, Token
from reattach.log.base import Head, Inventory, Log, RunWriter, Slice, Tail
from reattach.records.records import Records

T = TypeVar("T")


class Faults:
    """A wrapper without faults that counts the calls of each step."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    async def around(self, step: str, call: Callable[[], Awaitable[T]]) -> T:
        self.calls[step] += 1
        return await call()


class Life(Faults):
    """The lifetime of a process, which ends at ``end``, as "before log.open": no call returns then.

    It ends the ``nth`` time that the step is reached, or never if ``end`` is None.
    """

    def __init__(self, end: str | None, nth: int = 1) -> None:
        super().__init__()
        self._end = end
        self._left = nth
        self.ended = asyncio.Event()

    async def around(self, step: str, call: Callable[[], Awaitable[T]]) -> T:
        await self._pass(f"before {step}")
        result = await super().around(step, call)
        await self._pass(f"after {step}")
        return result

    async def _pass(self, moment: str) -> None:
        if moment == self._end:
            self._left -= 1
            if self._left == 0:
                self.ended.set()
        if self.ended.is_set():
            await asyncio.Event().wait()


class Outage(Faults):
    """An outage in which the steps in ``down`` raise StoreUnavailableError.

    With ``loses_answers`` they take effect and only their answers are lost. ``attempts`` counts
    refused calls, and each sets ``refused``.
    """

    def __init__(self, *down: str, loses_answers: bool = False, lasts: int | None = None) -> None:
        super().__init__()
        self.down = set(down)
        self.attempts = 0
        self.refused = asyncio.Event()
        self._loses_answers = loses_answers
        self._lasts = lasts

    async def around(self, step: str, call: Callable[[], Awaitable[T]]) -> T:
        if step in self.down:
            self.attempts += 1
            self.refused.set()
            if self._lasts is not None and self.attempts >= self._lasts:
                self.down.clear()
            if self._loses_answers:
                await super().around(step, call)
            raise StoreUnavailableError("The store is down.")
        return await super().around(step, call)


class Gate(Faults):
    """A gate at which calls of ``step`` wait; the first one sets ``waiting``."""

    def __init__(self, *steps: str) -> None:
        super().__init__()
        self._steps = steps
        self.waiting = asyncio.Event()
        self.opened = asyncio.Event()

    async def around(self, step: str, call: Callable[[], Awaitable[T]]) -> T:
        if step in self._steps:
            self.waiting.set()
            await self.opened.wait()
        return await super().around(step, call)


class FaultyLog(Log):
    """``log`` with ``faults`` around every call."""

    def __init__(self, log: Log, faults: Faults) -> None:
        self.capabilities = log.capabilities
        self._log = log
        self._faults = faults

    async def open(
        self, run_id: str, token: Token, *, first_seq: Seq = FIRST_SEQ, aliases: Sequence[str] = ()
    ) -> RunWriter:
        writer = await self._faults.around(
            "log.open",
            lambda: self._log.open(run_id, token, first_seq=first_seq, aliases=aliases),
        )
        return FaultyRunWriter(writer, self._faults)

    def writer(self, run_id: str, token: Token, head: Head) -> RunWriter:
        return FaultyRunWriter(self._log.writer(run_id, token, head), self._faults)

    async def head(self, run_id: str) -> Head:
        return await self._faults.around("log.head", lambda: self._log.head(run_id))

    async def read(self, run_id: str, after: int, *, max_bytes: int, max_events: int) -> Slice:
        return await self._faults.around(
            "log.read",
            lambda: self._log.read(run_id, Seq(after), max_bytes=max_bytes, max_events=max_events),
        )

    @asynccontextmanager
    async def follow(self, run_id: str) -> AsyncIterator[Tail]:
        async def entered() -> None:
            return None

        await self._faults.around("log.follow", entered)
        async with self._log.follow(run_id) as tail:
            yield tail

    async def trim(self, run_id: str, first_seq: Seq) -> None:
        await self._faults.around("log.trim", lambda: self._log.trim(run_id, first_seq))

    async def delete(self, run_id: str) -> None:
        await self._faults.around("log.delete", lambda: self._log.delete(run_id))

    async def inventory(self, cursor: str | None, *, limit: int) -> Inventory:
        return await self._faults.around(
            "log.inventory", lambda: self._log.inventory(cursor, limit=limit)
        )

    async def find(self, alias: str) -> str | None:
        return await self._faults.around("log.find", lambda: self._log.find(alias))

    async def aclose(self) -> None:
        await self._log.aclose()


class FaultyRunWriter(RunWriter):
    """``writer`` with ``faults`` around every append."""

    def __init__(self, writer: RunWriter, faults: Faults) -> None:
        super().__init__(writer.run_id, writer.token, writer.head)
        self._writer = writer
        self._faults = faults

    async def append(self, first_seq: Seq, frames: Sequence[bytes], *, close: bool = False) -> None:
        await self._faults.around(
            "log.close" if close else "log.append",
            lambda: self._writer.append(first_seq, frames, close=close),
        )


def faulty_records(records: Records, faults: Faults) -> Records:
    """Wrap ``records`` with ``faults`` around every call of their parts."""
    return cast("Records", _Parts(records, faults))


class _Parts:
    def __init__(self, records: Records, faults: Faults) -> None:
        for name, part in vars(records).items():
            if not name.startswith("_"):
                setattr(self, name, _Part(name, part, faults))
        self.shared = records.shared
        self.notifications = records.notifications


class _Part:
    def __init__(self, name: str, part: object, faults: Faults) -> None:
        self._name = name
        self._part = part
        self._faults = faults

    def __getattr__(self, attribute: str) -> Any:
        method = getattr(self._part, attribute)
        assert inspect.iscoroutinefunction(method), attribute

        async def call(*arguments: Any, **named: Any) -> Any:
            step = f"{self._name}.{attribute}"
            return await self._faults.around(step, lambda: method(*arguments, **named))

        return call
