"""Tools that the server runs: what one is, and all that a server has."""

import hashlib
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from reattach.domain.errors import StartupError
from reattach.domain.ids import AgentId, ConversationId, TenantId, ToolId
from reattach.engine.base import ServerTool

SETTING: Final = "server_tools"
"""The member of an agent's settings that names its tools, with what it wants of approvals."""

RETIRED_TOOLS: Final = frozenset(
    {
        "archival_memory_insert",
        "archival_memory_search",
        "conversation_search",
        "core_memory_append",
        "core_memory_replace",
        "fetch_webpage",
        "grep_files",
        "memory",
        "memory_apply_patch",
        "memory_finish_edits",
        "memory_insert",
        "memory_replace",
        "memory_rethink",
        "open_files",
        "run_code",
        "search_files",
        "semantic_search_files",
        "send_message",
        "web_search",
    }
)
"""The names of the tools that the retired server brought along; here a package may bring one."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """The one that a call is made for. A function may have it as a parameter of this type."""

    tenant: TenantId | None = None
    """None where no server makes the call, as in tests of a tool."""
    agent_id: AgentId | None = None
    conversation_id: ConversationId | None = None
    """None: the agent's default conversation."""


NO_CONTEXT: Final = ToolContext()


class Tool(ABC):
    """A tool that agents can be given. Its name is its own within a server."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    """The JSON schema of its arguments, an object."""
    requires_approval: bool
    """Whether its calls wait for an approval, whatever an agent says; else the agent may say so."""
    tenants: frozenset[str] | None = None
    """The tenants whose agents may have it; None: all."""
    kind: Literal["custom", "external_mcp"]
    server: str | None = None
    """The name of the MCP server that has it."""
    call_seconds: float | None = None
    """How long one call may take; None: as the settings say for all."""

    @abstractmethod
    async def call(self, arguments: str) -> str:
        """Run it once with the arguments' JSON text, and return the text for the model.

        Raises ToolError with a text for the model; anything else that it raises is a fault of
        the tool. When it is cancelled it lets go within a moment, though its work may go on.
        """

    async def call_for(self, context: ToolContext, arguments: str) -> str:  # noqa: ARG002
        """Run it as ``call`` does, for a tool that may want to know whom the call is for."""
        return await self.call(arguments)

    async def ready(self) -> "Tool":
        """The tool as models are to be told of it, after a moment if that is not known yet."""
        return self

    def is_for(self, tenant: TenantId | None) -> bool:
        """Return whether agents of the tenant may have it; None stands for the operator."""
        return tenant is None or self.tenants is None or tenant in self.tenants

    @property
    def id(self) -> ToolId:
        return tool_id(self.name)


class ToolSource(ABC):
    """Where tools come from that change while a server runs."""

    @abstractmethod
    def tools(self) -> Sequence[Tool]:
        """Those that it has, as far as is known."""

    @abstractmethod
    def find(self, name: str) -> Tool | None:
        """The tool; also one that it may have, as long as nobody knows."""


def tool_id(name: str) -> ToolId:
    """The same for the same name, in every process and after every restart."""
    digest = hashlib.sha256(f"reattach tool {name}".encode()).digest()
    return ToolId(f"tool-{uuid.UUID(bytes=digest[:16], version=4)}")


@dataclass(frozen=True, slots=True)
class AttachedTool:
    """A tool of one agent."""

    tool: Tool
    requires_approval: bool

    @property
    def definition(self) -> ServerTool:
        """What an engine is told of it."""
        tool = self.tool
        return ServerTool(tool.name, tool.description, tool.parameters, self.requires_approval)


class Toolbox:
    """All tools of a server, in the order of their names."""

    def __init__(self, tools: Iterable[Tool] = (), source: ToolSource | None = None) -> None:
        """The ``tools`` are always there, and go before those of the ``source``.

        Raises StartupError if two of them have one name.
        """
        self._source = source
        self._tenant: TenantId | None = None
        self._tools: dict[str, Tool] = {}
        for tool in sorted(tools, key=lambda tool: tool.name):
            if tool.name in self._tools:
                raise StartupError(
                    f"Two tools have the name {tool.name}.",
                    remedy="Rename one of them, or remove it from the settings.",
                )
            self._tools[tool.name] = tool

    def for_tenant(self, tenant: TenantId | None) -> Self:
        """Return the toolbox as the tenant sees it: without tools that are for others."""
        seen = copy(self)
        seen._tenant = tenant
        return seen

    def tools(self) -> Sequence[Tool]:
        found = {} if self._source is None else {one.name: one for one in self._source.tools()}
        tools = [tool for tool in (found | self._tools).values() if tool.is_for(self._tenant)]
        return sorted(tools, key=lambda tool: tool.name)

    def by_name(self, name: str) -> Tool | None:
        return next((tool for tool in self.tools() if tool.name == name), None)

    def by_id(self, tool_id: str) -> Tool | None:
        return next((tool for tool in self.tools() if tool.id == tool_id), None)

    def attached_tools(self, settings: Mapping[str, Any]) -> Sequence[AttachedTool]:
        """Return the tools of the agent with these settings, in the order in which it got them.

        Tools that the server no longer has, or has for other tenants, are left out. Those of a
        source that is not there yet are not. An agent may ask for more approvals than the operator
        requires, and not for fewer.
        """
        wanted: Mapping[str, bool | None] = settings.get(SETTING) or {}
        return [
            AttachedTool(tool, tool.requires_approval or bool(asked))
            for name, asked in wanted.items()
            if (tool := self._wanted(name)) is not None and tool.is_for(self._tenant)
        ]

    def _wanted(self, name: str) -> Tool | None:
        if name in self._tools or self._source is None:
            return self._tools.get(name)
        return self._source.find(name)
