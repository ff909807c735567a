"""Schemas of MCP servers, without the details that only their operator should see."""

from typing import Literal

from reattach.http.schemas.fields import Answer
from reattach.tools.servers import McpServer, server_id


class _Server(Answer):
    id: str
    server_name: str


class StdioServerBody(_Server):
    """A program that the server runs."""

    mcp_server_type: Literal["stdio"] = "stdio"
    command: str
    args: list[str]
    env: dict[str, str] | None = None


class HttpServerBody(_Server):
    """A server with a URL, of which only the scheme and host are shown."""

    mcp_server_type: Literal["streamable_http"] = "streamable_http"
    server_url: str
    auth_header: str | None = None
    auth_token: str | None = None
    custom_headers: dict[str, str] | None = None


McpServerBody = StdioServerBody | HttpServerBody


def mcp_server_body(name: str, server: McpServer) -> McpServerBody:
    if server.url is not None:
        return HttpServerBody(id=server_id(name), server_name=name, server_url=server.place)
    return StdioServerBody(id=server_id(name), server_name=name, command=server.place, args=[])
