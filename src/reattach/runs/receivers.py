"""Calling servers whose URLs come from clients, without being made to call our own.

A name is looked up once, every address that it has is checked, and the connection goes to one of
these. So a name that means another address a moment later gains nothing. What the environment says
of proxies is not asked, since a proxy would look the name up again.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

import httpx2

from reattach.errors import ReceiverRefusedError
from reattach.limits import CALLBACK_ADDRESSES, CALLBACK_SECONDS, MAX_CALLBACK_URL_CHARS

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host at a port. Raises OSError."""

_NAT64: Final = IPv6Network("64:ff9b::/96")
"""Addresses that networks without IPv4 have for those of IPv4 (RFC 6052)."""


_HOST: Final = re.compile(rb"[A-Za-z0-9._:-]+")
"""A name or address as it is looked up."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a receiver did: the status that it answered, or why there is none."""

    status_code: int | None
    error: str | None
    """None after a 2xx."""
    final: bool
    """Whether another call would be in vain."""


def receiver_url(text: str, *, to_private: bool) -> httpx2.URL:
    """The URL, if it may be called as far as that can be seen without looking its name up.

    ``to_private`` allows addresses that are not of the public internet. Raises
    ReceiverRefusedError.
    """
    if len(text) > MAX_CALLBACK_URL_CHARS:
        raise ReceiverRefusedError(f"May have {MAX_CALLBACK_URL_CHARS} characters.")
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError, UnicodeError):
        raise ReceiverRefusedError("This is no URL.") from None
    if url.scheme not in {"http", "https"} or not _HOST.fullmatch(url.raw_host):
        raise ReceiverRefusedError("Has to be an absolute URL of http or https.")
    if url.port is not None and not 0 < url.port < 65536:
        raise ReceiverRefusedError("Has a port that does not exist.")
    if url.userinfo:
        raise ReceiverRefusedError("May not have a user or password in it.")
    if not to_private:
        name = url.host.rstrip(".").lower()
        if name == "localhost" or name.endswith(".localhost"):
            raise _private()
        try:
            address = ip_address(name)
        except ValueError:
            return url  # A name; what it means is looked up when it is called.
        if not is_public(address):
            raise _private()
    return url


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether the address is one host's on the public internet, in whatever form it is written."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.sixtofour is not None or address.teredo is not None or address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


async def resolve(host: str, port: int) -> Sequence[str]:
    """What the system says of a name."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Receivers:
    """Posts to URLs of clients. ``to_private`` as in ``receiver_url``.

    No redirect is followed, no answer is read beyond its status, and no connection is kept.
    """

    def __init__(
        self,
        *,
        to_private: bool,
        resolve: Resolve = resolve,
        timeout_seconds: float = CALLBACK_SECONDS,
    ) -> None:
        self._to_private = to_private
        self._resolve = resolve
        self._timeout_seconds = timeout_seconds
        self._tls: ssl.SSLContext | None = None

    async def post(self, text: str, body: bytes, headers: Mapping[str, str]) -> Answered:
        """Post the body, within the timeout. What goes wrong is told, not raised."""
        try:
            url = receiver_url(text, to_private=self._to_private)
            async with asyncio.timeout(self._timeout_seconds):
                status = await self._posted(url, body, headers)
        except ReceiverRefusedError as error:
            return Answered(None, f"not called: {error.detail}", final=True)
        except TimeoutError:
            error_text = f"no answer within {self._timeout_seconds:g} s"
            return Answered(None, error_text, final=False)
        except OSError:
            return Answered(None, "its name is not known", final=False)
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            return Answered(None, f"no answer: {type(error).__name__}", final=False)
        if 200 <= status < 300:
            return Answered(status, None, final=True)
        what = f"answered {status}"
        if 300 <= status < 400:
            what += ", and redirects are not followed"
        return Answered(status, what, final=status == 410)

    async def _posted(self, url: httpx2.URL, body: bytes, headers: Mapping[str, str]) -> int:
        if self._tls is None:
            self._tls = await asyncio.to_thread(_prepared)
        port = url.port or (443 if url.scheme == "https" else 80)
        addresses = await self._addresses(url.raw_host.decode("ascii"), port)
        failure: httpx2.ConnectError | None = None
        for address in addresses[:CALLBACK_ADDRESSES]:
            try:
                return await self._posted_to(address, url, body, headers, self._tls)
            except httpx2.ConnectError as error:
                failure = error
        raise failure or OSError("no address")

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        found = await self._resolve(host, port)
        if not self._to_private and not all(is_public(ip_address(one)) for one in found):
            raise _private()
        return found

    async def _posted_to(
        self,
        address: str,
        url: httpx2.URL,
        body: bytes,
        headers: Mapping[str, str],
        tls: ssl.SSLContext,
    ) -> int:
        """Post to the address as to the URL: its name stands in Host, and is what TLS checks."""
        async with (
            httpx2.AsyncClient(
                verify=tls, trust_env=False, follow_redirects=False, timeout=None
            ) as client,
            client.stream(
                "POST",
                url.copy_with(host=address, fragment=None),
                content=body,
                headers={**headers, "host": url.netloc.decode("ascii")},
                extensions={"sni_hostname": url.raw_host.decode("ascii")},
            ) as response,
        ):
            return response.status_code


def _prepared() -> ssl.SSLContext:
    """What connections need that is read from files: not for the event loop."""
    context = ssl.create_default_context()
    httpx2.AsyncHTTPTransport(verify=context)  # The first one imports what it consists of.
    return context


def _private() -> ReceiverRefusedError:
    return ReceiverRefusedError(
        "Leads to an address that is not of the public internet. Name another host; whoever runs "
        "the server may allow it by REATTACH_CALLBACKS_TO_PRIVATE."
    )
