"""The Vercel AI SDK with Letta's provider: an old client, which does not resume by itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.applications.programs import assert_kept, environment
from tests.applications.wire import Fault, Wire
from tests.support.threads import Thread, Threads, seqs_of
from tests.support.typescript_sdk import require_node

DIRECTORY = Path(__file__).parent / "vercel"
STREAM = r"POST /v1/agents/[^/]+/messages/stream"

Json = dict[str, Any]


@pytest.fixture(scope="module")
def node() -> str:
    return require_node(DIRECTORY)


@pytest.fixture
def thread(raw: httpx.Client) -> Thread:
    """The default thread of a new agent: the provider does not support conversations."""
    return Threads(raw).default_thread()


def done(node: str, home: Path, url: str, *steps: Json) -> list[Json]:
    """Run the driver and return the results of its steps."""
    ran = subprocess.run(
        [node, "driver.mjs", json.dumps(steps)],
        cwd=DIRECTORY,
        env=environment(home, url),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_it_generates_and_streams_text_and_shows_the_history(
    node: str, wire: Wire, thread: Thread, tmp_path: Path
) -> None:
    agent = {"id": thread.agent_id}
    background = agent | {"background": True, "includePings": True, "streamTokens": True}
    text = "".join(f"t{n} " for n in range(10))

    generated, streamed, by_tokens, failed, history = done(
        node,
        tmp_path,
        wire.url,
        {"do": "generate", "agent": agent, "prompt": "one [think=2][chunks=10]"},
        {"do": "stream", "agent": agent, "prompt": "two [think=2][chunks=10]"},
        {"do": "stream", "agent": background, "prompt": "three [tool=add][chunks=10]"},
        {"do": "stream", "agent": agent, "prompt": "four [chunks=10][fail=0]"},
        {"do": "history", "agent": agent},
    )

    assert (generated["value"]["text"], generated["value"]["reasoningText"]) == (text, "r0 r1 ")
    assert generated["value"]["finishReason"] == "stop"
    assert (streamed["value"]["text"], streamed["value"]["reasoning"]) == (text, "r0 r1 ")
    assert (by_tokens["value"]["text"], by_tokens["value"]["errors"]) == (text, [])
    assert by_tokens["value"]["tools"][:2] == ["add", "add returned 1"]
    assert "error_message" in failed["error"]
    shown = [part["text"] for m in history["value"] for part in m["parts"] if "text" in part]
    assert shown.count(text) == 3
    assert [run["status"] for run in thread.runs()] == [*(["completed"] * 3), "failed"]
    assert thread.text() == text * 3


@pytest.mark.promise("P4", "P6")
def test_events_missed_after_a_broken_connection_can_be_resumed(
    node: str, wire: Wire, thread: Thread, tmp_path: Path
) -> None:
    agent = {"id": thread.agent_id, "background": True, "streamTokens": True}
    wire.plan(Fault(STREAM, 4))
    [broken] = done(
        node,
        tmp_path,
        wire.url,
        {"do": "stream", "agent": agent, "prompt": "one [chunks=10][rate=10]"},
    )
    assert "value" not in broken or broken["value"]["errors"]
    [sent] = wire.requests(STREAM)
    arrived = seqs_of(bytes(sent.answer))
    [run] = thread.runs()

    [resumed] = done(
        node, tmp_path, wire.url, {"do": "resume", "run": run["id"], "after": arrived[-1]}
    )

    assert arrived == [1, 2, 3, 4]
    assert resumed == {"value": {"text": "t3 t4 t5 t6 t7 t8 t9 "}}
    assert_kept(thread, "".join(f"t{n} " for n in range(10)))
