"""Unsupported parts of the Letta API; requests get a 501 that names an alternative."""

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, NoReturn

from fastapi import APIRouter
from starlette.requests import Request

from reattach.domain.errors import NotImplementedHereError

ALL: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


class NotOffered(NamedTuple):
    """An unsupported part of the API, with its alternative."""

    what: str
    instead: str
    paths: tuple[str, ...]
    methods: tuple[str, ...] = ALL


def _tree(root: str) -> tuple[str, str]:
    """Return patterns for a path and everything below it."""
    return root, f"{root}/{{rest:path}}"


_CONTEXT: Final = "Put the content into memory blocks or messages."
_HOSTED: Final = "It is part of the hosted product only."

LATER: Final = (
    NotOffered(
        "searching tools", "Use GET /v1/tools/ with 'search'.", ("/v1/tools/search",), ("POST",)
    ),
    NotOffered(
        "creating and changing tools",
        "Tools come from the server's settings and packages; GET /v1/tools/ lists them.",
        ("/v1/tools/", "/v1/tools/{rest:path}", "/v1/agents/{agent_id}/tools/{tool_name}/run"),
        ("POST", "PUT", "PATCH", "DELETE"),
    ),
    NotOffered(
        "adding, changing and calling MCP servers",
        "MCP servers come from the server's settings; GET /v1/mcp-servers/ lists them.",
        ("/v1/mcp-servers/", "/v1/mcp-servers/{rest:path}"),
        ("POST", "PUT", "PATCH", "DELETE"),
    ),
    NotOffered(
        "previewing the request to a provider",
        "Retrieve the agent and the conversation's messages.",
        ("/v1/conversations/{conversation_id}/messages/preview-raw-payload",),
        ("POST",),
    ),
    NotOffered(
        "listing the agents of a block",
        "List the agents; each contains its blocks.",
        ("/v1/blocks/{block_id}/agents",),
        ("GET",),
    ),
    NotOffered("retrieving single steps", "Use GET /v1/runs/{run_id}/steps.", _tree("/v1/steps")),
    NotOffered("traces of runs", "Use GET /v1/runs/{run_id}/steps.", ("/v1/runs/{run_id}/trace",)),
    NotOffered(
        "listing tags", "List the agents; each contains its tags.", ("/v1/tags", "/v1/tags/")
    ),
)
"""Parts that may be supported later."""

OUT_OF_SCOPE: Final = (
    NotOffered(
        "archival memory",
        _CONTEXT,
        (
            *_tree("/v1/archives"),
            *_tree("/v1/passages"),
            *_tree("/v1/agents/{agent_id}/archival-memory"),
            "/v1/agents/{agent_id}/archives/{rest:path}",
        ),
    ),
    NotOffered(
        "computing embeddings",
        "Request them from a provider in your application.",
        _tree("/v1/embeddings"),
    ),
    NotOffered(
        "searching messages",
        "List the messages and search them in your application.",
        ("/v1/messages/search",),
        ("POST",),
    ),
    NotOffered(
        "files",
        _CONTEXT,
        (
            *_tree("/v1/folders"),
            *_tree("/v1/sources"),
            *_tree("/v1/agents/{agent_id}/folders"),
            *_tree("/v1/agents/{agent_id}/sources"),
            *_tree("/v1/agents/{agent_id}/files"),
        ),
    ),
    NotOffered(
        "groups of agents", "Pass messages between agents in your application.", _tree("/v1/groups")
    ),
    NotOffered(
        "identities",
        "Distinguish agents by tags, and tenants by their API keys.",
        (*_tree("/v1/identities"), "/v1/agents/{agent_id}/identities/{rest:path}"),
    ),
    NotOffered("templates", "Create each agent with POST /v1/agents/.", _tree("/v1/templates")),
    NotOffered(
        "importing agent files",
        "Create the agent with POST /v1/agents/, and send it messages.",
        ("/v1/agents/import",),
        ("POST",),
    ),
    NotOffered(
        "exporting agent files",
        "Retrieve the agent and its messages.",
        ("/v1/agents/{agent_id}/export",),
        ("GET",),
    ),
    NotOffered(
        "jobs and batches",
        "Use GET /v1/runs/.",
        (*_tree("/v1/jobs"), *_tree("/v1/batches"), "/v1/messages/batches/{rest:path}"),
    ),
    NotOffered(
        "managing providers",
        "Models come from the server's settings; GET /v1/models/ lists them.",
        _tree("/v1/providers"),
    ),
    NotOffered(
        "this resource",
        _HOSTED,
        (
            *_tree("/v1/environments"),
            *_tree("/v1/client-side-access-tokens"),
            *_tree("/v1/agents/{agent_id}/schedule"),
            *_tree("/v1/sandbox-config"),
            *_tree("/v1/organizations"),
            *_tree("/v1/projects"),
            "/v1/telemetry/{rest:path}",
            "/v1/voice-beta/{rest:path}",
        ),
    ),
)
"""Parts that are not planned."""

router = APIRouter(include_in_schema=False)


def _refusal(part: NotOffered) -> Callable[[Request], Awaitable[NoReturn]]:
    async def refuse(request: Request) -> NoReturn:  # noqa: ARG001
        raise NotImplementedHereError(
            f"Reattach does not support this part of the API: {part.what}.", remedy=part.instead
        )

    return refuse


for _part in (*LATER, *OUT_OF_SCOPE):
    for _path in _part.paths:
        router.add_route(
            _path, _refusal(_part), methods=list(_part.methods), include_in_schema=False
        )
