"""The program ``reattach``, also as ``python -m reattach``."""

import gc
import sys

if sys.platform == "win32":  # The server needs file locks and signals that Windows does not have.
    sys.exit(
        "reattach: The server runs on Linux and macOS. On Windows, run it inside WSL "
        "(https://learn.microsoft.com/windows/wsl). The Python client, reattach.client, runs here."
    )

# What is imported stays for good. To look through it for garbage again and again takes a sixth of
# the time of a start.
gc.disable()

from reattach.cli import main  # noqa: E402  after the collector was put aside
from reattach.server.tune_gc import tune_gc  # noqa: E402

tune_gc()

if __name__ == "__main__":
    main()
