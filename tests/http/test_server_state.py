"""A server closes its connections when their responses are whole, and waits only so long."""

from __future__ import annotations

import asyncio
from email.utils import parsedate_to_datetime

import pytest

from reattach.http.connection.server_state import ServerState

LONG = 20.0


class Closing:
    """A connection that closes when its response is whole."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self.asked = asyncio.Event()
        state.connections.add(self)

    def shutdown(self) -> None:
        self.asked.set()

    def complete(self) -> None:
        self._state.connections.discard(self)


def request_of(state: ServerState) -> asyncio.Task[None]:
    async def answer() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(answer())
    state.tasks.add(task)
    task.add_done_callback(state.tasks.discard)
    return task


async def test_closing_waits_for_the_last_response() -> None:
    state = ServerState()
    connection = Closing(state)

    closing = asyncio.create_task(state.close(LONG, asyncio.Event()))
    await connection.asked.wait()
    assert not closing.done()
    connection.complete()
    async with asyncio.timeout(LONG):
        await closing


async def test_requests_without_a_response_are_cancelled_after_some_time() -> None:
    state = ServerState()
    task = request_of(state)

    await state.close(0.05, asyncio.Event())

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_hurry_ends_the_wait() -> None:
    state, hurry = ServerState(), asyncio.Event()
    connection, task = Closing(state), request_of(state)

    closing = asyncio.create_task(state.close(LONG * 100, hurry))
    await connection.asked.wait()
    hurry.set()
    async with asyncio.timeout(LONG):
        await closing

    assert not task.done()
    task.cancel()


async def test_responses_have_the_date_until_the_server_is_closed() -> None:
    state = ServerState()
    state.keep_date()
    ((name, first),) = state.default_headers
    async with asyncio.timeout(LONG):
        while state.default_headers == [(name, first)]:
            await asyncio.sleep(0.01)
    ((_, second),) = state.default_headers

    assert name == b"date"
    passed = parsedate_to_datetime(second.decode()) - parsedate_to_datetime(first.decode())
    assert passed.total_seconds() >= 1

    await state.close(LONG, asyncio.Event())
    timer = state._date
    assert timer is not None
    assert timer.cancelled()
