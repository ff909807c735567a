"""Background programs that tests start, stop and restart."""

import shutil
import signal
import subprocess
import threading
import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from reattach.testing.closing import Closing

START_SECONDS: Final = 60.0
"""Time limit of a start, for a busy machine."""
STOP_SECONDS: Final = 30.0
"""Time limit of a stop."""

_POLL_SECONDS: Final = 0.01


class Program(Closing):
    """A program on a loopback port, which it keeps over restarts.

    The context manager starts the program and closes it on exit. Not thread-safe.
    """

    name: ClassVar[str]
    """The program's name in error messages."""

    def __init__(self, port: int, temporary: Path | None = None, **options: Any) -> None:
        """Prepare the program. ``close`` removes ``temporary``; ``options`` are passed to Popen."""
        self.port = port
        self._temporary = temporary
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._printed: list[list[str]] = []
        """The lines of the program's output, one list for each start."""

    def __enter__(self) -> Self:
        if not self.running:
            try:
                self.start()
            except RuntimeError:
                self.close()
                raise
        return self

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def output(self) -> str:
        """The output of all starts so far."""
        return "\n".join(line for lines in self._printed for line in lines)

    def start(self) -> None:
        """Start the program and wait until it is ready. Raises RuntimeError with its output."""
        assert not self.running, "already running"
        self._process = process = self._spawn()
        printed: list[str] = []
        self._printed.append(printed)
        reading = threading.Thread(target=_read, args=(process, printed), daemon=True)
        reading.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready(printed):
            if process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                reading.join(STOP_SECONDS)
                raise RuntimeError(f"{self.name} did not start:\n{self.output}")
            time.sleep(_POLL_SECONDS)

    def signal(self, number: int) -> None:
        assert self._process is not None, "not running"
        self._process.send_signal(number)

    def pause(self) -> None:
        """Send SIGSTOP: the program's connections stay open and get no answers."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Send SIGCONT, unless the program has ended. Idempotent."""
        if self.running:
            self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL and wait until the program has ended. Idempotent."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Stop the program and remove its folder. Idempotent."""
        self.kill()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _spawn(self) -> subprocess.Popen[str]:
        return subprocess.Popen(  # noqa: S603  no input of users
            self._command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **self._options,
        )

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """Return the command line that runs the program in the foreground."""

    @abstractmethod
    def _is_ready(self, printed: Sequence[str]) -> bool:
        """Return whether the program is ready, given its output since the start."""

    def _end(self, number: int) -> None:
        if self._process is not None:
            self.signal(number)
            self._process.wait(STOP_SECONDS)
            self._process = None


def _read(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            lines.append(line.rstrip("\n"))  # noqa: PERF401  others read the list meanwhile
