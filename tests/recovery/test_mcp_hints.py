"""A server and its MCP servers are killed during calls, which run again where hints are trusted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.client import Client
from reattach.testing.programs.server import ServerProcess

ROOT = Path(__file__).parents[2]
BOUND_SECONDS = 30

HINTS = {"look": {"readOnlyHint": True}, "add": {"idempotentHint": True}, "deploy": {}}
"""The hints of the tools when their calls begin."""

LATER = {"look": {}, "add": {"readOnlyHint": False}, "deploy": {"readOnlyHint": True}}
"""Those that the servers give after the restart, which count for later calls only."""

CASES = {
    ("trusted", "look"): "success",
    ("trusted", "add"): "success",
    ("trusted", "deploy"): "error",
    ("doubted", "look"): "error",
    ("doubted", "add"): "error",
}
"""The calls, and the status of their returns after the restart."""


def write_settings(path: Path, journals: dict[str, Path], hints: dict[str, Any]) -> None:
    tools = [
        {"name": name, "inputSchema": {"type": "object"}, "annotations": given}
        for name, given in hints.items()
    ]
    path.write_text(
        "\n".join(
            f"""
[mcp.{name}]
command = "{sys.executable}"
args = ["-m", "tests.support.plain_mcp_server"]
cwd = "{ROOT}"
trust_hints = {json.dumps(name == "trusted")}
env = {{ MCP_JOURNAL = "{journal}", MCP_MUTE = "1", MCP_LIST = '{json.dumps(tools)}' }}
"""
            for name, journal in journals.items()
        )
    )


def lines_of(journal: Path) -> list[str]:
    return journal.read_text("utf-8").splitlines() if journal.exists() else []


def calls_in(journal: Path) -> list[str]:
    return [line.split()[0] for line in lines_of(journal) if not line.startswith("started")]


async def until_listed(http: httpx2.AsyncClient, names: set[str]) -> None:
    while not names <= {one["name"] for one in (await http.get("/v1/tools/")).json()}:
        await asyncio.sleep(0.02)


async def call_sent(http: httpx2.AsyncClient, tool: str) -> str:
    """Return the run of a new agent that calls the tool."""
    body = {"name": "a", "model": "scripted/echo", "tools": [tool]}
    agent = (await http.post("/v1/agents/", json=body)).raise_for_status().json()
    path = f"/v1/agents/{agent['id']}/messages/async"
    sent = await http.post(path, json={"input": f"[tool={tool}]"})
    identity: str = sent.raise_for_status().json()["id"]
    return identity


async def return_of(client: Client, run_id: str) -> tuple[str, str]:
    """Return the status of the only return, and the stop reason."""
    events = [event async for event in client.follow(run_id=run_id)]
    [status] = [one["status"] for one in events if one["message_type"] == "tool_return_message"]
    [reason] = [one["stop_reason"] for one in events if one["message_type"] == "stop_reason"]
    return status, reason


@pytest.mark.promise("P17", "P19")
async def test_an_interrupted_call_runs_again_if_its_trusted_server_gave_a_hint(
    tmp_path: Path,
) -> None:
    config = tmp_path / "reattach.toml"
    journals = {name: tmp_path / f"{name}.txt" for name in ("trusted", "doubted")}
    write_settings(config, journals, HINTS)
    arguments = ["--scripted", "--config", str(config), "--log-level", "warning"]
    server = ServerProcess(tmp_path / "data", arguments=arguments)
    tools = {f"{owner}__{name}": case for case in CASES for owner, name in [case]}
    async with asyncio.timeout(BOUND_SECONDS):
        await asyncio.to_thread(server.start)
        try:
            async with httpx2.AsyncClient(base_url=server.url) as http:
                await until_listed(http, tools.keys() | set())
                runs = {await call_sent(http, tool): case for tool, case in tools.items()}
            while sum(len(calls_in(one)) for one in journals.values()) < len(CASES):
                await asyncio.sleep(0.02)
            await asyncio.to_thread(server.kill)
            for pid in [
                int(one.split()[1])
                for path in journals.values()
                for one in lines_of(path)
                if one.startswith("started")
            ]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            write_settings(config, journals, LATER)
            await asyncio.to_thread(server.start)
            async with Client(server.url) as client:
                found = {case: await return_of(client, run) for run, case in runs.items()}
        finally:
            server.close()
    assert found == {case: (status, "end_turn") for case, status in CASES.items()}
    assert sorted(calls_in(journals["trusted"])) == ["add", "add", "deploy", "look", "look"]
    assert sorted(calls_in(journals["doubted"])) == ["add", "look"]
