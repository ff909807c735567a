"""Who is measured beside Reattach: each on the work that it can do, if it can be had."""

from collections.abc import Sequence

from bench.contender import Contender, Work
from bench.options import Options
from bench.yardsticks.local import CEILING, NAIVE, RESUMABLE

ALL: Sequence[Contender] = (CEILING, NAIVE, RESUMABLE)


def wanted(options: Options, contender: Contender) -> bool:
    return not options.contenders or any(word in contender.name for word in options.contenders)


def others(options: Options, work: Work) -> list[Contender]:
    """Those that do this work and can be had here."""
    return [one for one in _doing(options, work) if not one.missing()]


def missing(options: Options, work: Work) -> list[str]:
    """Those that do this work and can not be had, and why."""
    return [f"{one.name}: {why}" for one in _doing(options, work) if (why := one.missing())]


def _doing(options: Options, work: Work) -> list[Contender]:
    return [one for one in ALL if work in one.works and wanted(options, one)]
