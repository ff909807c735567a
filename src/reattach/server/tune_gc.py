"""Garbage collector and thread settings for a process that does nothing but serve."""

import gc
import sys
from typing import Final

_THRESHOLDS: Final = (5_000, 200, 50)
"""Allocations between two collections of the youngest objects, and how many of those pass before
older ones are looked at. The first is small because 50,000 young objects hold the event loop for 10
to 25 ms. The product is large because few objects here are garbage in a cycle, and with a thousand
runs in memory the default thresholds take a fifth of the time."""

_SWITCH_SECONDS: Final = 0.0005
"""How long the event loop may hold the interpreter while another thread is ready. The thread that
writes the log waits several times per commit, by default for ten times as long."""


def tune_gc() -> None:
    """Exempt all imported objects from collection and set thresholds; call it after the imports."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    gc.enable()
    sys.setswitchinterval(_SWITCH_SECONDS)
