"""Programs that scripts/setup installs for these tests, and checks of their answers."""

from __future__ import annotations

import json
import os
from pathlib import Path

from reattach.testing.recording import whole_frames
from tests.support.missing import skip_or_fail
from tests.support.threads import Thread, assert_one_whole_run

DIRECTORY = Path(__file__).parents[2] / ".venv/applications/bin"
COMPILED = DIRECTORY.parent / "compiled"
"""Node's compile cache, because letta-code has 24 MB of JavaScript."""


def require_program(name: str) -> str:
    """Return the program's path. If it is missing, skip the test, or fail it in CI."""
    program = DIRECTORY / name
    if not program.exists():
        why_not = f"{name} is not installed: run scripts/setup"
        skip_or_fail(why_not)
    return str(program)


def environment(home: Path, url: str) -> dict[str, str]:
    """Return the environment of a program that uses ``url`` and none of this user's files."""
    return {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "LETTA_BASE_URL": url,
        "LETTA_API_KEY": "any",
        "DISABLE_AUTOUPDATER": "1",
        "DO_NOT_TRACK": "1",
        "NO_PROXY": "127.0.0.1",
        "NODE_COMPILE_CACHE": str(COMPILED),
    }


def text_of(frames: bytes) -> str:
    """Join the assistant's text of events."""
    events = [json.loads(frame.partition(b"data: ")[2]) for frame in whole_frames(frames)]
    return "".join(e["content"] for e in events if e["message_type"] == "assistant_message")


def assert_kept(thread: Thread, *answers: str) -> None:
    """Assert that each turn made one run, whose text equals the stored text and the replay."""
    runs = [run for run in thread.runs() if run["conversation_id"] == thread.conversation_id]
    assert [run["status"] for run in runs] == ["completed"] * len(answers)
    for run, answer in zip(runs, answers, strict=True):
        frames = thread.replay(run["id"])
        assert_one_whole_run(frames)
        assert text_of(frames) == answer
        stored = thread.get(f"/v1/runs/{run['id']}/messages")
        said = [one["content"] for one in stored if one["message_type"] == "assistant_message"]
        assert "".join(said) == answer
    assert thread.text() == "".join(answers)
