"""A log that measures the operations of another one."""

import time
from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from typing_extensions import override

from reattach.domain.errors import StoreUnavailableError
from reattach.domain.ids import FIRST_SEQ, Seq, Token
from reattach.log.base import ClosedRead, Head, Inventory, Log, Pieces, RunWriter, Slice, Tail
from reattach.log.run_writer import AppendMeter
from reattach.meters.meters import Meters

_T = TypeVar("_T")


class MeteredLog(Log):
    """``log`` with the time of each operation that may visit the store.

    Tails are those of ``log``, so following costs the same.
    """

    def __init__(self, log: Log, meters: Meters) -> None:
        self.log = log
        self.capabilities = log.capabilities
        self._meter = meters.store("log")
        self._appends = AppendMeter(meters, self._meter)

    async def _measured(self, operation: str, work: Awaitable[_T]) -> _T:
        began = time.monotonic()
        try:
            return await work
        except StoreUnavailableError:
            self._meter.failed(operation)
            raise
        finally:
            self._meter.operation(operation).observe(time.monotonic() - began)

    @override
    async def open(
        self, run_id: str, token: Token, *, first_seq: Seq = FIRST_SEQ, aliases: Sequence[str] = ()
    ) -> RunWriter:
        work = self.log.open(run_id, token, first_seq=first_seq, aliases=aliases)
        writer = await self._measured("open", work)
        writer.meter = self._appends
        return writer

    @override
    def writer(self, run_id: str, token: Token, head: Head) -> RunWriter:
        writer = self.log.writer(run_id, token, head)
        writer.meter = self._appends
        return writer

    @override
    async def head(self, run_id: str) -> Head:
        return await self._measured("head", self.log.head(run_id))

    @override
    def has_just_answered(self) -> bool:
        return self.log.has_just_answered()

    @override
    def goes_on_after(self, run_id: str, seq: Seq) -> bool:
        return self.log.goes_on_after(run_id, seq)

    @override
    async def read(self, run_id: str, after_seq: Seq, *, max_bytes: int, max_events: int) -> Slice:
        work = self.log.read(run_id, after_seq, max_bytes=max_bytes, max_events=max_events)
        return await self._measured("read", work)

    @override
    async def read_closed(
        self, run_id: str, after_seq: Seq, *, max_bytes: int, max_events: int
    ) -> ClosedRead | None:
        work = self.log.read_closed(run_id, after_seq, max_bytes=max_bytes, max_events=max_events)
        return await self._measured("read", work)

    @override
    def pieces(
        self, run_id: str, after_seq: Seq, *, max_bytes: int, max_events: int
    ) -> Pieces | None:
        return self.log.pieces(run_id, after_seq, max_bytes=max_bytes, max_events=max_events)

    @override
    def has_pieces(self, run_id: str, after_seq: Seq) -> bool:
        return self.log.has_pieces(run_id, after_seq)

    @override
    def follow(self, run_id: str) -> AbstractAsyncContextManager[Tail]:
        return self.log.follow(run_id)

    @property
    @override
    def queued_listeners(self) -> int:
        return self.log.queued_listeners

    @override
    def closed_tail(self, run_id: str) -> Tail | None:
        return self.log.closed_tail(run_id)

    @override
    async def trim(self, run_id: str, first_seq: Seq) -> None:
        await self._measured("trim", self.log.trim(run_id, first_seq))

    @override
    async def delete(self, run_id: str) -> None:
        await self._measured("delete", self.log.delete(run_id))

    @override
    async def inventory(self, cursor: str | None, *, limit: int) -> Inventory:
        return await self._measured("inventory", self.log.inventory(cursor, limit=limit))

    @override
    async def find(self, alias: str) -> str | None:
        return await self._measured("find", self.log.find(alias))

    @override
    async def find_open(self, alias: str) -> str | None:
        return await self._measured("find", self.log.find_open(alias))

    @override
    async def aclose(self) -> None:
        await self.log.aclose()
