"""Who is measured beside Reattach: each on the work that it can do, if it can be had."""

from collections.abc import Sequence

from bench.contender import Contender, Work
from bench.options import Options
from bench.yardsticks.local import CEILING, EMPTY, NAIVE, RESUMABLE, RESUMABLE_STREAM
from bench.yardsticks.published import DURABLE_STREAMS, NCHAN

ALL: Sequence[Contender] = (
    CEILING,
    NAIVE,
    NCHAN,
    DURABLE_STREAMS,
    RESUMABLE_STREAM,
    RESUMABLE,
)


def wanted(options: Options, contender: Contender) -> bool:
    """Whether it has its turn: if nobody is named all have, if it is to be quick those of ours."""
    if options.contenders:
        return any(word in contender.name for word in options.contenders)
    return not options.quick or contender in {CEILING, NAIVE, EMPTY}


def others(options: Options, work: Work) -> list[Contender]:
    """Those that do this work and can be had here."""
    return [one for one in _doing(options, work) if not one.missing()]


def missing(options: Options, work: Work) -> list[str]:
    """Those that do this work and can not be had, and why."""
    return [f"{one.name}: {why}" for one in _doing(options, work) if (why := one.missing())]


def _doing(options: Options, work: Work) -> list[Contender]:
    return [one for one in ALL if work in one.works and wanted(options, one)]
