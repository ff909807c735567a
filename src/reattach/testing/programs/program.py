"""A program in the background, which is started, ended and started again."""

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
from reattach.testing.programs.forking import ForkedProcess

START_SECONDS: Final = 60.0
"""How long a start may take on a busy machine."""
STOP_SECONDS: Final = 30.0
"""How long an end may take."""

_LOOK_SECONDS: Final = 0.01

Process = subprocess.Popen[str] | ForkedProcess


class Program(Closing):
    """A program at a port of loopback, which it keeps when it is started again.

    As a context it is started, and closed at the end. One at a time starts and ends it.
    """

    name: ClassVar[str]
    """As errors call it."""

    def __init__(self, port: int, temporary: Path | None = None, **options: Any) -> None:
        """``temporary`` is a folder that goes when it is closed; ``options`` are those of Popen."""
        self.port = port
        self._temporary = temporary
        self._options = options
        self._process: Process | None = None
        self._printed: list[list[str]] = []
        """The lines that it has printed, by start."""

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
        """What it has printed so far, all starts together."""
        return "\n".join(line for lines in self._printed for line in lines)

    def start(self) -> None:
        """Start it and wait until it is ready. Raises RuntimeError with its output."""
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
            time.sleep(_LOOK_SECONDS)

    def signal(self, number: int) -> None:
        assert self._process is not None, "not running"
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once, as a crash does. Idempotent."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """End it and remove its folder. Idempotent."""
        self.kill()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _spawn(self) -> Process:
        return subprocess.Popen(  # noqa: S603  a program of ours
            self._command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **self._options,
        )

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """The program in the foreground, and its arguments."""

    @abstractmethod
    def _is_ready(self, printed: Sequence[str]) -> bool:
        """Whether it is, given the lines that it has printed since its start."""

    def _end(self, number: int) -> None:
        if self._process is not None:
            self.signal(number)
            self._process.wait(STOP_SECONDS)
            self._process = None


def _read(process: Process, lines: list[str]) -> None:
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            lines.append(line.rstrip("\n"))  # noqa: PERF401  it is read meanwhile
