from __future__ import annotations

import structlog

from reattach.observe import one_line


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
