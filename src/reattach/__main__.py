"""The program ``reattach``, also as ``python -m reattach``."""

import gc
import sys

if sys.platform == "win32":  # The server needs file locks and signals that Windows does not have.
    sys.exit(
        "reattach: The server runs on Linux and macOS. On Windows, run it inside WSL "
        "(https://learn.microsoft.com/windows/wsl). The Python client, reattach.client, runs here."
    )

# Imported objects live as long as the process. Garbage collections during the imports would find
# nothing, and would take a sixth of the start-up time. Commands that run for long enable the
# collector after their imports.
gc.disable()

from reattach.cli import main  # noqa: E402  after the collector was disabled

if __name__ == "__main__":
    main()
