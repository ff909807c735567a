"""Single keys of a terminal."""

import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

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


@contextmanager
def single_keys() -> Iterator[int | None]:
    """Yield a descriptor that gives keys without Enter; None if standard input is no terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def read_keys(descriptor: int) -> list[str]:
    """Return the keys that were pressed: characters, or names such as ``up`` and ``enter``."""
    return list(keys_of(os.read(descriptor, _MOST_BYTES).decode("utf-8", "replace")))


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
