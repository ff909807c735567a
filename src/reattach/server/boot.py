"""The id of the machine's current boot, which distinguishes a power cut from a killed process."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

BootId = Callable[[], str | None]
"""Returns an id that stays the same until the next boot; None if the system has none."""

_LINUX: Final = Path("/proc/sys/kernel/random/boot_id")
_DARWIN: Final = ("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid")
_COMMAND_SECONDS: Final = 5.0


def boot_id() -> str | None:
    """Return the id of the current boot on Linux or macOS; reads a file or runs a program."""
    try:
        if sys.platform == "darwin":
            asked = subprocess.run(  # noqa: S603  a program of the system
                _DARWIN, check=True, capture_output=True, text=True, timeout=_COMMAND_SECONDS
            )
            return asked.stdout.strip() or None
        return _LINUX.read_text(encoding="ascii").strip() or None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
