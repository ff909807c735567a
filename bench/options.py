"""What the one who measures may choose."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import Cores


@dataclass(frozen=True)
class Options:
    quick: bool = False
    """Smaller sizes and one round: for daily use, and no figure to quote."""
    long: bool = False
    """The sizes too that take more than ten minutes."""
    rounds: int = 0
    """How often each contender has its turn; 0: once if quick, else as often as the work needs."""
    contenders: Sequence[str] = ()
    """Words of the names of those that are measured; empty: all are."""
    against: Sequence[Path] = ()
    """Other checkouts of this project, whose servers are measured beside its own."""
    cores: Cores = field(default_factory=Cores.available)
    repetitions: int = 3
    """How often each fault is tried."""
    minutes: float = 5.0
    """How long a siege lasts."""
    lease_seconds: float = 2.0
    """The lease of the servers under faults."""
    only: str = ""
    """A word of the names of the faults that are tried; empty: all are."""
    table: str = ""
    """File that a table of faults is written to; empty: it is only printed."""

    def times(self, rounds: int) -> int:
        return self.rounds or (1 if self.quick else rounds)
