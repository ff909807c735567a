"""letta-code, pointed here by LETTA_BASE_URL, talks, loses its connection, and loses nothing."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import httpx
import pytest

from reattach.testing.programs.server import ServerProcess
from tests.applications.letta_code import Answer, LettaCode, end, read_line
from tests.applications.programs import assert_kept, require_program
from tests.applications.wire import Fault, Wire
from tests.support.threads import Thread

SEND = r"POST /v1/conversations/[^/]+/messages"
RESUME_BY_RUN = r"POST /v1/runs/[^/]+/stream"
RESUME_BY_OTID = r"POST /v1/conversations/[^/]+/stream"


@pytest.fixture(scope="module")
def letta_code(tmp_path_factory: pytest.TempPathFactory) -> LettaCode:
    return LettaCode(require_program("letta"), tmp_path_factory.mktemp("letta-code"))


@pytest.fixture(scope="module")
def first(letta_code: LettaCode, server: ServerProcess) -> tuple[Answer, Wire]:
    """The first question on a machine, and the exchanges on the wire."""
    with Wire(server.address) as wire:
        asked = letta_code.ask(wire.url, "[chunks=4]", streaming=True)
    return asked, wire


@pytest.fixture
def new(first: tuple[Answer, Wire]) -> tuple[str, ...]:
    """Return the arguments that start a conversation with the agent."""
    return "--agent", first[0].result["agent_id"], "--new"


def thread_of(raw: httpx.Client, answer: Answer) -> Thread:
    named = answer.result["conversation_id"]
    return Thread(raw, answer.result["agent_id"], None if named == "default" else named)


def test_it_creates_an_agent_and_has_two_turns_with_it(
    first: tuple[Answer, Wire], letta_code: LettaCode, server: ServerProcess, raw: httpx.Client
) -> None:
    answer, wire = first

    assert answer.text == answer.said == "t0 t1 t2 t3 "
    assert [event["seq_id"] for event in answer.events] == [2, 3, 4, 5, 6, 7]  # a ping is 1
    [made] = wire.requests("POST /v1/agents/")
    assert (made.status, made.json["tags"]) == (200, ["origin:letta-code"])
    assert made.json["model"] == "scripted/echo"  # the server's default
    assert len(made.json["system"]) > 10_000
    [sent] = wire.requests(SEND)
    assert len(sent.body) > 50_000
    assert len(sent.json["client_tools"]) > 10
    assert len(sent.json["client_skills"]) > 20
    # The server answers 404 for resources that it does not offer, and the program accepts that.
    refused = [exchange for exchange in wire.requests() if exchange.status != 200]
    assert {exchange.status for exchange in refused} == {404}
    parts = {exchange.path.rpartition("/")[2] for exchange in refused}
    assert parts <= {"secrets", "mcp-servers", "repositories"}

    thread = thread_of(raw, answer)
    assert thread.conversation_id is not None
    second = letta_code.ask(server.url, "[history]", "--conversation", thread.conversation_id)

    assert second.text.startswith("user: ")
    assert second.text.endswith(f"[chunks=4]\nassistant: {answer.text}\n")
    assert_kept(thread, answer.text, second.text)


@pytest.mark.parametrize(
    ("faults", "streaming", "resumed"),
    [
        pytest.param([Fault(SEND, 4)], False, [RESUME_BY_RUN], id="reset-in-mid-stream"),
        pytest.param(
            [Fault(SEND, 3), Fault(RESUME_BY_RUN, 2)],
            True,
            [RESUME_BY_RUN, RESUME_BY_RUN],
            id="reset-twice",
        ),
        pytest.param([Fault(SEND, 2, ends=True)], True, [RESUME_BY_RUN], id="ended-early"),
        pytest.param([Fault(SEND, 0)], False, [RESUME_BY_OTID], id="reset-before-the-first-event"),
        pytest.param([Fault(SEND)], True, [SEND], id="answer-lost"),
    ],
)
@pytest.mark.promise("P1", "P4", "P9")
def test_a_broken_connection_loses_and_doubles_no_event(
    *,
    faults: list[Fault],
    streaming: bool,
    resumed: list[str],
    letta_code: LettaCode,
    wire: Wire,
    raw: httpx.Client,
    new: tuple[str, ...],
) -> None:
    wire.plan(*faults)

    answer = letta_code.ask(wire.url, "[chunks=8][rate=8]", *new, streaming=streaming)

    assert answer.text == "t0 t1 t2 t3 t4 t5 t6 t7 "
    if streaming:
        assert answer.said == answer.text
        assert [event["seq_id"] for event in answer.events] == list(range(2, 12))
    assert_kept(thread_of(raw, answer), answer.text)
    [_, *after] = wire.requests(f"{SEND}|{RESUME_BY_RUN}|{RESUME_BY_OTID}")
    assert [bool(re.fullmatch(p, one.request)) for p, one in zip(resumed, after, strict=True)]


def test_the_default_conversation_of_the_agent_is_resumed_too(
    letta_code: LettaCode, wire: Wire, raw: httpx.Client, new: tuple[str, ...]
) -> None:
    wire.plan(Fault(SEND, 0))

    answer = letta_code.ask(wire.url, "[chunks=3]", *new[:2], "--conversation", "default")

    assert answer.text == "t0 t1 t2 "
    [resumed] = wire.requests("POST /v1/conversations/default/stream")
    assert resumed.status == 200
    assert_kept(thread_of(raw, answer), answer.text)


@pytest.mark.promise("P9")
def test_a_tool_of_its_own_runs_once_though_the_request_and_the_answer_break(
    letta_code: LettaCode, wire: Wire, raw: httpx.Client, new: tuple[str, ...], tmp_path: Path
) -> None:
    """The stream breaks within the request, and the answer to the tool's return is lost."""
    wire.plan(Fault(SEND, 3), Fault(SEND))
    ran = tmp_path / "ran"
    arguments = {"cmd": f"echo once >> {ran}; echo from-the-tool", "description": "Say it"}

    answer = letta_code.ask(
        wire.url, f"[client_tool=exec_command][arguments={json.dumps(arguments)}][chunks=0]", *new
    )

    assert answer.text.startswith("exec_command success: ")
    assert "from-the-tool" in answer.text
    assert ran.read_text() == "once\n"
    assert_kept(thread_of(raw, answer), "", answer.text)


@pytest.mark.promise("P6", "P10")
def test_after_ctrl_c_the_run_goes_on_and_the_next_turn_waits_for_its_end(
    letta_code: LettaCode, wire: Wire, raw: httpx.Client, new: tuple[str, ...]
) -> None:
    with letta_code.asking(wire.url, "[chunks=3][hang=3]", *new, streaming=True) as asking:
        lines = [read_line(asking)]
        while lines[-1].get("content") != "t2 ":
            lines.append(read_line(asking))
        asking.send_signal(signal.SIGINT)
        interrupted = end(asking, streaming=True)

    assert interrupted.status == 130
    assert interrupted.lines[-1]["stop_reason"] == "cancelled"
    thread = Thread(raw, lines[0]["agent_id"], lines[0]["conversation_id"])
    assert thread.conversation_id is not None
    run = thread.get(f"/v1/runs/{lines[-1]['run_id']}")
    assert run["status"] == "running"

    here = ("--conversation", thread.conversation_id)
    with letta_code.asking(wire.url, "[chunks=2]", *here) as asking:
        wire.answered(SEND, 409)
        assert thread.post("cancel").json() == {run["id"]: "cancelled"}
        answer = end(asking)

    assert answer.text == "t0 t1 "
    assert thread.text() == "t0 t1 t2 t0 t1 "
    runs = [one for one in thread.runs() if one["conversation_id"] == thread.conversation_id]
    assert [one["status"] for one in runs] == ["cancelled", "completed"]


def test_it_lists_agents_models_and_messages(
    first: tuple[Answer, Wire], letta_code: LettaCode, server: ServerProcess, raw: httpx.Client
) -> None:
    thread = thread_of(raw, first[0])
    here = ("--agent", thread.agent_id, "--conversation", str(thread.conversation_id))

    def listed(*arguments: str) -> list[str]:
        found = json.loads(letta_code.run(server.url, *arguments))
        items = found["items"] if isinstance(found, dict) else found
        return [one.get("handle") or one["id"] for one in items]

    messages = [one["id"] for one in thread.items()]
    assert thread.agent_id in listed("agents", "list", "--tags", "origin:letta-code")
    assert "scripted/echo" in listed("model", "list")
    rest = listed("messages", "list", *here, "--order", "asc", "--after", messages[0])
    assert rest == messages[1:]
    exported = json.loads(letta_code.run(server.url, "messages", "transcript", *here[2:]))
    assert (exported["message_count"], exported["truncated"]) == (len(messages), False)
