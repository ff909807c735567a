"""Servers and programs as forks of a process that has imported everything, which saves the imports.

The test process talks to it over a Unix socket. A connection stands for one fork: it carries the
arguments, the environment and the descriptors to the forking process, and the pid and the exit
status back. As a program this module is the forking process itself.
"""

import atexit
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, NamedTuple
from unittest.mock import patch

from reattach.testing.programs.server import ServerProcess

_INTERPRETER_VARIABLES: Final = ("PYTHONPATH", "PYTHONHASHSEED", "PYTHONWARNINGS")
"""Variables that only the start of an interpreter reads, so a fork cannot apply them."""

_PROVIDERS: Final = ("anthropic", "google", "openai")

_IMPORTED_BEFORE: Final = (
    "httpx2",
    "reattach.cli.commands",
    "reattach.cli.plain_serve",
    "reattach.log.redis.log",
    "reattach.observe",
    "reattach.records.database.connection",
    "reattach.server.imports",
    "reattach.server.process",
    "reattach.server.tune_gc",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
    "typer._adapters",
    "typer._click.decorators",
    "uvloop",
)
"""Modules that ``reattach serve`` imports when it runs, for five times the CPU of all the rest."""

IMPORTED_BY_PROVIDERS: Final = (
    "reattach.engine.openai_responses",
    "reattach.engine.pydantic_ai",
    *(f"pydantic_ai.{part}.{name}" for part in ("models", "providers") for name in _PROVIDERS),
)
"""Modules that a server imports for hosted models; those of Anthropic take seconds."""

_IMPORTED_BEFORE_PROGRAMS: Final = (
    "letta_client.resources.agents",
    "letta_client.resources.conversations",
    "reattach.client",
    "reattach.embed",
    "reattach.testing",
    "uvicorn.protocols.http.auto",
)
"""Modules that programs import as well, for more CPU than most of them need."""

PRINT_IMPORTS: Final = "PRINT_IMPORTS"
"""Variable with which a forked server prints at its end which modules it imported itself."""
IMPORTED: Final = "Imported after the fork:"
"""The beginning of that line."""

_READY_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.01
_FIRST_BYTES: Final = 64
_MOST_DESCRIPTORS: Final = 8
_FIRST_FREE_FD: Final = 512
"""Above every descriptor of a fork and every one that a server is passed."""


class ForkedProcess:
    """A forked server or program, with the part of ``Popen`` that ``Program`` uses."""

    def __init__(self, connection: socket.socket, stdout: IO[str]) -> None:
        self._connection = connection
        self.stdout: IO[str] | None = stdout
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self.pid = int(self._line())

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None while it runs."""
        with self._lock:
            if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
                self._take_status()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status of the process when it has ended. Raises TimeoutExpired."""
        with self._lock:
            if self.returncode is None:
                if not select.select([self._connection], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired("reattach", timeout or 0.0)
                self._take_status()
            assert self.returncode is not None
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _take_status(self) -> None:
        self.returncode = int(self._line())
        self._connection.close()

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            piece = self._connection.recv(1)
            if not piece:
                raise RuntimeError("The process that forks servers has ended.")
            line += piece
        return line


class Forking:
    """The forking process. It starts with the first server, if not before.

    Forks of the process that started it use it too, and it ends with that process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._parent = 0
        """The process that started it."""
        self._folder = ""

    def can_start(self, environment: Mapping[str, str]) -> bool:
        """Whether a fork is the same as a new interpreter with this environment."""
        same = all(environment.get(one) == os.environ.get(one) for one in _INTERPRETER_VARIABLES)
        return same and hasattr(socket, "send_fds") and "COVERAGE_RUN" not in environment

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        *,
        program: Path | None = None,
        cwd: Path | None = None,
    ) -> ForkedProcess:
        """Fork ``reattach`` or a Python program. One pipe carries its output and errors.

        The fork has the descriptors ``pass_fds`` of this process under the same numbers. Servers
        that a program starts are forks too.
        """
        connection = self._connect()
        reading, writing = os.pipe()
        request = {
            "arguments": [*arguments],
            "environment": {**environment},
            "cwd": str(cwd or Path.cwd()),
            "pass_fds": [*pass_fds],
            "program": str(program) if program else None,
        }
        body = json.dumps(request).encode()
        socket.send_fds(connection, [b"%d\n" % len(body)], [writing, *pass_fds])
        os.close(writing)
        connection.sendall(body)
        return ForkedProcess(connection, os.fdopen(reading))

    def begin(self) -> None:
        """Start the forking process, unless it runs, without waiting until it is ready."""
        with self._lock:
            if self._is_running():
                return
            self._folder = tempfile.mkdtemp(prefix="reattach-fork-")
            self._process = subprocess.Popen(
                [sys.executable, __file__, self._path], stdin=subprocess.DEVNULL
            )
            self._pid, self._parent = self._process.pid, os.getpid()
            atexit.register(self.close)

    def join(self, path: str, pid: int) -> None:
        """Use the forking process with this socket and this pid, which is no child of this one."""
        self._folder, self._pid, self._parent = str(Path(path).parent), pid, pid

    def let_go(self) -> None:
        """Leave the process to the one that started it; a fork of that one calls this."""
        if self._process is not None:
            self._process.returncode = 0  # Else its destructor would warn that it still runs.
            self._process = None

    def close(self) -> None:
        """End the forking process, if this process started it. Idempotent.

        Servers that run stay as they are.
        """
        with self._lock:
            if self._process is None or self._parent != os.getpid():
                return
            self._process.kill()
            self._process.wait()
            self._process = None
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _path(self) -> str:
        return str(Path(self._folder) / "socket")

    def _is_running(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        if self._parent in {0, os.getpid()}:
            return False  # It was never started, or it is closed.
        try:
            os.kill(self._pid, 0)
        except OSError:
            return False
        return True

    def _connect(self) -> socket.socket:
        """Connect to the forking process when it is ready. Raises RuntimeError."""
        self.begin()
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self._path)
            except OSError as error:
                connection.close()
                if time.monotonic() > deadline or not self._is_running():
                    raise RuntimeError("The process that forks servers is not ready.") from error
                time.sleep(_POLL_SECONDS)
            else:
                return connection


@contextmanager
def servers_forked(forking: Forking) -> Iterator[None]:
    """Start every ``ServerProcess`` as a fork where that is the same as a new interpreter."""
    spawn = ServerProcess._spawn

    def start(server: ServerProcess) -> subprocess.Popen[str] | ForkedProcess:
        if not forking.can_start(server._environment):
            return spawn(server)
        pass_fds = server._options.get("pass_fds", ())
        return forking.start(server._serve(), server._environment, pass_fds)

    with patch.object(ServerProcess, "_spawn", start):
        yield
    forking.close()


def run_program(
    program: Path, *arguments: str, cwd: Path, timeout_seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end, as a fork where that is the same as a new interpreter.

    ``stdout`` has its output and its errors. Raises TimeoutExpired.
    """
    environment = os.environ
    if not FORKING.can_start(environment):
        return subprocess.run(
            [sys.executable, str(program), *arguments],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    process = FORKING.start(arguments, environment, program=program, cwd=cwd)
    assert process.stdout is not None
    expired = threading.Timer(timeout_seconds, os.kill, [process.pid, signal.SIGKILL])
    expired.start()
    try:
        with process.stdout as stdout:
            output = stdout.read()
        status = process.wait()
    finally:
        expired.cancel()
    if status == -signal.SIGKILL:
        raise subprocess.TimeoutExpired(str(program), timeout_seconds, output)
    return subprocess.CompletedProcess([str(program), *arguments], status, output)


class _Request(NamedTuple):
    connection: socket.socket
    arguments: list[str]
    environment: dict[str, str]
    cwd: str
    output: int
    passed: dict[int, int]
    """Descriptors by the numbers that the fork expects."""
    program: str | None


def _serve(path: str) -> _Request:
    """Fork for each request and report the exit statuses of children. Returns only in a child."""
    woken, waking = socket.socketpair()
    waking.setblocking(False)
    signal.set_wakeup_fd(waking.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    parent = os.getppid()
    children: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        while os.getppid() == parent:
            ready, _, _ = select.select([listener, woken], [], [], 1.0)
            if woken in ready:
                woken.recv(4096)
            if listener in ready:
                request = _receive(listener.accept()[0])
                if "REATTACH_MODELS" in request.environment:
                    _import_providers()
                if request.program is not None:
                    _import_all(_IMPORTED_BEFORE_PROGRAMS)
                pid = os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for one in (listener, woken, waking, request.connection, *children.values()):
                        one.close()
                    return request
                for fd in (request.output, *request.passed.values()):
                    os.close(fd)
                request.connection.sendall(b"%d\n" % pid)
                children[pid] = request.connection
            _report(children)
    raise SystemExit


def _import_all(names: Sequence[str]) -> None:
    for name in names:
        importlib.import_module(name)


def _import_providers() -> None:
    """Import the packages of hosted models, once for all servers that offer some."""
    _import_all(IMPORTED_BY_PROVIDERS)


def _build_routes() -> None:
    """Import and build all routes of the API, as a server does at their first requests."""
    from reattach.http.app import _OF_OPERATORS, _PARTS
    from reattach.http.dialects.registry import DIALECTS, late_routes_of
    from reattach.http.routes import built_routes

    built_routes([route for part in _PARTS for route in part.router.routes])
    built_routes(_OF_OPERATORS.load())
    for late in late_routes_of([dialect.name for dialect in DIALECTS]):
        late.load()


def _receive(connection: socket.socket) -> _Request:
    head, descriptors, _, _ = socket.recv_fds(connection, _FIRST_BYTES, _MOST_DESCRIPTORS)
    length, _, body = head.partition(b"\n")
    while len(body) < int(length):
        body += connection.recv(65536)
    request: dict[str, Any] = json.loads(body)
    return _Request(
        connection,
        request["arguments"],
        request["environment"],
        request["cwd"],
        descriptors[0],
        dict(zip(request["pass_fds"], descriptors[1:], strict=True)),
        request["program"],
    )


def _report(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with children.pop(pid) as connection:
            try:
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            except OSError:
                continue  # The process that asked for this server has ended.


def _become(request: _Request) -> None:
    """Give this process the request's arguments, environment, descriptors and output."""
    os.dup2(request.output, 1)
    os.dup2(request.output, 2)
    os.close(request.output)
    moved = {}  # A number may be that of another received descriptor.
    for number, fd in request.passed.items():
        moved[number] = fcntl.fcntl(fd, fcntl.F_DUPFD, _FIRST_FREE_FD)
        os.close(fd)
    for number, fd in moved.items():
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.cwd)
    sys.path[0] = request.cwd if request.program is None else str(Path(request.program).parent)
    sys.argv = [request.program or "reattach", *request.arguments]


def _run(program: str, path: str) -> None:
    """Run a program whose servers are forks of the process with the socket at ``path``."""
    gc.freeze()
    gc.enable()
    forking = Forking()
    forking.join(path, os.getppid())
    with servers_forked(forking):
        runpy.run_path(program, run_name="__main__")


FORKING: Final = Forking()
"""The forking process of the tests."""

if __name__ == "__main__":
    import reattach.__main__  # noqa: F401  it disables the garbage collector
    from reattach.cli import main

    _import_all(_IMPORTED_BEFORE)
    _build_routes()
    socket_path = sys.argv[1]
    request = _serve(socket_path)
    imported = {*sys.modules}
    _become(request)
    try:
        if request.program is None:
            main()
        else:
            _run(request.program, socket_path)
    finally:
        if PRINT_IMPORTS in os.environ:
            sys.stdout.write(f"{IMPORTED} {' '.join(sorted({*sys.modules} - imported))}\n")
