"""Addresses other than those of a single host on the public internet.

Clients name URLs that this server, or a model server beside it, connects to. The table is our own,
because that of ``ipaddress`` changes with the version of Python and lacks the addresses of clouds
and translators.
"""

import socket
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, NamedTuple

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class SpecialRange(NamedTuple):
    """A range of addresses with a special purpose."""

    network: Network
    name: str
    source: str
    """The RFC that reserves them, or the cloud that uses them."""


def _ranges(*rows: tuple[str, str, str]) -> tuple[SpecialRange, ...]:
    return tuple(SpecialRange(ip_network(network), name, source) for network, name, source in rows)


METADATA_SERVICES: Final = _ranges(
    ("169.254.0.0/16", "metadata services of most clouds, by link-local", "RFC 3927"),
    ("100.100.100.200/32", "metadata service of Alibaba Cloud", "Alibaba Cloud"),
    ("168.63.129.16/32", "platform channel of Azure", "Azure"),
    ("192.0.0.192/32", "metadata service of Oracle Cloud Classic", "Oracle Cloud"),
    ("fd00:ec2::/32", "metadata services of AWS", "AWS"),
    ("fd20:ce::254/128", "metadata service of Google Cloud", "Google Cloud"),
    ("fd00:42::42/128", "metadata service of Scaleway", "Scaleway"),
    ("fe80::/10", "link-local", "RFC 4291"),
)
"""They give out the machine's credentials, so no setting allows them."""

SPECIAL_RANGES: Final = METADATA_SERVICES + _ranges(
    # The IPv4 registry of IANA, also where it calls a range globally reachable: its anycast
    # addresses lead to whatever is nearest, such as the gateway of the operator's network.
    ("0.0.0.0/8", "this network", "RFC 791"),
    ("10.0.0.0/8", "private use", "RFC 1918"),
    ("100.64.0.0/10", "shared address space of carriers", "RFC 6598"),
    ("127.0.0.0/8", "loopback", "RFC 1122"),
    ("172.16.0.0/12", "private use", "RFC 1918"),
    ("192.0.0.9/32", "nearest port control server (anycast)", "RFC 7723"),
    ("192.0.0.10/32", "nearest relay of TURN (anycast)", "RFC 8155"),
    ("192.0.0.0/24", "protocol assignments", "RFC 6890"),
    ("192.0.2.0/24", "documentation", "RFC 5737"),
    ("192.31.196.0/24", "AS112 name servers (anycast)", "RFC 7535"),
    ("192.52.193.0/24", "nearest relay of AMT (anycast)", "RFC 7450"),
    ("192.88.99.0/24", "nearest relay of 6to4 (anycast, deprecated)", "RFC 7526"),
    ("192.168.0.0/16", "private use", "RFC 1918"),
    ("192.175.48.0/24", "AS112 name servers (anycast)", "RFC 7534"),
    ("198.18.0.0/15", "benchmarking", "RFC 2544"),
    ("198.51.100.0/24", "documentation", "RFC 5737"),
    ("203.0.113.0/24", "documentation", "RFC 5737"),
    ("224.0.0.0/4", "multicast", "RFC 5771"),
    ("240.0.0.0/4", "reserved, and limited broadcast", "RFC 1112"),
    # The IPv6 registry.
    ("::/128", "unspecified", "RFC 4291"),
    ("::1/128", "loopback", "RFC 4291"),
    ("::/96", "IPv4-compatible (deprecated)", "RFC 4291"),
    ("::ffff:0:0:0/96", "IPv4-translated (deprecated)", "RFC 2765"),
    ("100::/64", "discard-only", "RFC 6666"),
    ("100:0:0:1::/64", "dummy prefix", "RFC 9780"),
    ("2001::/32", "Teredo", "RFC 4380"),
    ("2001::/23", "protocol assignments", "RFC 2928"),
    ("2001:db8::/32", "documentation", "RFC 3849"),
    ("2002::/16", "6to4 (deprecated)", "RFC 3056"),
    ("2620:4f:8000::/48", "AS112 name servers (anycast)", "RFC 7534"),
    ("3fff::/20", "documentation", "RFC 9637"),
    ("5f00::/16", "segment routing", "RFC 9602"),
    ("fc00::/7", "unique local", "RFC 4193"),
    ("fec0::/10", "site-local (deprecated)", "RFC 3879"),
    ("ff00::/8", "multicast", "RFC 4291"),
)
"""The first that has an address names it best."""

_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_UNASSIGNED: Final = SpecialRange(IPv6Network("::/0"), "not global unicast", "RFC 4291")

_MAPPED: Final = IPv6Network("::ffff:0:0/96")
"""Addresses of IPv4 as programs of IPv6 write them (RFC 4291)."""

_NAT64: Final = IPv6Network("64:ff9b::/96")
"""Addresses of IPv4 in networks that have none (RFC 6052)."""

_LOCAL_NAT64: Final = IPv6Network("64:ff9b:1::/48")
"""The same, by a translator of the operator's own (RFC 8215)."""

_MALFORMED_NAT64: Final = SpecialRange(_LOCAL_NAT64, "local-use translation", "RFC 8215")

_EMBEDDINGS: Final = {
    48: ((6, 7, 9, 10), 11),
    56: ((7, 9, 10, 11), 12),
    64: ((9, 10, 11, 12), 13),
    96: ((12, 13, 14, 15), 16),
}
"""Where RFC 6052 puts an address of IPv4 into a prefix of that length, and where zeros follow."""

_ISATAP: Final = frozenset({b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe"})
"""The middle of interface ids that tunnel to the address of IPv4 behind it (RFC 5214)."""


def special_range(address: Address) -> SpecialRange | None:
    """Return the special range that contains the address; None for a host of the internet.

    An IPv6 address that embeds an IPv4 address is judged by that.
    """
    for found in SPECIAL_RANGES:
        if address in found.network:
            return found
    if isinstance(address, IPv4Address):
        return None
    embedded = _embedded(address)
    for one in embedded:
        if (found_there := special_range(one)) is not None:
            return found_there
    if address in _LOCAL_NAT64 and not embedded:
        return _MALFORMED_NAT64
    return None if embedded or address in _GLOBAL_UNICAST else _UNASSIGNED


def is_public(address: Address) -> bool:
    """Return whether the address is that of one host on the public internet."""
    return special_range(address) is None


def is_metadata_service(address: Address) -> bool:
    """Return whether the address gives out the credentials of the machine that connects to it."""
    found = special_range(address)
    return found is not None and found in METADATA_SERVICES


def is_reachable(address: Address, *, to_private: bool) -> bool:
    """Return whether clients may name the address.

    ``to_private`` allows all but metadata services.
    """
    return not is_metadata_service(address) if to_private else is_public(address)


def literal_address(host: str) -> Address | None:
    """Return the address that the host denotes literally; None for a name.

    Resolvers also accept IPv4 in hexadecimal, octal, as one number and shortened (``127.1``).
    """
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host)) if _is_numeric(host) else None
    except OSError:
        return None


def _is_numeric(host: str) -> bool:
    last = host.rpartition(".")[2].lower()
    return last.isdigit() or last.startswith("0x")


def _embedded(address: IPv6Address) -> list[IPv4Address]:
    """Return the IPv4 addresses that this address may embed."""
    packed = address.packed
    if address in _MAPPED or address in _NAT64 or packed[8:12] in _ISATAP:
        return [IPv4Address(packed[12:])]
    if address not in _LOCAL_NAT64:
        return []
    # Only the operator knows the prefix length, so every well-formed reading counts.
    return [
        IPv4Address(bytes(packed[place] for place in places))
        for places, rest in _EMBEDDINGS.values()
        if not any(packed[rest:]) and (packed[8] == 0 or rest == 16)
    ]
