"""The MCP servers of a process: kept connected, with their tools as tools of this server.

A server that ends or cannot be reached is retried with a growing delay, and at once when one of its
tools is called. Its tools stay listed meanwhile, and their calls return the reason.
"""

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Protocol

import structlog

from reattach.domain.arguments import NO_OBJECT, decoded_arguments
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


class Connection(ABC):
    """One connection to an MCP server."""

    about: str
    """The name and version that the server reports."""
    protocol: str
    remarks: Sequence[str] = ()
    """The repairs of the last list of tools, a line each."""

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


class Connect(Protocol):
    """The signature of ``mcp.connect``."""

    def __call__(
        self,
        name: str,
        server: McpServer,
        *,
        on_change: Callable[[], None],
        on_end: Callable[[], None],
        on_stderr: Callable[[str], None],
    ) -> AbstractAsyncContextManager[Connection]: ...


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
            asyncio.create_task(keeper.keep(), name=f"mcp {name}")
            for name, keeper in self._keepers.items()
        }
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    for keeper in self._keepers.values():
                        await keeper.wait_for_attempt()
            yield
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def tools(self) -> Sequence[Tool]:
        return [tool for keeper in self._keepers.values() for tool in keeper.tools()]

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
    """A tool of an MCP server, or a placeholder with ``listed`` None while its list is unknown."""

    kind = "external_mcp"

    def __init__(
        self,
        keeper: "_ServerKeeper",
        name: str,
        listed: ListedTool | None,
        *,
        requires_approval: bool,
    ) -> None:
        self.name = name
        self.listed = listed
        self.description = None if listed is None else listed.description
        self.parameters = _ANY_OBJECT if listed is None else listed.parameters
        self.requires_approval = requires_approval
        self.tenants = None if keeper.server.tenants is None else frozenset(keeper.server.tenants)
        self.server = keeper.name
        self.call_seconds = keeper.server.tool_seconds
        self._keeper = keeper

    async def ready(self) -> Tool:
        if self.listed is not None:
            return self
        with suppress(TimeoutError):
            async with asyncio.timeout(MCP_READY_SECONDS):
                await self._keeper.wait_for_attempt()
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
        self._connect = connect
        self._clock = clock
        self._tools: dict[str, McpTool] = {}
        self._connection: Connection | None = None
        self._fault = "no attempt was made yet"
        self._attempts = 0
        self._attempt_ended = asyncio.Event()
        """Set and replaced whenever an attempt has succeeded or failed."""
        self._changed = asyncio.Event()
        """The server's tools changed, or the connection ended."""
        self._abort: Callable[[], None] = lambda: None
        """Abort the current connection, or the attempt to make one."""
        self._ended = False
        self._was_connected = False
        """Whether the current attempt led to a connection."""
        self._retry_now = asyncio.Event()
        """Somebody waits for the next attempt."""

    # Tools.

    def tools(self) -> Sequence[Tool]:
        return list(self._tools.values())

    def find(self, name: str) -> McpTool | None:
        """Return the tool; a placeholder while the server's list is unknown."""
        if self._tools or self._connection is not None:
            return self._tools.get(name)
        remote = name.removeprefix(self.name + _BETWEEN)
        return McpTool(self, name, None, requires_approval=self.server.needs_approval(remote))

    async def wait_for_attempt(self) -> None:
        """Return once a connection was made or failed."""
        while not self._attempts:
            await self._attempt_ended.wait()

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool.

        Raises:
            ToolError: The call failed; McpLostError if its outcome is unknown.
        """
        connection = await self._require_connection()
        tool = self._tools.get(name)
        if tool is None or tool.listed is None:
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
        attempts = self._attempts
        while self._connection is None and self._attempts == attempts:
            self._retry_now.set()
            await self._attempt_ended.wait()
        if self._connection is None:
            raise McpUnreachableError(
                f"The MCP server {self.name} cannot be reached: {self._fault}. "
                "The tool did not run."
            )
        return self._connection

    # Connecting.

    async def keep(self) -> None:
        """Keep a connection until cancelled, and replace it when it ends."""
        wait_seconds = MCP_RETRY_SECONDS
        while True:
            began = self._clock.monotonic_seconds()
            self._fault = await self._hold_connection()
            self._connection = None
            if not self._was_connected:  # A connection was already reported as an attempt.
                self._note_attempt()
            logger.warning("MCP server not connected", server=self.name, reason=self._fault)
            if self._clock.monotonic_seconds() - began >= MCP_STEADY_SECONDS:
                wait_seconds = MCP_RETRY_SECONDS
            await self._wait_for_retry(wait_seconds)
            wait_seconds = min(wait_seconds * 2, MCP_MAX_RETRY_SECONDS)

    async def _hold_connection(self) -> str:
        """Hold one connection to its end, and return the reason of the end.

        It has a task of its own, which is cancelled only once: a second cancellation would
        interrupt it while it stops the server's process.
        """
        holder = asyncio.create_task(self._connect_and_list(), name=f"mcp connection {self.name}")
        is_aborted = False

        def abort() -> None:
            nonlocal is_aborted
            if not is_aborted:
                is_aborted = True
                holder.cancel()

        self._abort = abort
        try:
            await asyncio.wait({holder})
        except asyncio.CancelledError:
            abort()
            await asyncio.wait({holder}, timeout=MCP_STOP_SECONDS)
            if not holder.done():
                logger.error("MCP server not stopped", server=self.name)  # noqa: TRY400
            raise
        if holder.cancelled():
            return f"no connection within {self.server.start_seconds:g} s"
        match holder.exception():
            case None:
                return "it ended the connection"
            case McpUnreachableError(detail=detail):
                return detail
            case error:
                logger.error("MCP server failed", server=self.name, exc_info=error)
                return type(error).__name__

    async def _connect_and_list(self) -> None:
        """Connect, list the tools, and return when the connection has ended."""
        self._ended = self._was_connected = False
        self._changed.clear()
        with self._deadline() as end_deadline:
            async with self._connect(
                self.name,
                self.server,
                on_change=self._changed.set,
                on_end=self._note_end,
                on_stderr=self._log_stderr,
            ) as connection:
                await self._list_tools(connection)
                end_deadline()
                self._connection = connection
                self._was_connected = True
                self._note_attempt()
                logger.info(
                    "MCP server connected",
                    server=self.name,
                    about=connection.about,
                    tools=len(self._tools),
                )
                while not self._ended:
                    await self._changed.wait()
                    self._changed.clear()
                    if not self._ended:
                        with self._deadline():
                            await self._list_tools(connection)

    @contextmanager
    def _deadline(self) -> Iterator[Callable[[], None]]:
        """Abort the connection if the block takes longer than the server may.

        Call the value to end the limit early.
        """
        timer = asyncio.get_running_loop().call_later(self.server.start_seconds, self._abort)
        try:
            yield timer.cancel
        finally:
            timer.cancel()

    def _log_stderr(self, text: str) -> None:
        logger.debug("MCP server wrote to stderr", server=self.name, text=text)

    def _note_end(self) -> None:
        self._connection = None
        self._ended = True
        self._changed.set()

    def _drop(self, connection: Connection) -> None:
        if self._connection is connection:
            self._note_end()

    def _note_attempt(self) -> None:
        self._attempts += 1
        self._retry_now.clear()
        self._attempt_ended.set()
        self._attempt_ended = asyncio.Event()

    async def _wait_for_retry(self, seconds: float) -> None:
        """Wait ``seconds`` before the next attempt, or less if somebody needs the server."""
        await self._clock.sleep(MCP_RETRY_SECONDS)
        await sleep_unless_set(self._clock, seconds - MCP_RETRY_SECONDS, self._retry_now)

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
                waits = self.server.needs_approval(listed.name)
                tools[name] = McpTool(self, name, listed, requires_approval=waits)
        self._tools = tools
