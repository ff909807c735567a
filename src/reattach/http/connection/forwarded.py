"""The client of a request that came through a proxy, by the headers that the proxy has set."""

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

_SCHEMES: Final = frozenset({"http", "https"})
_REMEMBERED: Final = 4096
_MAX_NAME_CHARS: Final = 253
"""The longest name of DNS. A longer one is not remembered."""

Address = tuple[str, int]


class ForwardedHeaders:
    """Gives requests the address and scheme that a trusted proxy names.

    These are in the headers ``X-Forwarded-For`` and ``X-Forwarded-Proto``. ``trusted`` are the
    addresses and networks of proxies, separated by commas, or ``*`` for all.
    """

    def __init__(self, app: ASGIApp, trusted: str) -> None:
        self._app = app
        self._proxies = _Proxies(trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if scope["type"] == "http" and self._proxies.trust(client[0] if client else ""):
            self._forward(scope)
        await self._app(scope, receive, send)

    def _forward(self, scope: Scope) -> None:
        scheme, clients = "", []
        for name, value in scope["headers"]:
            if name == b"x-forwarded-proto":
                scheme = value.decode("latin-1").strip()
            elif name == b"x-forwarded-for":
                clients += [one.strip() for one in value.decode("latin-1").split(",")]
        if scheme in _SCHEMES:
            scope["scheme"] = scheme
        if clients:
            address = self._proxies.client_of(clients)
            if address[0]:
                scope["client"] = address


class _Proxies:
    """The proxies that are trusted."""

    def __init__(self, trusted: str) -> None:
        self._all = trusted == "*"
        self._networks: list[IPv4Network | IPv6Network] = []
        self._names: set[str] = set()
        for one in trusted.split(","):
            try:
                self._networks.append(ip_network(one.strip()))
            except ValueError:
                self._names.add(one.strip())
        self._find = lru_cache(_REMEMBERED)(self._look)

    def trust(self, host: str) -> bool:
        if self._all or not host:
            return self._all
        return self._find(host) if len(host) <= _MAX_NAME_CHARS else self._look(host)

    def _look(self, host: str) -> bool:
        try:
            address = ip_address(host)
        except ValueError:
            return host in self._names
        return any(address in network for network in self._networks)

    def client_of(self, forwarded: list[str]) -> Address:
        """Return the last address that no trusted proxy has: each one appends whom it serves."""
        if not self._all:
            for one in reversed(forwarded):
                address = _address(one)
                if not self.trust(address[0]):
                    return address
        return _address(forwarded[0])


def _address(text: str) -> Address:
    """Parse an address, ``IPv4:port`` or ``[IPv6]:port``; other text is a host without a port."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return text, 0
        return host, _port(rest[1:]) or 0
    host, colon, rest = text.partition(":")
    port = _port(rest) if colon and ":" not in rest else None
    return (text, 0) if port is None else (host, port)


def _port(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
