"""Routes that compact a conversation or recompile its system prompt."""

from typing import Annotated, Any

from fastapi import Query

from reattach.agent.thread_compaction import compact_thread
from reattach.agent.turns import system_prompt
from reattach.domain.ids import TenantId
from reattach.domain.prompt import system_message
from reattach.http.api.models import check_model
from reattach.http.context import Context, ContextDep, TenantDep
from reattach.http.parse_send import Addressed, check_agent_id, find_addressed, find_agent
from reattach.http.routes import routes
from reattach.http.schemas.compacting import CompactBody, Compacted, ThreadCompactBody
from reattach.http.schemas.fields import AgentPath, ThreadPath

router = routes()

DryRun = Annotated[bool, Query(description="Return the prompt without storing it.")]


@router.post(
    "/v1/conversations/{conversation_id}/compact",
    tags=["conversations"],
    operation_id="compact_conversation",
    summary="Replace the older messages in the context with a summary",
)
async def compact_conversation(
    conversation_id: ThreadPath,
    context: ContextDep,
    tenant: TenantDep,
    body: ThreadCompactBody | None = None,
) -> Compacted:
    addressed = await _addressed(context, tenant, conversation_id, body)
    asked = _compaction_settings(context, body)
    return await _compact(context, tenant, addressed, asked)


@router.post(
    "/v1/agents/{agent_id}/summarize",
    tags=["agents"],
    operation_id="summarize_messages",
    summary="Replace the older messages of the default conversation with a summary",
)
async def compact_agent(
    agent_id: AgentPath, context: ContextDep, tenant: TenantDep, body: CompactBody | None = None
) -> Compacted:
    asked = _compaction_settings(context, body)
    addressed = await find_agent(context.records, tenant, agent_id)
    return await _compact(context, tenant, addressed, asked)


@router.post(
    "/v1/conversations/{conversation_id}/recompile",
    tags=["conversations"],
    operation_id="recompile_conversation",
    summary="Recompile the system prompt of a conversation",
    description="Returns the current prompt and stores it as the first message. Turns always use "
    "the current prompt.",
)
async def recompile_conversation(
    conversation_id: ThreadPath,
    context: ContextDep,
    tenant: TenantDep,
    body: ThreadCompactBody | None = None,
    dry_run: DryRun = False,
) -> str:
    addressed = await _addressed(context, tenant, conversation_id, body)
    return await _recompile(context, tenant, addressed, dry_run=dry_run)


@router.post(
    "/v1/agents/{agent_id}/recompile",
    tags=["agents"],
    operation_id="recompile_agent",
    summary="Recompile the system prompt of the default conversation",
    description="Returns the current prompt and stores it as the first message. Turns always use "
    "the current prompt.",
)
async def recompile_agent(
    agent_id: AgentPath,
    context: ContextDep,
    tenant: TenantDep,
    dry_run: DryRun = False,
    update_timestamp: Annotated[bool, Query(description="Has no effect.")] = False,  # noqa: ARG001
) -> str:
    addressed = await find_agent(context.records, tenant, agent_id)
    return await _recompile(context, tenant, addressed, dry_run=dry_run)


async def _addressed(
    context: Context, tenant: TenantId, path_id: str, body: ThreadCompactBody | None
) -> Addressed:
    agent_id = None if body is None else body.agent_id
    if agent_id:
        check_agent_id(agent_id)
    return await find_addressed(context.records, tenant, path_id, agent_id)


def _compaction_settings(context: Context, body: CompactBody | None) -> dict[str, Any]:
    """Return the settings in the request. Raises NotFoundError for an unknown model."""
    asked: dict[str, Any] = {}
    if body is not None and body.compaction_settings is not None:
        asked = body.compaction_settings.kept()
    check_model(context.catalog, asked.get("model"))
    return asked


async def _compact(
    context: Context, tenant: TenantId, addressed: Addressed, asked: dict[str, Any]
) -> Compacted:
    summary, stats = await compact_thread(
        context.records,
        context.runs.engine_factory,
        context.clock,
        tenant=tenant,
        agent=addressed.agent,
        conversation=addressed.conversation,
        asked=asked,
    )
    return Compacted(
        summary=summary,
        num_messages_before=stats.messages_count_before,
        num_messages_after=stats.messages_count_after,
    )


async def _recompile(
    context: Context, tenant: TenantId, addressed: Addressed, *, dry_run: bool
) -> str:
    text = system_prompt(addressed.agent, addressed.conversation)
    if not dry_run:
        first = system_message(text, context.clock.now())
        await context.records.messages.recompile(tenant, addressed.thread, first)
    return text
