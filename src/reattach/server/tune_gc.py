"""The interpreter of a process that does nothing but serve: its collector and its threads."""

import gc
import sys
from typing import Final

_THRESHOLDS: Final = (50_000, 20, 50)
"""New objects between two looks for garbage. Hardly anything here is garbage only in a cycle, and
with a thousand runs in memory the usual looks take a fifth of the time."""

_SWITCH_SECONDS: Final = 0.0005
"""How long the event loop may keep a thread waiting that has something to go on with. The thread
that writes the log waits several times for a commit, usually for ten times as long."""


def tune_gc() -> None:
    """To be called when everything was imported: that stays, and is left alone by the collector."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    gc.enable()
    sys.setswitchinterval(_SWITCH_SECONDS)
