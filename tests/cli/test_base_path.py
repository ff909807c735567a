"""Commands reach a server that is mounted below a path of another application."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.application_server import EXAMPLES, program_served
from tests.support.commands import reattach_here


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The origin of an application that serves Reattach below ``/letta``."""
    data_dir = str(tmp_path_factory.mktemp("data"))
    with program_served(EXAMPLES / "embedded.py", EXAMPLE_DATA_DIR=data_dir) as origin:
        yield origin


def test_commands_follow_and_list_below_a_path(origin: str) -> None:
    asked = httpx2.post(f"{origin}/ask", json={"text": "one island"})
    url, run_id = f"{origin}/letta", asked.headers["x-run-id"]
    tailed = reattach_here("runs", "tail", run_id, "--after", "1", "--url", url)
    assert [line.split("\t")[1] for line in tailed.out.splitlines()][-1] == "usage_statistics"
    assert "ISLAND" in tailed.out
    listed = reattach_here("tokens", "list", "--json", "--url", f"{url}/")
    assert json.loads(listed.out) == []


def test_a_missing_path_is_named_as_the_likely_mistake(origin: str) -> None:
    ended = reattach_here("tokens", "list", "--url", origin)
    assert ended.status == 1
    assert "Check the host, and the path under which Reattach is mounted." in ended.err
