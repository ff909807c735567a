"""A Reattach server as a process of its own, to be stopped, killed and started again."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_READY: Final = re.compile(r"is listening on (http://\S+)")
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30.0


class ServerProcess:
    """``reattach serve`` on a free loopback port. ``start`` again after an end keeps the port.

    The environment's REATTACH_ variables do not reach it, except those given.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._arguments = list(arguments)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("REATTACH_")}
        self._environment = inherited | dict(environment or {})
        self._port = 0
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def output(self) -> str:
        """What it has printed so far, all starts together."""
        return "\n".join(self._lines)

    def start(self) -> None:
        """Start it and wait until its port answers. Raises RuntimeError with its output."""
        assert not self.running, "already running"
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter
            [
                *(sys.executable, "-m", "reattach", "serve"),
                *("--port", str(self._port), "--data-dir", str(self._data_dir)),
                *self._arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment,
        )
        ready: Future[str] = Future()
        threading.Thread(target=self._read, args=(self._process, ready), daemon=True).start()
        try:
            self.url = ready.result(_START_SECONDS)
        except (EOFError, TimeoutError) as error:
            self.kill()
            raise RuntimeError(f"The server did not start:\n{self.output}") from error
        self._port = int(self.url.rpartition(":")[2])

    def signal(self, number: int) -> None:
        assert self._process is not None, "not started"
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_SECONDS)

    def stop(self, *, timeout_seconds: float = _STOP_SECONDS) -> int:
        """SIGTERM; return its exit status. Raises subprocess.TimeoutExpired."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_seconds=timeout_seconds)

    def wait(self, *, timeout_seconds: float = _STOP_SECONDS) -> int:
        """Wait until it has ended; return its exit status. Raises subprocess.TimeoutExpired."""
        assert self._process is not None, "not started"
        return self._process.wait(timeout_seconds)

    def _read(self, process: "subprocess.Popen[str]", ready: "Future[str]") -> None:
        """Keep what this process prints, and tell its address once it says that it is ready."""
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.append(line.rstrip("\n"))
            match = _READY.search(line)
            if match is not None and not ready.done():
                ready.set_result(match[1])
        process.stdout.close()
        if not ready.done():
            ready.set_exception(EOFError("it ended"))
