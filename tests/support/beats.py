"""Beats in the event loop of the test; a server sends them from a thread of its own."""

from reattach.records.base import Beat
from reattach.runs.ownership.lease import Ownership
from reattach.runs.service import RunService


async def beat(runs: RunService) -> None:
    """Renew the lease of ``runs``, and apply what the records report.

    Raises:
        StoreUnavailableError: A store does not answer.
    """
    owner = runs.ownership.owner
    await runs.apply_beat(owner, await renew_lease(runs.ownership))


async def renew_lease(ownership: Ownership) -> Beat:
    """Send and record a beat.

    Raises:
        StoreUnavailableError: The records do not answer.
    """
    asked_at = ownership._clock.monotonic_seconds()
    answer: Beat | None = None
    try:
        answer = await ownership._owners.beat(ownership.owner)
    finally:
        ownership.record_beat(answer, asked_at, ownership._clock.monotonic_seconds())
    return answer
