"""The ceiling: a bare uvloop protocol that writes the bytes of runs, without framework or log."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import parse_qsl, urlsplit

import uvloop
from typing_extensions import override

from bench.measuring.frames import FrameMaker, ended_run, stamped
from bench.measuring.schedule import Gates, Ticker
from reattach.wire.sse import DONE

SLICE_BYTES = 64 * 1024
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
EMPTY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(slots=True)
class Run:
    """The frames of a run so far. A live run writes new frames to its readers."""

    frames: bytearray = field(default_factory=bytearray)
    ends: list[int] = field(default_factory=list)
    closed: bool = False
    readers: "set[Connection]" = field(default_factory=set)

    def say(self, frames: list[bytes], *, events: int = 1, close: bool = False) -> None:
        """Add a frame of several events, and write it to all readers in one call."""
        for frame in frames:
            self.frames += frame
            self.ends += [len(self.frames)] * events
        self.closed = close
        said = b"".join(frames)
        data = chunk(said + DONE) + END if close else chunk(said)
        for reader in tuple(self.readers):
            reader.write_live(data)
        if close:
            self.readers.clear()

    def begin_after(self, cursor: int) -> int:
        return self.ends[cursor - 1] if cursor else 0


class Connection(asyncio.Protocol):
    """The connection of a client, which sends one request at a time."""

    def __init__(self, runs: dict[str, Run], ticker: Ticker, gates: Gates) -> None:
        self._runs = runs
        self._ticker = ticker
        self._gates = gates
        self._received = b""
        self._run: Run | None = None
        self._sent = 0
        self._paused = False

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            "asyncio.Transport", transport
        )  # uvloop's transport is not a subclass.

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._run is not None:
            self._run.readers.discard(self)
            self._run = None

    @override
    def pause_writing(self) -> None:
        self._paused = True

    @override
    def resume_writing(self) -> None:
        self._paused = False
        if self._run is not None:
            self._catch_up(self._run)

    @override
    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(b"\r\n\r\n"):
            target = self._received.split(b" ", 2)[1].decode()
            self._received = b""
            self._asked(target)

    def write_live(self, data: bytes) -> None:
        """Write frames that follow everything written so far."""
        assert self._run is not None
        if self._paused:  # They are sliced from the run when there is room.
            self._run.readers.discard(self)
            return
        self._sent = len(self._run.frames)
        self._transport.write(data)

    def _asked(self, target: str) -> None:
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query))
        _, work, *name = parts.path.split("/")
        if work == "stream":
            run = self._runs[name[0]]
            self._sent = run.begin_after(int(query["after"]))
            self._transport.write(HEAD)
            self._run = run
            self._catch_up(run)
            return
        if work == "ended":
            ended = ended_run(int(query["events"]))
            events = ended.frames.removesuffix(DONE)
            self._runs[name[0]] = Run(bytearray(events), list(ended.ends), closed=True)
        elif work == "paced":
            self._runs[name[0]] = run = Run()
            asyncio.ensure_future(self._pace(run, query))  # noqa: RUF006  the gate holds a reference
        self._transport.write(EMPTY)

    def _catch_up(self, run: Run) -> None:
        while not self._paused and self._sent < len(run.frames):
            piece = bytes(memoryview(run.frames)[self._sent : self._sent + SLICE_BYTES])
            self._sent += len(piece)
            self._transport.write(chunk(piece))
        if self._sent < len(run.frames):
            return
        if run.closed:
            self._run = None
            self._transport.write(chunk(DONE) + END)
        else:
            run.readers.add(self)

    async def _pace(self, run: Run, query: dict[str, str]) -> None:
        start_ns = await self._gates.start_ns(query["gate"]) + int(query["phase_ns"])
        maker = FrameMaker()
        count, interval_ns = int(query["events"]), 1e9 / float(query["rate"])
        index = 0

        def say() -> None:
            nonlocal index
            frames, first = [], index
            due_ns = start_ns + int(index * interval_ns)
            while index < count and (index == first or due_ns <= time.monotonic_ns()):
                frames.append(maker.text(stamped(due_ns)))
                index += 1
                due_ns = start_ns + int(index * interval_ns)
            run.say(frames)
            if index == count:
                run.say([maker.terminal()], events=2, close=True)
            else:
                self._ticker.at(due_ns, say)

        self._ticker.at(start_ns, say)


async def main() -> None:
    runs: dict[str, Run] = {}
    ticker, gates = Ticker(), Gates()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(runs, ticker, gates), "127.0.0.1", 0, backlog=4096
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
