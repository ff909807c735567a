"""``reattach doctor --through`` finds the faults of real proxies, and names their remedies."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import trustme

from reattach.diagnostics import Level
from reattach.path.examination import examine
from reattach.path.findings import Fault, Report
from reattach.path.remedies import ADVICE
from reattach.path.report import lines_of
from reattach.path.timing import Timing
from reattach.testing.programs.ports import free_port
from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.deploy.conftest import KINDS, Keyed
from tests.support.commands import Ended, reattach_here
from tests.support.proxy_server import HaproxyServer, NginxServer, ProxyServer

MIB = 1024 * 1024
SHORT = Timing(
    frames=10,
    interval_seconds=0.05,
    repeats=2,
    head_seconds=0.5,
    burst_seconds=0.4,
    silences_seconds=(),
    total_seconds=0,
    leaving_seconds=(0.5, 2.0),
    connections=12,
    body_bytes=2 * MIB,
    grace_seconds=5,
)
"""Enough for each fault but those of long streams."""

LONG = replace(SHORT, silences_seconds=(1.0, 3.0), total_seconds=3, total_interval_seconds=0.25)
LEAVING = (*SHORT.leaving_seconds, 20.0)
"""A path without a fault needs the last one only when the machine is busy, and as long for the
beginning of a stream."""

NGINX = """
upstream reattach {{
    server reattach-1:8283;
}}
limit_conn_zone $binary_remote_addr zone=clients:1m;
server {{
    listen 8080;
    location / {{
        proxy_pass http://reattach;
        client_max_body_size 16m;
        {lines}
    }}
}}
"""
HAPROXY = """
global
    fd-hard-limit 1000
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    {lines}
frontend clients
    bind :8080
    default_backend reattach
backend reattach
    server reattach-1 reattach-1:8283
"""

Examine = Callable[..., Report]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, keyed: Keyed) -> Iterator[ServerProcess]:
    """A server whose pings are as far apart as by default."""
    data_dir = tmp_path_factory.mktemp("path") / "data"
    shutil.copytree(keyed.directory, data_dir)
    server = ServerProcess(data_dir, arguments=["--scripted", "--log-level", "warning"])
    server.api_key = keyed.secret
    with server:
        yield server


@pytest.fixture(scope="module")
def other_server(tmp_path_factory: pytest.TempPathFactory, keyed: Keyed) -> Iterator[ServerProcess]:
    """A server that knows the same key, behind the same proxy."""
    data_dir = tmp_path_factory.mktemp("other") / "data"
    shutil.copytree(keyed.directory, data_dir)
    with ServerProcess(data_dir, arguments=["--scripted", "--log-level", "warning"]) as server:
        yield server


def examined(url: str, server: ServerProcess, timing: Timing) -> Report:
    report = asyncio.run(examine(url, server.api_key, timing=timing))
    assert [*lines_of(report)]
    return report


def through(
    kind: type[ProxyServer], text: str, server: ServerProcess, folder: Path, timing: Timing = SHORT
) -> Report:
    """The report of the path through a proxy with this configuration."""
    file = folder / "proxy.cfg"
    file.write_text(text, "utf-8")
    with kind(file, [server.address]) as proxy:
        return examined(proxy.url, server, timing)


def through_nginx(
    lines: str, server: ServerProcess, folder: Path, timing: Timing = SHORT
) -> Report:
    return through(NginxServer, NGINX.format(lines=lines), server, folder, timing)


def through_haproxy(
    lines: str, server: ServerProcess, folder: Path, timing: Timing = SHORT
) -> Report:
    return through(HaproxyServer, HAPROXY.format(lines=lines), server, folder, timing)


def faults(report: Report) -> dict[str, tuple[Level, Fault | None]]:
    """The checks that found something."""
    return {one.what: (one.level, one.fault) for one in report.findings if one.level != "ok"}


def detail(report: Report, what: str) -> str:
    return next(one.detail for one in report.findings if one.what == what)


@pytest.mark.parametrize(("program", "configuration"), KINDS, ids=lambda one: one.name)
def test_the_files_of_deploy_have_no_fault_and_several_servers_no_harm(
    server: ServerProcess,
    other_server: ServerProcess,
    program: type[ProxyServer],
    configuration: Path,
) -> None:
    with program(configuration, [server.address, other_server.address]) as proxy:
        report = examined(
            proxy.url,
            server,
            replace(LONG, body_bytes=16 * MIB, leaving_seconds=LEAVING, first_piece_seconds=20.0),
        )
    assert faults(report) == {}
    assert report.proxies == (program.name,)
    assert len(report.findings) == 15


WITHHELD = "proxy_ignore_headers X-Accel-Buffering;"


def test_nginx_that_asks_over_http_1_0_withholds_everything_and_hides_broken_bodies(
    server: ServerProcess, tmp_path: Path
) -> None:
    report = through_nginx(f"proxy_http_version 1.0; {WITHHELD}", server, tmp_path)
    found = faults(report)
    assert found["delay"] == ("wrong", Fault.BUFFERED)
    assert found["head"] == ("warning", Fault.HEAD_WITHHELD)
    assert found["burst"] == ("wrong", Fault.BUFFERED)
    assert found["broken body"] == ("wrong", Fault.LOOKS_WHOLE)
    assert "10.0 frames a read" in detail(report, "delay")
    assert "requests reach it over HTTP/1.0" in detail(report, "reach")
    lines = [*lines_of(report)]
    first = next(number for number, line in enumerate(lines) if "frames are withheld" in line)
    assert lines[first + 2].split(maxsplit=1) == ["nginx", "proxy_http_version 1.1;"]


def test_nginx_that_ignores_our_header_withholds_the_head_and_the_end_of_a_burst(
    server: ServerProcess, tmp_path: Path
) -> None:
    found = faults(through_nginx(WITHHELD, server, tmp_path))
    assert found == {
        "head": ("warning", Fault.HEAD_WITHHELD),
        "burst": ("wrong", Fault.BUFFERED),
    }


GZIP = "gzip on; gzip_types text/event-stream;"


def test_nginx_that_compresses_streams_is_found(server: ServerProcess, tmp_path: Path) -> None:
    report = through_nginx(GZIP, server, tmp_path)
    assert faults(report) == {"compression": ("warning", Fault.COMPRESSED)}
    assert "gzip" in detail(report, "compression")


def test_nginx_that_compresses_and_withholds_streams_is_found(
    server: ServerProcess, tmp_path: Path
) -> None:
    report = through_nginx(GZIP + WITHHELD, server, tmp_path)
    assert faults(report)["compression"] == ("wrong", Fault.COMPRESSED)
    assert "10.0 frames a read" in detail(report, "compression")


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_a_limit_on_silence_is_measured(server: ServerProcess, tmp_path: Path, kind: str) -> None:
    if kind == "nginx":
        report = through_nginx("proxy_read_timeout 2s;", server, tmp_path, LONG)
    else:
        lines = "option http-no-delay\n    option abortonclose\n    timeout server 2s"
        report = through_haproxy(lines, server, tmp_path, LONG)
    assert faults(report) == {"silence": ("wrong", Fault.IDLE_CUT)}
    [silence] = [one for one in report.findings if one.what == "silence"]
    assert silence.figures["silence_seconds"] == 1
    assert f"{silence.figures['cut_after_seconds']}" in silence.detail
    cut_after = silence.figures["cut_after_seconds"]
    assert isinstance(cut_after, float)
    assert 1.9 <= cut_after < 3
    assert "before the next ping: the server sends one every 15 s" in silence.detail


def test_a_limit_on_the_whole_time_is_measured_and_not_taken_for_one_on_silence(
    server: ServerProcess,
) -> None:
    with Relay(server.address, connection_seconds=2) as relay:
        report = examined(relay.url, server, LONG)
    found = faults(report)
    assert found["total time"] == ("wrong", Fault.TOTAL_CUT)
    assert found["silence"] == ("warning", None)
    assert "every stream is cut after 2" in detail(report, "silence")


def test_haproxy_that_waits_for_more_and_notices_no_leaving_is_found(
    server: ServerProcess, tmp_path: Path
) -> None:
    report = through_haproxy("", server, tmp_path)
    found = faults(report)
    assert found["head"] == ("warning", Fault.LATE)
    assert found["delay"] == ("warning", Fault.LATE)
    assert found["leaving"] == ("warning", Fault.LEAVING_UNNOTICED)
    assert found.keys() <= {"head", "delay", "leaving", "burst"}
    shown = "\n".join(lines_of(report))
    assert "HAProxy             option http-no-delay" in shown
    assert "HAProxy             option abortonclose" in shown


@pytest.mark.parametrize(
    "case",
    [
        (
            "proxy_ignore_client_abort on;",
            "leaving",
            ("warning", Fault.LEAVING_UNNOTICED),
            "does not see within 2 s",
        ),
        (
            "client_max_body_size 1m;",
            "large bodies",
            ("warning", Fault.BODY_REFUSED),
            "2 MiB gets 413 from the proxy (nginx/1.",
        ),
        (
            "proxy_intercept_errors on; error_page 503 /away.html;",
            "errors",
            ("wrong", Fault.ERRORS_REPLACED),
            "the body of a 503 is replaced",
        ),
        (
            "proxy_set_header Last-Event-ID '';",
            "request headers",
            ("wrong", Fault.REQUEST_HEADERS),
            "Last-Event-ID is lost",
        ),
        (
            "proxy_hide_header X-Run-Id;",
            "response headers",
            ("wrong", Fault.RESPONSE_HEADERS),
            "X-Run-Id is lost",
        ),
        (
            "proxy_hide_header Cache-Control;",
            "response headers",
            ("warning", Fault.RESPONSE_HEADERS),
            "without no-transform",
        ),
        (
            "limit_conn clients 8;",
            "connections",
            ("warning", Fault.CONNECTIONS_REFUSED),
            "with the status 503",
        ),
    ],
    ids=lambda case: case[0],
)
def test_a_line_of_nginx_that_harms_is_found(
    server: ServerProcess, tmp_path: Path, case: tuple[str, str, tuple[Level, Fault], str]
) -> None:
    lines, what, expected, said = case
    configuration = NGINX.replace("client_max_body_size 16m;", "") if "body" in lines else NGINX
    report = through(NginxServer, configuration.format(lines=lines), server, tmp_path)
    assert faults(report) == {what: expected}
    assert said in detail(report, what)


def test_a_lost_key_is_distinguished_from_a_wrong_one(
    server: ServerProcess, tmp_path: Path
) -> None:
    lost = through_nginx("proxy_set_header Authorization '';", server, tmp_path)
    assert faults(lost) == {"reach": ("wrong", Fault.REQUEST_HEADERS)}
    assert "Authorization is lost" in detail(lost, "reach")
    wrong = asyncio.run(examine(server.url, "wrong", timing=SHORT))
    assert faults(wrong) == {"reach": ("wrong", None)}
    assert "the key is not valid (401 Unauthorized)" in detail(wrong, "reach")


def test_http_2_is_looked_for_where_browsers_use_it(
    server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    pair = authority.issue_cert("127.0.0.1", "localhost")
    pair.private_key_and_cert_chain_pem.write_to_path(tmp_path / "pair.pem")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    for lines, expected in (("", {"http/2": ("warning", Fault.NO_HTTP2)}), ("http2 on;", {})):
        port = free_port()
        tls = (
            f"server {{\n listen 127.0.0.1:{port} ssl; {lines} ssl_certificate {tmp_path}/pair.pem;"
            f" ssl_certificate_key {tmp_path}/pair.pem; location / {{ proxy_pass http://reattach;"
            " client_max_body_size 16m; }\n}\n"
        )
        file = tmp_path / "proxy.cfg"
        file.write_text(NGINX.format(lines="") + tls, "utf-8")
        with NginxServer(file, [server.address]):
            report = examined(f"https://127.0.0.1:{port}", server, SHORT)
        assert faults(report) == expected
    assert ssl.HAS_ALPN


# The command.


def doctor(url: str, *more: str, key: str = "") -> Ended:
    with patch("reattach.path.timing.QUICK", SHORT):
        return reattach_here("doctor", "--through", url, "--quick", *more, REATTACH_API_KEY=key)


def test_the_command_shows_a_fault_its_remedy_and_status_1(
    server: ServerProcess, tmp_path: Path, keyed: Keyed
) -> None:
    file = tmp_path / "proxy.cfg"
    file.write_text(NGINX.format(lines=f"proxy_http_version 1.0; {WITHHELD}"), "utf-8")
    with NginxServer(file, [server.address]) as proxy:
        people = doctor(f"{proxy.url}/v1/", key=keyed.secret)
        programs = doctor(proxy.url, "--json", key=keyed.secret)
    assert (people.status, programs.status) == (1, 1)
    assert "wrong   delay                 frames are withheld" in people.out
    assert ADVICE[Fault.BUFFERED].step in people.out
    assert "  nginx               proxy_http_version 1.1;" in people.out
    assert people.out.splitlines()[-1].endswith("3 wrong")
    assert people.err.startswith(f"Examining the path to {proxy.url}")
    assert keyed.secret not in people.out + programs.out
    said = json.loads(programs.out)
    assert (said["wrong"], said["proxies"]) == (3, ["nginx"])
    [delay] = [one for one in said["findings"] if one["what"] == "delay"]
    assert delay["fault"] == "buffered"
    assert delay["figures"]["frames_per_read"] == 10
    assert delay["remedies"][0]["where"] == "nginx"
    assert "proxy_buffering off;" in delay["remedies"][0]["lines"]


def test_the_command_says_what_keeps_it_from_an_examination(
    server: ServerProcess, keyed: Keyed
) -> None:
    closed = doctor(f"http://127.0.0.1:{free_port()}")
    assert closed.status == 1
    assert "Nothing answers at" in closed.err
    assert "connection refused" in closed.err
    nonsense = doctor("nonsense")
    assert "'nonsense' is not the URL of a server" in nonsense.err
    no_key = doctor(server.url)
    assert no_key.status == 1
    assert "a key is required (401 Unauthorized)" in no_key.out
    elsewhere = doctor(f"{server.url}/nowhere", key=keyed.secret)
    assert "no Reattach server answered (404 Not Found" in elsewhere.out
    both = reattach_here("doctor", "--through", server.url, "--models")
    assert both.status == 2
    assert "--through examines only the path" in both.err
    alone = reattach_here("doctor", "--quick")
    assert "--quick needs --through URL" in alone.err
