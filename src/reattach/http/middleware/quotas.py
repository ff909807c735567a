"""How much of this process one tenant may use.

Everything here is counted in this process alone: of several, each allows as much. A bound of 0 is
none.
"""

import math
from dataclasses import dataclass

from reattach.domain.clock import Clock, SystemClock
from reattach.domain.errors import QuotaError, UnavailableError
from reattach.domain.ids import TenantId
from reattach.domain.limits import (
    PROCESS_BODY_BYTES,
    QUOTA_BURST_SECONDS,
    TENANT_BODY_BYTES,
    TENANT_BODY_BYTES_PER_MINUTE,
    TENANT_REQUESTS_PER_SECOND,
    TENANT_RUNS,
    TENANT_STREAMS,
)

_MIB = 1024 * 1024
_RUNS_RETRY_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds on one tenant's use of a process."""

    runs: int = TENANT_RUNS
    """Runs that are open."""
    streams: int = TENANT_STREAMS
    """Streams that are open, and requests that wait for the end of a run."""
    requests_per_second: float = TENANT_REQUESTS_PER_SECOND
    """Over a longer time; QUOTA_BURST_SECONDS' worth of them may come at once."""
    body_bytes: int = TENANT_BODY_BYTES
    """Bytes of requests' bodies that are held at a time."""
    body_bytes_per_minute: int = TENANT_BODY_BYTES_PER_MINUTE


class Quotas:
    """The present use of each tenant."""

    def __init__(
        self,
        bounds: Bounds | None = None,
        clock: Clock | None = None,
        *,
        process_body_bytes: int = PROCESS_BODY_BYTES,
    ) -> None:
        self.bounds = bounds or Bounds()
        self.clock = clock or SystemClock()
        self.body_bytes_left = process_body_bytes
        """The bytes that all tenants together may still add to the bodies in memory."""
        self._tenants: dict[TenantId | None, TenantUse] = {}

    def of(self, tenant: TenantId | None) -> "TenantUse":
        """The present use of the tenant; None for requests that need no key."""
        use = self._tenants.get(tenant)
        if use is None:
            use = self._tenants[tenant] = TenantUse(self)
        return use


class TenantUse:
    """The present use of one tenant; refuses requests beyond its quota."""

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

    def admit(self) -> None:
        """Count a request. Raises QuotaError."""
        wait_seconds = self._requests.take(1)
        if wait_seconds:
            raise QuotaError(
                f"More than {self._quotas.bounds.requests_per_second:g} requests a second over "
                "some time. Send fewer, or wait as 'Retry-After' says.",
                retry_after_seconds=wait_seconds,
            )

    def admit_run(self, open_runs: int) -> None:
        """Let another run begin beside those that are open. Raises QuotaError."""
        most = self._quotas.bounds.runs
        if most and open_runs >= most:
            raise QuotaError(
                f"{open_runs} runs are open, and the quota is {most}. Wait until some have ended, "
                "or cancel them.",
                retry_after_seconds=_RUNS_RETRY_SECONDS,
            )

    def open_stream(self) -> None:
        """Count a stream until ``close_stream``. Raises QuotaError."""
        most = self._quotas.bounds.streams
        if most and self._streams >= most:
            raise QuotaError(
                f"{most} streams are open here, and no more may be. Close those that nobody reads; "
                "the runs go on."
            )
        self._streams += 1

    def close_stream(self) -> None:
        self._streams -= 1

    def hold_body(self, size_bytes: int) -> None:
        """Count bytes of a request's body, which are held until ``release_body``.

        Raises QuotaError, UnavailableError; then none are held.
        """
        quotas, most = self._quotas, self._quotas.bounds.body_bytes
        if most and self._body_bytes + size_bytes > most:
            raise QuotaError(
                f"The requests that are under way have more than {most // _MIB} MiB of bodies "
                "together. Send this one again when some of them are answered."
            )
        if size_bytes > quotas.body_bytes_left:
            raise UnavailableError(
                "The server holds as many large requests as it can. Send this one again."
            )
        wait_seconds = self._bytes.take(size_bytes)
        if wait_seconds:
            raise QuotaError(
                "The bodies of the last requests have more than "
                f"{quotas.bounds.body_bytes_per_minute // _MIB} MiB together. Send fewer in a "
                "minute, or wait as 'Retry-After' says.",
                retry_after_seconds=wait_seconds,
            )
        self._body_bytes += size_bytes
        quotas.body_bytes_left -= size_bytes

    def release_body(self, size_bytes: int) -> None:
        """Hold these bytes no longer."""
        self._body_bytes -= size_bytes
        self._quotas.body_bytes_left += size_bytes


class _Bucket:
    """A token bucket: ``rate`` a second, ``size`` at once; a rate of 0 gives without end."""

    __slots__ = ("_at", "_clock", "_left", "_rate", "_size")

    def __init__(self, clock: Clock, rate: float, size: float) -> None:
        self._clock = clock
        self._rate = rate
        self._size = self._left = size
        self._at = clock.monotonic_seconds()

    def take(self, amount: float) -> int:
        """Take ``amount``; or take nothing, and return after how many seconds to try again."""
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
