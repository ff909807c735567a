"""Programs of ``tests/dialects/node``, which use the Node clients of other dialects."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

from tests.support.live_server import WAIT_SECONDS
from tests.support.missing import skip_or_fail

DIRECTORY = Path(__file__).parent / "node"


def require_node(package: str) -> str:
    """Return the program. If it or the package is missing, skip the test, or fail it in CI."""
    node = shutil.which("node")
    if node is None:
        skip_or_fail("Node is not installed")
    if not (DIRECTORY / "node_modules" / package).is_dir():
        skip_or_fail(f"{package} is not installed: run scripts/setup")
    return node


async def printed_by(program: str, *arguments: str, package: str) -> Any:
    """Run a program and return the JSON that it prints."""
    process = await asyncio.create_subprocess_exec(
        require_node(package),
        program,
        *arguments,
        cwd=DIRECTORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(WAIT_SECONDS * 3):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()
    return json.loads(output)
