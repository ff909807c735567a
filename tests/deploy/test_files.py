"""The files of deploy/ agree with the server's settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from reattach.domain.errors import StartupError
from reattach.domain.limits import CLOSE_SECONDS, LISTEN_BACKLOG, MAX_REQUEST_BYTES
from reattach.settings import Settings, variable_of

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVERS = ["reattach-1", "reattach-2"]
UNIT = (DEPLOY / "systemd" / "reattach@.service").read_text("utf-8")
SOCKET_UNIT = (DEPLOY / "systemd" / "reattach@.socket").read_text("utf-8")
ENVIRONMENT = (DEPLOY / "systemd" / "environment.example").read_text("utf-8")
PROXIES = ["haproxy.cfg", "nginx.conf"]
SHORTEST_START_SECONDS = 0.5
"""Time that a server takes at least to import its modules and to fail."""
EXIT_SECONDS = CLOSE_SECONDS + 5
"""Time that a server needs to stop after its drain, with a margin."""
LONGEST_PING_SECONDS = 55


def unit_settings(text: str) -> dict[str, str]:
    """Read the settings of a unit of systemd."""
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def variables(text: str) -> dict[str, str]:
    """Read the variables that a file sets."""
    return dict(re.findall(r"\b(REATTACH_[A-Z_]+)[=:] *\"?([^\s\"]*)", text))


@pytest.mark.parametrize(
    "name",
    [
        *("compose.yaml", "Dockerfile"),
        *("systemd/reattach@.service", "systemd/reattach@.socket", "systemd/environment.example"),
    ],
)
def test_every_variable_in_a_file_is_a_setting(name: str) -> None:
    known = set(map(variable_of, Settings.model_fields))
    named = set(re.findall(r"\bREATTACH_[A-Z_]+", (DEPLOY / name).read_text("utf-8")))

    assert named
    assert named <= known


def test_the_values_of_the_example_environment_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(ENVIRONMENT).items():
        monkeypatch.setenv(name, value)

    assert Settings().models == ("openai/gpt-4o-mini",)


@pytest.mark.parametrize("name", SERVERS)
def test_a_container_is_given_longer_than_its_server_drains(name: str) -> None:
    drain = float(SERVICES[name]["environment"]["REATTACH_DRAIN_SECONDS"])
    grace = float(SERVICES[name]["stop_grace_period"].removesuffix("s"))

    assert grace >= drain + EXIT_SECONDS


def test_a_unit_is_given_longer_than_its_server_drains_and_starts_again() -> None:
    settings = unit_settings(UNIT)

    drain = float(variables(ENVIRONMENT)["REATTACH_DRAIN_SECONDS"])
    assert float(settings["TimeoutStopSec"]) >= drain + EXIT_SECONDS
    assert settings["Restart"] == "always"
    assert settings["KillSignal"] == "SIGTERM"


def test_a_unit_starts_again_at_once_and_gives_up_only_after_minutes() -> None:
    settings = unit_settings(UNIT)

    assert settings["RestartSec"] == "100ms"
    tries, seconds = int(settings["StartLimitBurst"]), int(settings["StartLimitIntervalSec"])
    # Otherwise a server that fails within a second would be restarted for ever.
    assert tries * (0.1 + SHORTEST_START_SECONDS) < seconds
    assert tries * SHORTEST_START_SECONDS > 60


def test_the_socket_unit_passes_one_listening_socket_with_the_servers_backlog() -> None:
    settings = unit_settings(SOCKET_UNIT)

    assert settings["ListenStream"] == f"{variables(ENVIRONMENT)['REATTACH_HOST']}:%i"
    assert SOCKET_UNIT.count("\nListen") == 1
    assert settings["Accept"] == "no"
    assert int(settings["Backlog"]) == LISTEN_BACKLOG


def test_the_servers_start_on_new_tables_and_stores_that_forget_nothing() -> None:
    for name in SERVERS:
        assert SERVICES[name]["depends_on"] == {
            "upgrade": {"condition": "service_completed_successfully"},
            "postgresql": {"condition": "service_healthy"},
            "valkey": {"condition": "service_healthy"},
        }
        assert "/v1/ready/" in " ".join(SERVICES[name]["healthcheck"]["test"])
    assert SERVICES["upgrade"]["command"] == ["reattach", "db", "upgrade"]
    valkey = " ".join(SERVICES["valkey"]["command"])
    assert "--appendonly yes" in valkey
    assert "--maxmemory-policy noeviction" in valkey
    named = [volume for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert set(COMPOSE["volumes"]) <= {volume.partition(":")[0] for volume in named}


def test_the_proxy_of_the_compose_file_has_the_tested_file_and_knows_the_servers() -> None:
    (mounted,) = SERVICES["proxy"]["volumes"]
    file = DEPLOY / mounted.partition(":")[0]

    assert file == DEPLOY / "haproxy.cfg"
    known = re.findall(r"^ *server \S+ (\S+):8283", file.read_text("utf-8"), re.MULTILINE)
    assert known == SERVERS
    assert set(SERVICES["proxy"]["depends_on"]) == set(SERVERS)


def test_the_image_copies_only_files_of_the_build_context() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text("utf-8")
    seen = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE)
        for source in line.split()
    ]

    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source.split('/')[0]}" in seen
    assert dockerfile.count("--require-hashes") == dockerfile.count(" -r requirements/")
    assert re.search(r"^USER reattach$", dockerfile, re.MULTILINE)


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_waits_longer_than_the_longest_pause_between_pings(name: str) -> None:
    text = (DEPLOY / name).read_text("utf-8")
    pattern = r"^ *(?:timeout (?:client|server)|\w+_(?:read|send)_timeout|send_timeout) (\d+)s"
    waits = [int(seconds) for seconds in re.findall(pattern, text, re.MULTILINE)]

    assert len(waits) > 1
    assert min(waits) > LONGEST_PING_SECONDS
    with pytest.raises(StartupError, match="ping_interval_seconds"):
        Settings(ping_interval_seconds=LONGEST_PING_SECONDS + 1)


def test_nginx_takes_bodies_as_large_as_the_server_does() -> None:
    text = (DEPLOY / "nginx.conf").read_text("utf-8")

    assert f"client_max_body_size {MAX_REQUEST_BYTES // 2**20}m;" in text
    assert f"larger than {MAX_REQUEST_BYTES} bytes" in text


@pytest.mark.parametrize(
    "name",
    ["compose.yaml", "Dockerfile", "systemd/reattach@.service", "systemd/reattach@.socket"],
)
def test_a_file_that_no_test_starts_says_so(name: str) -> None:
    assert "Not tested: " in (DEPLOY / name).read_text("utf-8")
    assert "not tested" in (ROOT / "docs" / "deploy.md").read_text("utf-8")
