"""Routes for agents."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import Query

from reattach.agent.turns import system_prompt
from reattach.domain.errors import NotFoundError, NotImplementedHereError
from reattach.domain.events import StopReason
from reattach.domain.ids import MessageId, TenantId
from reattach.domain.limits.requests import MAX_PAGE_ITEMS, MAX_QUERY_CHARS, MAX_QUERY_VALUES
from reattach.domain.prompt import system_message
from reattach.http.api.models import check_model
from reattach.http.context import AccessDep, Context, ContextDep, TenantDep
from reattach.http.paging import ShortPage
from reattach.http.readable import readable_items
from reattach.http.routes import routes
from reattach.http.schemas.agent import (
    NOT_OFFERED_MEMBERS,
    AgentCreate,
    AgentState,
    AgentUpdate,
    AgentView,
    Include,
    ResetBody,
)
from reattach.http.schemas.fields import (
    AgentPath,
    Answer,
    NobodyHas,
    QueryPart,
    QueryText,
    QueryTexts,
    StopReasonName,
)
from reattach.records.base import Agent, Page, Thread
from reattach.tools.base import RETIRED_TOOLS, Tool, Toolbox
from reattach.wire.stored import approval_request

router = routes("agents")

Includes = Annotated[
    list[Include] | None,
    Query(
        max_length=MAX_QUERY_VALUES,
        description="Relations to include; the others are left empty. Default: all.",
    ),
]


class Deleted(Answer):
    message: str


@router.get("/v1/agents/", operation_id="list_agents", summary="List agents")
async def list_agents(
    context: ContextDep,
    tenant: TenantDep,
    page: ShortPage,
    name: QueryText = None,
    tags: QueryTexts = None,
    match_all_tags: bool = False,
    query_text: QueryPart = None,
    order_by: Literal["created_at", "updated_at", "last_run_completion"] = "created_at",
    sort_by: Annotated[str | None, Query(max_length=MAX_QUERY_CHARS, deprecated=True)] = None,
    last_stop_reason: StopReasonName | None = None,
    include: Includes = None,
    template_id: NobodyHas = None,
    base_template_id: NobodyHas = None,
    identity_id: NobodyHas = None,
    identifier_keys: QueryTexts = None,
) -> list[AgentState]:
    if template_id or base_template_id or identity_id or identifier_keys:
        return []
    agents = await context.records.agents.list(
        tenant,
        page,
        name=name,
        tags=tags or (),
        match_all_tags=match_all_tags,
        query_text=query_text,
        order_by=_order(sort_by) or order_by,
        last_stop_reason=None if last_stop_reason is None else StopReason(last_stop_reason),
    )
    view = view_of(context, tenant, include)
    return await readable_items("agents", agents, lambda agent: AgentState.of(agent, view))


@router.post("/v1/agents/", operation_id="create_agent", summary="Create an agent")
async def create_agent(body: AgentCreate, context: ContextDep, tenant: TenantDep) -> AgentState:
    _refuse_unsupported(body)
    now = context.clock.now()
    agent = _with_tools(body.agent(now), body, context.toolbox.for_tenant(tenant))
    check_model(context.catalog, agent.model)
    block_ids = body.block_ids or ()
    present = [await context.records.blocks.get(tenant, block_id) for block_id in block_ids]
    whole = replace(agent, blocks=(*agent.blocks, *present))
    first = system_message(system_prompt(whole, None), now)
    agent = await context.records.agents.create(
        tenant, agent, block_ids=block_ids, system_message=first
    )
    return AgentState.of(agent, view_of(context, tenant, None), [first.id])


@router.get("/v1/agents/{agent_id}", operation_id="retrieve_agent", summary="Retrieve an agent")
async def retrieve_agent(
    agent_id: AgentPath, context: ContextDep, tenant: TenantDep, include: Includes = None
) -> AgentState:
    agent, message_ids = await context.records.agents.with_message_ids(tenant, agent_id)
    return await _state(context, tenant, agent, message_ids, include)


@router.patch("/v1/agents/{agent_id}", operation_id="modify_agent", summary="Change an agent")
async def modify_agent(
    agent_id: AgentPath, body: AgentUpdate, context: ContextDep, tenant: TenantDep
) -> AgentState:
    _refuse_unsupported(body)
    toolbox = context.toolbox.for_tenant(tenant)

    def change(agent: Agent) -> Agent:
        changed = _with_tools(body.apply(agent), body, toolbox)
        if changed.model is not agent.model:
            check_model(context.catalog, changed.model)
        return changed

    agent = await context.records.agents.update(tenant, agent_id, change, block_ids=body.block_ids)
    return await agent_state(context, tenant, agent)


@router.delete(
    "/v1/agents/{agent_id}",
    operation_id="delete_agent",
    summary="Delete an agent",
    description="Also deletes its conversations, messages and runs. Active runs are cancelled "
    "first.",
)
async def delete_agent(agent_id: AgentPath, context: ContextDep, access: AccessDep) -> Deleted:
    tenant = access.tenant
    await context.records.agents.get(tenant, agent_id)
    page = Page(limit=MAX_PAGE_ITEMS, ascending=False)
    active = await context.records.runs.list(tenant, page, agent_ids=[agent_id], active_only=True)
    if active:
        await context.runs.cancel(active, by=access.actor)
    run_ids = await context.records.agents.delete(tenant, agent_id, by=access.actor)
    await context.runs.delete_logs(run_ids)
    await context.records.runs.mark_log_deleted(run_ids, context.clock.now())
    return Deleted(message=f"Agent id={agent_id} successfully deleted")


@router.patch(
    "/v1/agents/{agent_id}/reset-messages",
    operation_id="reset_messages",
    summary="Clear an agent's default conversation",
    description="Leaves a new system message in it. Other conversations do not change.",
)
async def reset_messages(
    agent_id: AgentPath,
    context: ContextDep,
    tenant: TenantDep,
    body: ResetBody | None = None,  # noqa: ARG001
) -> AgentState:
    agent = await context.records.agents.get(tenant, agent_id)
    first = system_message(system_prompt(agent, None), context.clock.now())
    await context.records.messages.reset(tenant, agent.id, first)
    return AgentState.of(agent, view_of(context, tenant, None), [first.id])


def view_of(context: Context, tenant: TenantId, include: Collection[Include] | None) -> AgentView:
    models = {model.handle: model for model in context.catalog.models()}
    default = context.settings.default_model or next(iter(models), None)
    return AgentView(default, models, context.toolbox.for_tenant(tenant), include)


async def agent_state(context: Context, tenant: TenantId, agent: Agent) -> AgentState:
    """Return the agent with the ids of the messages in its default conversation."""
    thread = Thread(agent.id, None)
    message_ids = await context.records.conversations.message_ids(tenant, thread)
    return await _state(context, tenant, agent, message_ids, None)


async def _state(
    context: Context,
    tenant: TenantId,
    agent: Agent,
    message_ids: Sequence[MessageId],
    include: Collection[Include] | None,
) -> AgentState:
    state = AgentState.of(agent, view_of(context, tenant, include), message_ids)
    if "agent.pending_approval" in (include or ()):
        pending = await context.records.messages.pending(tenant, Thread(agent.id, None))
        state.pending_approval = None if pending is None else approval_request(pending.request)
    return state


def _order(
    sort_by: str | None,
) -> Literal["created_at", "updated_at", "last_run_completion"] | None:
    match sort_by:
        case "created_at" | "updated_at" | "last_run_completion":
            return sort_by
        case _:
            return None


def _with_tools(agent: Agent, body: AgentCreate | AgentUpdate, toolbox: Toolbox) -> Agent:
    """Return the agent with the tools that the body names, by name or id, if it names any.

    Keeps the agent's approval rules. Ignores names of tools that the retired server had and this
    one lacks, because clients name them for every agent. Raises NotFoundError for any other unknown
    tool.
    """
    if body.tools is None and body.tool_ids is None:
        return agent
    found: list[Tool] = []
    for name in body.tools or ():
        if (tool := toolbox.by_name(name)) is not None:
            found.append(tool)
        elif name not in RETIRED_TOOLS:
            raise NotFoundError(
                f"Tool not found with name={name[:100]}.",
                remedy="GET /v1/tools/ lists the tools of the server.",
            )
    for tool_id in body.tool_ids or ():
        if (tool := toolbox.by_id(tool_id)) is None:
            raise NotFoundError(f"Tool not found with id={tool_id}")
        found.append(tool)
    return agent.with_tools({tool.name: agent.tools.get(tool.name) for tool in found})


def _refuse_unsupported(body: AgentCreate | AgentUpdate) -> None:
    for name, instead in NOT_OFFERED_MEMBERS.items():
        if getattr(body, name, None):
            raise NotImplementedHereError(f"Reattach does not support '{name}'.", remedy=instead)
