"""Packages of others that only the benchmark needs, in a directory of its own, pinned by hash."""

import hashlib
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from bench.load import CACHE

HERE = Path(__file__).parent
PYTHON = CACHE / "python"
NODE = CACHE / "node"
INSTALL_SECONDS = 300
NPM_PATIENCE = ("--fetch-retries=1", "--fetch-timeout=20000")
"""Without them npm tries for minutes where there is no registry."""


@cache
def python() -> str:
    """Install what is from PyPI; why that is not possible, or nothing."""
    uv = Path(sys.executable).with_name("uv")
    wanted = HERE / "requirements.txt"
    return _installed(
        PYTHON, [wanted],
        [str(uv), "pip", "install", "--quiet", "--target", str(PYTHON), "--no-deps",
         "--require-hashes", "--only-binary", ":all:", "-r", str(wanted)],
    )  # fmt: skip


@cache
def node() -> str:
    """Install what is from npm; why that is not possible, or nothing."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return "it needs Node 18 or newer, with npm"
    # ``npm ci`` refuses a lock without the optional packages of systems that a registry lacks.
    files = [HERE / name for name in ("package.json", "package-lock.json", ".npmrc")]
    NODE.mkdir(parents=True, exist_ok=True)
    for file in [*files, *HERE.glob("*.mjs")]:  # Modules find packages from where they lie.
        shutil.copy(file, NODE)
    return _installed(
        NODE, files,
        [npm, "install", "--no-save", "--ignore-scripts", "--silent", *NPM_PATIENCE,
         "--prefix", str(NODE)],
    )  # fmt: skip


def _installed(place: Path, files: list[Path], command: list[str]) -> str:
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
    stamp = place / ".stamp"
    if stamp.exists() and stamp.read_text() == digest:
        return ""
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_SECONDS)
    except (subprocess.SubprocessError, OSError) as error:
        told = getattr(error, "stderr", b"") or b""
        reason = told.decode(errors="replace").strip().splitlines()[-1:] or [str(error)]
        return f"it can not be installed: {reason[0]}"
    place.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest)
    return ""
