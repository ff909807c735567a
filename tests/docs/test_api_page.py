"""The page of the API lists exactly the routes of the server."""

import re
from pathlib import Path

from reattach.http.api.not_offered import LATER, OUT_OF_SCOPE
from reattach.http.app import create_app
from reattach.server.assembly import assemble
from reattach.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


async def test_every_request_is_on_the_page(tmp_path: Path) -> None:
    async with assemble(Settings(data_dir=tmp_path), engines=[]) as context:
        paths = create_app(context).openapi()["paths"]
    served = {f"{method.upper()} {path}" for path, item in paths.items() for method in item}

    assert set(re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", PAGE, re.MULTILINE)) == served


def test_every_route_that_is_not_offered_is_on_the_page() -> None:
    not_offered = {
        path.replace("{rest:path}", "…") for part in (*LATER, *OUT_OF_SCOPE) for path in part.paths
    }

    assert set(re.findall(r"`(/v1/[^`]*)`", PAGE)) == not_offered
