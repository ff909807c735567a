"""Results of the checks that `reattach doctor` and a starting server make."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """The result of one check; ``wrong`` means that the server cannot work as promised."""

    level: Level
    what: str
    """The name of the check; the same every time."""
    detail: str
    """The result, without secrets."""
    remedy: str = ""
    """The next step after a warning or a fault."""
