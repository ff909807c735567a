"""Requests to URLs that clients name, which must not reach the operator's network.

A name is looked up once, all its addresses are checked, and the connection goes to one of them, so
a name that changes its address afterwards gains nothing. The environment's proxies are not used,
because a proxy would look the name up again. Redirects are not followed.
"""

import asyncio
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from reattach.daemon_thread import in_daemon_thread
from reattach.domain.errors import UrlRefusedError, UrlUnreachableError
from reattach.domain.limits.outbound import OUTBOUND_ADDRESSES, OUTBOUND_LOOKUPS
from reattach.outbound.addresses import is_reachable, literal_address

if TYPE_CHECKING:
    # Imported by the first request or check, because few clients name a URL.
    import httpx2

    Response = httpx2.Response

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host at a port. Raises OSError."""

NOT_PUBLIC: Final = "Its host is not known, or is not on the public internet."
"""One text for both cases, so that it does not reveal names of the operator's network."""

_HOST: Final = re.compile(r"[A-Za-z0-9._:-]+")
"""A name or address that can be looked up."""


def checked_url(text: str, *, to_private: bool) -> "httpx2.URL":
    """Return the URL if its text allows a connection to it.

    ``to_private`` allows addresses outside of the public internet. Names are looked up only when a
    request is made.

    Raises:
        UrlRefusedError: The URL is malformed, or names an address that is not allowed.
    """
    import httpx2

    try:
        url = httpx2.URL(text)
        host = url.raw_host.decode("ascii")
    except (httpx2.InvalidURL, ValueError, UnicodeError):
        raise UrlRefusedError("This is not a valid URL.") from None
    if url.scheme not in {"http", "https"} or not _HOST.fullmatch(host):
        raise UrlRefusedError("It must be an absolute URL of http or https.")
    if url.port is not None and not 0 < url.port < 65536:
        raise UrlRefusedError("Its port does not exist.")
    if url.userinfo:
        raise UrlRefusedError("It must not have a user or password in it.")
    name = host.rstrip(".").lower()
    address = literal_address(name)
    is_refused = address is not None and not is_reachable(address, to_private=to_private)
    is_local_name = name == "localhost" or name.endswith(".localhost")
    if is_refused or (is_local_name and not to_private):
        raise UrlRefusedError(
            f"{NOT_PUBLIC} Name another host. The server's operator can allow private networks "
            "with REATTACH_CALLBACKS_TO_PRIVATE; the metadata services of clouds are never allowed."
        )
    return url


async def resolve(host: str, port: int) -> Sequence[str]:
    """Look up a name with the system's resolver.

    A look-up may take long and cannot be interrupted, so it runs in a thread of its own instead of
    asyncio's small pool.
    """
    if not _lookups.acquire(blocking=False):
        raise OSError("too many names are being looked up")

    def look_up() -> Sequence[str]:
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        finally:
            _lookups.release()
        return list(dict.fromkeys(str(address[0]) for *_, address in addresses))

    return await in_daemon_thread(look_up, name="name look-up")


_lookups: Final = threading.BoundedSemaphore(OUTBOUND_LOOKUPS)


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    url: "httpx2.URL"
    headers: Mapping[str, str]
    content: bytes | None

    def send(
        self, client: "httpx2.AsyncClient", address: str
    ) -> "AbstractAsyncContextManager[httpx2.Response]":
        return client.stream(
            self.method,
            self.url.copy_with(host=address, fragment=None),
            content=self.content,
            headers={**self.headers, "host": self.url.netloc.decode("ascii")},
            extensions={"sni_hostname": self.url.raw_host.decode("ascii")},
        )


class Outbound:
    """Makes requests to clients' URLs. ``to_private`` as in ``checked_url``."""

    def __init__(self, *, to_private: bool, resolve: Resolve = resolve) -> None:
        self._to_private = to_private
        self._resolve = resolve
        self._tls: ssl.SSLContext | None = None

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        text: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> "AsyncIterator[httpx2.Response]":
        """Open the response on a connection of its own to a checked address.

        There is no timeout and no connection reuse.

        Raises:
            UrlRefusedError: The URL is not allowed, or its name is unknown; nothing was connected
                to.
            UrlUnreachableError: The connection or the exchange failed.
        """
        import httpx2

        url = checked_url(text, to_private=self._to_private)
        if self._tls is None:
            self._tls = await asyncio.to_thread(prepare_tls)
        addresses = await self._addresses(url)
        request = _Request(method, url, headers or {}, content)
        try:
            async with AsyncExitStack() as stack:
                yield await self._connect(stack, addresses, request)
        except (OSError, httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise UrlUnreachableError(f"{type(error).__name__}: {error}") from error

    async def _addresses(self, url: "httpx2.URL") -> Sequence[str]:
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            found = await self._resolve(url.raw_host.decode("ascii"), port)
        except (OSError, UnicodeError):
            raise UrlRefusedError(NOT_PUBLIC) from None
        addresses = [ip_address(one) for one in found]
        if not addresses or not all(
            is_reachable(one, to_private=self._to_private) for one in addresses
        ):
            raise UrlRefusedError(NOT_PUBLIC)
        return found[:OUTBOUND_ADDRESSES]

    async def _connect(
        self,
        stack: AsyncExitStack,
        addresses: Sequence[str],
        request: "_Request",
    ) -> "httpx2.Response":
        """Return the response of the first address that accepts a connection.

        The Host header and the TLS check use the URL's name.
        """
        import httpx2

        assert self._tls is not None
        for place, address in enumerate(addresses, 1):
            client = await stack.enter_async_context(
                httpx2.AsyncClient(
                    verify=self._tls, trust_env=False, follow_redirects=False, timeout=None
                )
            )
            try:
                return await stack.enter_async_context(request.send(client, address))
            except httpx2.ConnectError:
                if place == len(addresses):
                    raise
        raise AssertionError("unreachable: a name without addresses is refused")


def prepare_tls() -> ssl.SSLContext:
    """Read the certificates. Call it outside of the event loop."""
    import httpx2

    context = ssl.create_default_context()
    httpx2.AsyncHTTPTransport(verify=context)  # The first one imports modules.
    return context
