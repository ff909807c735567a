"""React programs with the AI SDK, bundled as a browser loads them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from tests.dialects.node_programs import DIRECTORY, require_node
from tests.support.browser import DIRECTORY as BROWSER
from tests.support.javascript_client import PACKAGE, require_client
from tests.support.missing import skip_or_fail

_BUILD_SECONDS: Final = 60.0


def bundled(folder: Path) -> dict[str, str | bytes]:
    """Bundle ``main.jsx`` of the folder, and return the files of a page by path."""
    require_client()
    node = require_node("@ai-sdk/react7")
    if not (BROWSER / "node_modules/react-dom").is_dir():
        skip_or_fail("React is not installed: run scripts/setup")
    modules = folder / "node_modules"
    (modules / "@ai-sdk").mkdir(parents=True)
    clients = DIRECTORY / "node_modules"
    (modules / "@ai-sdk/react").symlink_to(clients / "@ai-sdk/react7", target_is_directory=True)
    (modules / "ai").symlink_to(clients / "ai7", target_is_directory=True)
    (modules / "@assistant-ui").symlink_to(clients / "@assistant-ui", target_is_directory=True)
    react = BROWSER / "node_modules"
    command = [
        node,
        str(PACKAGE / "node_modules/esbuild/bin/esbuild"),
        "main.jsx",
        "--bundle",
        "--format=esm",
        "--jsx=automatic",
        f"--alias:react={react / 'react'}",  # One React, whichever package asks for it.
        f"--alias:react-dom={react / 'react-dom'}",
        f"--outfile={folder / 'main.js'}",
    ]
    ran = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=_BUILD_SECONDS
    )
    assert ran.returncode == 0, ran.stderr
    html = '<!doctype html><div id="root"></div><script type="module" src="/main.js"></script>'
    return {"/": html, "/main.js": (folder / "main.js").read_bytes()}
