from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from reattach.cli.commands import app
from reattach.testing.programs.server import ServerProcess
from tests.support.proxy_server import HaproxyServer, NginxServer, ProxyServer

DEPLOY = Path(__file__).parents[2] / "deploy"
KINDS: list[tuple[type[ProxyServer], Path]] = [
    (HaproxyServer, DEPLOY / "haproxy.cfg"),
    (NginxServer, DEPLOY / "nginx.conf"),
]

ProxyBefore = Callable[[Sequence[tuple[str, int]]], AbstractContextManager[ProxyServer]]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind[0].name)
def kind(request: pytest.FixtureRequest) -> tuple[type[ProxyServer], Path]:
    found: tuple[type[ProxyServer], Path] = request.param
    return found


@pytest.fixture(scope="module")
def proxy_before(kind: tuple[type[ProxyServer], Path]) -> ProxyBefore:
    """Starts a proxy of this kind with the file of deploy/ in front of the given addresses."""
    program, configuration = kind
    return lambda upstreams: program(configuration, upstreams)


class Keyed(NamedTuple):
    """A data directory with an API key, for copies: a server behind a proxy needs one."""

    directory: Path
    secret: str


@pytest.fixture(scope="package")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Keyed:
    directory = tmp_path_factory.mktemp("keyed") / "data"
    made = CliRunner().invoke(app, ["keys", "create", "key", "--data-dir", str(directory)])
    assert made.exit_code == 0, made.output
    return Keyed(directory, made.stdout.strip())


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, keyed: Keyed) -> Iterator[ServerProcess]:
    data_dir = tmp_path_factory.mktemp("server") / "data"
    shutil.copytree(keyed.directory, data_dir)
    server = ServerProcess(
        data_dir,
        arguments=["--scripted", "--log-level", "warning"],
        environment={"REATTACH_PING_INTERVAL_SECONDS": "0.1"},
    )
    server.api_key = keyed.secret
    with server:
        yield server


@pytest.fixture(scope="package")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server without API keys."""
    data_dir = tmp_path_factory.mktemp("open") / "data"
    with ServerProcess(data_dir, arguments=["--scripted", "--log-level", "warning"]) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(proxy_before: ProxyBefore, server: ServerProcess) -> Iterator[ProxyServer]:
    """A proxy in front of ``server`` only."""
    with proxy_before([server.address]) as proxy:
        yield proxy
