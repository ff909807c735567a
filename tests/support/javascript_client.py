"""The JavaScript client, built."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

from reattach.testing.recording import whole_frames
from tests.support.missing import skip_or_fail
from tests.support.node_driver import Json

PACKAGE: Final = Path(__file__).parents[2] / "js"
DIRECTORY: Final = Path(__file__).parents[1] / "clients" / "javascript"
_BUILD_SECONDS: Final = 60.0


def require_client() -> str:
    """Build the client if its sources have changed, and return Node.

    If Node or the packages that build it are missing, skip the test, or fail it in CI.
    """
    node = shutil.which("node")
    packages = [PACKAGE / "node_modules" / name for name in ("esbuild", "terser")]
    if node is None or not all(package.is_dir() for package in packages):
        why_not = (
            "The JavaScript client cannot be built: install Node 20 or newer, run scripts/setup"
        )
        skip_or_fail(why_not)
    # The tests run in several processes.
    with (PACKAGE / "node_modules/.built").open("a+") as stamp:
        fcntl.flock(stamp, fcntl.LOCK_EX)
        stamp.seek(0)
        digest = _digest()
        if stamp.read() != digest or not (PACKAGE / "dist/index.js").exists():
            command = [node, str(PACKAGE / "build.mjs")]
            built = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_BUILD_SECONDS
            )
            assert built.returncode == 0, built.stdout + built.stderr
            stamp.truncate(0)
            stamp.write(digest)
    return node


def _digest() -> str:
    sources = [PACKAGE / "build.mjs", PACKAGE / "tsconfig.json", *sorted(PACKAGE.glob("src/*.ts"))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()


def events_of(frames: bytes) -> list[Json]:
    """Return the events of frames as a client of JSON sees them."""
    lines = (line for frame in whole_frames(frames) for line in frame.split(b"\n"))
    return [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data")]
