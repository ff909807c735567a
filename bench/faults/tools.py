"""Tools for agents whose servers are killed. Each call leaves a line in a file, as it begins."""

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from reattach import tool

JOURNAL_VARIABLE: Final = "FAULTS_JOURNAL"
"""The environment variable that names the file."""

CALL_SECONDS: Final = 0.3
"""How long a call takes, so that faults hit calls too."""

_WORDS: Final = " ".join(f"w{number}" for number in range(40))


async def charge(run: str) -> str:
    """Do something that must not be done twice."""
    return await _called("charge", run)


@tool(idempotent=True)
async def look(run: str) -> str:
    """Do something that may be repeated."""
    return await _called("look", run)


NAMES: Final = ("charge", "look")


def tool_environment(journal: Path) -> Mapping[str, str]:
    """Return the environment of a server whose agents can have these tools."""
    functions = ",".join(f"{__name__}:{name}" for name in NAMES)
    return {"REATTACH_TOOLS": functions, JOURNAL_VARIABLE: str(journal)}


def calls_begun(journal: Path) -> Mapping[str, Counter[str]]:
    """Return how often each call began, by run and by what the call returned, if it did."""
    begun: dict[str, Counter[str]] = {}
    text = journal.read_text("utf-8") if journal.exists() else ""
    for line in text.splitlines():
        run, receipt = line.split()
        begun.setdefault(run, Counter())[receipt] += 1
    return begun


async def _called(name: str, run: str) -> str:
    receipt = f"{name}-{secrets.token_hex(8)}"
    file = os.open(os.environ[JOURNAL_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, f"{run} {receipt}\n".encode())
    finally:
        os.close(file)
    await asyncio.sleep(CALL_SECONDS)
    return f"{receipt} {_WORDS}"
