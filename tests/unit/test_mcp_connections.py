"""The MCP servers of a process, with connections that a test makes, and a clock of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from reattach.domain.clock import SystemClock
from reattach.domain.errors import McpLostError, McpUnreachableError, StartupError, ToolError
from reattach.domain.limits import (
    MAX_TOOL_SCHEMA_BYTES,
    MCP_MAX_RETRY_SECONDS,
    MCP_RETRY_SECONDS,
    MCP_STEADY_SECONDS,
)
from reattach.settings import Settings
from reattach.tools.base import Toolbox, tool_id
from reattach.tools.connections import Connection, ListedTool, McpServers, tool_name
from reattach.tools.function import FunctionTool, tool
from reattach.tools.servers import McpServer, check_names
from reattach.tools.threads import Threads

WAIT_SECONDS = 20.0
SERVER = McpServer(command="serve", requires_approval=("deploy",), tool_seconds=7)


class StepClock(SystemClock):
    """Its sleeps take no time, and are noted; those in ``held`` wait to be let go."""

    def __init__(self) -> None:
        self.now_seconds = 0.0
        self.slept: list[float] = []
        self.hold_longer_than = float("inf")

    def monotonic_seconds(self) -> float:
        return self.now_seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds > self.hold_longer_than:
            await asyncio.Event().wait()
        self.now_seconds += seconds
        await asyncio.sleep(0)


@dataclass
class Fake(Connection):
    """A server as its connection shows it; each connection in turn is this one."""

    listed: list[ListedTool] = field(default_factory=lambda: [listed("look")])
    reachable: bool = True
    tries: int = 0
    open: int = 0
    alive: bool = True
    lost: bool = False
    about: str = "fake 1"
    protocol: str = "2025"
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    tried: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        super().__init__()

    @asynccontextmanager
    async def connect(
        self, name: str, server: McpServer, on_stderr: Callable[[str], None]
    ) -> AsyncIterator[Connection]:
        self.tries += 1
        self.tried.set()
        if not self.reachable:
            raise McpUnreachableError("nobody is at home")
        super().__init__()
        self.alive = True
        self.open += 1
        try:
            yield self
        finally:
            self.open -= 1

    async def tools(self) -> Sequence[ListedTool]:
        return self.listed

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        self.calls.append((name, dict(arguments)))
        if self.lost:
            raise McpLostError("gone")
        return f"{name} did"

    async def is_alive(self) -> bool:
        return self.alive and not self.has_ended


def listed(name: str, **parameters: Any) -> ListedTool:
    return ListedTool(name, None, {"type": "object", **parameters})


@asynccontextmanager
async def running(
    fake: Fake, clock: StepClock, server: McpServer = SERVER
) -> AsyncIterator[McpServers]:
    servers = McpServers({"home": server}, fake.connect, clock)
    async with asyncio.timeout(WAIT_SECONDS):
        async with servers.running(wait_seconds=WAIT_SECONDS):
            yield servers
    assert fake.open == 0


async def call(servers: McpServers, name: str = "home__look", arguments: str = "{}") -> str:
    found = servers.find(name)
    assert found is not None
    return await found.call(arguments)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


async def tries(fake: Fake, number: int) -> None:
    while fake.tries < number:
        fake.tried.clear()
        await fake.tried.wait()


async def test_a_server_that_is_not_there_is_tried_later_and_later_up_to_a_bound() -> None:
    fake, clock = Fake(reachable=False), StepClock()
    async with running(fake, clock):
        await tries(fake, 10)
        slept = clock.slept[:18]
        waits = [first + second for first, second in zip(slept[::2], slept[1::2], strict=True)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert waits[0] == MCP_RETRY_SECONDS
    assert waits[-1] == MCP_MAX_RETRY_SECONDS


async def test_a_server_that_ends_at_once_each_time_is_no_busy_loop() -> None:
    fake, clock = Fake(), StepClock()
    async with running(fake, clock):
        for number in range(1, 5):
            await tries(fake, number)
            await asyncio.sleep(0)
            fake.note_end()
        await tries(fake, 5)
        assert sum(clock.slept) >= 1 + 2 + 4 + 8
        # One that held for a while is tried soon again.
        clock.slept.clear()
        clock.now_seconds += MCP_STEADY_SECONDS
        await asyncio.sleep(0)
        fake.note_end()
        await tries(fake, 6)
        assert sum(clock.slept) == MCP_RETRY_SECONDS


async def test_a_call_has_a_server_that_is_not_there_tried_sooner() -> None:
    fake, clock = Fake(reachable=False), StepClock()
    clock.hold_longer_than = 5
    async with running(fake, clock) as servers:
        while clock.slept[-1:] != [7]:  # After the fourth try it rests for long.
            await asyncio.sleep(0)
        with pytest.raises(McpUnreachableError, match=r"nobody is at home\. The tool did not run"):
            await call(servers)
        assert fake.tries == 5
        fake.reachable = True
        assert await call(servers) == "look did"
        assert fake.tries == 6


async def test_a_call_that_loses_its_connection_is_not_made_again() -> None:
    fake, clock = Fake(lost=True), StepClock()
    async with running(fake, clock) as servers:
        with pytest.raises(McpLostError, match="Whether it did its work is not known"):
            await call(servers)
        fake.lost = False
        assert await call(servers) == "look did"
    assert [name for name, _ in fake.calls] == ["look", "look"]
    assert fake.tries == 2


async def test_a_connection_that_is_dead_before_the_call_is_made_anew_before_it() -> None:
    fake, clock = Fake(), StepClock()
    async with running(fake, clock) as servers:
        fake.alive = False
        assert await call(servers) == "look did"
    assert (fake.tries, len(fake.calls)) == (2, 1)


async def test_no_call_goes_to_a_connection_that_has_ended() -> None:
    fake, clock = Fake(), StepClock()
    async with running(fake, clock) as servers:
        fake.note_end()
        assert await call(servers) == "look did"
    assert (fake.tries, len(fake.calls)) == (2, 1)


@pytest.mark.parametrize("answers", [True, False], ids=["ended", "silent"])
async def test_the_end_of_the_server_does_not_interrupt_the_end_of_a_connection(
    answers: bool,
) -> None:
    connection, leaving, left = Fake(), asyncio.Event(), False

    @asynccontextmanager
    async def connect(
        name: str, server: McpServer, on_stderr: Callable[[str], None]
    ) -> AsyncIterator[Connection]:
        nonlocal left
        try:
            if not answers:
                await asyncio.Event().wait()
            yield connection
        finally:
            leaving.set()
            await asyncio.sleep(0.05)  # As long as it takes to stop a process.
            left = True

    brief = SERVER.model_copy(update={"start_seconds": WAIT_SECONDS if answers else 0.01})
    servers = McpServers({"home": brief}, connect, StepClock())
    async with asyncio.timeout(WAIT_SECONDS), servers.running(wait_seconds=0):
        if answers:
            await servers._keepers["home"].first_attempt.wait()
        connection.note_end()
        await leaving.wait()
    assert left


async def test_the_tools_of_a_server_that_is_gone_stay_listed() -> None:
    fake, clock = Fake(), StepClock()
    clock.hold_longer_than = 0
    async with running(fake, clock) as servers:
        fake.reachable = False
        fake.note_end()
        while fake.open:
            await asyncio.sleep(0)
        assert [one.name for one in servers.tools()] == ["home__look"]


async def test_a_change_of_the_tools_is_heard() -> None:
    fake, clock = Fake(), StepClock()
    async with running(fake, clock) as servers:
        fake.listed = [listed("deploy")]
        fake.note_change()
        while [one.name for one in servers.tools()] != ["home__deploy"]:
            await asyncio.sleep(0)
        with pytest.raises(ToolError, match="no longer has this tool"):
            await servers._keepers["home"].call("home__look", {})
        assert servers.find("home__look") is None


async def test_names_are_unique_and_such_as_providers_take() -> None:
    many = "x" * 100
    fake, clock = Fake(), StepClock()
    big = listed("big", description="x" * MAX_TOOL_SCHEMA_BYTES)
    fake.listed = [listed("a.b"), listed("a/b"), big, listed(many), listed(many + "y")]
    async with running(fake, clock) as servers:
        names = [one.name for one in servers.tools()]
        assert await call(servers, "home__a_b") == "a.b did"
    assert names == ["home__a_b", tool_name("home", many), tool_name("home", many + "y")]
    assert len(set(names)) == 3
    assert all(len(name) <= 64 for name in names)


async def test_what_a_tool_is_comes_from_its_server_and_from_the_settings() -> None:
    fake = Fake(listed=[listed("look", properties={"n": {}}), listed("deploy")])
    async with running(fake, StepClock()) as servers:
        deploy, look = sorted(servers.tools(), key=lambda one: one.name)
        assert (deploy.requires_approval, look.requires_approval) == (True, False)
        assert (look.call_seconds, look.server) == (7, "home")
        assert look.parameters["properties"] == {"n": {}}
        assert look.id == tool_id("home__look")
        for arguments in ("[]", "{", "1"):
            with pytest.raises(ToolError, match="The arguments"):
                await look.call(arguments)
        assert fake.calls == []


@pytest.mark.promise("P17")
async def test_a_call_may_run_again_by_the_hint_that_a_trusted_server_gives_when_it_begins() -> (
    None
):
    look = replace(listed("look"), idempotent=True)
    fake = Fake(listed=[look, listed("deploy")])
    trusted = SERVER.model_copy(update={"trust_hints": True})
    async with running(fake, StepClock(), trusted) as servers:
        deploy, offered = sorted(servers.tools(), key=lambda one: one.name)
        assert (offered.idempotent, deploy.idempotent) == (True, False)
        fake.listed = [listed("look")]
        fake.note_change()
        await until(lambda: not offered.idempotent)
        fake.listed = [look]
        fake.note_change()
        await until(lambda: offered.idempotent)
        fake.note_end()
        await until(lambda: not offered.idempotent)
    async with running(Fake(listed=[look]), StepClock()) as servers:
        assert [one.idempotent for one in servers.tools()] == [False]


async def test_an_agent_keeps_a_tool_that_its_server_has_not_listed_yet() -> None:
    fake, clock = Fake(reachable=False), StepClock()

    @tool(name="home__look")
    def mine() -> str:
        return "mine"

    async with running(fake, clock) as servers:
        wanted = {"home__look": None, "home__deploy": None, "gone__x": None}
        box = Toolbox(source=servers)
        assert box.tools() == []
        attached = box.attached_tools(wanted)
        assert [(one.tool.name, one.requires_approval) for one in attached] == [
            ("home__look", False),
            ("home__deploy", True),
        ]
        fake.reachable = True
        assert await attached[0].tool.call(json.dumps({"n": 1})) == "look did"
        # Now it has said what it has.
        ready = await attached[0].tool.ready()
        assert [one.tool for one in box.attached_tools(wanted)] == [ready]
        # A function goes before a tool of its name, wherever that comes from.
        function = FunctionTool(mine, Threads())
        assert Toolbox([function], servers).by_name("home__look") is function
        assert Toolbox([function], servers).tools() == [function]


# Settings.


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ({}, "name either a command or a url"),
        ({"command": "x", "url": "http://h/"}, "name either a command or a url"),
        ({"command": "x", "headers": {"Key": "sesame"}}, "headers goes with a url only"),
        ({"url": "http://h/", "env": {"KEY": "sesame"}}, "env goes with a command only"),
        ({"url": "ftp://sesame@h/"}, "must begin with http:// or https://"),
        ({"command": "x", "environment": {"KEY": "sesame"}}, "environment: It is unknown."),
        ({"command": "x", "start_seconds": 0}, "a number above 0"),
    ],
)
def test_a_server_that_is_named_wrongly_is_refused_without_its_secrets(
    server: dict[str, Any], reason: str
) -> None:
    with pytest.raises(StartupError) as refused:
        Settings(mcp={"home": server})
    assert reason in str(refused.value)
    assert "sesame" not in str(refused.value)


def test_servers_are_read_from_the_environment_and_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "reattach.toml"
    file.write_text(
        '[mcp.files]\ncommand = "serve-files"\nargs = ["/srv"]\nenv = { KEY = "sesame" }\n'
        'requires_approval = ["write"]\n\n'
        '[mcp.web]\nurl = "https://user:sesame@mcp.example/mcp?key=sesame"\n'
        'headers = { X-Key = "sesame" }\nrequires_approval = true\n'
    )
    settings = Settings(config=file)
    files, web = settings.mcp["files"], settings.mcp["web"]
    assert files.environment() == {"KEY": "sesame"}
    assert (
        files.needs_approval("write"),
        files.needs_approval("read"),
        web.needs_approval("read"),
    ) == (True, False, True)
    assert web.request_headers() == {"X-Key": "sesame"}
    assert (files.place, web.place) == ("the command serve-files", "https://mcp.example")
    assert "X-Key=***" in web.redact("said X-Key=sesame")
    assert "sesame" not in repr(files)
    monkeypatch.setenv("REATTACH_MCP", '{"web": {"url": "http://h/mcp", "bearer_token_env": "T"}}')
    web = Settings().mcp["web"]
    with pytest.raises(StartupError, match="The environment variable T is not set"):
        web.request_headers()
    monkeypatch.setenv("T", "sesame")
    assert web.request_headers() == {"Authorization": "Bearer sesame"}
    assert "sesame" not in web.redact("it refused sesame")


@pytest.mark.parametrize("name", ["", "a b", "a__b", "_a", "a_", "é", "x" * 33, "a/b"])
def test_a_name_that_tools_can_not_have_in_theirs_is_refused(name: str) -> None:
    with pytest.raises(StartupError, match="is not valid"):
        check_names({name: SERVER})
    check_names({"a": SERVER, "a-b_c": SERVER, "x" * 32: SERVER, "ab": SERVER})
