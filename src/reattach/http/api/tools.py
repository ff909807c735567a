"""Routes for the tools that the server runs, and for the tools of an agent."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Path

from reattach.domain.errors import InvalidArgumentError, NotFoundError
from reattach.domain.ids import AgentId, TenantId
from reattach.domain.limits import MAX_AGENT_TOOLS
from reattach.domain.limits.requests import MAX_NAME_CHARS
from reattach.http.api.agents import agent_state
from reattach.http.context import Context, ContextDep, TenantDep
from reattach.http.paging import ShortPage, page_of
from reattach.http.routes import routes
from reattach.http.schemas.agent import AgentState
from reattach.http.schemas.fields import AgentPath, QueryPart, QueryText, QueryTexts, ToolPath
from reattach.http.schemas.tool import ApprovalRule, ToolBody
from reattach.records.base import Agent
from reattach.tools.base import Tool
from reattach.tools.base import tool_id as id_of

router = routes("tools")

NamePath = Annotated[str, Path(max_length=MAX_NAME_CHARS, description="Name of the tool.")]


@router.get("/v1/tools/", operation_id="list_tools", summary="List the tools that the server runs")
async def list_tools(
    context: ContextDep,
    tenant: TenantDep,
    page: ShortPage,
    name: QueryText = None,
    names: QueryTexts = None,
    tool_ids: QueryTexts = None,
    search: QueryPart = None,
    tool_types: QueryTexts = None,
    exclude_tool_types: QueryTexts = None,
    return_only_letta_tools: bool = False,
) -> list[ToolBody]:
    """List the tools that the tenant may use, sorted by name."""
    tools = [
        tool
        for tool in context.toolbox.for_tenant(tenant).tools()
        if (name is None or tool.name == name)
        and (not names or tool.name in names)
        and (not tool_ids or tool.id in _split(tool_ids))
        and (search is None or search.lower() in tool.name.lower())
        and (not tool_types or tool.kind in _split(tool_types))
        and (not exclude_tool_types or tool.kind not in _split(exclude_tool_types))
        and not return_only_letta_tools
    ]
    return [ToolBody.of(tool) for tool in page_of(tools, page, lambda tool: tool.id, "Tool")]


@router.post(
    "/v1/tools/add-base-tools",
    operation_id="add_base_tools",
    summary="Add the base tools: none exist here",
)
async def add_base_tools() -> list[ToolBody]:
    return []


@router.get("/v1/tools/{tool_id}", operation_id="retrieve_tool", summary="Retrieve a tool")
async def retrieve_tool(tool_id: ToolPath, context: ContextDep, tenant: TenantDep) -> ToolBody:
    return ToolBody.of(_tool(context, tenant, tool_id))


@router.get(
    "/v1/agents/{agent_id}/tools", operation_id="list_agent_tools", summary="List an agent's tools"
)
async def list_agent_tools(
    agent_id: AgentPath, context: ContextDep, tenant: TenantDep, page: ShortPage
) -> list[ToolBody]:
    agent = await context.records.agents.get(tenant, agent_id)
    attached = context.toolbox.for_tenant(tenant).attached_tools(agent.tools)
    found = page_of(attached, page, lambda one: one.tool.id, "Tool")
    return [ToolBody.attached(one) for one in found]


@router.patch(
    "/v1/agents/{agent_id}/tools/attach/{tool_id}",
    operation_id="attach_tool",
    summary="Attach a tool to an agent",
)
async def attach_tool(
    agent_id: AgentPath, tool_id: ToolPath, context: ContextDep, tenant: TenantDep
) -> AgentState:
    tool = _tool(context, tenant, tool_id)

    def attach(agent: Agent) -> Agent:
        tools = {tool.name: None, **agent.tools}
        if len(tools) > MAX_AGENT_TOOLS:
            raise InvalidArgumentError(
                f"The agent has {MAX_AGENT_TOOLS} tools, which is the limit.",
                remedy="Detach one first.",
            )
        return agent.with_tools(tools)

    return await _change(context, tenant, agent_id, attach)


@router.patch(
    "/v1/agents/{agent_id}/tools/detach/{tool_id}",
    operation_id="detach_tool",
    summary="Detach a tool from an agent",
)
async def detach_tool(
    agent_id: AgentPath, tool_id: ToolPath, context: ContextDep, tenant: TenantDep
) -> AgentState:
    def detach(agent: Agent) -> Agent:
        left = {name: rule for name, rule in agent.tools.items() if id_of(name) != tool_id}
        # A tool that the server no longer has can be detached too.
        if len(left) == len(agent.tools):
            _tool(context, tenant, tool_id)
        return agent.with_tools(left)

    return await _change(context, tenant, agent_id, detach)


@router.patch(
    "/v1/agents/{agent_id}/tools/approval/{tool_name}",
    operation_id="modify_tool_approval",
    summary="Set whether an agent's calls of a tool require approval",
    description="Applies from the next turn on. The response shows the effective rule: an agent "
    "can require approvals, but cannot waive those that the server requires.",
)
async def modify_approval(
    agent_id: AgentPath,
    tool_name: NamePath,
    body: ApprovalRule,
    context: ContextDep,
    tenant: TenantDep,
) -> AgentState:
    def set_rule(agent: Agent) -> Agent:
        if tool_name not in agent.tools:
            raise NotFoundError(
                f"The agent has no tool '{tool_name[:100]}'.",
                remedy="Attach it first; GET /v1/tools/ lists the tools of the server.",
            )
        return agent.with_tools({**agent.tools, tool_name: body.requires_approval})

    return await _change(context, tenant, agent_id, set_rule)


def _tool(context: Context, tenant: TenantId, tool_id: str) -> Tool:
    tool = context.toolbox.for_tenant(tenant).by_id(tool_id)
    if tool is None:
        raise NotFoundError(f"Tool not found with id={tool_id}")
    return tool


async def _change(
    context: Context, tenant: TenantId, agent_id: AgentId, change: Callable[[Agent], Agent]
) -> AgentState:
    agent = await context.records.agents.update(tenant, agent_id, change)
    return await agent_state(context, tenant, agent)


def _split(values: list[str]) -> set[str]:
    """Return the values of a parameter that is repeated or separated by commas."""
    return {word.strip() for value in values for word in value.split(",")}
