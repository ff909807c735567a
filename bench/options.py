"""The options of ``scripts/bench``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.measuring.machine import Cores


@dataclass(frozen=True)
class Options:
    quick: bool = False
    """Whether to measure small sizes in one round; such figures are not for quoting."""
    long: bool = False
    """Whether to measure the sizes that take more than ten minutes too."""
    rounds: int = 0
    """Rounds of each measurement. 0: one if quick, else as many as the benchmark needs."""
    contenders: Sequence[str] = ()
    """Words in the names of the servers to compare with, or of the clients. Empty: all."""
    against: Sequence[Path] = ()
    """Other checkouts of this project to compare with."""
    cores: Cores = field(default_factory=Cores.available)
    repetitions: int = 3
    """Experiments with each fault."""
    minutes: float = 5.0
    """Length of a siege."""
    seconds: float = 60.0
    """Length of chaos and of rolling restarts."""
    runs: int = 50
    """Runs that are open at once then."""
    seed: int = 1
    lease_seconds: float = 2.0
    """The lease of the servers under faults."""
    only: str = ""
    """A word in the names of the faults to inject. Empty: all."""
    table: str = ""
    """File to write the table of faults to, or page to put the table of clients into."""

    def times(self, rounds: int) -> int:
        return self.rounds or (1 if self.quick else rounds)
