"""Backups of a directory that a server is using, and servers on restored ones."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import stat
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest

from reattach.domain.errors import StartupError
from reattach.domain.ids import DEFAULT_TENANT
from reattach.records.database.migrations import HEAD
from reattach.records.records import Records
from reattach.server import datadir
from reattach.server.assembly import assemble
from reattach.server.backup import restore as restoring
from reattach.server.backup.backup import make_backup
from reattach.server.backup.restore import restore_backup
from reattach.settings import Settings
from reattach.testing.programs.server import ServerProcess
from tests.support.commands import reattach_here
from tests.support.raw_clients import Client, client_of
from tests.support.received import Received, answer, end_of

T = TypeVar("T")

WAIT_SECONDS = 60.0
TALKERS = 4


@dataclass
class Talker:
    """A client that sends one message after the other to its conversation."""

    client: Client
    conversation_id: str
    ended: dict[str, Received] = field(default_factory=dict)
    """The events that it received of each run, by id."""

    async def talk(self, stopped: asyncio.Event) -> None:
        for number in count():
            if stopped.is_set():
                return
            received = Received()
            otid = f"{self.conversation_id}-{number}"
            run_id = await self.client.send(
                self.conversation_id, "[chunks=40][rate=400]", received, otid=otid
            )
            assert run_id is not None
            self.ended[run_id] = received


async def begin(client: Client, conversation_id: str, text: str) -> str:
    """Send, and return the id of the run once an event of it is logged."""
    begun = asyncio.Event()
    received = Received()
    task = asyncio.create_task(
        client.send(conversation_id, text, received, otid=text, on_read=begun.set)
    )
    await begun.wait()
    task.cancel()
    await asyncio.wait({task})
    assert received.run_id is not None
    return received.run_id


async def status_of(client: Client, run_id: str) -> str:
    return str((await client.got(f"/v1/runs/{run_id}"))["status"])


async def until_ended(client: Client, run_id: str) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while await status_of(client, run_id) in {"created", "running"}:
            await asyncio.sleep(0.02)


def in_between(work: Callable[[], Any]) -> Callable[[str, int, int], None]:
    """Return a listener that runs ``work`` between the state of the records and of the events."""

    def on_step(name: str, done_bytes: int, _all_bytes: int) -> None:
        if (name, done_bytes) == ("records.db", 0):
            work()

    return on_step


@pytest.mark.promise("P2", "P7", "P10")
@pytest.mark.timeout(180)
async def test_a_backup_during_a_storm_restores_to_whole_conversations_and_no_open_run(
    tmp_path: Path,
) -> None:
    server = ServerProcess(tmp_path / "data", arguments=["--scripted", "--log-level", "warning"])
    loop = asyncio.get_running_loop()
    with server:
        async with client_of(server) as client:
            talkers = [Talker(client, await client.conversation()) for _ in range(TALKERS)]
            ending, hanging = await client.conversation(), await client.conversation()
            stopped = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for talker in talkers:
                    group.create_task(talker.talk(stopped))
                ends = await begin(client, ending, "[chunks=30][rate=200]")
                hangs = await begin(client, hanging, "[chunks=3][hang=600]")

                async def let_it_end() -> None:
                    await until_ended(client, ends)
                    before = {run_id for talker in talkers for run_id in talker.ended}
                    async with asyncio.timeout(WAIT_SECONDS):
                        while len({r for t in talkers for r in t.ended} - before) < TALKERS:
                            await asyncio.sleep(0.02)

                manifest = await asyncio.to_thread(
                    make_backup,
                    tmp_path / "data",
                    tmp_path / "backup",
                    in_between(
                        lambda: asyncio.run_coroutine_threadsafe(let_it_end(), loop).result()
                    ),
                )
                stopped.set()
            whole = Received()
            await client.resume(ends, whole)
            expected = await client.stored_text(ending, ends)
    known = set(await asyncio.to_thread(runs_in, tmp_path / "backup"))
    assert {ends, hangs} <= known
    assert manifest.files[0].rows["runs"] == len(known)

    await asyncio.to_thread(restore_backup, tmp_path / "backup", tmp_path / "restored")
    server = ServerProcess(tmp_path / "restored", arguments=["--scripted"])
    with server:
        async with client_of(server) as client:
            for run_id in known:
                await until_ended(client, run_id)
            assert await status_of(client, hangs) == "failed"
            assert await status_of(client, ends) == "completed"
            again = Received()
            await client.resume(ends, again)
            assert again.by_seq == whole.by_seq
            assert await client.stored_text(ending, ends) == expected == answer(whole.frames)
            for talker in talkers:
                for run_id, received in talker.ended.items():
                    if run_id not in known:
                        continue
                    text = await client.stored_text(talker.conversation_id, run_id)
                    assert await status_of(client, run_id) in {"completed", "failed"}
                    assert answer(received.frames).startswith(text)
            for conversation_id in (ending, hanging, *(t.conversation_id for t in talkers)):
                received = Received()
                await client.send(conversation_id, "go on", received, otid=f"{conversation_id}-x")
                assert end_of(received.frames)["stop_reason"] == "end_turn"


def runs_in(backup: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{backup}/records.db?immutable=1", uri=True)) as records:
        return [run_id for (run_id,) in records.execute("SELECT id FROM runs")]


def with_server(directory: Path, work: Callable[[Records], Awaitable[T]]) -> T:
    """Start a server on the directory, and return the result of ``work`` on its records."""

    async def run() -> T:
        async with assemble(Settings(data_dir=directory, scripted=True)) as context:
            return await work(context.records)

    return asyncio.run(run())


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory that a server has used."""
    with_server(tmp_path / "data", lambda records: records.keys.create(DEFAULT_TENANT, "app"))
    return tmp_path / "data"


@pytest.fixture
def backup(data_dir: Path, tmp_path: Path) -> Path:
    make_backup(data_dir, tmp_path / "backup")
    return tmp_path / "backup"


def names(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()}


def test_a_backup_changes_nothing_in_the_directory_and_others_cannot_read_it(
    data_dir: Path, tmp_path: Path
) -> None:
    before = {file.name: file.read_bytes() for file in data_dir.iterdir()}
    make_backup(data_dir, tmp_path / "made" / "backup")
    assert {file.name: file.read_bytes() for file in data_dir.iterdir()} == before
    made = tmp_path / "made" / "backup"
    assert names(made) == {"records.db", "events.db", "manifest.json"}
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in made.iterdir()} == {0o600}
    assert names(tmp_path / "made") == {"backup"}


def test_a_restored_directory_has_the_same_records_and_expects_missing_events(
    data_dir: Path, backup: Path, tmp_path: Path
) -> None:
    restored = tmp_path / "restored"
    (restored / "lost+found").mkdir(parents=True, mode=0o700)  # As on a disk of its own.
    manifest = restore_backup(backup, restored)
    (restored / "lost+found").rmdir()
    assert (manifest.revision, manifest.format) == (HEAD, 1)
    assert names(restored) == {"records.db", "events.db", "reattach.lock"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in restored.iterdir()} == {0o600}
    assert datadir.may_lack_events(restored)
    for name in ("records.db", "events.db"):
        with (
            closing(sqlite3.connect(data_dir / name)) as original,
            closing(sqlite3.connect(restored / name)) as copy,
        ):
            assert list(copy.iterdump()) == list(original.iterdump())


def test_a_directory_that_is_not_empty_is_neither_backed_up_into_nor_restored_into(
    data_dir: Path, backup: Path, tmp_path: Path
) -> None:
    kept = {file.name: file.read_bytes() for file in backup.iterdir()}
    with pytest.raises(StartupError, match="exists and is not empty"):
        make_backup(data_dir, backup)
    assert {file.name: file.read_bytes() for file in backup.iterdir()} == kept
    with pytest.raises(StartupError, match=r"is not empty: it has events\.db"):
        restore_backup(backup, data_dir)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(StartupError, match=r"notes\.txt"):
        restore_backup(backup, other)
    assert (other / "notes.txt").read_text() == "mine"
    with pytest.raises(StartupError, match="has no records"):
        make_backup(tmp_path / "nothing", tmp_path / "backup2")
    assert not (tmp_path / "backup2").exists()
    for inside in (data_dir / "backup", data_dir / "new" / ".." / "backup"):
        with pytest.raises(StartupError, match="is in the data directory"):
            make_backup(data_dir, inside)
    assert not list(data_dir.glob("*backup*"))


def test_a_directory_that_a_server_holds_is_not_restored_into(backup: Path, tmp_path: Path) -> None:
    with datadir.lock(tmp_path / "held"):
        ended = reattach_here("restore", str(backup), "--data-dir", str(tmp_path / "held"))
    assert ended.status == 1
    assert "data directory" in ended.err
    assert not datadir.has_records(tmp_path / "held")


@pytest.mark.parametrize("name", ["records.db", "events.db"])
def test_no_server_starts_on_a_directory_into_which_a_damaged_backup_was_to_be_restored(
    backup: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(backup, tmp_path / "whole")
    damaged = bytearray((backup / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (backup / name).write_bytes(damaged)
    with pytest.raises(StartupError, match=rf"{name} is not the file that was backed up"):
        restore_backup(backup, tmp_path / "restored")
    assert names(tmp_path / "restored") == {"reattach.lock", "reattach.restoring"}
    (backup / name).write_bytes(damaged[:-1])
    with pytest.raises(StartupError, match=rf"{name} is not the file that was backed up"):
        restore_backup(backup, tmp_path / "restored")
    (backup / name).unlink()
    with pytest.raises(StartupError, match=rf"{name} of the backup .* cannot be read"):
        restore_backup(backup, tmp_path / "restored")
    with pytest.raises(StartupError, match="failed or was interrupted"):
        with_server(tmp_path / "restored", lambda records: records.keys.exist())
    restore_backup(tmp_path / "whole", tmp_path / "restored")
    assert len(with_server(tmp_path / "restored", lambda records: records.keys.list(None))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format that this version"),
        ({"revision": "9999"}, "newer version"),
        ({"log_layout": 99}, "layout 99"),
        ({"files": []}, "does not name exactly"),
        ({"files": None}, "is damaged"),
    ],
)
def test_a_backup_that_this_version_cannot_read_is_refused(
    backup: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    manifest = json.loads((backup / "manifest.json").read_text())
    (backup / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(StartupError, match=message):
        restore_backup(backup, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_no_server_starts_on_a_directory_whose_disk_had_no_space_for_the_backup(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
        with pytest.raises(StartupError, match="MiB free"):
            restore_backup(backup, tmp_path / "restored")
    with pytest.raises(StartupError, match="failed or was interrupted"):
        with_server(tmp_path / "restored", lambda records: records.keys.exist())


def test_no_server_starts_on_a_part_of_a_backup_until_the_restoration_is_repeated(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored = tmp_path / "restored"

    def die(*_arguments: object) -> None:
        os._exit(9)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(restoring, "sync_directory", die)
        restore_backup(backup, restored)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9

    with pytest.raises(StartupError, match="failed or was interrupted"):
        with_server(restored, lambda records: records.keys.exist())
    assert "restoration" in {one.what for one in datadir.check(restored) if one.level == "wrong"}
    restore_backup(backup, restored)
    assert "wrong" not in {one.level for one in datadir.check(restored)}
    assert len(with_server(restored, lambda records: records.keys.list(None))) == 1


def test_a_backup_that_fails_leaves_nothing_behind(data_dir: Path, tmp_path: Path) -> None:
    content = bytearray((data_dir / "records.db").read_bytes())
    content[4096:8192] = os.urandom(4096)
    (data_dir / "records.db").write_bytes(content)
    with pytest.raises(StartupError, match=r"damaged|cannot be copied"):
        make_backup(data_dir, tmp_path / "made" / "backup")
    assert names(tmp_path / "made") == set()


def test_both_commands_say_what_they_did_and_leave_entries_in_the_audit_log(
    data_dir: Path, tmp_path: Path
) -> None:
    made, restored = str(tmp_path / "made"), str(tmp_path / "restored")
    backed_up = reattach_here("backup", made, "--data-dir", str(data_dir), "--json")
    assert (backed_up.status, json.loads(backed_up.out)["revision"]) == (0, HEAD)
    assert "is complete and checked" in backed_up.err
    assert "KiB (100 %)" in backed_up.err
    done = reattach_here("restore", made, "--data-dir", restored)
    assert done.status == 0
    assert "records.db\t" in done.out
    assert f"reattach serve --data-dir {restored}" in done.err
    shutil.rmtree(made)
    for directory, acts in ((str(data_dir), ["backup.made"]), (restored, ["backup.restored"])):
        entries = with_server(Path(directory), lambda one: one.audit_log.list(None, limit=9))
        assert [(entry.action, entry.actor_kind) for entry in entries] == [
            (act, "cli") for act in acts
        ]


@pytest.mark.parametrize(("command", "tool"), [("backup", "pg_dump"), ("restore", "pg_restore")])
def test_shared_stores_are_refused_with_the_tools_to_use(command: str, tool: str) -> None:
    ended = reattach_here(
        command,
        "anywhere",
        REATTACH_DATABASE_URL="postgresql://u:secret@host/database",
        REATTACH_LOG_URL="redis://host:6379/0",
    )
    assert ended.status == 1
    assert tool in ended.err
    assert "secret" not in ended.err
