"""Agents as the models of OpenAI's API."""

from reattach.domain.errors import InvalidArgumentError, NotFoundError
from reattach.domain.ids import AgentId, TenantId, is_agent_id
from reattach.records.base import Agent, Page
from reattach.records.records import Records

_TWO = Page(limit=2, ascending=True)


async def agent_of(records: Records, tenant: TenantId, model: str) -> Agent:
    """Return the agent that a request names as its model, by its id or its name.

    Raises:
        NotFoundError: There is none.
        InvalidArgumentError: Several agents have this name.
    """
    if is_agent_id(model):
        return await records.agents.get(tenant, AgentId(model))
    named = await records.agents.list(tenant, _TWO, name=model)
    if not named:
        raise NotFoundError(
            f"The model '{model[:100]}' does not exist.",
            remedy="Send the id or the name of an agent; GET /openai/v1/models lists them.",
        )
    if len(named) > 1:
        raise InvalidArgumentError(
            f"Several agents have the name '{model[:100]}'.", remedy="Send the id of one of them."
        )
    return named[0]
