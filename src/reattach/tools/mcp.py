"""The MCP protocol: connecting to one server, listing its tools and calling them.

The only module that imports the SDK, which an extra installs.
"""

import asyncio
import json
import os
import re
import ssl
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib import import_module
from types import TracebackType
from typing import Any, Final, TextIO

import anyio
import httpx2
import mcp
from mcp import types
from mcp.client import IncomingMessage, Transport
from mcp.client.session import MessageHandlerFnT
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import SubscriptionLost
from mcp.shared.message import SessionMessage
from mcp.types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from reattach.domain.errors import McpLostError, McpUnreachableError, StartupError, ToolError
from reattach.domain.limits import (
    MAX_ERROR_CHARS,
    MAX_MCP_TOOLS,
    MCP_MAX_RETRY_SECONDS,
    MCP_PING_SECONDS,
    MCP_RETRY_SECONDS,
)
from reattach.domain.text import storable_text
from reattach.tools.connections import Connection, ListedTool
from reattach.tools.listing import repair_listing
from reattach.tools.servers import McpServer

import_module(
    "jsonschema"
)  # Imported now, because the SDK's first call would take half a second for it.

_CLOSED: Final = {types.CONNECTION_CLOSED, types.REQUEST_TIMEOUT}
_STDERR_LINES: Final = 5
_STDERR_SECONDS: Final = 1.0
"""The time to read the rest of an ended process's output; a child of it may keep the pipe open."""


@asynccontextmanager
async def connect(
    name: str,
    server: McpServer,
    *,
    on_change: Callable[[], None],
    on_end: Callable[[], None],
    on_stderr: Callable[[str], None],
) -> AsyncIterator[Connection]:
    """A connection to the server; whoever waits for it to be made bounds the time.

    ``on_change`` is called when its tools change, ``on_end`` when the connection ends, and
    ``on_stderr``, in another thread, with each line of the process's standard error, redacted.
    Leaving stops the process and its children within a few seconds.

    Raises:
        McpUnreachableError: There is no connection; the text holds no secrets.
    """
    stderr_lines: deque[str] = deque(maxlen=_STDERR_LINES)
    try:
        async with AsyncExitStack() as stack:
            transport = await _transport(stack, name, server, stderr_lines, on_stderr)
            remarks: list[str] = []
            client = mcp.Client(
                _WatchedTransport(transport, on_end, remarks),
                message_handler=_changes(on_change),
                client_info=types.Implementation(name="reattach", version="1"),
                cache=None,
            )
            await stack.enter_async_context(client)
            connection = _SdkConnection(client, server, remarks)
            watching = asyncio.create_task(_watch(client, on_change), name=f"changes of {name}")
            stack.push_async_callback(_stop, watching)
            yield connection
    except McpUnreachableError:
        raise
    except StartupError as error:
        raise McpUnreachableError(error.detail.rstrip(".")) from error
    except (Exception, BaseExceptionGroup) as error:
        raise McpUnreachableError(server.redact(_describe(error, stderr_lines))) from error


async def _transport(
    stack: AsyncExitStack,
    name: str,
    server: McpServer,
    stderr_lines: deque[str],
    on_stderr: Callable[[str], None],
) -> Transport:
    if server.command is not None:
        parameters = mcp.StdioServerParameters(
            command=server.command,
            args=list(server.args),
            env=server.environment(),
            cwd=server.cwd,
            encoding_error_handler="replace",
        )
        errors = await stack.enter_async_context(_stderr_of(name, server, stderr_lines, on_stderr))
        return stdio_client(parameters, errlog=errors)
    assert server.url is not None
    tls = await asyncio.to_thread(_prepare_tls)
    client = httpx2.AsyncClient(
        headers={"accept-encoding": "identity", **server.request_headers()},
        event_hooks={"response": [_read_whole_characters]},
        verify=tls,
        timeout=httpx2.Timeout(server.start_seconds, read=None),
    )
    await stack.enter_async_context(client)
    return streamable_http_client(server.url, http_client=client)


def _prepare_tls() -> ssl.SSLContext:
    """Read the certificates. Call it outside of the event loop."""
    context = ssl.create_default_context()
    httpx2.AsyncHTTPTransport(verify=context)  # The first one imports modules.
    return context


class _SdkConnection(Connection):
    def __init__(self, client: mcp.Client, server: McpServer, remarks: list[str]) -> None:
        self.remarks = self._remarks = remarks
        self._client = client
        self._server = server
        info = client.server_info
        self.about = f"{info.name} {info.version}" if info else "no name"
        self.protocol = client.protocol_version or "unknown"

    async def tools(self) -> list[ListedTool]:
        found: list[ListedTool] = []
        cursor: str | None = None
        self._remarks.clear()
        while len(found) < MAX_MCP_TOOLS:
            page = await self._client.list_tools(cursor=cursor)
            found += [_listed_tool(tool) for tool in page.tools]
            cursor = page.next_cursor
            if cursor is None:
                break
        return found[:MAX_MCP_TOOLS]

    async def is_alive(self) -> bool:
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


def _listed_tool(tool: types.Tool) -> ListedTool:
    return ListedTool(tool.name, tool.description, tool.input_schema)


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


def _changes(on_change: Callable[[], None]) -> MessageHandlerFnT:
    async def handle(message: IncomingMessage) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            on_change()

    return handle


async def _watch(client: mcp.Client, on_change: Callable[[], None]) -> None:
    """Listen for changed lists on the modern protocol, where a client must subscribe."""
    if client.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        return
    wait_seconds = MCP_RETRY_SECONDS
    with suppress(mcp.MCPError, RuntimeError, TimeoutError, httpx2.HTTPError):
        while True:
            with suppress(SubscriptionLost):
                async with client.listen(tools_list_changed=True) as changes:
                    async for _ in changes:
                        on_change()
                    return
            await asyncio.sleep(wait_seconds)
            wait_seconds = min(wait_seconds * 2, MCP_MAX_RETRY_SECONDS)
            on_change()  # Changes in between were not reported.


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


@asynccontextmanager
async def _stderr_of(
    name: str, server: McpServer, stderr_lines: deque[str], on_stderr: Callable[[str], None]
) -> AsyncIterator[TextIO]:
    """Yield a file for the standard error of the process, and keep its last lines.

    If the connection fails, the rest is read first, because the last line usually has the reason.
    """
    reading, writing = os.pipe()

    def read() -> None:
        with open(reading, encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
            for line in lines:
                text = server.redact(line.rstrip()[:MAX_ERROR_CHARS])
                stderr_lines.append(text)
                on_stderr(text)

    thread = threading.Thread(target=read, name=f"stderr of {name}", daemon=True)
    thread.start()
    try:
        with open(writing, "w", encoding="utf-8") as errors:  # noqa: ASYNC230, PTH123
            yield errors
    except Exception:
        await asyncio.to_thread(thread.join, _STDERR_SECONDS)
        raise


def _describe(error: BaseException, stderr_lines: deque[str]) -> str:
    """Describe the failure for people: the first cause, and the last line of the process."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case FileNotFoundError() | PermissionError():
            return f"its command cannot be run ({type(error).__name__})"
        case httpx2.HTTPStatusError():
            return f"it answered {error.response.status_code}"
        case httpx2.HTTPError():
            return f"no connection ({type(error).__name__})"
        case mcp.MCPError(code=types.CONNECTION_CLOSED) if stderr_lines:
            return f"it ended, and said: {stderr_lines[-1]}"
        case _:
            return (str(error) or type(error).__name__)[:MAX_ERROR_CHARS]


class _WatchedTransport:
    """A transport that reports its end and repairs lists of tools."""

    def __init__(
        self, transport: Transport, on_end: Callable[[], None], remarks: list[str]
    ) -> None:
        self._transport = transport
        self._on_end = on_end
        self._remarks = remarks

    async def __aenter__(self) -> Any:
        reading, writing = await self._transport.__aenter__()
        return _WatchedStream(reading, self._on_end, self._remarks), writing

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return await self._transport.__aexit__(kind, error, trace)


class _WatchedStream:
    """The stream of the server's messages, which reports its end."""

    def __init__(self, stream: Any, on_end: Callable[[], None], remarks: list[str]) -> None:
        self._stream = stream
        self._on_end = on_end
        self._remarks = remarks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __aiter__(self) -> "_WatchedStream":
        return self

    async def __anext__(self) -> Any:
        try:
            return _repair(await self._stream.__anext__(), self._remarks)
        except BaseException:
            self._on_end()
            raise

    async def receive(self) -> Any:
        return _repair(await self._stream.receive(), self._remarks)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def __aenter__(self) -> "_WatchedStream":
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        closed: bool | None = await self._stream.__aexit__(kind, error, trace)
        return closed


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
