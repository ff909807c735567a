"""An operator sees the runs of all tenants, everybody else those of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from reattach.testing.programs.server import ServerProcess
from tests.support.commands import Ended, reattach_here
from tests.support.runs_of_a_server import Runs
from tests.support.terminal import Terminal

SCOPES = ("--scope", "read", "--scope", "send", "--scope", "admin")


@dataclass(frozen=True)
class Tenants:
    """A server with a run of each of two tenants, and the keys of the first and of an operator."""

    url: str
    run_ids: tuple[str, str]
    first_key: str
    operator_key: str


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    data_dir: Path = tmp_path_factory.mktemp("server")

    def key(*arguments: str) -> str:
        made = reattach_here("keys", "create", "key", *arguments, "--data-dir", str(data_dir))
        assert made.status == 0, made.err
        return made.out.strip()

    first = key("--tenant", "tenant-1", *SCOPES)
    second = key("--tenant", "tenant-2", *SCOPES)
    operator = key("--scope", "operator")
    with ServerProcess(data_dir, arguments=["--scripted", "--log-level", "warning"]) as server:
        ids = []
        for one in (first, second):
            headers = {"authorization": f"Bearer {one}"}
            with httpx2.Client(base_url=server.url, headers=headers) as http:
                ids.append(Runs(http).start("[hang=1]"))
        yield Tenants(server.url, (ids[0], ids[1]), first, operator)


def run(tenants: Tenants, key: str, *arguments: str) -> Ended:
    return reattach_here(*arguments, "--url", tenants.url, REATTACH_API_KEY=key)


def test_a_list_has_the_runs_of_the_tenants_that_the_key_reaches(tenants: Tenants) -> None:
    first, second = tenants.run_ids
    own = run(tenants, tenants.first_key, "runs", "list", "--quiet")
    everyone = run(tenants, tenants.operator_key, "runs", "list", "--quiet")
    one = run(tenants, tenants.operator_key, "runs", "list", "-q", "--tenant", "tenant-2")
    assert own.out.split() == [first]
    assert everyone.out.split() == [second, first]
    assert one.out.split() == [second]


def test_a_table_with_several_tenants_names_them_also_where_room_is_short(
    tenants: Tenants,
) -> None:
    command = ("runs", "list", "--url", tenants.url)
    key = tenants.operator_key
    with Terminal(*command, columns=120, REATTACH_API_KEY=key) as several:
        assert several.end() == 0
    of_one = (*command, "--tenant", "tenant-2")
    with Terminal(*of_one, columns=120, REATTACH_API_KEY=key) as one:
        assert one.end() == 0
    assert "tenant-1" in several.text
    assert "TENANT" not in one.text


def test_top_counts_the_runs_of_the_tenants_that_the_key_reaches(tenants: Tenants) -> None:
    own = json.loads(run(tenants, tenants.first_key, "top", "--once", "--json").out)
    everyone = json.loads(run(tenants, tenants.operator_key, "top", "--once", "--json").out)
    assert (own["open_runs"], everyone["open_runs"]) == (1, 2)
    assert own["processes"][0]["host"] is None
    assert own["processes"][0]["open_runs"] == 1


@pytest.mark.parametrize("command", [("runs", "list"), ("top", "--once")])
def test_another_tenant_needs_an_operators_key_which_is_said_with_the_command(
    tenants: Tenants, command: tuple[str, ...]
) -> None:
    ended = run(tenants, tenants.first_key, *command, "--tenant", "tenant-2")
    assert ended.status == 1
    assert "scope 'operator'" in ended.err
    assert "reattach keys create NAME" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_the_run_of_another_tenant_does_not_exist_for_a_key(tenants: Tenants) -> None:
    first, second = tenants.run_ids
    assert run(tenants, tenants.first_key, "runs", "show", second).status == 1
    assert run(tenants, tenants.operator_key, "runs", "show", second).status == 0
    cancelled = run(tenants, tenants.first_key, "runs", "cancel", second)
    assert cancelled.status == 1
    assert run(tenants, tenants.first_key, "runs", "show", first).status == 0
