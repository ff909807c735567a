"""The MCP protocol: connecting to one server, listing its tools and calling them.

The only module that imports the SDK, which an extra installs.
"""

import asyncio
import json
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib import import_module
from typing import Any, Final, TextIO

import anyio
import httpx2
import mcp
from mcp import types
from mcp.client import IncomingMessage, Transport
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import SubscriptionLost
from mcp.shared.message import SessionMessage
from mcp.types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from reattach.domain.backoff import Backoff
from reattach.domain.errors import McpLostError, McpUnreachableError, StartupError, ToolError
from reattach.domain.limits import (
    MAX_ERROR_CHARS,
    MAX_MCP_TOOLS,
    MCP_MAX_RETRY_SECONDS,
    MCP_PING_SECONDS,
    MCP_RETRY_SECONDS,
)
from reattach.domain.text import storable_text
from reattach.outbound.requests import prepare_tls
from reattach.tools.connections import Connection, ListedTool
from reattach.tools.listing import repair_listing
from reattach.tools.servers import McpServer

# Imported now, because the SDK's first call would take half a second for it.
import_module("jsonschema")

_CLOSED: Final = {types.CONNECTION_CLOSED, types.REQUEST_TIMEOUT}
_STDERR_SECONDS: Final = 1.0
"""The time to read the rest of an ended process's output; a child of it may keep the pipe open."""


@asynccontextmanager
async def connect(
    name: str, server: McpServer, on_stderr: Callable[[str], None]
) -> AsyncIterator[Connection]:
    """A connection to the server; whoever waits for it to be made bounds the time.

    ``on_stderr`` is called, in another thread, with each line of the process's standard error,
    redacted. Leaving stops the process and its children within a few seconds.

    Raises:
        McpUnreachableError: There is no connection; the text holds no secrets.
    """
    last_line = ""

    def note_line(line: str) -> None:
        nonlocal last_line
        last_line = server.redact(line.rstrip()[:MAX_ERROR_CHARS])
        on_stderr(last_line)

    try:
        async with AsyncExitStack() as stack:
            transport = await _transport(stack, name, server, note_line)
            connection = _SdkConnection(server, transport)
            await stack.enter_async_context(connection.open())
            yield connection
    except (Exception, BaseExceptionGroup) as error:
        raise McpUnreachableError(server.redact(_describe(error, last_line))) from error


async def _transport(
    stack: AsyncExitStack,
    name: str,
    server: McpServer,
    note_line: Callable[[str], None],
) -> Transport:
    if server.command is not None:
        parameters = mcp.StdioServerParameters(
            command=server.command,
            args=list(server.args),
            env=server.environment(),
            cwd=server.cwd,
            encoding_error_handler="replace",
        )
        errors = await stack.enter_async_context(_stderr_of(name, note_line))
        return stdio_client(parameters, errlog=errors)
    assert server.url is not None
    tls = await asyncio.to_thread(prepare_tls)
    client = httpx2.AsyncClient(
        headers={"accept-encoding": "identity", **server.request_headers()},
        event_hooks={"response": [_read_whole_characters]},
        verify=tls,
        timeout=httpx2.Timeout(server.start_seconds, read=None),
    )
    await stack.enter_async_context(client)
    return streamable_http_client(server.url, http_client=client)


class _SdkConnection(Connection):
    def __init__(self, server: McpServer, transport: Transport) -> None:
        super().__init__()
        self.remarks: list[str] = []
        self._server = server
        self._client = mcp.Client(
            self._forwarded(transport),
            message_handler=self._handle_message,
            client_info=types.Implementation(name="reattach", version="1"),
            cache=None,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connect, and listen for changes of the tools."""
        async with self._client as client, anyio.create_task_group() as tasks:
            info = client.server_info
            self.about = f"{info.name} {info.version}" if info else "no name"
            self.protocol = client.protocol_version or "unknown"
            if self.protocol in MODERN_PROTOCOL_VERSIONS:
                tasks.start_soon(self._subscribe)
            yield
            tasks.cancel_scope.cancel()

    async def tools(self) -> list[ListedTool]:
        found: list[ListedTool] = []
        cursor: str | None = None
        self.remarks.clear()
        while len(found) < MAX_MCP_TOOLS:
            page = await self._client.list_tools(cursor=cursor)
            found += [
                ListedTool(tool.name, tool.description, tool.input_schema, _is_idempotent(tool))
                for tool in page.tools
            ]
            cursor = page.next_cursor
            if cursor is None:
                break
        return found[:MAX_MCP_TOOLS]

    async def is_alive(self) -> bool:
        if self.has_ended:
            return False
        if self._server.command is not None or self.protocol in MODERN_PROTOCOL_VERSIONS:
            return True  # A process ends its connection; the modern protocol has no sessions.
        try:
            async with asyncio.timeout(MCP_PING_SECONDS):
                await self._client.session.send_ping()
        except (mcp.MCPError, httpx2.HTTPError, TimeoutError, anyio.ClosedResourceError):
            return False
        return True

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        try:
            result = await self._client.call_tool(name, dict(arguments))
        except mcp.MCPError as error:
            if error.code in _CLOSED:
                raise McpLostError(self._server.redact(error.message)) from error
            text = self._server.redact(error.message)[:MAX_ERROR_CHARS]
            raise ToolError(f"The MCP server refused the call: {text}") from error
        except (httpx2.HTTPError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            raise McpLostError(type(error).__name__) from error
        text = _text(result)
        if result.is_error:
            raise ToolError(text or "The tool failed without a message.")
        return text

    @asynccontextmanager
    async def _forwarded(self, transport: Transport) -> AsyncIterator[tuple[Any, Any]]:
        """The transport, whose messages are repaired and whose end is noted."""

        async def forward() -> None:
            try:
                async with sending:
                    async for item in reading:
                        await sending.send(_repair(item, self.remarks))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass
            finally:
                self.note_end()

        async with transport as (reading, writing):
            sending, repaired = anyio.create_memory_object_stream[SessionMessage | Exception]()
            async with sending, repaired, anyio.create_task_group() as tasks:
                tasks.start_soon(forward)
                yield repaired, writing
                tasks.cancel_scope.cancel()

    async def _handle_message(self, message: IncomingMessage) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self.note_change()

    async def _subscribe(self) -> None:
        """Listen for changed lists on the modern protocol, where a client must subscribe."""
        backoff = Backoff(MCP_RETRY_SECONDS, MCP_MAX_RETRY_SECONDS)
        with suppress(Exception):  # A server need not offer it.
            while True:
                with suppress(SubscriptionLost):
                    async with self._client.listen(tools_list_changed=True) as changes:
                        async for _ in changes:
                            self.note_change()
                        return
                await backoff.wait()
                self.note_change()  # Changes in between were not reported.


def _is_idempotent(tool: types.Tool) -> bool:
    """Whether the server declares that a second call of the tool changes nothing more."""
    hints = tool.annotations
    return hints is not None and bool(hints.read_only_hint or hints.idempotent_hint)


def _text(result: types.CallToolResult) -> str:
    """Return the result as text for a model, with a placeholder for everything that is not text."""
    texts = [_part(block) for block in result.content]
    if not texts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(texts)


def _part(block: types.ContentBlock) -> str:
    match block:
        case types.TextContent(text=text):
            return text
        case types.ImageContent(mime_type=kind) | types.AudioContent(mime_type=kind):
            return f"[{kind}, {len(block.data)} characters of base64, not shown]"
        case types.ResourceLink():
            return f"[{block.name}: {block.uri}]"
        case types.EmbeddedResource(resource=types.TextResourceContents(text=text)):
            return text
        case _:
            return "[a binary resource, not shown]"


@asynccontextmanager
async def _stderr_of(name: str, note_line: Callable[[str], None]) -> AsyncIterator[TextIO]:
    """Yield a file for the standard error of the process; ``note_line`` gets its lines in a thread.

    If the connection fails, the rest is read first, because the last line usually has the reason.
    """
    reading, writing = os.pipe()

    def read() -> None:
        with open(reading, encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
            for line in lines:
                note_line(line)

    thread = threading.Thread(target=read, name=f"stderr of {name}", daemon=True)
    thread.start()
    try:
        with open(writing, "w", encoding="utf-8") as errors:  # noqa: ASYNC230, PTH123
            yield errors
    except Exception:
        await asyncio.to_thread(thread.join, _STDERR_SECONDS)
        raise


def _describe(error: BaseException, last_line: str) -> str:
    """Describe the failure for people: the first cause, and the last line of the process."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case StartupError(detail=detail):
            return detail.rstrip(".")
        case FileNotFoundError() | PermissionError():
            return f"its command cannot be run ({type(error).__name__})"
        case httpx2.HTTPError():
            return f"no connection ({type(error).__name__})"
        case mcp.MCPError(code=types.CONNECTION_CLOSED) if last_line:
            return f"it ended, and said: {last_line}"
        case _:
            return (str(error) or type(error).__name__)[:MAX_ERROR_CHARS]


def _repair(item: Any, remarks: list[str]) -> Any:
    """Return a message in a form that the SDK accepts: text and lists of tools are made valid."""
    if isinstance(item, ValidationError):
        item = _read_again(item)
    message = getattr(item, "message", None)
    if isinstance(message, types.JSONRPCResponse) and "tools" in message.result:
        remarks += repair_listing(message.result)
    return item


def _read_again(error: ValidationError) -> SessionMessage | ValidationError:
    """Decode a message with half a surrogate pair, which the SDK refuses."""
    [line] = [one["input"] for one in error.errors()[:1]]
    try:
        text = storable_text(json.dumps(json.loads(line), ensure_ascii=False))
        return SessionMessage(types.jsonrpc_message_adapter.validate_json(text, by_name=False))
    except (ValueError, TypeError, RecursionError):
        return error


async def _read_whole_characters(response: httpx2.Response) -> None:
    is_plain = response.headers.get("content-encoding", "identity") == "identity"
    if is_plain and isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _WholeCharacters(response.stream)


class _WholeCharacters(httpx2.AsyncByteStream):
    """A body of JSON, line by line, with escaped halves of surrogate pairs replaced by U+FFFD."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces: list[bytes] = []
        async for chunk in self._stream:
            head, newline, rest = chunk.rpartition(b"\n")
            if newline:
                yield _ESCAPES.sub(_whole, b"".join([*pieces, head, newline]))
                pieces = []
            if rest:
                pieces.append(rest)
        if pieces:
            yield _ESCAPES.sub(_whole, b"".join(pieces))

    async def aclose(self) -> None:
        await self._stream.aclose()


_ESCAPES: Final = re.compile(
    rb"\\\\"  # a backslash that is escaped itself
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
_HALF_CHARS: Final = 6


def _whole(escape: re.Match[bytes]) -> bytes:
    """Return the escape, or a replacement of the same length for a lone half.

    The body keeps its length.
    """
    text = escape.group()
    return rb"\ufffd" if len(text) == _HALF_CHARS else text
