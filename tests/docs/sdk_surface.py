"""The methods of the Python SDK, and what this server does with the request that each makes.

As a program it writes the table of docs/sdk.md anew.
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
    """Each public method below a client or resource, by its dotted name."""
    for name in sorted(vars(type(resource))):
        member = inspect.getattr_static(resource, name)
        if name.startswith(("_", "with_")):
            continue
        if inspect.isfunction(member):
            if path:  # The client's own are about itself, and health.
                yield ".".join((*path, name)), getattr(resource, name)
        else:
            below = getattr(resource, name)
            if type(below).__module__.startswith("letta_client.resources"):
                yield from methods_of(below, (*path, name))


def request_of(method: Any, requests: list[httpx.Request]) -> str:
    """``METHOD /path`` that it asks for, with names in braces."""
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            arguments[name] = b"" if name == "file" else f"{{{name}}}"
    requests.clear()
    with suppress(APIConnectionError), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            method(**arguments)
        except TypeError as error:  # Of several sets of arguments it wants one, and says which.
            first = str(error).partition("(")[2].partition(")")[0]
            method(**arguments | dict.fromkeys(re.findall(r"'(\w+)'", first), "x"))
    [request] = requests
    return f"{request.method} {unquote(request.url.path)}"


def requests_of_the_sdk() -> dict[str, str]:
    """``METHOD /path`` by the name of the SDK's method."""
    requests: list[httpx.Request] = []

    def stop(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        raise httpx.ConnectError("The request is all that is wanted.")

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
    """The table, without its head. Raises LookupError for a request that nothing answers."""
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
            raise LookupError(f"{name}: {request} is neither served nor told to be missing")
        table.append(f"| `{name}` | `{request}` | {here} |\n")
    return table


def written() -> list[str]:
    """The rows that the page has."""
    return _ROW.findall(PAGE.read_text("utf-8"))


def main() -> None:
    table = "".join(asyncio.run(rows()))
    text, _, rest = PAGE.read_text("utf-8").partition(HEAD)
    PAGE.write_text(text + HEAD + table + _ROW.sub("", rest), "utf-8")


if __name__ == "__main__":
    main()
