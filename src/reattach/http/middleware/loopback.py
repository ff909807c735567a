"""Whether a request comes from this machine, without anybody in between.

A server on which no key was ever made is open to such requests only. Anything that passes requests
on, such as a proxy or a tunnel, would open it to whoever reaches that.
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

from starlette.types import Scope

from reattach.domain.errors import MisdirectedError, NotOnThisMachineError

_FORWARDING: Final = re.compile(
    rb"forwarded|client[-_]ip|connecting[-_]ip|real[-_]ip|proxyuser[-_]ip|external[-_]address"
    rb"|^x[-_]original[-_]|^via$|^cdn[-_]loop$"
)
"""Names of headers that only a proxy, a tunnel or a content network adds."""


def refuse_others(scope: Scope, headers: Mapping[bytes, bytes]) -> None:
    """Let a request pass if both ends of its connection are loopback and nobody forwarded it.

    A web page whose name was rebound to this machine is told by its ``Host``. A connection without
    addresses, such as one over a Unix socket, is not known to come from here: whatever listens on
    such a socket is usually behind a proxy.

    Raises NotOnThisMachineError, MisdirectedError.
    """
    for name in headers:
        if _FORWARDING.search(name):
            said = name.decode("latin-1")[:100]
            raise NotOnThisMachineError(
                f"this request was passed on by another one (header '{said}')"
            )
    if not _is_here(scope.get("client")):
        raise NotOnThisMachineError(
            "this request comes from another address, or from an unknown one"
        )
    if not _is_here(scope.get("server")):
        raise NotOnThisMachineError("this request came to an address that other machines can reach")
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
