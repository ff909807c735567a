"""The MCP servers of a process: kept connected, and their tools as tools of ours.

A server that ends, or can not be reached, is tried again by itself, later and later, and sooner
when one of its tools is called. Its tools stay listed meanwhile, and calls say what is the matter.
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
    """A tool as its server lists it."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]


class Connection(ABC):
    """One connection to an MCP server."""

    about: str
    """The server's name and version, as it says."""
    protocol: str
    remarks: Sequence[str] = ()
    """How the last list of tools was made valid, a line each."""

    @abstractmethod
    async def tools(self) -> Sequence[ListedTool]:
        """All that it has at present, MAX_MCP_TOOLS at most."""

    @abstractmethod
    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Raises ToolError with what the tool or the server says, McpLostError."""

    @abstractmethod
    async def is_alive(self) -> bool:
        """Whether a call would reach the server, as far as that can be asked of it."""


class Connect(Protocol):
    """As ``mcp.connect``."""

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

    A tool is named ``server__tool``, so that no two servers can have one of the same name, and a
    name means the same whichever of them are there. Characters that providers refuse become ``_``,
    and a name that is too long ends in a digest of it.
    """

    def __init__(self, servers: Mapping[str, McpServer], connect: Connect, clock: Clock) -> None:
        self._kept = {
            name: _Kept(name, server, connect, clock) for name, server in sorted(servers.items())
        }

    @asynccontextmanager
    async def running(self, *, wait_seconds: float) -> AsyncIterator[None]:
        """Keep them connected. Entering waits until each was tried once, within ``wait_seconds``.

        Leaving ends the connections and the processes that were started, within MCP_STOP_SECONDS.
        """
        tasks = {
            asyncio.create_task(kept.keep(), name=f"mcp {name}")
            for name, kept in self._kept.items()
        }
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    for kept in self._kept.values():
                        await kept.wait_for_attempt()
            yield
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def tools(self) -> Sequence[Tool]:
        return [tool for kept in self._kept.values() for tool in kept.tools()]

    def find(self, name: str) -> Tool | None:
        kept = self._kept.get(name.partition(_BETWEEN)[0])
        return None if kept is None else kept.find(name)

    def servers(self) -> Mapping[str, McpServer]:
        return {name: kept.server for name, kept in self._kept.items()}


def tool_name(server: str, name: str) -> str:
    """What a tool of a server is called here."""
    whole = f"{server}{_BETWEEN}{re.sub(r'[^A-Za-z0-9_-]', '_', name)}"
    if len(whole) <= _NAME_CHARS:
        return whole
    digest = sha256(name.encode()).hexdigest()[:8]
    return f"{whole[: _NAME_CHARS - len(digest) - 1]}_{digest}"


class McpTool(Tool):
    """A tool of an MCP server, or what may be one of it: ``listed`` is None until it is known."""

    kind = "external_mcp"

    def __init__(
        self, kept: "_Kept", name: str, listed: ListedTool | None, *, requires_approval: bool
    ) -> None:
        self.name = name
        self.listed = listed
        self.description = None if listed is None else listed.description
        self.parameters = _ANY_OBJECT if listed is None else listed.parameters
        self.requires_approval = requires_approval
        self.tenants = None if kept.server.tenants is None else frozenset(kept.server.tenants)
        self.server = kept.name
        self.call_seconds = kept.server.tool_seconds
        self._kept = kept

    async def ready(self) -> Tool:
        if self.listed is not None:
            return self
        with suppress(TimeoutError):
            async with asyncio.timeout(MCP_READY_SECONDS):
                await self._kept.wait_for_attempt()
        return self._kept.find(self.name) or self

    async def call(self, arguments: str) -> str:
        members = decoded_arguments(arguments)
        if members is None:
            raise ToolError(NO_OBJECT)
        return await self._kept.call(self.name, members)


class _Kept:
    """One server, and the task that keeps it connected."""

    def __init__(self, name: str, server: McpServer, connect: Connect, clock: Clock) -> None:
        self.name = name
        self.server = server
        self._connect = connect
        self._clock = clock
        self._tools: dict[str, McpTool] = {}
        self._connection: Connection | None = None
        self._fault = "it was not tried yet"
        self._tries = 0
        self._turned = asyncio.Event()
        """Set, and made anew, whenever a try has ended, well or not."""
        self._news = asyncio.Event()
        """Something happened on the connection: its tools changed, or it ended."""
        self._cut: Callable[[], None] = lambda: None
        """Give up the present connection, or the try to make one."""
        self._ended = False
        self._held = False
        """Whether the present try led to a connection."""
        self._wanted = asyncio.Event()
        """Somebody waits for the next try."""

    # What it has.

    def tools(self) -> Sequence[Tool]:
        return list(self._tools.values())

    def find(self, name: str) -> McpTool | None:
        """The tool; a stand-in for it as long as the server has not said what it has."""
        if self._tools or self._connection is not None:
            return self._tools.get(name)
        remote = name.removeprefix(self.name + _BETWEEN)
        return McpTool(self, name, None, requires_approval=self.server.needs_approval(remote))

    async def wait_for_attempt(self) -> None:
        """Return once the server was reached, or could not be."""
        while not self._tries:
            await self._turned.wait()

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Raises ToolError; McpLostError if nobody knows what the call did."""
        connection = await self._reached()
        tool = self._tools.get(name)
        if tool is None or tool.listed is None:
            raise ToolError(f"The MCP server {self.name} has no such tool any more.")
        try:
            return await connection.call(tool.listed.name, arguments)
        except McpLostError as error:
            self._end(connection)
            raise McpLostError(
                f"The MCP server {self.name} ended the connection before the tool returned. "
                "Whether it did its work is not known."
            ) from error

    async def _reached(self) -> Connection:
        """The connection, which is tried once more if there is none."""
        if (connection := self._connection) is not None:
            if await connection.is_alive():
                return connection
            self._end(connection)
        tries = self._tries
        while self._connection is None and self._tries == tries:
            self._wanted.set()
            await self._turned.wait()
        if self._connection is None:
            raise McpUnreachableError(
                f"The MCP server {self.name} can not be reached: {self._fault}. "
                "The tool did not run."
            )
        return self._connection

    # Keeping it.

    async def keep(self) -> None:
        """Hold a connection until cancelled, and make another one when it is over."""
        wait_seconds = MCP_RETRY_SECONDS
        while True:
            began = self._clock.monotonic_seconds()
            self._fault = await self._held_once()
            self._connection = None
            if not self._held:  # Whoever waits is told of tries alone, and not of their ends.
                self._turn()
            logger.warning("MCP server not connected", server=self.name, reason=self._fault)
            if self._clock.monotonic_seconds() - began >= MCP_STEADY_SECONDS:
                wait_seconds = MCP_RETRY_SECONDS
            await self._rest(wait_seconds)
            wait_seconds = min(wait_seconds * 2, MCP_MAX_RETRY_SECONDS)

    async def _held_once(self) -> str:
        """Hold one connection to its end, and say how it ended.

        A task of its own does so, which is cancelled once and then let alone: a second cancellation
        would leave the process that it is about to stop.
        """
        holder = asyncio.create_task(self._hold(), name=f"mcp connection {self.name}")
        is_cut = False

        def cut() -> None:
            nonlocal is_cut
            if not is_cut:
                is_cut = True
                holder.cancel()

        self._cut = cut
        try:
            await asyncio.wait({holder})
        except asyncio.CancelledError:
            cut()
            await asyncio.wait({holder}, timeout=MCP_STOP_SECONDS)
            if not holder.done():
                logger.error("MCP server not stopped", server=self.name)  # noqa: TRY400
            raise
        if holder.cancelled():
            return f"it was not there within {self.server.start_seconds:g} s"
        match holder.exception():
            case None:
                return "it ended the connection"
            case McpUnreachableError(detail=detail):
                return detail
            case error:
                logger.error("MCP server failed", server=self.name, exc_info=error)
                return type(error).__name__

    async def _hold(self) -> None:
        """Connect, list the tools, and return when the connection is over."""
        self._ended = self._held = False
        self._news.clear()
        with self._in_time() as in_time:
            async with self._connect(
                self.name,
                self.server,
                on_change=self._news.set,
                on_end=self._over,
                on_stderr=self._said,
            ) as connection:
                await self._list(connection)
                in_time()
                self._connection = connection
                self._held = True
                self._turn()
                logger.info(
                    "MCP server connected",
                    server=self.name,
                    about=connection.about,
                    tools=len(self._tools),
                )
                while not self._ended:
                    await self._news.wait()
                    self._news.clear()
                    if not self._ended:
                        with self._in_time():
                            await self._list(connection)

    @contextmanager
    def _in_time(self) -> Iterator[Callable[[], None]]:
        """Give the connection up if this takes longer than the server may, or until it is said."""
        timer = asyncio.get_running_loop().call_later(self.server.start_seconds, self._cut)
        try:
            yield timer.cancel
        finally:
            timer.cancel()

    def _said(self, text: str) -> None:
        logger.debug("said by an MCP server", server=self.name, text=text)

    def _over(self) -> None:
        self._connection = None
        self._ended = True
        self._news.set()

    def _end(self, connection: Connection) -> None:
        if self._connection is connection:
            self._over()

    def _turn(self) -> None:
        self._tries += 1
        self._wanted.clear()
        self._turned.set()
        self._turned = asyncio.Event()

    async def _rest(self, seconds: float) -> None:
        """Wait before the next try: ``seconds``, or less if somebody wants the server."""
        await self._clock.sleep(MCP_RETRY_SECONDS)
        await sleep_unless_set(self._clock, seconds - MCP_RETRY_SECONDS, self._wanted)

    async def _list(self, connection: Connection) -> None:
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
