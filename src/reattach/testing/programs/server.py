"""A Reattach server as a process that tests stop, kill and restart."""

import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from typing_extensions import override

from reattach.engine.providers import VARIABLES as PROVIDER_VARIABLES
from reattach.testing.programs.program import STOP_SECONDS, Program

_READY: Final = re.compile(r"is listening on (http://\S+)")


class ServerProcess(Program):
    """``reattach serve`` on a port that is chosen at its first start.

    It inherits neither REATTACH_ variables nor providers' keys; ``environment`` adds variables.
    """

    name = "The server"

    def __init__(
        self,
        data_dir: Path,
        *,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("REATTACH_") and name not in PROVIDER_VARIABLES
        }
        self._environment = inherited | dict(environment or {})
        super().__init__(0, env=self._environment)
        self._data_dir = data_dir
        self._arguments = arguments
        self.url = ""
        self.api_key: str | None = None
        """The API key that its clients must send, if one exists."""

    def stop(self, *, timeout_seconds: float = STOP_SECONDS) -> int:
        """Send SIGTERM and return the exit status. Raises subprocess.TimeoutExpired."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_seconds=timeout_seconds)

    def wait(self, *, timeout_seconds: float = STOP_SECONDS) -> int:
        """Return the exit status of the server when it has ended. Raises TimeoutExpired."""
        assert self._process is not None, "not running"
        return self._process.wait(timeout_seconds)

    @override
    def _command(self) -> Sequence[str | Path]:
        return [sys.executable, "-m", "reattach", *self._serve()]

    def _serve(self) -> list[str]:
        """Return the arguments of ``reattach``."""
        where = ("--port", str(self.port), "--data-dir", str(self._data_dir))
        return ["serve", *where, *self._arguments]

    @override
    def _is_ready(self, printed: Sequence[str]) -> bool:
        """Read the address that the server prints when it is ready."""
        match = _READY.search("\n".join(printed))
        if match is not None:
            self.url = match[1]
            self.port = int(self.url.rpartition(":")[2])
        return match is not None
