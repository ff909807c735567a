"""Detection of direct requests from this machine.

A server without keys accepts only such requests. A proxy or tunnel on the machine would otherwise
open it to everyone who can reach that.
"""

import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from starlette.types import Scope

from reattach.domain.errors import MisdirectedError, NotOnThisMachineError

Address = tuple[str, int | None]
"""The host and port of one end of a connection."""

_FORWARDING: Final = re.compile(
    rb"forwarded|client[-_]ip|connecting[-_]ip|real[-_]ip|proxyuser[-_]ip|external[-_]address"
    rb"|^x[-_]original[-_]|^via$|^cdn[-_]loop$"
)
"""Names of headers that only proxies, tunnels and content networks add."""


def require_direct_loopback(scope: Scope, headers: Mapping[bytes, bytes]) -> None:
    """Accept a request only if both ends of its connection are loopback and no proxy forwarded it.

    The ``Host`` header detects web pages whose name was rebound to this machine. A connection
    without addresses, such as one over a Unix socket, is refused, because servers on Unix sockets
    are usually behind a proxy.

    Raises NotOnThisMachineError, MisdirectedError.
    """
    _require_no_proxy(headers)
    if not _is_here(scope.get("client")):
        raise NotOnThisMachineError("this request comes from another or an unknown address")
    if not _is_here(scope.get("server")):
        raise NotOnThisMachineError("this request used an address that other machines can reach")
    _require_loopback_host(headers)


def require_direct_headers(headers: Mapping[bytes, bytes]) -> None:
    """Accept the headers of a request that ``require_direct_loopback`` accepts on a loopback.

    Raises NotOnThisMachineError, MisdirectedError.
    """
    _require_no_proxy(headers)
    _require_loopback_host(headers)


def are_both_here(client: Address | None, server: Address | None) -> bool:
    """Return whether both ends of a connection are loopback."""
    return _is_here(client) and _is_here(server)


def _require_no_proxy(headers: Mapping[bytes, bytes]) -> None:
    for name in headers:
        if _FORWARDING.search(name):
            shown = name.decode("latin-1")[:100]
            raise NotOnThisMachineError(f"a proxy forwarded this request (header '{shown}')")


def _require_loopback_host(headers: Mapping[bytes, bytes]) -> None:
    host = headers.get(b"host", b"").decode("latin-1")
    if not is_loopback_host(host):
        raise MisdirectedError(host)


def is_loopback_host(host: str) -> bool:
    """Return whether a ``Host`` header, with or without a port, has a loopback name."""
    return is_loopback(_without_port(host))


def _is_here(end: Address | None) -> bool:
    return end is not None and _is_address_here(end[0])


@lru_cache
def _is_address_here(address: str) -> bool:
    return is_loopback(address)


_USUAL: Final = frozenset({"127.0.0.1", "::1", "localhost"})
"""Checked first, because parsing an address costs more than everything else here."""


def _without_port(host: str) -> str:
    if host in _USUAL:
        return host
    name, separator, port = host.rpartition(":")
    return name if separator and port.isdigit() else host


def is_loopback(host: str) -> bool:
    """Return whether an address or host name belongs to this machine only."""
    if host in _USUAL:
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback if mapped is None else bool(mapped.is_loopback)
