"""The MCP servers of a process: kept connected, with their tools as tools of this server.

A server that ends or cannot be reached is retried with a growing delay, and at once when one of its
tools is called. Its tools stay listed meanwhile, and their calls return the reason.
"""

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import structlog

from reattach.domain.arguments import NO_OBJECT, decoded_arguments
from reattach.domain.backoff import Backoff
from reattach.domain.clock import Clock, sleep_unless_set
from reattach.domain.errors import McpLostError, McpUnreachableError, ToolError
from reattach.domain.limits import (
    MAX_TOOL_SCHEMA_BYTES,
    MCP_MAX_RETRY_SECONDS,
    MCP_READY_SECONDS,
    MCP_RETRY_SECONDS,
    MCP_STEADY_SECONDS,
    MCP_STOP_SECONDS,
)
from reattach.tools.base import Tool, ToolSource
from reattach.tools.servers import McpServer

logger = structlog.get_logger(__name__)

_ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
_NAME_CHARS: Final = 64
_BETWEEN: Final = "__"


@dataclass(frozen=True, slots=True)
class ListedTool:
    """A tool in the list of its server."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    idempotent: bool = False
    """Whether the server declares that a second call changes nothing more."""


class Connection(ABC):
    """One connection to an MCP server."""

    about: str
    """The name and version that the server reports."""
    protocol: str
    remarks: Sequence[str] = ()
    """The repairs of the last list of tools, a line each."""

    def __init__(self) -> None:
        self.has_ended = False
        self._news = asyncio.Event()

    def note_change(self) -> None:
        """Note that the server's tools have changed."""
        self._news.set()

    def note_end(self) -> None:
        """Note that the connection has ended."""
        self.has_ended = True
        self._news.set()

    async def changes(self) -> AsyncIterator[None]:
        """Yield after changes of the server's tools, until the connection ends."""
        await self._news.wait()
        while not self.has_ended:
            self._news.clear()
            yield
            await self._news.wait()

    @abstractmethod
    async def tools(self) -> Sequence[ListedTool]:
        """List the server's tools, at most MAX_MCP_TOOLS."""

    @abstractmethod
    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool.

        Raises:
            ToolError: The tool or the server reports an error.
            McpLostError: The connection ended during the call.
        """

    @abstractmethod
    async def is_alive(self) -> bool:
        """Whether a call would reach the server, as far as that can be tested."""


Connect = Callable[[str, McpServer, Callable[[str], None]], AbstractAsyncContextManager[Connection]]
"""The signature of ``mcp.connect``."""


class McpServers(ToolSource):
    """All MCP servers of a process.

    A tool is named ``server__tool``, so no two servers have tools of one name, and a name never
    changes its meaning. Characters that providers refuse become ``_``, and a name that is too long
    ends with a digest of the original.
    """

    def __init__(self, servers: Mapping[str, McpServer], connect: Connect, clock: Clock) -> None:
        self._keepers = {
            name: _ServerKeeper(name, server, connect, clock)
            for name, server in sorted(servers.items())
        }

    @asynccontextmanager
    async def running(self, *, wait_seconds: float) -> AsyncIterator[None]:
        """Keep the servers connected. Enter once each was attempted, or after ``wait_seconds``.

        Exit ends the connections and the started processes within MCP_STOP_SECONDS.
        """
        tasks = {
            asyncio.create_task(keeper.keep(), name=f"mcp {name}"): keeper
            for name, keeper in self._keepers.items()
        }
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    for keeper in tasks.values():
                        await keeper.first_attempt.wait()
            yield
        finally:
            for keeper in tasks.values():
                keeper.stop()
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=MCP_STOP_SECONDS)
                for task in late:
                    logger.error("MCP server not stopped", server=tasks[task].name)

    def tools(self) -> Sequence[Tool]:
        return [tool for keeper in self._keepers.values() for tool in keeper.tools.values()]

    def find(self, name: str) -> Tool | None:
        keeper = self._keepers.get(name.partition(_BETWEEN)[0])
        return None if keeper is None else keeper.find(name)

    def servers(self) -> Mapping[str, McpServer]:
        return {name: keeper.server for name, keeper in self._keepers.items()}


def tool_name(server: str, name: str) -> str:
    """Return the name under which a server's tool is offered."""
    whole = f"{server}{_BETWEEN}{re.sub(r'[^A-Za-z0-9_-]', '_', name)}"
    if len(whole) <= _NAME_CHARS:
        return whole
    digest = sha256(name.encode()).hexdigest()[:8]
    return f"{whole[: _NAME_CHARS - len(digest) - 1]}_{digest}"


class McpTool(Tool):
    """A tool of an MCP server, or a placeholder while the server's list is unknown."""

    kind = "external_mcp"

    def __init__(
        self, keeper: "_ServerKeeper", name: str, listed: ListedTool, *, is_placeholder: bool
    ) -> None:
        server = keeper.server
        self.name = name
        self.listed = listed
        self.description = listed.description
        self.parameters = listed.parameters
        self.requires_approval = server.needs_approval(listed.name)
        self.tenants = None if server.tenants is None else frozenset(server.tenants)
        self.server = keeper.name
        self.call_seconds = server.tool_seconds
        self._keeper = keeper
        self._is_placeholder = is_placeholder

    @property
    def idempotent(self) -> bool:  # type: ignore[override]
        """Whether the server says so now, and its hints are trusted."""
        return self._keeper.trusts_to_repeat(self.name)

    async def ready(self) -> Tool:
        if not self._is_placeholder:
            return self
        with suppress(TimeoutError):
            async with asyncio.timeout(MCP_READY_SECONDS):
                await self._keeper.first_attempt.wait()
        return self._keeper.find(self.name) or self

    async def call(self, arguments: str) -> str:
        members = decoded_arguments(arguments)
        if members is None:
            raise ToolError(NO_OBJECT)
        return await self._keeper.call(self.name, members)


class _ServerKeeper:
    """One server, and the task that keeps it connected."""

    def __init__(self, name: str, server: McpServer, connect: Connect, clock: Clock) -> None:
        self.name = name
        self.server = server
        self.tools: Mapping[str, McpTool] = {}
        """By name, also while there is no connection."""
        self.first_attempt = self._attempt = asyncio.Event()
        """The first and the next attempt to connect, set when it has succeeded or failed."""
        self._connect = connect
        self._clock = clock
        self._connection: Connection | None = None
        self._fault = "no attempt was made yet"
        self._deadline: asyncio.Timeout | None = None
        """The end of the attempt, or of listing the tools again; None while it is left."""
        self._stopping = asyncio.Event()
        self._retry_now = asyncio.Event()
        """Somebody waits for the next attempt, or the server stops."""

    # Tools.

    def find(self, name: str) -> McpTool | None:
        """Return the tool; a placeholder while the server's list is unknown."""
        if self.tools or self._connection is not None:
            return self.tools.get(name)
        unknown = ListedTool(name.removeprefix(self.name + _BETWEEN), None, _ANY_OBJECT)
        return McpTool(self, name, unknown, is_placeholder=True)

    def trusts_to_repeat(self, name: str) -> bool:
        """Whether an interrupted call of the tool may run again.

        While there is no connection, it may not: the next server may declare the tool otherwise.
        """
        tool = self.tools.get(name)
        is_connected = self._connection is not None and not self._connection.has_ended
        return self.server.trust_hints and is_connected and bool(tool and tool.listed.idempotent)

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool.

        Raises:
            ToolError: The call failed; McpLostError if its outcome is unknown.
        """
        connection = await self._require_connection()
        tool = self.tools.get(name)
        if tool is None:
            raise ToolError(f"The MCP server {self.name} no longer has this tool.")
        try:
            return await connection.call(tool.listed.name, arguments)
        except McpLostError as error:
            self._drop(connection)
            raise McpLostError(
                f"The MCP server {self.name} ended the connection before the tool returned. "
                "Whether it did its work is not known."
            ) from error

    async def _require_connection(self) -> Connection:
        """Return the connection, after one more attempt if there is none."""
        if (connection := self._connection) is not None:
            if await connection.is_alive():
                return connection
            self._drop(connection)
        if self._connection is None:
            self._retry_now.set()
            await self._attempt.wait()
        if self._connection is None:
            raise McpUnreachableError(
                f"The MCP server {self.name} cannot be reached: {self._fault}. "
                "The tool did not run."
            )
        return self._connection

    # Connecting.

    async def keep(self) -> None:
        """Keep a connection until ``stop``, and replace it when it ends."""
        backoff = Backoff(MCP_RETRY_SECONDS, MCP_MAX_RETRY_SECONDS)
        while not self._stopping.is_set():
            attempt, began = self._attempt, self._clock.monotonic_seconds()
            self._fault = await self._hold_connection()
            self._connection = self._deadline = None
            if attempt is self._attempt:
                self._note_attempt()
            if self._stopping.is_set():
                return
            logger.warning("MCP server not connected", server=self.name, reason=self._fault)
            if self._clock.monotonic_seconds() - began >= MCP_STEADY_SECONDS:
                backoff.reset()
            await sleep_unless_set(self._clock, MCP_RETRY_SECONDS, self._stopping)
            more_seconds = backoff.next_seconds() - MCP_RETRY_SECONDS
            await sleep_unless_set(self._clock, more_seconds, self._retry_now)

    def stop(self) -> None:
        """Make ``keep`` end the connection and return."""
        self._stopping.set()
        self._retry_now.set()
        # Cancels only once: a second time would interrupt the task while it stops a process.
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(0)

    async def _hold_connection(self) -> str:
        """Hold one connection to its end, and return the reason of the end."""
        limit_seconds = self.server.start_seconds
        self._deadline = asyncio.timeout(limit_seconds)
        try:
            async with (
                self._deadline,
                self._connect(self.name, self.server, self._log_stderr) as connection,
            ):
                await self._list_tools(connection)
                self._limit(None)
                self._connection = connection
                self._note_attempt()
                about, tools = connection.about, len(self.tools)
                logger.info("MCP server connected", server=self.name, about=about, tools=tools)
                async for _ in connection.changes():
                    self._limit(limit_seconds)
                    await self._list_tools(connection)
                    self._limit(None)
                self._deadline = None
        except TimeoutError:
            return f"no connection within {limit_seconds:g} s"
        except McpUnreachableError as error:
            return error.detail
        except Exception as error:
            logger.exception("MCP server failed", server=self.name)
            return type(error).__name__
        return "it ended the connection"

    def _log_stderr(self, line: str) -> None:
        logger.debug("MCP server wrote to stderr", server=self.name, text=line)

    def _limit(self, seconds: float | None) -> None:
        """Give the server ``seconds`` from now on, unless ``stop`` has ended its time."""
        if self._deadline is not None and not self._stopping.is_set():
            now = asyncio.get_running_loop().time()
            self._deadline.reschedule(None if seconds is None else now + seconds)

    def _drop(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None
            connection.note_end()

    def _note_attempt(self) -> None:
        self._retry_now.clear()
        self._attempt.set()
        self._attempt = asyncio.Event()

    async def _list_tools(self, connection: Connection) -> None:
        tools: dict[str, McpTool] = {}
        found = await connection.tools()
        for remark in connection.remarks:
            logger.warning("MCP server lists a bad tool", server=self.name, reason=remark)
        for listed in found:
            name = tool_name(self.name, listed.name)
            if len(json.dumps(listed.parameters)) > MAX_TOOL_SCHEMA_BYTES:
                logger.warning("MCP tool left out: its schema is too large", tool=name)
            elif name in tools:
                logger.warning("MCP tool left out: another one has its name", tool=name)
            else:
                tools[name] = McpTool(self, name, listed, is_placeholder=False)
        self.tools = tools
