"""What the API has and this server does not: told as such, not as a path that does not exist."""

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, NoReturn

from fastapi import APIRouter
from starlette.requests import Request

from reattach.domain.errors import NotImplementedHereError

ALL: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


class NotOffered(NamedTuple):
    """A part of the API."""

    what: str
    instead: str
    paths: tuple[str, ...]
    methods: tuple[str, ...] = ALL


_CONTEXT: Final = "Put what the agent should know into memory blocks or messages."
_HOSTED: Final = "It belongs to the hosted product."

LATER: Final = (
    NotOffered(
        "Searching tools",
        "List them with a part of their name as 'search'.",
        ("/v1/tools/search",),
        ("POST",),
    ),
    NotOffered(
        "Making and changing tools by request",
        "The server's settings and installed packages bring its tools; see GET /v1/tools/.",
        (
            "/v1/tools/",
            "/v1/tools/{rest:path}",
            "/v1/agents/{agent_id}/tools/{tool_name}/run",
        ),
        ("POST", "PUT", "PATCH", "DELETE"),
    ),
    NotOffered(
        "Adding, changing and calling MCP servers by request",
        "The server's settings name them; see GET /v1/mcp-servers/.",
        ("/v1/mcp-servers/", "/v1/mcp-servers/{rest:path}"),
        ("POST", "PUT", "PATCH", "DELETE"),
    ),
    NotOffered(
        "Showing the request to a provider",
        "Retrieve the agent and the conversation's messages.",
        ("/v1/conversations/{conversation_id}/messages/preview-raw-payload",),
        ("POST",),
    ),
    NotOffered(
        "The list of the agents of a block",
        "List the agents; each has its blocks.",
        ("/v1/blocks/{block_id}/agents",),
        ("GET",),
    ),
    NotOffered(
        "Looking at steps by themselves",
        "See GET /v1/runs/{run_id}/steps.",
        ("/v1/steps", "/v1/steps/{rest:path}"),
    ),
    NotOffered(
        "The trace of a run", "See GET /v1/runs/{run_id}/steps.", ("/v1/runs/{run_id}/trace",)
    ),
    NotOffered(
        "The list of tags", "List the agents; each has its tags.", ("/v1/tags", "/v1/tags/")
    ),
)
"""What may come."""

OUT_OF_SCOPE: Final = (
    NotOffered(
        "Archival memory",
        _CONTEXT,
        (
            "/v1/archives",
            "/v1/archives/{rest:path}",
            "/v1/passages",
            "/v1/passages/{rest:path}",
            "/v1/agents/{agent_id}/archival-memory",
            "/v1/agents/{agent_id}/archival-memory/{rest:path}",
            "/v1/agents/{agent_id}/archives/{rest:path}",
        ),
    ),
    NotOffered(
        "Computing embeddings",
        "Let the application ask a provider for them.",
        ("/v1/embeddings", "/v1/embeddings/{rest:path}"),
    ),
    NotOffered(
        "Searching messages",
        "Search in the application, over the messages that the lists give.",
        ("/v1/messages/search",),
        ("POST",),
    ),
    NotOffered(
        "Files",
        _CONTEXT,
        (
            "/v1/folders",
            "/v1/folders/{rest:path}",
            "/v1/sources",
            "/v1/sources/{rest:path}",
            "/v1/agents/{agent_id}/folders",
            "/v1/agents/{agent_id}/folders/{rest:path}",
            "/v1/agents/{agent_id}/sources",
            "/v1/agents/{agent_id}/sources/{rest:path}",
            "/v1/agents/{agent_id}/files",
            "/v1/agents/{agent_id}/files/{rest:path}",
        ),
    ),
    NotOffered(
        "Groups of agents",
        "Let the application pass messages between agents.",
        ("/v1/groups", "/v1/groups/{rest:path}"),
    ),
    NotOffered(
        "Identities",
        "Tell agents apart by tags, and tenants by their API keys.",
        (
            "/v1/identities",
            "/v1/identities/{rest:path}",
            "/v1/agents/{agent_id}/identities/{rest:path}",
        ),
    ),
    NotOffered(
        "Templates",
        "Create agents from their members.",
        ("/v1/templates", "/v1/templates/{rest:path}"),
    ),
    NotOffered(
        "Importing agent files",
        "Create the agent from its members, and send it messages.",
        ("/v1/agents/import",),
        ("POST",),
    ),
    NotOffered(
        "Exporting an agent file",
        "Retrieve the agent and its messages.",
        ("/v1/agents/{agent_id}/export",),
        ("GET",),
    ),
    NotOffered(
        "Jobs and batches",
        "See GET /v1/runs/.",
        (
            "/v1/jobs",
            "/v1/jobs/{rest:path}",
            "/v1/batches",
            "/v1/batches/{rest:path}",
            "/v1/messages/batches/{rest:path}",
        ),
    ),
    NotOffered(
        "Providers by request",
        "The server's settings name its models; see GET /v1/models/.",
        ("/v1/providers", "/v1/providers/{rest:path}"),
    ),
    NotOffered(
        "This resource",
        _HOSTED,
        (
            "/v1/environments",
            "/v1/environments/{rest:path}",
            "/v1/client-side-access-tokens",
            "/v1/client-side-access-tokens/{rest:path}",
            "/v1/agents/{agent_id}/schedule",
            "/v1/agents/{agent_id}/schedule/{rest:path}",
            "/v1/sandbox-config",
            "/v1/sandbox-config/{rest:path}",
            "/v1/organizations",
            "/v1/organizations/{rest:path}",
            "/v1/projects",
            "/v1/projects/{rest:path}",
            "/v1/telemetry/{rest:path}",
            "/v1/voice-beta/{rest:path}",
        ),
    ),
)
"""What is not meant to come."""

router = APIRouter(include_in_schema=False)


def _refusal(part: NotOffered) -> Callable[[Request], Awaitable[NoReturn]]:
    async def refuse(request: Request) -> NoReturn:  # noqa: ARG001
        raise NotImplementedHereError(f"{part.what} is not offered by Reattach. {part.instead}")

    return refuse


for _part in (*LATER, *OUT_OF_SCOPE):
    for _path in _part.paths:
        router.add_route(
            _path, _refusal(_part), methods=list(_part.methods), include_in_schema=False
        )
