"""The messages between a supervisor and its children: one line each, in both directions.

To a child go its ``Start``, then any number of ``ShutdownCommand``, of FIGURES, which asks for the
child's own figures, and of "figures" with JSON, the figures of all children for which it asked.
From a child come JSON arrays: READY or FAILED first, with a URL or a reason, then FIGURES with its
own figures, and ASK, which asks for those of all.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel, SecretStr

from reattach.settings import Settings

ShutdownCommand = Literal["drain", "hurry"]
"""A command to a child: start draining, or cut the drain short."""

READY: Final = "ready"
FAILED: Final = "failed"
FIGURES: Final = "figures"
ASK: Final = "ask"

MAX_LINE_BYTES: Final = 32 * 1024 * 1024
"""The longest line that a supervisor reads: far more than the figures of a child take."""


@dataclass(frozen=True, slots=True)
class Start:
    """The first line to a child: all settings, so that it reads no environment and no file."""

    settings: Settings
    worker: int
    """Its slot, from 0. A replacement has the slot of the child before it."""

    def dump(self) -> bytes:
        settings = dict(self.settings) | {"config": None}
        members = {"worker": self.worker, "settings": settings}
        return json.dumps(members, default=_plain).encode() + b"\n"

    @classmethod
    def parse(cls, line: str) -> "Start":
        members = json.loads(line)
        return cls(Settings(**members["settings"]), members["worker"])


def _plain(value: object) -> object:
    """Return a value that JSON cannot have in a form from which the settings read it again."""
    match value:
        case SecretStr():
            return value.get_secret_value()
        case BaseModel():  # Its unset members may contradict those that are set.
            return {name: getattr(value, name) for name in value.model_fields_set}
        case Mapping():
            return dict(value)
        case _:
            return str(value)
