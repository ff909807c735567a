"""What was found out about something that a server depends on."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing that was looked at. ``wrong`` keeps a server from working or from its promises."""

    level: Level
    what: str
    """The name of the check, the same every time."""
    detail: str
    """What was found, without secrets."""
    remedy: str = ""
    """What to do about a warning or a fault."""
