"""Futures whose results come by callbacks."""

import asyncio
from typing import Any


def settle(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    """Give the future its error, or without one its result. No-op if it is done or cancelled."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
