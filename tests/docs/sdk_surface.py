"""The methods of the Python SDK, and the server's support for the request of each.

As a program, this module writes the table of docs/sdk.md.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import httpx
from letta_client import APIConnectionError, Letta

from reattach.http.api.not_offered import LATER, OUT_OF_SCOPE, NotOffered
from reattach.http.app import create_app
from reattach.server.assembly import assemble
from reattach.settings import Settings

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs/sdk.md"
HEAD: Final = "| Method | Request | Here |\n|---|---|---|\n"
_ROW: Final = re.compile(r"^\| `[a-z_.]+` \|.*\n", re.MULTILINE)


def methods_of(resource: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield each public method below a client or resource, with its dotted name."""
    for name in sorted(vars(type(resource))):
        member = inspect.getattr_static(resource, name)
        if name.startswith(("_", "with_")):
            continue
        if inspect.isfunction(member):
            if path:  # The client's own methods concern the client, and health.
                yield ".".join((*path, name)), getattr(resource, name)
        else:
            below = getattr(resource, name)
            if type(below).__module__.startswith("letta_client.resources"):
                yield from methods_of(below, (*path, name))


def request_of(method: Any, requests: list[httpx.Request]) -> str:
    """Return the ``METHOD /path`` that a method requests, with names in braces."""
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            arguments[name] = b"" if name == "file" else f"{{{name}}}"
    requests.clear()
    with suppress(APIConnectionError), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            method(**arguments)
        except TypeError as error:  # It takes one of several sets of arguments, and names them.
            first = str(error).partition("(")[2].partition(")")[0]
            method(**arguments | dict.fromkeys(re.findall(r"'(\w+)'", first), "x"))
    [request] = requests
    return f"{request.method} {unquote(request.url.path)}"


def requests_of_the_sdk() -> dict[str, str]:
    """Return ``METHOD /path`` by the name of the SDK's method."""
    requests: list[httpx.Request] = []

    def stop(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        raise httpx.ConnectError("Only the request is needed.")

    transport = httpx.MockTransport(stop)
    with (
        httpx.Client(transport=transport) as http,
        Letta(base_url="http://server", api_key="any", max_retries=0, http_client=http) as sdk,
    ):
        return {name: request_of(method, requests) for name, method in methods_of(sdk)}


def _shape(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path).rstrip("/")


def _part_of(request: str, parts: tuple[NotOffered, ...]) -> NotOffered | None:
    method, _, path = request.partition(" ")
    for part in parts:
        for one in part.paths:
            pattern = re.escape(_shape(one.replace("{rest:path}", "\0"))).replace("\0", ".*")
            if method in part.methods and re.fullmatch(pattern, _shape(path)):
                return part
    return None


async def rows() -> list[str]:
    """Return the table without its head.

    Raises:
        LookupError: A request is neither served nor listed as not offered.
    """
    with tempfile.TemporaryDirectory() as directory:
        async with assemble(Settings(data_dir=Path(directory)), engines=[]) as context:
            paths = create_app(context).openapi()["paths"]
    served = {f"{method.upper()} {_shape(path)}" for path, item in paths.items() for method in item}
    table = []
    for name, request in requests_of_the_sdk().items():
        method, _, path = request.partition(" ")
        if f"{method} {_shape(path)}" in served:
            here = "yes"
        elif _part_of(request, LATER):
            here = "not yet: 501"
        elif _part_of(request, OUT_OF_SCOPE):
            here = "out of scope: 501"
        else:
            raise LookupError(f"{name}: {request} is neither served nor listed as not offered")
        table.append(f"| `{name}` | `{request}` | {here} |\n")
    return table


def rows_of_the_page() -> list[str]:
    """Return the rows of the page."""
    return _ROW.findall(PAGE.read_text("utf-8"))


def main() -> None:
    table = "".join(asyncio.run(rows()))
    text, _, rest = PAGE.read_text("utf-8").partition(HEAD)
    PAGE.write_text(text + HEAD + table + _ROW.sub("", rest), "utf-8")


if __name__ == "__main__":
    main()
