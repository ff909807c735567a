"""Single keys of a terminal."""

import os
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Any, Final, Self

_SEQUENCES: Final = {
    "[A": "up",
    "[B": "down",
    "OA": "up",
    "OB": "down",
    "[5~": "page up",
    "[6~": "page down",
    "[H": "home",
    "[F": "end",
    "[1~": "home",
    "[4~": "end",
}
_NAMES: Final = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\b": "backspace"}
_MOST_BYTES: Final = 1024


class Keyboard:
    """Keys of standard input without Enter, from ``start`` until ``stop``. Both are idempotent."""

    def __init__(self) -> None:
        self.descriptor = sys.stdin.fileno() if sys.stdin.isatty() else None
        """None if standard input is no terminal, so that there are no keys."""
        self._before: list[Any] | None = None

    def start(self) -> None:
        if self.descriptor is not None and self._before is None:
            self._before = termios.tcgetattr(self.descriptor)
            tty.setcbreak(self.descriptor)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self.descriptor is not None and self._before is not None:
            termios.tcsetattr(self.descriptor, termios.TCSADRAIN, self._before)
            self._before = None

    def read(self) -> list[str]:
        """Return the keys that were pressed: characters, or names such as ``up`` and ``enter``."""
        if self.descriptor is None:
            return []
        data = os.read(self.descriptor, _MOST_BYTES)
        return list(keys_of(data.decode("utf-8", "replace")))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def keys_of(text: str) -> Iterator[str]:
    """Yield the keys whose characters a terminal sends; unknown sequences are left out."""
    at = 0
    while at < len(text):
        if text[at] != "\x1b":
            yield _NAMES.get(text[at], text[at])
            at += 1
            continue
        name = next((one for one in _SEQUENCES if text.startswith(one, at + 1)), None)
        if name is not None:
            yield _SEQUENCES[name]
            at += 1 + len(name)
        elif text[at + 1 : at + 2] in {"[", "O"}:
            at += 2
            while at < len(text) and not text[at].isalpha() and text[at] != "~":
                at += 1
            at += 1
        else:
            yield "escape"
            at += 1
