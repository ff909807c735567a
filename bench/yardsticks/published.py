"""Servers that receive events by HTTP: nginx with nchan, and the server of Durable Streams."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

from typing_extensions import override

from bench.contenders.contender import (
    READING,
    ROOT,
    Contender,
    Pace,
    Server,
    Stream,
    program,
    python,
)
from bench.measuring.frames import TERMINAL_EVENTS, ended_frames
from bench.measuring.load import START_SECONDS, Request, SpoiledError
from bench.measuring.machine import Cores, children_on, raise_priority
from bench.yardsticks import packages
from bench.yardsticks.publisher import Order
from reattach.testing.programs.ports import free_port
from reattach.wire.sse import DONE, frame_data

_LIVE = frozenset({"foreign", "until_last"})

LAST = 10
"""Distance from a run's end at which a replay may begin; another begins in the middle."""


class PublishedServer(Server):
    """``publishing`` is the head of a request that adds an event to a run, on one line."""

    def __init__(self, port: int, pids: list[int], stack: ExitStack, cores: Cores) -> None:
        super().__init__(port, pids)
        self._stack = stack
        self._cores = cores
        self._runs = 0

    @property
    @override
    def live_flags(self) -> frozenset[str]:
        return _LIVE

    def paced(self, pace: Pace) -> list[Stream]:
        names = [self.new_run() for _ in range(pace.runs)]
        heads = [self.publishing(name) for name in names]
        order = Order(self.port, pace.events, pace.per_second, str(pace.gate), heads)
        with children_on(self._cores.load):
            process = subprocess.Popen(
                python("bench.yardsticks.publisher"),
                stdin=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                start_new_session=True,
            )
        raise_priority(process.pid)
        self._stack.callback(_ended, process)
        assert process.stdin is not None
        process.stdin.write(order.lines())
        process.stdin.close()
        last = pace.events + TERMINAL_EVENTS
        return [Stream(self.following(name), last) for name in names]

    def new_run(self) -> str:
        self._runs += 1
        return f"r{self._runs}"

    def publishing(self, name: str) -> str:
        raise NotImplementedError

    def following(self, name: str) -> Request:
        """Return the request for a live run from its start."""
        raise NotImplementedError


def _ended(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()


class NchanServer(PublishedServer):
    flags = _LIVE

    @override
    def publishing(self, name: str) -> str:
        return f"POST /pub/{name}|host: localhost|content-length: LENGTH"

    @override
    def following(self, name: str, after: str = "") -> Request:
        headers = {"accept": "text/event-stream"}
        if after:
            headers["last-event-id"] = after
        return Request.of("GET", f"/stream/{name}", headers=headers)

    @override
    def ended(self, events: int, runs: int = 1) -> list[Stream]:
        return [self._ended_run(events) for _ in range(runs)]

    def _ended_run(self, events: int) -> Stream:
        name = self.new_run()
        head = f"POST /pub/{name} HTTP/1.1\r\nhost: localhost\r\ncontent-length: "
        last = events + TERMINAL_EVENTS
        with socket.create_connection(("127.0.0.1", self.port), START_SECONDS) as connection:
            answers = connection.makefile("rb")
            for frame in ended_frames(events):
                body = frame_data(frame)
                connection.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
                _read_answer(answers.readline, answers.read)
        with socket.create_connection(("127.0.0.1", self.port), START_SECONDS) as connection:
            connection.sendall(self.following(name).data)
            received = b""
            while b'"seq_id":%d,' % last not in received:
                received += connection.recv(1 << 20)
        ids = [found.decode() for found in re.findall(rb"^id: (\S+)", received, re.MULTILINE)]
        known = {0: self.following(name)} | {
            cursor: self.following(name, ids[cursor - 1])
            for cursor in (events // 2, last - LAST)
            if cursor > 0
        }
        return Stream(known[0], last, known=known)


def _read_answer(readline: object, read: object) -> None:
    assert callable(readline)
    assert callable(read)
    if not readline().startswith(b"HTTP/1.1 20"):
        raise SpoiledError("nchan did not take an event")
    length = 0
    while line := readline().strip().lower():
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    read(length)


_CONFIGURATION = """
load_module {module};
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
error_log {folder}/error.log crit;
pid {folder}/pid;
{user}
events {{ worker_connections 20000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  nchan_max_reserved_memory 1024M;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location ~ ^/pub/(.+)$ {{
      nchan_publisher;
      nchan_channel_id $1;
      nchan_message_buffer_length 200000;
      nchan_message_timeout 1h;
    }}
    location ~ ^/stream/(.+)$ {{
      nchan_subscriber eventsource;
      nchan_channel_id $1;
      nchan_subscriber_first_message oldest;
    }}
  }}
}}
"""


_STATE = Path("/var/lib/nginx")
_WITH_STATE = [
    *("unshare", "--mount", "sh", "-c"),
    f'mount -t tmpfs none {_STATE.parent} && mkdir {_STATE} && exec "$@"',
    "sh",
]
"""Create the folder that nchan needs in any configuration."""


class Nchan(Contender):
    """nginx with nchan, from the system or unpacked into REATTACH_BENCH_NGINX."""

    name = "nchan"
    about = "nginx with nchan, one worker; events are posted to it"
    works = READING
    most_runs = 500

    def missing(self) -> str:
        program_, module = self._places()
        if program_ is None or not module.exists():
            return (
                "there is no nginx with the module nchan here (on Debian: libnginx-mod-nchan, "
                "installed or unpacked into a folder that REATTACH_BENCH_NGINX names)"
            )
        if not _STATE.exists() and os.geteuid() != 0:
            return f"its module wants the folder {_STATE}, which only root can make"
        return ""

    def _places(self) -> tuple[str | None, Path]:
        folder = Path(os.environ.get("REATTACH_BENCH_NGINX", "/"))
        path = None if folder == Path("/") else str(folder / "usr/sbin")
        found = shutil.which("nginx", path=path) or shutil.which("nginx", path="/usr/sbin")
        return found, folder / "usr/lib/nginx/modules/ngx_nchan_module.so"

    @contextmanager
    def serving(self, directory: Path, cores: Cores) -> Iterator[Server]:
        found, module = self._places()
        assert found is not None
        port = free_port()
        settings = directory / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        settings.write_text(
            _CONFIGURATION.format(module=module, folder=directory, port=port, user=user)
        )
        with ExitStack() as stack:
            command = [found, "-c", str(settings), "-p", str(directory), "-e", "/dev/null"]
            if not _STATE.exists():
                command = [*_WITH_STATE, *command]
            with children_on(cores.server):
                process = subprocess.Popen(command, start_new_session=True)
            raise_priority(process.pid)
            stack.callback(_ended_nginx, process)
            worker = _worker(port, process)
            yield NchanServer(port, [process.pid, worker], stack, cores)


def _ended_nginx(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    process.kill()
    process.wait()


def _worker(port: int, process: "subprocess.Popen[bytes]") -> int:
    """Wait for the worker process, which starts after the port answers, and return its id."""
    deadline = time.monotonic() + START_SECONDS
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while True:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            if found := children.read_text().split():
                return int(found[0])
        if process.poll() is not None or time.monotonic() > deadline:
            raise SpoiledError("nginx did not start")
        time.sleep(0.02)


class DurableStreamsServer(PublishedServer):
    """An ended run is a stream of bytes with ``[DONE]``; a live run is a stream of events."""

    @override
    def publishing(self, name: str) -> str:
        return f"POST /{name}|host: localhost|content-type: text/plain|content-length: LENGTH"

    @override
    def following(self, name: str) -> Request:
        return Request.of("GET", f"/{name}?offset=-1&live=sse")

    @override
    def new_run(self) -> str:
        name = super().new_run()
        self._asked("PUT", name)
        return name

    @override
    def ended(self, events: int, runs: int = 1) -> list[Stream]:
        return [self._ended_run(events) for _ in range(runs)]

    def _ended_run(self, events: int) -> Stream:
        name = self.new_run()
        frames = [*ended_frames(events), DONE]
        last = events + TERMINAL_EVENTS
        places = sorted({0, events // 2, max(last - LAST, 0), len(frames)})
        known = {0: Request.of("GET", f"/{name}?offset=-1")}
        for begin, end in pairwise(places):
            offset = self._asked("POST", name, b"".join(frames[begin:end]))
            known[end] = Request.of("GET", f"/{name}?offset={offset}")
        return Stream(known[0], last, known=known)

    def _asked(self, method: str, name: str, body: bytes = b"") -> str:
        """Return the offset at which the stream continues."""
        head = f"{method} /{name} HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n"
        data = f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        with socket.create_connection(("127.0.0.1", self.port), START_SECONDS) as connection:
            connection.sendall(data)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        if not answer.startswith(b"HTTP/1.1 20"):
            raise SpoiledError(f"{method} {name}: {answer[:200]!r}")
        found = re.search(rb"stream-next-offset: *(\S+)", answer, re.IGNORECASE)
        return found[1].decode() if found else ""


class DurableStreams(Contender):
    """``@durable-streams/server`` from npm in memory, because its files sync on every write."""

    name = "@durable-streams/server"
    about = "the reference server of Durable Streams in Node, in memory; events are posted to it"
    works = READING
    most_runs = 500

    def missing(self) -> str:
        return packages.node()

    @contextmanager
    def serving(self, directory: Path, cores: Cores) -> Iterator[Server]:  # noqa: ARG002  stores nothing
        with ExitStack() as stack:
            command = ["node", str(packages.NODE / "durable-streams.mjs")]
            port, pid = stack.enter_context(program(command, cores))
            yield DurableStreamsServer(port, [pid], stack, cores)


NCHAN = Nchan()
DURABLE_STREAMS = DurableStreams()
