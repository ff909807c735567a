"""The memory blocks of one agent."""

from typing import Annotated

from fastapi import APIRouter, Path

from reattach.errors import NotFoundError
from reattach.http.agents import agent_state
from reattach.http.body import JsonRoute
from reattach.http.context import ContextDep, TenantDep
from reattach.http.paging import ShortPage
from reattach.http.schemas.agent import AgentState
from reattach.http.schemas.block import BlockState, BlockUpdate
from reattach.http.schemas.fields import AgentPath, BlockPath
from reattach.ids import AgentId, BlockId
from reattach.limits import MAX_NAME_CHARS
from reattach.records.base import Block, Page

router = APIRouter(route_class=JsonRoute, tags=["agents"])

LabelPath = Annotated[str, Path(max_length=MAX_NAME_CHARS, description="The block's label.")]


@router.get(
    "/v1/agents/{agent_id}/core-memory/blocks",
    operation_id="list_core_memory_blocks",
    summary="List an agent's memory blocks",
)
async def list_blocks(
    agent_id: AgentPath, context: ContextDep, tenant: TenantDep, page: ShortPage
) -> list[BlockState]:
    agent = await context.records.agents.get(tenant, AgentId(agent_id))
    return [BlockState.of(block) for block in _stretch(agent.blocks, page)]


@router.get(
    "/v1/agents/{agent_id}/core-memory/blocks/{block_label}",
    operation_id="retrieve_core_memory_block",
    summary="Retrieve an agent's memory block",
)
async def retrieve_block(
    agent_id: AgentPath, block_label: LabelPath, context: ContextDep, tenant: TenantDep
) -> BlockState:
    agent = AgentId(agent_id)
    return BlockState.of(await context.records.blocks.get_by_label(tenant, agent, block_label))


@router.patch(
    "/v1/agents/{agent_id}/core-memory/blocks/{block_label}",
    operation_id="modify_core_memory_block",
    summary="Change an agent's memory block",
    description="It changes for all agents that have the block.",
)
async def modify_block(
    agent_id: AgentPath,
    block_label: LabelPath,
    body: BlockUpdate,
    context: ContextDep,
    tenant: TenantDep,
) -> BlockState:
    blocks = context.records.blocks
    block = await blocks.get_by_label(tenant, AgentId(agent_id), block_label)
    return BlockState.of(await blocks.update(tenant, block.id, body.changes(block)))


@router.patch(
    "/v1/agents/{agent_id}/core-memory/blocks/attach/{block_id}",
    operation_id="attach_core_memory_block",
    summary="Give a memory block to an agent",
)
async def attach_block(
    agent_id: AgentPath, block_id: BlockPath, context: ContextDep, tenant: TenantDep
) -> AgentState:
    await context.records.blocks.attach(tenant, AgentId(agent_id), BlockId(block_id))
    agent = await context.records.agents.get(tenant, AgentId(agent_id))
    return await agent_state(context, tenant, agent, None)


@router.patch(
    "/v1/agents/{agent_id}/core-memory/blocks/detach/{block_id}",
    operation_id="detach_core_memory_block",
    summary="Take a memory block from an agent",
)
async def detach_block(
    agent_id: AgentPath, block_id: BlockPath, context: ContextDep, tenant: TenantDep
) -> AgentState:
    await context.records.blocks.detach(tenant, AgentId(agent_id), BlockId(block_id))
    agent = await context.records.agents.get(tenant, AgentId(agent_id))
    return await agent_state(context, tenant, agent, None)


def _stretch(blocks: tuple[Block, ...], page: Page) -> list[Block]:
    """The page of an agent's blocks, which are in the order in which it got them."""
    ordered = list(blocks if page.ascending else reversed(blocks))
    places = {block.id: place for place, block in enumerate(ordered)}
    for cursor in (page.after, page.before):
        if cursor is not None and cursor not in places:
            raise NotFoundError(f"Block not found with id={cursor}")
    first = 0 if page.after is None else places[BlockId(page.after)] + 1
    end = len(ordered) if page.before is None else places[BlockId(page.before)]
    if page.before is not None and page.after is None:
        return ordered[max(0, end - page.limit) : end]
    return ordered[first:end][: page.limit]
