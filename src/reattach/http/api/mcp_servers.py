"""Routes for MCP servers. They come from the settings; requests cannot change them."""

from collections.abc import Mapping

from reattach.domain.errors import NotFoundError
from reattach.http.context import Context, ContextDep, TenantDep
from reattach.http.routes import routes
from reattach.http.schemas.fields import McpServerPath, ToolPath
from reattach.http.schemas.mcp_server import McpServerBody, mcp_server_body
from reattach.http.schemas.tool import ToolBody
from reattach.tools.servers import McpServer, server_id

router = routes("tools")


@router.get("/v1/mcp-servers/", operation_id="list_mcp_servers", summary="List the MCP servers")
async def list_mcp_servers(context: ContextDep) -> list[McpServerBody]:
    """List the servers by name; they are the same for all tenants."""
    return [mcp_server_body(name, server) for name, server in _servers(context).items()]


@router.get(
    "/v1/mcp-servers/{mcp_server_id}",
    operation_id="retrieve_mcp_server",
    summary="Retrieve an MCP server",
)
async def retrieve_mcp_server(mcp_server_id: McpServerPath, context: ContextDep) -> McpServerBody:
    name = _named(context, mcp_server_id)
    return mcp_server_body(name, _servers(context)[name])


@router.get(
    "/v1/mcp-servers/{mcp_server_id}/tools",
    operation_id="list_mcp_server_tools",
    summary="List the tools of an MCP server",
)
async def list_mcp_server_tools(
    mcp_server_id: McpServerPath, context: ContextDep, tenant: TenantDep
) -> list[ToolBody]:
    """List the tools as the server last reported them, even while it is unreachable."""
    name = _named(context, mcp_server_id)
    tools = context.toolbox.for_tenant(tenant).tools()
    return [ToolBody.of(tool) for tool in tools if tool.server == name]


@router.get(
    "/v1/mcp-servers/{mcp_server_id}/tools/{tool_id}",
    operation_id="retrieve_mcp_server_tool",
    summary="Retrieve a tool of an MCP server",
)
async def retrieve_mcp_server_tool(
    mcp_server_id: McpServerPath, tool_id: ToolPath, context: ContextDep, tenant: TenantDep
) -> ToolBody:
    name = _named(context, mcp_server_id)
    tool = context.toolbox.for_tenant(tenant).by_id(tool_id)
    if tool is None or tool.server != name:
        raise NotFoundError(f"Tool not found with id={tool_id}")
    return ToolBody.of(tool)


def _servers(context: Context) -> Mapping[str, McpServer]:
    return {} if context.mcp_servers is None else context.mcp_servers.servers()


def _named(context: Context, mcp_server_id: str) -> str:
    for name in _servers(context):
        if server_id(name) == mcp_server_id:
            return name
    raise NotFoundError(f"MCP server not found with id={mcp_server_id}")
