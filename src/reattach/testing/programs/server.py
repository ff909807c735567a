"""A Reattach server as a process of its own, to be stopped, killed and started again."""

import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

from typing_extensions import override

from reattach.engine.providers import VARIABLES as PROVIDER_VARIABLES
from reattach.testing.programs.forking import Forking
from reattach.testing.programs.program import STOP_SECONDS, Process, Program

_READY: Final = re.compile(r"is listening on (http://\S+)")


class ServerProcess(Program):
    """``reattach serve`` on the port that is free at its first start.

    Neither REATTACH_ variables nor providers' keys reach it from the environment, except those
    given.
    """

    name = "The server"

    forking: ClassVar[Forking | None] = None
    """Set it to start servers as forks of a process that has imported everything."""

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
        """The headers that its clients have to send, if a key exists."""

    def stop(self, *, timeout_seconds: float = STOP_SECONDS) -> int:
        """SIGTERM; return its exit status. Raises subprocess.TimeoutExpired."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_seconds=timeout_seconds)

    def wait(self, *, timeout_seconds: float = STOP_SECONDS) -> int:
        """Wait until it has ended; return its exit status. Raises subprocess.TimeoutExpired."""
        assert self._process is not None, "not running"
        return self._process.wait(timeout_seconds)

    @override
    def _spawn(self) -> Process:
        forking = ServerProcess.forking
        if forking is None or not forking.can_start(self._environment):
            return super()._spawn()
        return forking.start(self._serve(), self._environment)

    @override
    def _command(self) -> Sequence[str | Path]:
        return [sys.executable, "-m", "reattach", *self._serve()]

    def _serve(self) -> list[str]:
        where = ("--port", str(self.port), "--data-dir", str(self._data_dir))
        return ["serve", *where, *self._arguments]

    @override
    def _is_ready(self, printed: Sequence[str]) -> bool:
        """It tells its address once it is."""
        match = _READY.search("\n".join(printed))
        if match is not None:
            self.url = match[1]
            self.port = int(self.url.rpartition(":")[2])
        return match is not None
