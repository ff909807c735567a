"""Whether a request comes from this machine, without anybody in between.

A server on which no key was ever made is open to such requests only. Anything that passes requests
on, such as a proxy or a tunnel, would open it to whoever reaches that.
"""

import ipaddress
from collections.abc import Mapping
from typing import Final

from starlette.types import Scope

from reattach.errors import KeyRequiredError, MisdirectedError

_FORWARDING: Final = frozenset(
    {
        b"forwarded",
        b"via",
        b"x-real-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"true-client-ip",
        b"cf-connecting-ip",
    }
)
_FORWARDING_PREFIXES: Final = (b"x-forwarded", b"x-original-")
"""Headers that only somebody in between adds."""


def refuse_others(scope: Scope, headers: Mapping[bytes, bytes]) -> None:
    """Let a request pass if both ends of its connection are loopback and nobody forwarded it.

    A web page whose name was rebound to this machine is told by its ``Host``. A connection without
    addresses, such as one over a Unix socket, is not known to come from here: whatever listens on
    such a socket is usually behind a proxy.

    Raises KeyRequiredError, MisdirectedError.
    """
    for name in headers:
        if name in _FORWARDING or name.startswith(_FORWARDING_PREFIXES):
            said = name.decode("latin-1")[:100]
            raise KeyRequiredError(f"this request was passed on by another one (header '{said}')")
    if not _is_here(scope.get("client")):
        raise KeyRequiredError("this request comes from another address, or from an unknown one")
    if not _is_here(scope.get("server")):
        raise KeyRequiredError("this request came to an address that other machines can reach")
    host = headers.get(b"host", b"").decode("latin-1")
    if not is_loopback(_without_port(host)):
        raise MisdirectedError(host)


def _is_here(end: tuple[str, int | None] | None) -> bool:
    return end is not None and (end[0] in _USUAL or is_loopback(end[0]))


_USUAL: Final = frozenset({"127.0.0.1", "::1", "localhost"})
"""To parse an address costs more than all else here."""


def _without_port(host: str) -> str:
    if host in _USUAL:
        return host
    name, separator, port = host.rpartition(":")
    return name if separator and port.isdigit() else host


def is_loopback(host: str) -> bool:
    """Whether an address, or a name of a host, is this machine's own and no other's."""
    if host in _USUAL:
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback if mapped is None else bool(mapped.is_loopback)
