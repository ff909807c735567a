"""Errors at the start of a server, and keys that are created while it runs."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reattach.cli.commands import app
from reattach.domain.errors import StartupError, StoreUnavailableError
from reattach.domain.ids import Token
from reattach.domain.limits import KEY_CACHE_SECONDS
from reattach.engine.scripted import ScriptedEngine
from reattach.server import datadir
from reattach.server.assembly import assemble
from reattach.server.process import _require_key_for_network
from reattach.settings import Settings
from reattach.testing.programs.server import ServerProcess
from tests.support.live_server import listening
from tests.support.raw_clients import client_of


async def refused(data_dir: Path, *arguments: str) -> str:
    """Return the error of a server that does not start."""
    command = ["serve", "--data-dir", str(data_dir), *arguments]
    ended = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert isinstance(ended.exception, StartupError | StoreUnavailableError), ended.exception
    return ended.exception.detail


async def keys(data_dir: Path, *arguments: str) -> str:
    """Return the output of a ``reattach keys`` command."""
    command = ["keys", *arguments, "--data-dir", str(data_dir)]
    ended = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert ended.exit_code == 0, ended.output
    return ended.stdout.strip()


@pytest.mark.promise("P7")
async def test_a_second_server_on_the_same_data_refuses_to_start_until_the_first_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reattach.observe.configure_logging", lambda *_: None)
    with ServerProcess(tmp_path, arguments=["--scripted"]) as first:
        assert await refused(tmp_path) == (
            f"Another server (process {first.pid}) is using the data directory {tmp_path}. "
            "Stop it, or give this server a directory of its own with --data-dir."
        )
        async with client_of(first) as client:
            assert (await client.http.get("/v1/ready/")).status_code == 200
    async with listening(tmp_path) as second:
        assert (await second.client.get("/v1/ready/")).status_code == 200


@pytest.mark.promise("S11")
async def test_a_server_that_cannot_start_says_why_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reattach.observe.configure_logging", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        in_use = await refused(tmp_path / "port", "--port", str(port))
    assert in_use.startswith(f"Cannot listen on 127.0.0.1:{port}: ")
    assert "--port" in in_use

    (tmp_path / "file").write_text("in the way")
    assert "--data-dir" in await refused(tmp_path / "file" / "data", "--port", "0")

    strangers = tmp_path / "strangers"
    for host in ("0.0.0.0", "example.invalid"):
        open_to_all = await refused(strangers, "--port", "0", "--host", host)
        assert f"REATTACH_HOST is {host}, which is not a loopback address" in open_to_all
        assert f"`reattach keys create NAME --data-dir {strangers}`" in open_to_all

    content = b"something else " * 1000
    for name in ("events", "records"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.db").write_bytes(content)
        assert await refused(tmp_path / name, "--port", "0")
        assert (tmp_path / name / f"{name}.db").read_bytes() == content


@pytest.mark.promise("S11")
async def test_keys_created_and_revoked_while_a_server_runs_take_effect_within_seconds(
    tmp_path: Path,
) -> None:
    first = await keys(tmp_path, "create", "first")
    async with listening(tmp_path, host="0.0.0.0") as server:
        # With a key, a server may listen on every address.
        await _require_key_for_network(server.context)

        async def status(secret: str | None) -> int:
            headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
            return (await server.client.get("/v1/agents/", headers=headers)).status_code

        assert (await server.client.get("/v1/ready/")).status_code == 200
        assert await status(None) == 401
        assert await status(first) == 200
        second = await keys(tmp_path, "create", "second")
        assert await status(second) == 200
        listed = await keys(tmp_path, "list")
        assert first not in listed
        assert second not in listed
        key_id, prefix, name, *_, state = listed.splitlines()[-1].split("\t")
        assert (name, state) == ("second", "active")
        assert second.startswith(prefix.rstrip("…"))
        await keys(tmp_path, "revoke", key_id)
        server.clock.skipped_seconds += KEY_CACHE_SECONDS
        assert await status(second) == 401
        assert await status(first) == 200
        assert "revoked" in (await keys(tmp_path, "list")).splitlines()[-1]


def modes(directory: Path) -> dict[str, str]:
    return {
        file.name: f"{stat.S_IMODE(file.stat().st_mode):o}"
        for file in directory.iterdir()
        if file.is_file()
    }


@pytest.mark.promise("P11")
async def test_other_users_of_the_machine_cannot_read_the_data_directory(tmp_path: Path) -> None:
    """D9: in a directory that existed, with files that were open to all, and an easy umask."""
    place = tmp_path / "data"
    await asyncio.to_thread(place.mkdir, 0o755)
    usual = os.umask(0o000)
    try:
        await keys(place, "create", "first")
        assert set((await asyncio.to_thread(modes, place)).values()) == {"600"}
        for file in (datadir.records_file(place), datadir.events_file(place)):
            await asyncio.to_thread(file.chmod, 0o664)
        async with assemble(Settings(data_dir=place), engines=[ScriptedEngine()]) as context:
            await context.runs.log.open("run", Token(1))
            found = await asyncio.to_thread(modes, place)
            assert set(found) >= {"events.db-wal", "records.db", "reattach.boot", "reattach.lock"}
            assert set(found.values()) == {"600"}
    finally:
        os.umask(usual)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free disk space"),
        (errno.EROFS, "Mount its file system for writing"),
        (errno.EACCES, "Make the user that runs the server its owner"),
    ],
)
@pytest.mark.parametrize("call", ["open", "pwrite"])
def test_a_data_directory_that_cannot_be_written_to_is_refused_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, remedy: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StartupError) as refusal, datadir.lock(tmp_path):
        pass
    assert refusal.value.detail == (
        f"The data directory {tmp_path} cannot be written to: {os.strerror(number)}. "
        f"{remedy}, or name another directory with --data-dir."
    )
