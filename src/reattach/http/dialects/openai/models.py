"""The list of models: the agents of the tenant."""

from typing import Annotated, Literal

from fastapi import Path

from reattach.http.context import ContextDep, TenantDep
from reattach.http.dialects.openai.agents import agent_of
from reattach.http.dialects.openai.errors import OpenAIErrorBody
from reattach.http.routes import routes
from reattach.http.schemas.fields import Answer
from reattach.records.base import Agent, Page

router = routes("openai", error=OpenAIErrorBody)

MAX_MODELS = 1000
"""The most agents that are listed; clients of this API do not turn pages."""


class ModelState(Answer):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "reattach"
    name: str

    @classmethod
    def of(cls, agent: Agent) -> "ModelState":
        return cls(id=agent.id, created=int(agent.created_at.timestamp()), name=agent.name)


class ModelList(Answer):
    object: Literal["list"] = "list"
    data: list[ModelState]


@router.get(
    "/openai/v1/models",
    operation_id="openai_list_models",
    summary="List the agents as models",
    description="The id of a model is that of its agent. Requests may also name an agent by its "
    "name, if no other has it.",
)
async def list_models(context: ContextDep, tenant: TenantDep) -> ModelList:
    page = Page(limit=MAX_MODELS, ascending=False)
    agents = await context.records.agents.list(tenant, page)
    return ModelList(data=[ModelState.of(agent) for agent in agents])


@router.get(
    "/openai/v1/models/{model}",
    operation_id="openai_retrieve_model",
    summary="Retrieve an agent as a model",
)
async def retrieve_model(
    model: Annotated[str, Path(max_length=512)], context: ContextDep, tenant: TenantDep
) -> ModelState:
    return ModelState.of(await agent_of(context.records, tenant, model))
