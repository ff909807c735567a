"""The path of a request, wherever the application is mounted."""

import re
from typing import Final

from starlette.types import Scope

PAGE_FILES: Final = frozenset(
    f"/page/{name}" for name in ("app.js", "app.css", "icon.svg", "licenses.txt")
)
"""Paths of the files of the page, which need no key."""

_OF_PAGES: Final = re.compile(
    r"/v1/(?:(?:conversations|runs)/[^/]+/(?P<any>stream|snapshot)|runs/[^/]+/(?P<log>log))"
)


def path_of(scope: Scope) -> str:
    """Return the path relative to the mount point of the application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def page_resource(scope: Scope) -> str | None:
    """Return ``stream``, ``snapshot`` or ``log`` if pages get it by its URL alone; else None."""
    if scope["type"] != "http" or scope["method"] not in {"GET", "HEAD"}:
        return None
    match = _OF_PAGES.fullmatch(path_of(scope))
    if match is None or (scope["method"] == "HEAD" and match["log"] is None):
        return None
    return match["any"] or match["log"]
