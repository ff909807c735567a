"""Quotas of a tenant in this process.

Each process counts for itself, so several processes allow a multiple. A limit of 0 means no limit.
"""

import math
from dataclasses import dataclass

from reattach.domain.clock import Clock, SystemClock
from reattach.domain.errors import QuotaError, UnavailableError
from reattach.domain.ids import TenantId
from reattach.domain.limits.requests import (
    PROCESS_BODY_BYTES,
    QUOTA_BURST_SECONDS,
    TENANT_BODY_BYTES,
    TENANT_BODY_BYTES_PER_MINUTE,
    TENANT_REQUESTS_PER_SECOND,
    TENANT_RUNS,
    TENANT_STREAMS,
)
from reattach.meters.instruments import Counters

_MIB = 1024 * 1024
_RUNS_RETRY_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits on one tenant's use of a process."""

    runs: int = TENANT_RUNS
    """Open runs."""
    streams: int = TENANT_STREAMS
    """Open streams, and requests that wait for the end of a run."""
    requests_per_second: float = TENANT_REQUESTS_PER_SECOND
    """Sustained rate; QUOTA_BURST_SECONDS' worth of requests may arrive at once."""
    body_bytes: int = TENANT_BODY_BYTES
    """Bytes of request bodies held at a time."""
    body_bytes_per_minute: int = TENANT_BODY_BYTES_PER_MINUTE


@dataclass(frozen=True, slots=True)
class QuotaState:
    """One limit of a tenant in this process, and how much of it is in use."""

    name: str
    """The name of the setting, without ``quota_``."""
    used: float | None
    """None for a rate, which is not counted."""
    limit: float | None
    """None for no limit."""


class Quotas:
    """The present use of all tenants."""

    def __init__(
        self,
        bounds: Bounds | None = None,
        clock: Clock | None = None,
        *,
        process_body_bytes: int = PROCESS_BODY_BYTES,
        refused: Counters | None = None,
    ) -> None:
        self.refused = refused or Counters()
        self.bounds = bounds or Bounds()
        self.clock = clock or SystemClock()
        self.body_bytes_left = process_body_bytes
        """Bytes that all tenants together may still add to the bodies in memory."""
        self._tenants: dict[TenantId | None, TenantUse] = {}

    def of(self, tenant: TenantId | None) -> "TenantUse":
        """Return the use of the tenant; None stands for requests that need no key."""
        use = self._tenants.get(tenant)
        if use is None:
            use = self._tenants[tenant] = TenantUse(self)
        return use

    def states(self, tenant: TenantId, open_runs: int) -> list[QuotaState]:
        """Return every limit of the tenant with its present use in this process."""
        bounds, use = self.bounds, self._tenants.get(tenant)
        used_and_limits = {
            "runs": (open_runs, bounds.runs),
            "streams": (use.streams if use else 0, bounds.streams),
            "requests_per_second": (None, bounds.requests_per_second),
            "body_mib": (use.body_mib if use else 0.0, bounds.body_bytes / _MIB),
            "body_mib_per_minute": (None, bounds.body_bytes_per_minute / _MIB),
        }
        return [
            QuotaState(name, used, limit or None) for name, (used, limit) in used_and_limits.items()
        ]


class TenantUse:
    """The present use of one tenant; refuses requests beyond the quota."""

    __slots__ = ("_body_bytes", "_bytes", "_quotas", "_requests", "_streams")

    def __init__(self, quotas: Quotas) -> None:
        bounds = quotas.bounds
        self._quotas = quotas
        self._streams = 0
        self._body_bytes = 0
        a_second = bounds.requests_per_second
        self._requests = _Bucket(quotas.clock, a_second, a_second * QUOTA_BURST_SECONDS)
        a_minute = bounds.body_bytes_per_minute
        self._bytes = _Bucket(quotas.clock, a_minute / 60, a_minute)

    @property
    def streams(self) -> int:
        """The number of open streams."""
        return self._streams

    @property
    def body_mib(self) -> float:
        """The MiB of request bodies that are held."""
        return round(self._body_bytes / _MIB, 3)

    def admit(self) -> None:
        """Count a request. Raises QuotaError."""
        wait_seconds = self._requests.take(1)
        if wait_seconds:
            raise QuotaError(
                "The tenant has exceeded its quota of "
                f"{self._quotas.bounds.requests_per_second:g} requests per second.",
                remedy="Wait as 'Retry-After' says, and send fewer requests.",
                retry_after_seconds=wait_seconds,
            )

    def admit_run(self, open_runs: int) -> None:
        """Check that another run may start beside the open ones. Raises QuotaError."""
        most = self._quotas.bounds.runs
        if most and open_runs >= most:
            raise QuotaError(
                f"The tenant has {open_runs} open runs, and its quota is {most}.",
                remedy="Wait until some have ended, or cancel some.",
                retry_after_seconds=_RUNS_RETRY_SECONDS,
            )

    def open_stream(self) -> None:
        """Count a stream until ``close_stream``. Raises QuotaError."""
        most = self._quotas.bounds.streams
        if most and self._streams >= most:
            raise QuotaError(
                f"The tenant has {most} open streams, which is its quota.",
                remedy="Close streams that nobody reads; their runs continue.",
            )
        self._streams += 1

    def note_refused_request(self) -> None:
        """Count a request whose ``admit`` was refused for good: some are tried twice."""
        self._quotas.refused.add("requests")

    def note_refused_stream(self) -> None:
        self._quotas.refused.add("streams")

    def close_stream(self) -> None:
        self._streams -= 1

    def hold_body(self, size_bytes: int) -> None:
        """Count bytes of a request body as held until ``release_body``.

        Raises QuotaError or UnavailableError, and holds nothing then.
        """
        quotas, most = self._quotas, self._quotas.bounds.body_bytes
        if most and self._body_bytes + size_bytes > most:
            quotas.refused.add("bodies")
            raise QuotaError(
                f"The tenant's open requests have more than {most // _MIB} MiB of bodies.",
                remedy="Send this request again when some of them have been answered.",
            )
        if size_bytes > quotas.body_bytes_left:
            quotas.refused.add("memory")
            raise UnavailableError(
                "The server's memory for request bodies is full.", remedy="Send the request again."
            )
        wait_seconds = self._bytes.take(size_bytes)
        if wait_seconds:
            quotas.refused.add("bodies")
            raise QuotaError(
                "The tenant has exceeded its quota of "
                f"{quotas.bounds.body_bytes_per_minute // _MIB} MiB of request bodies per minute.",
                remedy="Wait as 'Retry-After' says, and send less.",
                retry_after_seconds=wait_seconds,
            )
        self._body_bytes += size_bytes
        quotas.body_bytes_left -= size_bytes

    def release_body(self, size_bytes: int) -> None:
        """Stop counting these bytes as held."""
        self._body_bytes -= size_bytes
        self._quotas.body_bytes_left += size_bytes


class _Bucket:
    """A token bucket that refills at ``rate`` per second up to ``size``; rate 0 is unlimited."""

    __slots__ = ("_at", "_clock", "_left", "_rate", "_size")

    def __init__(self, clock: Clock, rate: float, size: float) -> None:
        self._clock = clock
        self._rate = rate
        self._size = self._left = size
        self._at = clock.monotonic_seconds()

    def take(self, amount: float) -> int:
        """Take ``amount`` and return 0, or take nothing and return the seconds to wait."""
        if not self._rate:
            return 0
        now = self._clock.monotonic_seconds()
        left = min(self._size, self._left + (now - self._at) * self._rate)
        self._at = now
        if left < amount:
            self._left = left
            return math.ceil((amount - left) / self._rate)
        self._left = left - amount
        return 0
