"""Retries of operations on a store that does not answer."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from reattach.domain.clock import Clock
from reattach.domain.errors import StoreUnavailableError
from reattach.domain.limits import APPEND_RETRY_DELAY_SECONDS, APPEND_RETRY_SECONDS

T = TypeVar("T")


async def until_available(clock: Clock, operation: Callable[[], Awaitable[T]]) -> T:
    """Repeat the idempotent ``operation`` until the store answers, and return its result.

    Raises:
        StoreUnavailableError: The store did not answer for APPEND_RETRY_SECONDS.
        Exception: Any other exception of ``operation``, at once.
    """
    give_up_at = clock.monotonic_seconds() + APPEND_RETRY_SECONDS
    while True:
        try:
            return await operation()
        except StoreUnavailableError:
            if clock.monotonic_seconds() >= give_up_at:
                raise
            await clock.sleep(APPEND_RETRY_DELAY_SECONDS)
