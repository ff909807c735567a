"""A tool for servers in processes of their own: it notes its calls in a file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

HANGS = 9
"""The argument of a call that does not return."""


async def launch(n: int) -> str:
    """Launch number n."""
    with Path(os.environ["LAUNCHES"]).open("a") as launches:
        launches.write(f"{n}\n")
    if n == HANGS:
        await asyncio.Event().wait()
    return "launched"
