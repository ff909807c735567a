"""The servers that Reattach is compared with, each on the work that it supports."""

from collections.abc import Sequence

from bench.contenders.contender import Contender, Work
from bench.contenders.product import Reattach
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
    """Return whether it is measured: those named, or else all, or with ``quick`` the bounds."""
    if options.contenders:
        return any(word in contender.name for word in options.contenders)
    return not options.quick or contender in {CEILING, EMPTY}


def is_subject(contender: Contender) -> bool:
    """Return whether the goals are about this server, so that each round measures all sizes."""
    return isinstance(contender, Reattach) or contender is CEILING


def others(options: Options, work: Work) -> list[Contender]:
    """List the servers that support this work and are available here."""
    return [one for one in _doing(options, work) if not one.missing()]


def missing(options: Options, work: Work) -> list[str]:
    """List the servers that support this work and are not available, with the reasons."""
    return [f"{one.name}: {why}" for one in _doing(options, work) if (why := one.missing())]


def _doing(options: Options, work: Work) -> list[Contender]:
    return [one for one in ALL if work in one.works and wanted(options, one)]
