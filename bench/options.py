"""What the one who measures may choose."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    repetitions: int = 3
    """How often each fault is tried."""
    lease_seconds: float = 2.0
    """The lease of the servers that faults befall."""
    only: str = ""
    """A word of the names of the faults that are tried; empty: all are."""
    table: str = ""
    """File that a table is written to; empty: it is only printed."""
