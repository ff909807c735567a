"""Third-party packages that only the benchmark needs, in their own directory, pinned by hash."""

import hashlib
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from bench.measuring.load import CACHE

HERE = Path(__file__).parent
PYTHON = CACHE / "python"
NODE = CACHE / "node"
INSTALL_SECONDS = 300
NPM_PATIENCE = ("--fetch-retries=1", "--fetch-timeout=20000")
"""Options that keep npm from retrying for minutes without a registry."""


@cache
def python() -> str:
    """Install the Python packages, and return why that failed or an empty text."""
    uv = Path(sys.executable).with_name("uv")
    wanted = HERE / "requirements.txt"
    return _installed(
        PYTHON, [wanted],
        [str(uv), "pip", "install", "--quiet", "--target", str(PYTHON), "--no-deps",
         "--require-hashes", "--only-binary", ":all:", "-r", str(wanted)],
    )  # fmt: skip


@cache
def node() -> str:
    """Install the npm packages, and return why that failed or an empty text."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return "it needs Node 18 or newer, with npm"
    # ``npm ci`` refuses a lock that lacks optional packages of other systems.
    files = [HERE / name for name in ("package.json", "package-lock.json", ".npmrc")]
    NODE.mkdir(parents=True, exist_ok=True)
    for file in [*files, *HERE.glob("*.mjs")]:  # Node resolves packages from a module's own folder.
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
        output = getattr(error, "stderr", b"") or b""
        reason = output.decode(errors="replace").strip().splitlines()[-1:] or [str(error)]
        return f"it cannot be installed: {reason[0]}"
    place.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest)
    return ""
