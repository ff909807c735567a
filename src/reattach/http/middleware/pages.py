"""Web pages that may call the server, by their origins."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from reattach.domain.errors import ForeignPageError
from reattach.domain.origins import ANY, LOCAL
from reattach.http.middleware.loopback import is_loopback

PREFLIGHT_SECONDS: Final = 7200
"""How long a browser may remember which requests are allowed: the most that Chromium accepts."""

_LOCAL_ORIGINS: Final = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
"""Origins of pages served from this machine, for example by a development server."""

EXPOSED_HEADERS: Final = (
    "X-Run-Id",
    "X-Run-Status",
    "X-Conversation-Id",
    "X-Stream-Starts-After",
    "X-Should-Retry",
    "X-Workflow-Run-Id",
    "X-Workflow-Stream-Tail-Index",
    "Deprecation",
    "Link",
    "Location",
    "Retry-After",
    "ETag",
    "Stream-Next-Offset",
    "Stream-Up-To-Date",
    "Stream-Closed",
    "Stream-Cursor",
)


class Pages:
    """The origins of the setting ``cors_origins``; None: the pages of this machine."""

    def __init__(self, origins: Sequence[str] | None) -> None:
        origins = (LOCAL,) if origins is None else origins
        self._origins = [one for one in origins if one != LOCAL]
        self._has_local = LOCAL in origins or ANY in origins
        self._local_origins = {
            one for one in self._origins if one != ANY and is_loopback(_host_of(one))
        }

    @property
    def cors(self) -> Mapping[str, Any]:
        """Options of the CORS middleware."""
        return {
            "allow_origins": self._origins,
            "allow_origin_regex": _LOCAL_ORIGINS.pattern if self._has_local else None,
            "allow_methods": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            "allow_headers": ["*"],
            "expose_headers": EXPOSED_HEADERS,
            "max_age": PREFLIGHT_SECONDS,
        }

    def require_local(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a request of a page that is not both allowed and from this machine.

        A browser names the page's origin in every request that could change something, and in every
        one whose answer the page could read. It sends some of them without asking first: a POST
        without a body, or the GET of an ``EventSource``. Requests without an origin, such as those
        of images, are marked as cross-site. A link that a user follows is allowed.

        Raises ForeignPageError.
        """
        origin = headers.get(b"origin")
        if origin is None:
            if headers.get(b"sec-fetch-site") != b"cross-site":
                return
            if headers.get(b"sec-fetch-dest") == b"document":
                return
            raise ForeignPageError("of another site")
        text = origin.decode("latin-1")
        if text.partition("://")[2] == headers.get(b"host", b"").decode("latin-1"):
            return  # The page comes from this server.
        if text in self._local_origins:
            return
        if self._has_local and _LOCAL_ORIGINS.fullmatch(text) is not None:
            return
        raise ForeignPageError(f"of '{text[:100]}'")


class Cors(CORSMiddleware):
    """Starlette's answers to pages of other origins, at little cost for all other requests."""

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not any(name == b"origin" for name, _ in scope["headers"]):
            await self.app(scope, receive, partial(send_varying, send))
        else:
            await super().__call__(scope, receive, send)


_VARY: Final = (b"vary", b"Origin")


async def send_varying(send: Send, message: Message) -> None:
    """Send a part of a response to no page; it would have other headers for one."""
    if message["type"] == "http.response.start":
        headers = message.get("headers", ())
        if any(name == b"vary" for name, _ in headers):
            own = MutableHeaders(scope=message)
            own["Vary"] = ", ".join([*own.getlist("Vary"), "Origin"])
        else:
            message["headers"] = [*headers, _VARY]
    await send(message)


def _host_of(origin: str) -> str:
    return urlsplit(origin).hostname or ""
