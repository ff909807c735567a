from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TextIO

import pytest
import structlog

from reattach.observe import _UnwaitingHandler, one_line

WAIT_SECONDS = 30.0


class Pipe:
    """A pipe for log lines, which is read only on demand."""

    def __init__(self) -> None:
        self._reads, writes = os.pipe()
        os.set_blocking(self._reads, False)
        self.stream: TextIO = os.fdopen(writes, "w")
        self._handler = _UnwaitingHandler(self.stream)

    def log(self, *lines: str) -> None:
        """Log the lines. Fails if that has to wait."""
        records = [logging.LogRecord("", logging.INFO, "", 0, line, (), None) for line in lines]
        thread = threading.Thread(
            target=lambda: [self._handler.handle(one) for one in records], daemon=True
        )
        thread.start()
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()

    def read(self) -> list[str]:
        read = b""
        with suppress(BlockingIOError):
            while piece := os.read(self._reads, 65_536):
                read += piece
        return read.decode().splitlines()

    def close(self) -> None:
        os.close(self._reads)
        with suppress(BrokenPipeError):
            self.stream.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_log_lines_that_nobody_reads_are_dropped_and_counted(pipe: Pipe) -> None:
    lines = [f"{number} {'x' * 90}" for number in range(2_000)]
    pipe.log(*lines)
    kept = pipe.read()
    assert 300 < len(kept) < len(lines)
    assert kept[:-1] == lines[: len(kept) - 1]  # The last one may be cut.
    pipe.log("read again", "and again")
    missing = len(lines) - len([line for line in kept if line in lines])
    assert pipe.read() == [
        f"log lines were dropped, because nothing read the output: {missing}",
        "read again",
        "and again",
    ]


def test_a_log_line_that_is_longer_than_the_room_is_cut(pipe: Pipe) -> None:
    pipe.log("x" * 1_000_000)
    assert 10_000 < len("".join(pipe.read())) < 1_000_000
    pipe.log("next")
    missing = "log lines were dropped, because nothing read the output: 1"
    assert pipe.read() == ["", missing, "next"]


def test_a_log_line_longer_than_a_piece_is_whole_when_it_is_read(pipe: Pipe) -> None:
    pipe.log("é" * 5_000)
    assert pipe.read() == ["é" * 5_000]


def test_no_value_can_forge_a_line_of_the_console() -> None:
    """D11: newlines, control characters and marks of direction are escaped."""
    forged = "x\n2026-11-28T20:00:00Z [info] all is well\r\x1b[2J\u202e\u2028\x85"
    event = one_line(None, "info", {"event": forged, "reason": forged, "seq": 7, "all": [forged]})
    assert event["seq"] == 7
    line = structlog.dev.ConsoleRenderer(colors=False)(None, "info", event)
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


def test_lines_of_a_traceback_are_indented() -> None:
    """D11: what an exception says cannot begin a line of its own."""
    said = "Traceback:\nValueError: x\n2026-11-28T20:00:00Z [info] all is well"
    event = one_line(None, "error", {"event": "tool failed", "exception": said})
    assert all(line.startswith("    ") for line in event["exception"].splitlines())
