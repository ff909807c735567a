"""Finds asynchronous generators that are left to the garbage collector."""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from types import AsyncGeneratorType
from typing import Any


@contextmanager
def collected_generators() -> Iterator[list[str]]:
    """Record the modules of the generators that only a collection of cyclic garbage finds."""
    collected: list[str] = []
    _, close = sys.get_asyncgen_hooks()
    assert close is not None
    is_collecting = False

    def finalize(generator: AsyncGenerator[Any]) -> None:
        if is_collecting and isinstance(generator, AsyncGeneratorType):
            assert generator.ag_frame is not None
            collected.append(generator.ag_frame.f_globals["__name__"])
        close(generator)

    gc.collect()
    gc.disable()
    sys.set_asyncgen_hooks(finalizer=finalize)
    try:
        yield collected
        is_collecting = True
        gc.collect()
    finally:
        gc.enable()
        sys.set_asyncgen_hooks(finalizer=close)


def bodies_among(modules: Sequence[str]) -> list[str]:
    """Return the modules that read the body of a response from its connection."""
    return [name for name in modules if name.startswith(("httpx2._transports", "httpcore2"))]
