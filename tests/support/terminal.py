"""A command that runs on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from types import TracebackType
from typing import Final, Self

BOUND_SECONDS: Final = 30.0

_ESCAPES: Final = re.compile(rb"\x1b(?:\[[0-9;?]*[a-zA-Z]|[()][A-Z0-9]|[=>78])")


_PROGRAM: Final = """
import fcntl, runpy, signal, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("reattach", run_name="__main__")
"""
"""The program with its terminal, so that Ctrl-C and changes of the size are signals to it."""


class Terminal:
    """``reattach`` with its standard streams on a pseudo-terminal of the given size."""

    def __init__(
        self, *arguments: str, columns: int = 160, lines: int = 40, **variables: str
    ) -> None:
        self.output = b""
        """All bytes that the command wrote so far."""
        self._main, child = pty.openpty()
        self._resize(columns, lines)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("REATTACH_")}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            inherited.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *arguments],
            stdin=child,
            stdout=child,
            stderr=child,
            env=inherited | {"TERM": "xterm-256color"} | variables,
            start_new_session=True,
        )
        os.close(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._main)

    @property
    def text(self) -> str:
        """Everything that was written so far, without colours and movements of the cursor."""
        return _ESCAPES.sub(b"", self.output).decode("utf-8", "replace")

    def wait_for(self, text: str) -> str:
        """Read until the text was written since the last call, and return what came since then."""
        start = len(self.output)
        while text not in self._text_since(start):
            self._read(text)
        return self._text_since(start)

    def press(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Change the size of the terminal; the kernel signals it to the command."""
        self._resize(columns, lines)

    def end(self) -> int:
        """Read until the command ends, and return its status."""
        try:
            while True:
                self._read("the end")
        except EOFError:
            return self.process.wait(BOUND_SECONDS)

    def _text_since(self, start: int) -> str:
        return _ESCAPES.sub(b"", self.output[start:]).decode("utf-8", "replace")

    def _read(self, wanted: str) -> None:
        ready, _, _ = select.select([self._main], [], [], BOUND_SECONDS)
        if not ready:
            raise TimeoutError(f"{wanted!r} did not come; the terminal shows {self.text[-2000:]}")
        try:
            data = os.read(self._main, 65536)
        except OSError:  # EIO: the command has closed the terminal.
            data = b""
        if not data:
            raise EOFError(f"The command ended before {wanted!r}: {self.text[-2000:]}")
        self.output += data

    def _resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
