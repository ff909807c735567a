"""The React program of the recipes, compiled with `tsc --strict` and bundled."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.support.browser import DIRECTORY
from tests.support.javascript_client import PACKAGE, require_client
from tests.support.missing import skip_or_fail

MOUNTING: Final = """
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Chat } from "./chat.js";

const conversation = new URLSearchParams(location.search).get("conversation") ?? "";
const root = createRoot(document.getElementById("root")!);
const chat = <StrictMode><Chat conversation={conversation} /></StrictMode>;
const mount = (isMounted: boolean) => root.render(isMounted && chat);
Object.assign(globalThis, { mount });
"""
"""Mounts and unmounts the program when a test asks for it."""

COUNTING: Final = """<body><script>
const streams = { open: 0, opened: 0 };
const original = globalThis.fetch;
globalThis.fetch = (url, init) => {
  if (init?.signal?.aborted === false) {
    streams.open += 1;
    streams.opened += 1;
    init.signal.addEventListener("abort", () => (streams.open -= 1));
  }
  return original(url, init);
};
</script>
"""
"""Counts the streams of the page."""

PROGRAM: Final = Path(__file__).parents[2] / "examples/react"
_PACKAGES: Final = DIRECTORY / "node_modules"
_BUILD_SECONDS: Final = 60.0


def build(folder: Path, server: str) -> dict[str, str | bytes]:
    """Build the program in the folder as a user would, for a server, and return files by path."""
    node = require_client()
    if not (_PACKAGES / "react").is_dir():
        skip_or_fail("React is not installed: run scripts/setup")
    shutil.copytree(PROGRAM, folder, dirs_exist_ok=True)
    (folder / "mounting.tsx").write_text(MOUNTING)
    chat = folder / "chat.tsx"
    assert chat.read_text().count("http://localhost:8283") == 1
    chat.write_text(chat.read_text().replace("http://localhost:8283", server))
    modules = folder / "node_modules"
    (modules / "@reattach").mkdir(parents=True)
    (modules / "@reattach/client").symlink_to(PACKAGE, target_is_directory=True)
    for name in ("react", "react-dom", "@types"):
        (modules / name).symlink_to(_PACKAGES / name, target_is_directory=True)
    tools = PACKAGE / "node_modules"
    compiler, bundler = tools / "typescript/bin/tsc", tools / "esbuild/bin/esbuild"
    built = folder / "built"
    for command in (
        [str(compiler), "--project", str(folder)],
        [str(bundler), "main.tsx", "mounting.tsx", "--bundle", "--format=esm", f"--outdir={built}"],
    ):
        ran = subprocess.run(
            [node, *command],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=_BUILD_SECONDS,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
    html = (folder / "index.html").read_text()
    return {
        "/": html,
        "/mounting": html.replace("main.js", "mounting.js").replace("<body>", COUNTING),
        "/main.js": (built / "main.js").read_bytes(),
        "/mounting.js": (built / "mounting.js").read_bytes(),
    }
