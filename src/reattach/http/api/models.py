"""Routes for the models that agents can use."""

from typing import Annotated, Any, Literal

from fastapi import Query

from reattach.domain.errors import InvalidArgumentError
from reattach.domain.limits.requests import MAX_QUERY_VALUES
from reattach.engine.catalog import Catalog
from reattach.http.context import ContextDep
from reattach.http.routes import routes
from reattach.http.schemas.fields import QueryText
from reattach.http.schemas.model import ModelBody, ProviderType

router = routes("models")


@router.get("/v1/models/", operation_id="list_models", summary="List the models of the server")
async def list_models(
    context: ContextDep,
    provider_category: Annotated[
        list[Literal["base", "byok"]] | None, Query(max_length=MAX_QUERY_VALUES)
    ] = None,
    provider_name: QueryText = None,
    provider_type: ProviderType | None = None,
) -> list[ModelBody]:
    """List the models, the default first, because clients use the first as their default."""
    if provider_category and "base" not in provider_category:
        return []
    default = context.settings.default_model
    offered = sorted(context.catalog.models(), key=lambda model: model.handle != default)
    if default is not None and (not offered or offered[0].handle != default):
        offered.insert(0, context.catalog.model(default))
    models = [ModelBody.offered(model) for model in offered]
    return [
        model
        for model in models
        if provider_name in {None, model.provider_name}
        and provider_type in {None, model.provider_type}
    ]


@router.get(
    "/v1/models/embedding",
    operation_id="list_embedding_models",
    summary="List the embedding models: none exist here",
)
async def list_embedding_models() -> list[dict[str, Any]]:
    return []


def check_model(catalog: Catalog, handle: str | None) -> None:
    """Check that the handle names a model of the server; None passes.

    Raises InvalidArgumentError for a malformed handle, NotFoundError for an unknown model.
    """
    if handle is None:
        return
    provider, _, name = handle.partition("/")
    if not provider or not name:
        raise InvalidArgumentError(
            f"Invalid model handle: {handle[:100]!r}. Expected format: 'provider/model-name'.",
            remedy="GET /v1/models/ lists the models.",
        )
    catalog.model(handle)
