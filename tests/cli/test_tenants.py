"""``reattach tenants``: list, export and delete, on a data directory."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import stat
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.domain.clock import SystemClock
from reattach.domain.ids import DEFAULT_TENANT
from reattach.log.sqlite.log import SqliteLog
from reattach.records.tenants.tables import EXPORTED
from reattach.server import datadir
from reattach.testing.programs.server import ServerProcess
from tests.support.commands import Ended, reattach, reattach_here
from tests.support.received import Received

BOUND_SECONDS = 60.0
TENANT = "org-of-the-test"


@dataclass
class Used:
    """A data directory in which two tenants have each one conversation with one ended run."""

    directory: Path
    run_ids: dict[str, str]
    events: dict[str, bytes]
    """The stream of each run, by tenant."""

    def tenants(self, *arguments: str) -> Ended:
        return reattach_here("tenants", *arguments, "--data-dir", str(self.directory))

    def export(self, tenant: str) -> list[dict[str, Any]]:
        """Export in a process of its own, because output is bytes."""
        ended = reattach("tenants", "export", tenant, "--data-dir", str(self.directory))
        assert ended.status == 0, ended.err
        return [json.loads(line) for line in ended.out.splitlines()]

    def logs(self) -> set[str]:
        """The runs that have a log in the file."""

        async def listed() -> set[str]:
            log = await SqliteLog.open_file(datadir.events_file(self.directory))
            try:
                return {entry.run_id for entry in (await log.inventory(None, limit=99)).entries}
            finally:
                await log.aclose()

        return asyncio.run(listed())

    def words(self, *words: str) -> set[str]:
        """Return those of the words that are anywhere in the records."""
        file = datadir.records_file(self.directory)
        with closing(sqlite3.connect(file)) as records:
            text = "\n".join(records.iterdump())
        return {word for word in words if word in text}


def use(directory: Path) -> Used:
    run_ids: dict[str, str] = {}
    events: dict[str, bytes] = {}
    secrets: dict[str, str] = {}
    for tenant in (TENANT, DEFAULT_TENANT):
        made = reattach_here(
            "keys", "create", "app", "--tenant", tenant, "--data-dir", str(directory), "--json"
        )
        secrets[tenant] = json.loads(made.out)["secret"]
    with ServerProcess(directory, arguments=["--scripted", "--log-level", "warning"]) as server:
        for tenant, secret in secrets.items():
            headers = {"Authorization": f"Bearer {secret}"}
            with httpx2.Client(base_url=server.url, headers=headers, timeout=30) as client:
                agent = client.post("/v1/agents/", json={"model": "scripted/echo"}).json()["id"]
                path = f"/v1/conversations/?agent_id={agent}"
                conversation = client.post(path, json={}).json()["id"]
                body = {"input": f"words of {tenant}", "background": True, "stream_tokens": True}
                answer = client.post(f"/v1/conversations/{conversation}/messages", json=body)
                run_ids[tenant] = answer.headers["x-run-id"]
                events[tenant] = answer.content
    return Used(directory, run_ids, events)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Used:
    return use(tmp_path_factory.mktemp("tenants") / "data")


@pytest.fixture
def used(shared: Used, tmp_path: Path) -> Used:
    """A copy, which the test may change."""
    shutil.copytree(shared.directory, tmp_path / "data")
    return Used(tmp_path / "data", shared.run_ids, shared.events)


def test_the_list_has_every_tenant_with_its_use(shared: Used) -> None:
    listed = json.loads(shared.tenants("list", "--json").out)
    assert [(one["tenant"], one["agents"], one["keys"]) for one in listed] == [
        (DEFAULT_TENANT, 1, 1),
        (TENANT, 1, 1),
    ]
    assert all(one["runs_last_day"] == 1 and one["last_run_at"].endswith("Z") for one in listed)
    lines = shared.tenants("list").out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [DEFAULT_TENANT, TENANT]
    assert lines[0].split("\t")[1:5] == ["1 agent", "1 conversation", "1 key", "0 active runs"]


def test_an_empty_server_says_that_there_are_no_tenants(tmp_path: Path) -> None:
    datadir.make(tmp_path)
    ended = reattach_here("tenants", "list", "--data-dir", str(tmp_path))
    assert (ended.status, ended.out) == (0, "")
    assert "No tenants exist" in ended.err


def test_an_export_has_the_rows_and_the_events_of_its_tenant_only(used: Used) -> None:
    lines = used.export(TENANT)
    assert (lines[0]["type"], lines[0]["format"], lines[0]["tenant"]) == ("export", 1, TENANT)
    counts = Counter(line["type"] for line in lines[:-1])
    assert lines[-1] == {"type": "end", "lines": dict(counts)}
    assert set(counts) >= {"agent", "conversation", "run", "message", "key", "event", "log"}
    [run] = [line for line in lines if line["type"] == "run"]
    assert (run["id"], run["status"]) == (used.run_ids[TENANT], "completed")
    received = Received()
    for line in lines:
        if line["type"] == "event":
            received.feed(line["frame"].encode())
    expected = Received()
    expected.feed(used.events[TENANT])
    assert received.by_seq == expected.by_seq
    text = json.dumps(lines)
    assert used.run_ids[DEFAULT_TENANT] not in text
    assert f"words of {TENANT}" in text
    assert not {name for line in lines for name in line if "secret" in name}
    audited = [line for line in lines if line["type"] == "audit_entry"]
    assert {line["action"] for line in audited} >= {"key.created", "tenant.exported"}
    for line in audited:  # A user of the command line, whom the tenant does not know.
        assert (line["actor_kind"], line["actor_id"], line["actor_name"]) == ("cli", None, None)
    places = [line["type"] for line in lines]
    order = [places.index(kind) for kind in EXPORTED.values() if kind in places]
    assert order == sorted(order)
    assert list(used.directory.glob(".reattach-export-*")) == []


def test_an_export_into_a_file_is_private_and_replaces_nothing(used: Used, tmp_path: Path) -> None:
    target = tmp_path / "made.jsonl"
    ended = used.tenants("export", TENANT, "--output", str(target))
    assert (ended.status, ended.out) == (0, "")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert json.loads(target.read_bytes().splitlines()[-1])["type"] == "end"
    kept = target.read_bytes()
    again = used.tenants("export", TENANT, "--output", str(target))
    assert again.status == 1
    assert "exists" in again.err
    assert target.read_bytes() == kept
    unknown = used.tenants("export", "org-none", "--output", str(tmp_path / "none"))
    assert unknown.status == 1
    assert "`reattach tenants list`" in unknown.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "made.jsonl"]


def test_a_deleted_tenant_leaves_no_row_and_no_log_and_the_other_keeps_its_own(used: Used) -> None:
    refused = used.tenants("delete", TENANT)
    assert refused.status == 1
    assert "--yes" in refused.err
    before = used.export(DEFAULT_TENANT)[1:]
    assert used.words(f"words of {TENANT}", used.run_ids[TENANT])

    ended = used.tenants("delete", TENANT, "--yes", "--json")

    done = json.loads(ended.out)
    assert (done["tenant"], done["logs"], done["logs_left"]) == (TENANT, 1, False)
    assert done["rows"]["runs"] == done["rows"]["agents"] == 1
    assert used.words(f"words of {TENANT}", used.run_ids[TENANT]) == set()
    assert used.logs() == {used.run_ids[DEFAULT_TENANT]}
    after = used.export(DEFAULT_TENANT)[1:]
    kinds = ("agent", "message", "run", "event", "key")
    for kind in kinds:
        assert [x for x in after if x["type"] == kind] == [x for x in before if x["type"] == kind]
    again = used.tenants("delete", TENANT, "--yes")
    assert (again.status, "Nothing of the tenant" in again.err) == (1, True)
    assert "`reattach tenants list`" in again.err
    [entry, begun] = audited(used)
    assert (entry[0], entry[1], begun[0]) == ("tenant.deleted", TENANT, "tenant.deletion_begun")


def audited(used: Used) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(datadir.records_file(used.directory))) as records:
        rows = records.execute(
            "SELECT action, subject FROM audit_log WHERE tenant IS NULL ORDER BY ordinal DESC"
        )
        return rows.fetchall()


def test_a_running_server_refuses_the_keys_and_deletes_the_logs_of_a_deleted_tenant(
    used: Used,
) -> None:
    made = reattach_here(
        "keys", "create", "x", "--tenant", TENANT, "--data-dir", str(used.directory)
    )
    headers = {"Authorization": f"Bearer {made.out.strip()}"}
    with (
        ServerProcess(
            used.directory,
            arguments=["--scripted", "--log-level", "warning"],
            # The interval of the sweep is half of the retention, at most a minute.
            environment={"REATTACH_RETENTION_SECONDS": "600"},
        ) as server,
        httpx2.Client(base_url=server.url, headers=headers, timeout=30) as client,
    ):
        assert client.get("/v1/agents/").status_code == 200
        exported = used.export(TENANT)
        assert exported[-1]["lines"]["event"] > 0

        ended = used.tenants("delete", TENANT, "--yes")

        assert ended.status == 0, ended.err
        assert "1 run, " in ended.err
        assert "The running server deletes its 1 event log within a minute" in ended.err
        assert client.get("/v1/agents/").status_code == 401
        assert used.words(f"words of {TENANT}") == set()
        server.stop()
    with ServerProcess(used.directory, arguments=["--scripted", "--log-level", "warning"]):
        deadline = SystemClock().monotonic_seconds() + BOUND_SECONDS
        while used.words(used.run_ids[TENANT]):
            assert SystemClock().monotonic_seconds() < deadline
    assert used.logs() == {used.run_ids[DEFAULT_TENANT]}


def test_active_runs_keep_a_tenant_unless_they_are_cancelled(used: Used) -> None:
    """The server was killed, so nobody would end them."""
    made = reattach_here(
        "keys", "create", "x", "--tenant", TENANT, "--data-dir", str(used.directory)
    )
    headers = {"Authorization": f"Bearer {made.out.strip()}"}
    with ServerProcess(
        used.directory, arguments=["--scripted", "--log-level", "warning"]
    ) as server:
        with httpx2.Client(base_url=server.url, headers=headers, timeout=30) as client:
            [conversation] = client.get("/v1/conversations/").json()
            body = {"input": "[hang=600]", "background": True}
            path = f"/v1/conversations/{conversation['id']}/messages"
            with client.stream("POST", path, json=body) as answer:
                run_id = answer.headers["x-run-id"]
        refused = used.tenants("delete", TENANT, "--yes")
        assert refused.status == 1
        assert run_id in refused.err
        assert "--cancel-runs" in refused.err
        server.kill()
    still = used.tenants("delete", TENANT, "--yes")
    assert (still.status, "--cancel-runs" in still.err) == (1, True)
    assert used.words(run_id) == {run_id}

    done = used.tenants("delete", TENANT, "--yes", "--cancel-runs")

    assert done.status == 0, done.err
    assert used.words(run_id, f"words of {TENANT}") == set()
    assert used.logs() == {used.run_ids[DEFAULT_TENANT]}
