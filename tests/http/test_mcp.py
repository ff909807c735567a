"""Tools of MCP servers, which are real processes of the official SDK."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from letta_client import AsyncLetta

from reattach.domain.ids import DEFAULT_TENANT, AgentId
from reattach.testing.programs.ports import free_port
from reattach.testing.programs.server import ServerProcess
from tests.http.test_approvals import answer, stop_of, verdict
from tests.support import mcp_server
from tests.support.live_server import (
    WAIT_SECONDS,
    LiveServer,
    listening,
    sent,
    text,
    thread_with,
    to,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SECRET = "hush hush"


def program(journal: Path, module: str = "mcp_server", **options: Any) -> dict[str, Any]:
    """The settings of a server that is started."""
    env = {"MCP_JOURNAL": str(journal), "MCP_SECRET": SECRET, **options.pop("env", {})}
    return {
        "command": sys.executable,
        "args": ["-m", f"tests.support.{module}"],
        "cwd": str(ROOT),
        "env": env,
        **options,
    }


def python(code: str, **options: Any) -> dict[str, Any]:
    """The settings of a program that is no server."""
    return {"command": sys.executable, "args": ["-c", code], **options}


def noted(journal: Path) -> list[str]:
    return journal.read_text("utf-8").splitlines() if journal.exists() else []


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal") / "journal.txt"


@pytest.fixture(scope="module")
async def live(
    tmp_path_factory: pytest.TempPathFactory, journal: Path
) -> AsyncIterator[LiveServer]:
    """One with an MCP server of the SDK, one that starts fast, and two that are of no use."""
    os.environ["MCP_INHERITED"] = "from outside"
    servers = {
        "journal": program(
            journal, inherit_env=["MCP_INHERITED"], requires_approval=["deploy"], tool_seconds=10
        ),
        "plain": program(journal, "plain_mcp_server", env={"MCP_MODERN": "1"}),
        "gone": python("import sys; sys.exit('no such key: hush hush')", env={"KEY": SECRET}),
        "mute": python("import time; time.sleep(600)", start_seconds=1),
    }
    async with listening(tmp_path_factory.mktemp("live"), mcp=servers) as live:
        async with asyncio.timeout(WAIT_SECONDS):
            while not await live.got("/v1/tools/", name="journal__add"):
                await asyncio.sleep(0.02)
        yield live


def returned(frames: list[Any]) -> tuple[str, str]:
    [back] = [frame.event for frame in frames if frame.kind == "tool_return_message"]
    return back["status"], back["tool_return"]


# Listing and attaching tools.


async def test_the_sdk_lists_and_attaches_the_tools_of_mcp_servers(letta: AsyncLetta) -> None:
    listing = letta.tools.list(tool_types=["external_mcp"])
    found = {one.name: one async for one in listing if (one.name or "").startswith("journal__")}
    add = found["journal__add"]
    assert (add.tool_type, add.tags) == ("external_mcp", ["mcp:journal"])
    assert add.description == "Add two numbers."
    assert add.args_json_schema is not None
    assert "more" in add.args_json_schema["properties"]  # type: ignore[operator]
    assert "journal__dotted_name_of_a_tool" in found
    assert found["journal__deploy"].default_requires_approval
    assert not add.default_requires_approval
    agent = await letta.agents.create(tools=["journal__add"])
    attached = await letta.agents.tools.attach(found["journal__hang"].id, agent_id=agent.id)
    assert attached is not None
    assert {one.name for one in attached.tools} == {"journal__add", "journal__hang"}
    await letta.agents.tools.detach(found["journal__hang"].id, agent_id=agent.id)
    assert [one.name async for one in letta.agents.tools.list(agent.id)] == ["journal__add"]

    servers = {one.server_name: one for one in await letta.mcp_servers.list()}
    assert set(servers) == {"journal", "plain", "gone", "mute"}
    server_id = servers["journal"].id
    assert server_id is not None
    assert await letta.mcp_servers.retrieve(server_id) == servers["journal"]
    listed = await letta.mcp_servers.tools.list(server_id)
    assert {one.name for one in listed} == set(found)
    retrieved = await letta.mcp_servers.tools.retrieve(add.id, mcp_server_id=server_id)
    assert (retrieved.id, retrieved.name) == (add.id, add.name)


async def test_details_of_mcp_servers_for_the_operator_are_not_shown(live: LiveServer) -> None:
    shown = (await live.client.get("/v1/mcp-servers/")).text
    for secret in ("hush", "mcp_server.py", str(ROOT), "MCP_"):
        assert secret not in shown
    nobody = "mcp_server-11111111-1111-4111-8111-111111111111"
    for path in (f"/v1/mcp-servers/{nobody}", f"/v1/mcp-servers/{nobody}/tools"):
        assert (await live.client.get(path)).status_code == 404
    assert (await live.client.post("/v1/mcp-servers/", json={})).status_code == 501
    agent = (await live.agent())["id"]
    assert (await live.client.get(f"/v1/agents/{agent}/mcp-servers")).status_code == 404


# Turns.


async def test_a_call_runs_on_the_mcp_server_and_the_model_gets_its_result(
    live: LiveServer, journal: Path
) -> None:
    _, thread = await thread_with(live, "journal__add", "journal__dotted_name_of_a_tool")
    frames = await sent(live, thread, '[tool=journal__add][arguments={"n": 41}]')
    assert returned(frames) == ("success", "42")
    assert text(frames) == "journal__add success: 42\n"
    assert noted(journal).count("add 41") == 1
    frames = await sent(live, thread, "[tool=journal__dotted_name_of_a_tool]")
    assert returned(frames) == ("success", "dotted")


async def test_a_server_gets_the_variables_that_it_was_given_and_no_others(
    live: LiveServer,
) -> None:
    _, thread = await thread_with(live, "journal__environment")
    frames = await sent(live, thread, "[tool=journal__environment]")
    assert returned(frames) == ("success", f"{SECRET},from outside,None")


@pytest.mark.promise("P17")
async def test_a_call_waits_for_an_approval_by_the_settings_or_by_the_agent(
    live: LiveServer, journal: Path
) -> None:
    agent, thread = await thread_with(live, "journal__deploy", "journal__add")
    path = f"/v1/agents/{agent}/tools/approval/journal__add"
    assert (await live.client.patch(path, json={"requires_approval": True})).status_code == 200
    message = '[approve=journal__deploy,journal__add][arguments={"n": 7}]'
    frames = await sent(live, thread, message)
    assert stop_of(frames) == "requires_approval"
    [request] = [frame.event for frame in frames if frame.kind == "approval_request_message"]
    assert "deploy 7" not in noted(journal)
    calls = [call["tool_call_id"] for call in request["tool_calls"]]
    decisions = (verdict(calls[0], approve=True), verdict(calls[1], approve=False))
    frames = await live.streamed(to(thread), answer(*decisions, client_tools=None))
    assert "journal__deploy success: deployed 7" in text(frames)
    assert "journal__add error" in text(frames)
    assert noted(journal).count("deploy 7") == 1
    assert noted(journal).count("add 7") == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("explode", "Error executing tool explode: 1 is not to be had"),
        ("flood", "The tool ran, but returned 1000000 characters"),
    ],
)
async def test_a_tool_that_raises_or_floods_is_an_error_and_the_run_continues(
    live: LiveServer, name: str, expected: str
) -> None:
    _, thread = await thread_with(live, f"journal__{name}")
    frames = await sent(live, thread, f"[tool=journal__{name}]")
    status, output = returned(frames)
    assert status == "error"
    assert output.startswith(expected)
    assert stop_of(frames) == "end_turn"


@pytest.mark.promise("P17")
async def test_a_server_that_dies_within_a_call_is_an_error_and_comes_back(
    live: LiveServer, journal: Path
) -> None:
    _, thread = await thread_with(live, "plain__die", "plain__add")
    starts = sum(line.startswith("started") for line in noted(journal))
    frames = await sent(live, thread, '[tool=plain__die][arguments={"n": 9}]')
    status, output = returned(frames)
    assert status == "error"
    assert "Whether it did its work is not known." in output
    frames = await sent(live, thread, '[tool=plain__add][arguments={"n": 9}]')
    assert returned(frames) == ("success", "10")
    assert noted(journal).count("die 9") == 1
    assert sum(line.startswith("started") for line in noted(journal)) == starts + 1


async def test_a_tool_that_an_mcp_server_announces_is_listed(live: LiveServer) -> None:
    _, thread = await thread_with(live, "journal__learn")
    await sent(live, thread, "[tool=journal__learn]")
    async with asyncio.timeout(WAIT_SECONDS):
        while not await live.got("/v1/tools/", name="journal__learned"):
            await asyncio.sleep(0.02)
    _, thread = await thread_with(live, "journal__learned")
    assert returned(await sent(live, thread, "[tool=journal__learned]")) == ("success", "2")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gone", "it ended, and said: no such key: ***"), ("mute", "no connection within 1 s")],
)
async def test_a_call_to_an_unreachable_mcp_server_is_an_error_with_the_cause(
    live: LiveServer, name: str, reason: str
) -> None:
    agent, thread = await thread_with(live)
    # As if it had been there when the agent got the tool.
    await live.context.records.agents.update(
        DEFAULT_TENANT, AgentId(agent), lambda had: had.with_tools({f"{name}__look": None})
    )
    frames = await sent(live, thread, f"[tool={name}__look]")
    status, output = returned(frames)
    assert status == "error"
    assert output == f"The MCP server {name} cannot be reached: {reason}. The tool did not run."
    assert text(frames) == f"{name}__look error: {output}\n"


# Streamable HTTP.


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.mcp_server"])  # To import the SDK takes seconds.


@asynccontextmanager
async def http_server(port: int, journal: Path, **variables: str) -> AsyncIterator[BaseProcess]:
    """The same as a server of its own, on the port; it answers when this is entered."""
    env = {"MCP_JOURNAL": str(journal), **variables}
    process = FORKS.Process(target=mcp_server.serve, args=(port, env), daemon=True)
    process.start()
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                assert process.is_alive()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
        yield process
    finally:
        process.kill()
        await asyncio.to_thread(process.join)


@pytest.mark.promise("P17")
@pytest.mark.parametrize("legacy", [{}, {"MCP_LEGACY": "1"}], ids=["newer", "legacy"])
async def test_a_server_of_streamable_http_is_called_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: dict[str, str]
) -> None:
    journal = tmp_path / "journal.txt"
    port = free_port()
    monkeypatch.setenv("TOKEN_OF_WEB", SECRET)
    web = {"url": f"http://127.0.0.1:{port}/mcp", "bearer_token_env": "TOKEN_OF_WEB"}
    refused = {"url": f"http://127.0.0.1:{port}/mcp", "headers": {"X-Key": SECRET}}
    variables = {"MCP_TOKEN": SECRET, **legacy}
    async with AsyncExitStack() as stack:
        first = http_server(port, journal, **variables)
        process = await stack.enter_async_context(first)
        servers = {"web": web, "refused": refused, "brief": {**web, "tool_seconds": 0.5}}
        live = await stack.enter_async_context(listening(tmp_path, mcp=servers))
        _, thread = await thread_with(live, "web__add", "web__hang")
        frames = await sent(live, thread, '[tool=web__add][arguments={"n": 2}]')
        assert returned(frames) == ("success", "3")
        assert await live.got("/v1/tools/", search="refused__") == []

        # A call that takes too long.
        _, brief = await thread_with(live, "brief__hang")
        frames = await sent(live, brief, '[tool=brief__hang][arguments={"n": 4}]')
        status, output = returned(frames)
        assert status == "error"
        assert output.startswith("The tool did not return within 0.5 seconds.")
        assert stop_of(frames) == "end_turn"

        # It dies within a call.
        body = {"input": '[tool=web__hang][arguments={"n": 5}]', "background": True}
        async with live.stream(to(thread), body) as stream:
            await stream.until("tool_call_message")
            async with asyncio.timeout(WAIT_SECONDS):
                while "hang 5" not in noted(journal):
                    await asyncio.sleep(0.02)
            process.kill()
            frames = await stream.rest()
        status, output = returned(frames)
        assert status == "error"
        assert "Whether it did its work is not known." in output
        assert stop_of(frames) == "end_turn"

        # While it is not there.
        frames = await sent(live, thread, "[tool=web__add]")
        status, output = returned(frames)
        assert status == "error"
        assert "cannot be reached" in output
        assert output.endswith("The tool did not run.")
        assert SECRET not in output

        # Another one in its place, which knows nothing of the session.
        await stack.enter_async_context(http_server(port, journal, **variables))
        frames = await sent(live, thread, '[tool=web__add][arguments={"n": 3}]')
        assert returned(frames) == ("success", "4")
    assert noted(journal).count("hang 5") == 1
    assert noted(journal).count("add 2") == 1


# Ends.


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def happens(condition: Callable[[], bool]) -> bool:
    """Whether the condition becomes true while a test waits."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def settings_file(path: Path, **env: str) -> Path:
    """A settings file with the server as ``journal``."""
    variables = "\n".join(f'{name} = "{value}"' for name, value in env.items())
    path.write_text(
        f"""
[mcp.journal]
command = "{sys.executable}"
args = ["-m", "tests.support.plain_mcp_server"]
cwd = "{ROOT}"

[mcp.journal.env]
{variables}
""",
        encoding="utf-8",
    )
    return path


@pytest.mark.promise("P15")
def test_a_stopped_server_leaves_no_mcp_process_behind(
    tmp_path: Path,
) -> None:
    journal = tmp_path / "journal.txt"
    config = settings_file(
        tmp_path / "reattach.toml",
        MCP_JOURNAL=str(journal),
        MCP_STUBBORN="1",
        MCP_SECRET=SECRET,
    )
    arguments = ["--scripted", "--config", str(config), "--log-level", "debug"]
    with ServerProcess(tmp_path / "data", arguments=arguments) as server:
        assert happens(lambda: noted(journal) != [])
        [child] = [int(line.split()[1]) for line in noted(journal)]
        assert is_there(child)
        server.stop()
        assert happens(lambda: not is_there(child))
    assert "stubborn with ***" in server.output
    assert SECRET not in server.output
