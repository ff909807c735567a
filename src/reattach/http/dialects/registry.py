"""All dialects of the server: their routes, and the form of their errors."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from starlette.routing import BaseRoute

from reattach.http.dialects.ai_sdk.errors import error_body as ai_sdk_error
from reattach.http.dialects.durable_streams import routes as durable_streams
from reattach.http.dialects.errors import ErrorBody
from reattach.http.dialects.openai.errors import error_body as openai_error
from reattach.http.routing.late import LateRoutes
from reattach.settings import DialectName


@dataclass(frozen=True, slots=True)
class DialectApi:
    """The part of the API that speaks one dialect. A setting can switch it off."""

    name: DialectName
    tag: str
    description: str
    routes: Sequence[BaseRoute] = ()
    late: LateRoutes | None = None
    error_bodies: Mapping[str, ErrorBody] = field(default_factory=dict)
    """The form of errors by the prefix of their paths."""


DIALECTS: Final = (
    DialectApi(
        name="openai",
        tag="openai",
        description="The API of OpenAI, for its clients: agents are the models.",
        late=LateRoutes(
            ("/openai/",),
            "reattach.http.dialects.openai.models",
            "reattach.http.dialects.openai.responses",
            "reattach.http.dialects.openai.conversations",
            "reattach.http.dialects.openai.chat",
        ),
        error_bodies={"/openai/": openai_error},
    ),
    DialectApi(
        name="ai-sdk",
        tag="ai-sdk",
        description="Chats of the AI SDK: `useChat` and its transports.",
        late=LateRoutes(("/ai-sdk/",), "reattach.http.dialects.ai_sdk.routes"),
        error_bodies={"/ai-sdk/": ai_sdk_error},
    ),
    DialectApi(
        name="ag-ui",
        tag="ag-ui",
        description="AG-UI, and the runtime of CopilotKit, for their clients.",
        late=LateRoutes(
            ("/ag-ui/", "/copilotkit/"),
            "reattach.http.dialects.ag_ui.routes",
            "reattach.http.dialects.ag_ui.copilotkit",
        ),
    ),
    DialectApi(
        name="durable-streams",
        tag="durable-streams",
        description="Logs of runs for clients of Durable Streams, which read them.",
        routes=durable_streams.router.routes,
    ),
)


def routes_of(names: Collection[DialectName]) -> list[BaseRoute]:
    """Return the routes of these dialects, except for the late ones."""
    return [route for dialect in DIALECTS if dialect.name in names for route in dialect.routes]


def late_routes_of(names: Collection[DialectName]) -> list[LateRoutes]:
    """Return the routes of these dialects that are imported by their first request."""
    return [
        dialect.late for dialect in DIALECTS if dialect.name in names and dialect.late is not None
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
