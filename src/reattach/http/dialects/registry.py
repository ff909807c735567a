"""All dialects of the server: their routes, and the form of their errors."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from starlette.routing import BaseRoute

from reattach.http.dialects.ag_ui import copilotkit
from reattach.http.dialects.ag_ui import routes as ag_ui
from reattach.http.dialects.ai_sdk import routes as ai_sdk_routes
from reattach.http.dialects.ai_sdk.errors import error_body as ai_sdk_error
from reattach.http.dialects.durable_streams import routes as durable_streams
from reattach.http.dialects.errors import ErrorBody
from reattach.http.dialects.openai import chat as openai_chat
from reattach.http.dialects.openai import conversations as openai_conversations
from reattach.http.dialects.openai import models as openai_models
from reattach.http.dialects.openai import responses as openai_responses
from reattach.http.dialects.openai.errors import error_body as openai_error
from reattach.http.routes import Router
from reattach.settings import DialectName


@dataclass(frozen=True, slots=True)
class DialectApi:
    """The part of the API that speaks one dialect. A setting can switch it off."""

    name: DialectName
    tag: str
    description: str
    routers: tuple[Router, ...]
    error_bodies: Mapping[str, ErrorBody]
    """The form of errors by the prefix of their paths."""


DIALECTS: Final = (
    DialectApi(
        name="openai",
        tag="openai",
        description="The API of OpenAI, for its clients: agents are the models.",
        routers=(
            openai_models.router,
            openai_responses.router,
            openai_conversations.router,
            openai_chat.router,
        ),
        error_bodies={"/openai/": openai_error},
    ),
    DialectApi(
        name="ai-sdk",
        tag="ai-sdk",
        description="Chats of the AI SDK: `useChat` and its transports.",
        routers=(ai_sdk_routes.router,),
        error_bodies={"/ai-sdk/": ai_sdk_error},
    ),
    DialectApi(
        name="ag-ui",
        tag="ag-ui",
        description="AG-UI, and the runtime of CopilotKit, for their clients.",
        routers=(ag_ui.router, copilotkit.router),
        error_bodies={},
    ),
    DialectApi(
        name="durable-streams",
        tag="durable-streams",
        description="Logs of runs for clients of Durable Streams, which read them.",
        routers=(durable_streams.router,),
        error_bodies={},
    ),
)


def routes_of(names: Collection[DialectName]) -> list[BaseRoute]:
    """Return the routes of these dialects."""
    return [
        route
        for dialect in DIALECTS
        if dialect.name in names
        for router in dialect.routers
        for route in router.routes
    ]


def error_bodies_of(names: Collection[DialectName]) -> dict[str, ErrorBody]:
    """Return the forms of errors of these dialects, by the prefix of a path."""
    return {
        prefix: body
        for dialect in DIALECTS
        if dialect.name in names
        for prefix, body in dialect.error_bodies.items()
    }


def tags_of(names: Collection[DialectName]) -> list[dict[str, str]]:
    """Return the groups of these dialects in the documentation of the API."""
    return [
        {"name": one.tag, "description": one.description} for one in DIALECTS if one.name in names
    ]
