"""The page at ``/`` with its files; where it is off, name, version and state of the server."""

import asyncio
import base64
import hashlib
from typing import Any, Final

from fastapi import HTTPException, Request, Response

from reattach import __version__
from reattach.http.context import ContextDep
from reattach.http.front.files import page_file, page_index
from reattach.http.json import JsonResponse
from reattach.http.middleware.auth import Authenticator
from reattach.http.paths import PAGE_FILES
from reattach.http.routes import routes
from reattach.settings import Settings

router = routes("health")

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:4rem auto;padding:0 1rem;"
    "color:#1a1a1a;background:#fff}code{font-family:ui-monospace,monospace}a{color:#0645ad}"
    "@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#151515}a{color:#8ab4f8}}"
)
_DIGEST: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

_HEADERS: Final = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "vary": "accept",
}

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Reattach</title>
<style>{style}</style>
</head>
<body>
<h1>Reattach</h1>
<p>This server keeps an AI agent's answer alive when the connection dies. It speaks the Letta API:
use this address as the base URL of an SDK, without <code>/v1</code>.</p>
<p>Version {version}. {status}</p>
<ul>
<li><a href="openapi.json">openapi.json</a> describes the API.</li>
<li><a href="v1/health/">v1/health/</a> and <a href="v1/ready/">v1/ready/</a> are probes.</li>
<li>The documentation is in <code>README.md</code> and <code>docs/</code> of the repository.</li>
</ul>
</body>
</html>
"""


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def front(request: Request, context: ContextDep) -> Response:
    """Return a page to browsers, and its content as JSON to other clients."""
    draining = context.runs.draining
    if "text/html" in request.headers.get("accept", ""):
        authenticator: Authenticator = request.app.state.authenticator
        is_open = await authenticator.is_open_to(request.scope)
        if is_on(context.settings, is_open=is_open):
            index = await asyncio.to_thread(page_index, needs_key=not is_open)
            return index.response(request, vary="accept, accept-encoding")
        status = "It is draining and accepts no new runs." if draining else "It is ready."
        page = _PAGE.format(style=_STYLE, version=__version__, status=status)
        return Response(page, media_type="text/html", headers=_HEADERS)
    body: dict[str, Any] = {
        "name": "reattach",
        "version": __version__,
        "status": "draining" if draining else "ok",
        "api": "/v1",
        "openapi": "/openapi.json",
    }
    return JsonResponse(body, headers={"vary": "accept"})


def is_on(settings: Settings, *, is_open: bool) -> bool:
    """Return whether a browser gets the page; ``is_open``: its requests need no key."""
    return settings.page == "on" or (settings.page == "auto" and is_open)


@router.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
async def file(name: str, request: Request, context: ContextDep) -> Response:
    """Return a file of the page, which is the same for everyone."""
    if context.settings.page == "off" or f"/page/{name}" not in PAGE_FILES:
        raise HTTPException(404)
    found = await asyncio.to_thread(page_file, name)  # The first one reads it from the disk.
    return found.response(request)
