"""How many connections there may be, in all and from one address.

At the bound the connection that has waited longest for a request gives way to the new one, so that
nobody shuts others out by opening connections and saying nothing. If all have requests under way,
the new one is refused.
"""

import ipaddress
import resource
from collections import Counter
from typing import Final

import structlog

from reattach.domain.errors import TooManyConnectionsError
from reattach.domain.limits import (
    ADDRESS_SHARE,
    FILES_RESERVED,
    IPV6_CLIENT_BITS,
    REFUSAL_LOG_SECONDS,
    UNLIMITED_CONNECTIONS,
)
from reattach.http.connection.watch import Watch

logger = structlog.get_logger(__name__)


class Capacity:
    """Counts connections by the address of their client."""

    def __init__(self, watch: Watch, most: int | None = None, each: int | None = None) -> None:
        """None: as many as the process may open files for, and ADDRESS_SHARE of these for each."""
        self.most: Final = _files() if most is None else most
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
        """Count a connection no longer that was admitted."""
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
    """Connections that the process may have files for, with some left for everything else."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return UNLIMITED_CONNECTIONS
    return files - min(FILES_RESERVED, files // 4)


def _client(address: str) -> str:
    """The address, or the network of it that stands for one client."""
    if ":" not in address:
        return address
    whole = ipaddress.IPv6Address(address.partition("%")[0])
    if whole.ipv4_mapped is not None:
        return str(whole.ipv4_mapped)
    return str(ipaddress.ip_network((whole, IPV6_CLIENT_BITS), strict=False))
