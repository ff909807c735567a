"""The files of the page, which ``page/build.mjs`` builds: their bodies, types and tags."""

import gzip
import hashlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from fastapi import Request, Response

_DIRECTORY: Final = Path(__file__).parents[1] / "page"

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""The Content-Security-Policy of the page: nothing from other origins, no code from strings."""

_HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_FOREVER: Final = "public, max-age=31536000, immutable"
_CHECKED: Final = "no-cache"


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file as it is sent."""

    media_type: str
    body: bytes
    digest: str = field(init=False)
    zipped: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha256(self.body).hexdigest()[:16])
        object.__setattr__(self, "zipped", gzip.compress(self.body, 9, mtime=0))

    def response(self, request: Request, *, vary: str = "accept-encoding") -> Response:
        """Return the file, or 304 if the browser has it.

        Its address with ``?v=<digest>`` never has another content, so browsers keep that for good.
        """
        is_versioned = request.query_params.get("v") == self.digest
        headers = _HEADERS | {
            "cache-control": _FOREVER if is_versioned else _CHECKED,
            "etag": f'"{self.digest}"',
            "vary": vary,
        }
        if f'"{self.digest}"' in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        body = self.body
        if "gzip" in request.headers.get("accept-encoding", ""):
            body = self.zipped
            headers["content-encoding"] = "gzip"
        return Response(body, media_type=self.media_type, headers=headers)


@cache
def page_file(name: str) -> PageFile:
    """Return a file of the page."""
    path = _DIRECTORY / name
    return PageFile(_TYPES[path.suffix], path.read_bytes())


@cache
def page_index(*, needs_key: bool) -> PageFile:
    """Return the HTML, which says whether the page has to ask for a key."""
    body = page_file("index.html").body
    keys = b"required" if needs_key else b"none"
    return PageFile(_TYPES[".html"], body.replace(b'data-keys=""', b'data-keys="%s"' % keys))
