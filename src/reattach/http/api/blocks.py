"""Routes for memory blocks; ``agent_blocks`` has the blocks of one agent."""

from reattach.domain.errors import NotImplementedHereError
from reattach.http.context import ContextDep, TenantDep
from reattach.http.paging import OldestPage
from reattach.http.readable import readable_items
from reattach.http.routes import routes
from reattach.http.schemas.block import BlockCreate, BlockState, BlockUpdate
from reattach.http.schemas.fields import BlockPath, NobodyHas, QueryPart, QueryText, QueryTexts

router = routes("blocks")


@router.get("/v1/blocks/", operation_id="list_blocks", summary="List memory blocks")
async def list_blocks(
    context: ContextDep,
    tenant: TenantDep,
    page: OldestPage,
    label: QueryText = None,
    label_search: QueryPart = None,
    value_search: QueryPart = None,
    description_search: QueryPart = None,
    tags: QueryTexts = None,
    templates_only: bool = False,
    name: NobodyHas = None,
    identity_id: NobodyHas = None,
    identifier_keys: QueryTexts = None,
) -> list[BlockState]:
    if tags:
        raise NotImplementedHereError(
            "Reattach cannot list blocks by tags.", remedy="Use 'label' or 'label_search'."
        )
    if templates_only or name or identity_id or identifier_keys:
        return []
    blocks = await context.records.blocks.list(
        tenant,
        page,
        label=label,
        label_search=label_search,
        value_search=value_search,
        description_search=description_search,
    )
    return await readable_items("blocks", blocks, BlockState.of)


@router.post("/v1/blocks/", operation_id="create_block", summary="Create a memory block")
async def create_block(body: BlockCreate, context: ContextDep, tenant: TenantDep) -> BlockState:
    block = body.block(context.clock.now())
    return BlockState.of(await context.records.blocks.create(tenant, block))


@router.get(
    "/v1/blocks/{block_id}", operation_id="retrieve_block", summary="Retrieve a memory block"
)
async def retrieve_block(block_id: BlockPath, context: ContextDep, tenant: TenantDep) -> BlockState:
    return BlockState.of(await context.records.blocks.get(tenant, block_id))


@router.patch("/v1/blocks/{block_id}", operation_id="modify_block", summary="Change a memory block")
async def modify_block(
    block_id: BlockPath, body: BlockUpdate, context: ContextDep, tenant: TenantDep
) -> BlockState:
    blocks = context.records.blocks
    return BlockState.of(await blocks.update(tenant, block_id, body.apply))


@router.delete(
    "/v1/blocks/{block_id}",
    operation_id="delete_block",
    summary="Delete a memory block",
    description="Removes the block from all agents that have it.",
)
async def delete_block(block_id: BlockPath, context: ContextDep, tenant: TenantDep) -> None:
    await context.records.blocks.delete(tenant, block_id)
