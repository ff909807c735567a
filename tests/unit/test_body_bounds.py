"""How many bodies are held and parsed at a time, and whose turn it is."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from reattach.domain.errors import QuotaError, UnavailableError, ValidationFailedError
from reattach.domain.ids import TenantId
from reattach.http.middleware.access import ACCESS
from reattach.http.middleware.parse_queue import ParseQueue
from reattach.http.middleware.quotas import Bounds, Quotas

WAIT_SECONDS = 20
HOSTILE, HONEST = TenantId("org-hostile"), TenantId("org-honest")


def of(tenant: TenantId) -> dict[str, object]:
    return {"type": "http", ACCESS: SimpleNamespace(tenant=tenant)}


class Parser:
    """A parser that waits until it may go on, and remembers what it parsed where."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.parsed: list[bytes] = []
        self.threads: set[int] = set()
        self.busy = 0
        self.most_busy = 0

    def __call__(self, body: bytes) -> bytes:
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        assert self.may_go_on.wait(WAIT_SECONDS)
        self.threads.add(threading.get_ident())
        self.parsed.append(body)
        self.busy -= 1
        return body


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> Parser:
    parser = Parser()
    monkeypatch.setattr("reattach.http.middleware.parse_queue.parse", parser)
    return parser


@pytest.mark.promise("P12")
async def test_large_bodies_are_parsed_one_at_a_time_and_outside_of_the_event_loop(
    parser: Parser,
) -> None:
    """B3: a large body does not stop the event loop."""
    queue = ParseQueue()
    tasks = [
        asyncio.create_task(queue.parse(of(TenantId(f"org-{n}")), b"%d" % n)) for n in range(5)
    ]
    parser.may_go_on.set()
    async with asyncio.timeout(WAIT_SECONDS):
        assert await asyncio.gather(*tasks) == [b"0", b"1", b"2", b"3", b"4"]
    assert parser.most_busy == 1
    assert threading.get_ident() not in parser.threads


@pytest.mark.promise("P12")
async def test_a_tenant_with_many_large_bodies_delays_another_tenant_by_one(
    parser: Parser,
) -> None:
    """B3: the tenants take turns, so that one of them cannot fill the queue."""
    queue = ParseQueue()
    hostile = [asyncio.create_task(queue.parse(of(HOSTILE), b"hostile %d" % n)) for n in range(20)]
    await asyncio.sleep(0)
    honest = asyncio.create_task(queue.parse(of(HONEST), b"honest"))
    await asyncio.sleep(0)
    parser.may_go_on.set()
    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.gather(honest, *hostile)
    assert parser.parsed.index(b"honest") <= 1
    assert len(parser.parsed) == 21


async def test_a_body_that_is_refused_or_left_gives_its_turn_away() -> None:
    queue = ParseQueue()
    left = asyncio.create_task(queue.parse(of(HOSTILE), b"1"))
    await asyncio.sleep(0)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    with pytest.raises(ValidationFailedError):
        await queue.parse(of(HOSTILE), b"{")
    async with asyncio.timeout(WAIT_SECONDS):
        assert await queue.parse(of(HONEST), b"[1]") == [1]


@pytest.mark.promise("P12")
def test_a_tenant_holds_no_more_bodies_than_its_quota_and_leaves_room_for_others() -> None:
    """B3: the bytes of bodies that are held at a time are bounded, for each tenant and in all."""
    quotas = Quotas(Bounds(body_bytes=10), process_body_bytes=15)
    hostile, honest = quotas.of(HOSTILE), quotas.of(HONEST)
    hostile.hold_body(10)
    with pytest.raises(QuotaError) as refused:
        hostile.hold_body(1)
    assert refused.value.retry_after_seconds > 0
    honest.hold_body(5)
    with pytest.raises(UnavailableError):
        honest.hold_body(1)
    hostile.release_body(10)
    honest.hold_body(5)
    honest.release_body(10)
    hostile.hold_body(10)
