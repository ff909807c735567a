"""Limits on the number of connections, in total and per client address.

At the limit, the connection that has waited longest for a request gives way to the new one, so that
idle connections cannot lock others out. If all have open requests, the new one is refused.
"""

import ipaddress
import resource
from collections import Counter
from typing import Final

import structlog

from reattach.domain.errors.connection import TooManyConnectionsError
from reattach.domain.limits import (
    ADDRESS_SHARE,
    FILES_RESERVED,
    IPV6_CLIENT_BITS,
    MOST_REFUSED,
    REFUSAL_LOG_SECONDS,
    UNLIMITED_CONNECTIONS,
)
from reattach.http.connection.watch import Watch

logger = structlog.get_logger(__name__)


class Capacity:
    """Counts connections by client address."""

    def __init__(self, watch: Watch, most: int | None = None, each: int | None = None) -> None:
        """None: as many as open files allow, and ADDRESS_SHARE of these per address."""
        self.most: Final = _files() if most is None else most
        self.most_refused: Final = min(MOST_REFUSED, _reserve() // 4)
        """The most refused connections whose requests are read at a time."""
        self.each: Final = max(1, int(self.most * ADDRESS_SHARE)) if each is None else each
        self._watch = watch
        self._counts: Counter[str] = Counter()
        self._all = 0
        self._refused = 0
        self._logged_at: float | None = None

    def admit(self, address: str) -> None:
        """Count a connection from the address. Raises TooManyConnectionsError."""
        client = _client(address)
        if self._counts[client] >= self.each:
            self._refuse(f"The address {client}", self.each)
        if self._all >= self.most and not self._watch.evict():
            self._refuse("The server", self.most)
        self._counts[client] += 1
        self._all += 1

    def leave(self, address: str) -> None:
        """Stop counting an admitted connection."""
        client = _client(address)
        self._all -= 1
        self._counts[client] -= 1
        if not self._counts[client]:
            del self._counts[client]

    def _refuse(self, whose: str, most: int) -> None:
        self._refused += 1
        now = self._watch.now()
        if self._logged_at is None or now - self._logged_at >= REFUSAL_LOG_SECONDS:
            logger.warning(
                "connections refused",
                reason=f"{whose} has {most} open",
                refused=self._refused,
                remedy="Raise REATTACH_MAX_CONNECTIONS_PER_ADDRESS if it is a proxy's address, or "
                "REATTACH_MAX_CONNECTIONS and the limit of open files (ulimit -n).",
            )
            self._logged_at, self._refused = now, 0
        raise TooManyConnectionsError(whose, most)


def _files() -> int:
    """Return how many connections the limit of open files allows, less a reserve."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return UNLIMITED_CONNECTIONS
    return files - _reserve()


def _reserve() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return FILES_RESERVED if files == resource.RLIM_INFINITY else min(FILES_RESERVED, files // 4)


def _client(address: str) -> str:
    """Return the address, or the IPv6 network, that stands for one client."""
    if ":" not in address:
        return address
    whole = ipaddress.IPv6Address(address.partition("%")[0])
    if whole.ipv4_mapped is not None:
        return str(whole.ipv4_mapped)
    return str(ipaddress.ip_network((whole, IPV6_CLIENT_BITS), strict=False))
