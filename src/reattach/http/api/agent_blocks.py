"""Routes for the memory blocks of one agent."""

from typing import Annotated

from fastapi import Path

from reattach.domain.limits.requests import MAX_NAME_CHARS
from reattach.http.api.agents import agent_state
from reattach.http.context import ContextDep, TenantDep
from reattach.http.paging import ShortPage, page_of
from reattach.http.readable import readable_items
from reattach.http.routes import routes
from reattach.http.schemas.agent import AgentState
from reattach.http.schemas.block import BlockState, BlockUpdate
from reattach.http.schemas.fields import AgentPath, BlockPath

router = routes("agents")

LabelPath = Annotated[str, Path(max_length=MAX_NAME_CHARS, description="Label of the block.")]


@router.get(
    "/v1/agents/{agent_id}/core-memory/blocks",
    operation_id="list_core_memory_blocks",
    summary="List an agent's memory blocks",
)
async def list_blocks(
    agent_id: AgentPath, context: ContextDep, tenant: TenantDep, page: ShortPage
) -> list[BlockState]:
    agent = await context.records.agents.get(tenant, agent_id)
    blocks = page_of(agent.blocks, page, lambda block: block.id, "Block")
    return await readable_items("blocks", blocks, BlockState.of)


@router.get(
    "/v1/agents/{agent_id}/core-memory/blocks/{block_label}",
    operation_id="retrieve_core_memory_block",
    summary="Retrieve an agent's memory block",
)
async def retrieve_block(
    agent_id: AgentPath, block_label: LabelPath, context: ContextDep, tenant: TenantDep
) -> BlockState:
    return BlockState.of(await context.records.blocks.get_by_label(tenant, agent_id, block_label))


@router.patch(
    "/v1/agents/{agent_id}/core-memory/blocks/{block_label}",
    operation_id="modify_core_memory_block",
    summary="Change an agent's memory block",
    description="The change applies to all agents that have the block.",
)
async def modify_block(
    agent_id: AgentPath,
    block_label: LabelPath,
    body: BlockUpdate,
    context: ContextDep,
    tenant: TenantDep,
) -> BlockState:
    blocks = context.records.blocks
    block = await blocks.get_by_label(tenant, agent_id, block_label)
    return BlockState.of(await blocks.update(tenant, block.id, body.apply))


@router.patch(
    "/v1/agents/{agent_id}/core-memory/blocks/attach/{block_id}",
    operation_id="attach_core_memory_block",
    summary="Attach a memory block to an agent",
)
async def attach_block(
    agent_id: AgentPath, block_id: BlockPath, context: ContextDep, tenant: TenantDep
) -> AgentState:
    await context.records.blocks.attach(tenant, agent_id, block_id)
    agent = await context.records.agents.get(tenant, agent_id)
    return await agent_state(context, tenant, agent)


@router.patch(
    "/v1/agents/{agent_id}/core-memory/blocks/detach/{block_id}",
    operation_id="detach_core_memory_block",
    summary="Detach a memory block from an agent",
)
async def detach_block(
    agent_id: AgentPath, block_id: BlockPath, context: ContextDep, tenant: TenantDep
) -> AgentState:
    await context.records.blocks.detach(tenant, agent_id, block_id)
    agent = await context.records.agents.get(tenant, agent_id)
    return await agent_state(context, tenant, agent)
