"""The protocols that the first proxy on the path offers."""

import asyncio
import ssl
from typing import Final

import httpx2

from reattach.path.findings import Fault, Finding

_SECONDS: Final = 10.0
_SIX: Final = "over HTTP/1.1 they have six connections to one origin, for all tabs together"


async def check_http2(url: str) -> Finding:
    """Check whether HTTP/2 is offered, without which browsers have few connections."""
    parsed = httpx2.URL(url)
    if parsed.scheme != "https":
        return Finding("ok", "http/2", f"browsers use it only over TLS; {_SIX}")
    context = await asyncio.to_thread(ssl.create_default_context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        async with asyncio.timeout(_SECONDS):
            _, writer = await asyncio.open_connection(
                parsed.host, parsed.port or 443, ssl=context, server_hostname=parsed.host
            )
    except (OSError, TimeoutError) as error:
        detail = f"it cannot be found out directly: {type(error).__name__}"
        return Finding("warning", "http/2", detail,
                       remedy="Check that this machine reaches the address without a proxy of its "
                       "own.")  # fmt: skip
    protocol = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    writer.close()
    if protocol == "h2":
        return Finding("ok", "http/2", "it is offered, so browsers need one connection")
    return Finding("warning", "http/2", f"browsers are not offered it; {_SIX}", Fault.NO_HTTP2)
