"""Readers of runs, as operators see them: who reads which run, how far, and who was cut off.

Nothing here is touched when an event is delivered. A reader's position is looked up when somebody
asks for it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from enum import StrEnum
from typing import Final, Self

import structlog
from msgspec import Struct

from reattach.domain.clock import Clock
from reattach.domain.ids import RunId, Seq, TenantId
from reattach.records.base import Target
from reattach.runs.following.follow import Following, Watch
from reattach.runs.following.lag import LagMeter

logger = structlog.get_logger(__name__)


class Transport(StrEnum):
    """The way in which a reader gets its events."""

    POST = "post"
    """A stream of one run that was asked for by POST, as the SDKs do."""
    GET = "get"
    """A stream of one run that a web page asked for by GET."""
    MANY = "many"
    """One of the runs in a response with many."""


class CutReason(StrEnum):
    """The reason why a body ended before its run did."""

    REVOKED = "revoked"
    """The key or token was revoked, or the key has expired."""
    TOKEN_EXPIRED = "token_expired"  # noqa: S105  it is the name of a reason
    LOG_DAMAGED = "log_damaged"
    LOG_FAILED = "log_failed"
    """The log cannot be followed any longer: it was lost or deleted, or its store is away."""
    NOT_SETTLED = "not_settled"
    """The run has ended, but its record does not say so in time."""
    RELEASED = "released"
    """This process is shutting down, and another one drives the run."""
    STALLED = "stalled"
    """The client read nothing for too long."""
    ERROR = "error"
    """A fault of the server."""


def loss_of_rights(token_ends_at: datetime | None, now: datetime) -> tuple[CutReason, str]:
    """Return why a reader may not read on, also in words; None: it has no stream token."""
    if token_ends_at is not None and now >= token_ends_at:
        return CutReason.TOKEN_EXPIRED, "its token has expired"
    return CutReason.REVOKED, "its key was revoked or has expired"


class Reader(Struct, frozen=True):
    """One reader of one run at present."""

    run_id: RunId
    tenant: TenantId
    transport: Transport
    client: str
    """The name of the client's program, as it gives it; may be empty."""
    since: datetime
    cursor: Seq
    """The last event that it was sent."""
    last_seq: Seq
    """The last event of the run in this process."""

    @classmethod
    def of(cls, following: Following, origin: "Origin") -> Self:
        """Return the reader with its present position."""
        return cls(
            RunId(following.run_id),
            origin.tenant,
            origin.transport,
            origin.client,
            origin.since,
            following.cursor,
            following.last_seq,
        )

    @property
    def lag_events(self) -> int:
        """The number of events that it has not been sent yet."""
        return max(self.last_seq - self.cursor, 0)


class Origin(Struct, frozen=True, gc=False):
    """The part of a reader that is known when it comes."""

    tenant: TenantId
    transport: Transport
    client: str
    since: datetime


class CutOff(Struct, frozen=True):
    """A reader that was cut off."""

    run_id: RunId
    tenant: TenantId
    at: datetime
    reason: CutReason
    cursor: Seq
    """The last event that it was sent."""
    client: str
    transport: Transport


LAG_SAMPLE: Final = 64
"""The readers of which one measures its lag."""

LagSource = Callable[[Following], LagMeter | None]


class Readers:
    """The readers of a process."""

    def __init__(self, watch: Watch, clock: Clock) -> None:
        self._watch = watch
        self._clock = clock
        self._origins: dict[Following, Origin] = {}
        self._on_cut: list[Callable[[CutOff], object]] = []
        self._lag: LagSource | None = None
        self._measured: set[Following] = set()

    def measure_lag(self, source: LagSource) -> None:
        """Measure the lag of at least one reader and of about one in LAG_SAMPLE.

        ``source`` makes the meter of a reader; it returns None for runs that another process
        drives.
        """
        self._lag = source

    def add(
        self,
        following: Following,
        target: Target,
        *,
        transport: Transport,
        client: str,
        pings: bool,
        is_translated: bool = False,
    ) -> None:
        """Count a reader, and watch it, until it is removed.

        One that ``is_translated`` counts frames of another dialect, not events of the log.
        """
        now = self._clock.now()
        self._origins[following] = Origin(target.tenant, transport, client, now)
        self._watch.add(following, pings=pings)
        if is_translated or self._lag is None:
            return
        if len(self._measured) * LAG_SAMPLE < len(self._origins):
            lag = self._lag(following)
            if lag is not None:
                self._measured.add(following)
                following.measure(lag)

    def remove(self, following: Following) -> None:
        self._watch.remove(following)
        self._measured.discard(following)
        self._origins.pop(following, None)

    def on_cut(self, listener: Callable[[CutOff], object]) -> None:
        """Call ``listener`` for every reader that is cut off. It may neither block nor raise."""
        self._on_cut.append(listener)

    def note_cut(self, following: Following, reason: CutReason, detail: str) -> None:
        """Log that a reader is cut off, and why, and notify the listeners."""
        log = logger.warning if reason is CutReason.LOG_DAMAGED else logger.info
        log("reader cut off", run_id=following.run_id, cause=reason.value, reason=detail)
        origin = self._origins.get(following)
        if origin is None:  # It was cut off and removed before.
            return
        cut = CutOff(
            RunId(following.run_id),
            origin.tenant,
            self._clock.now(),
            reason,
            following.cursor,
            origin.client,
            origin.transport,
        )
        for listener in self._on_cut:
            listener(cut)

    def by_transport(self) -> Counter[Transport]:
        """Count the readers of each transport, in much less time than it takes to list them."""
        return Counter(origin.transport for origin in self._origins.values())

    def __len__(self) -> int:
        return len(self._origins)

    def __iter__(self) -> Iterator[Reader]:
        for following, origin in list(self._origins.items()):
            yield Reader.of(following, origin)

    def origins(self) -> Iterable[tuple[Following, Origin]]:
        """Return all readers without their positions, for those who only count them."""
        return self._origins.items()

    def of_run(self, run_id: str) -> list[Reader]:
        """Return the readers of one run."""
        return [reader for reader in self if reader.run_id == run_id]
