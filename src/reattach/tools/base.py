"""The contract of a tool that the server runs, and the tools of a server."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from reattach.domain.errors import StartupError
from reattach.domain.ids import AgentId, ConversationId, TenantId, ToolId, derived_uuid
from reattach.engine.base import ServerTool

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
"""The names of the retired server's built-in tools; a package may provide one here."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """The tenant, agent and conversation of a call.

    A function may take it as a parameter of this type.
    """

    tenant: TenantId | None = None
    """None outside of a server, as in tests of a tool."""
    agent_id: AgentId | None = None
    conversation_id: ConversationId | None = None
    """None: the agent's default conversation."""


NO_CONTEXT: Final = ToolContext()


class Tool(ABC):
    """A tool for agents. Its name is unique within a server."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    """The JSON schema of the arguments, an object."""
    idempotent: bool = False
    """Whether running it twice has the effect of running it once. A call that was interrupted then
    runs again. Read when the call begins."""
    requires_approval: bool
    """Whether every call waits for an approval. If not, an agent may still ask for that."""
    tenants: frozenset[str] | None = None
    """The tenants whose agents may use it; None: all."""
    kind: Literal["custom", "external_mcp"]
    server: str | None = None
    """The name of its MCP server, if it has one."""
    call_seconds: float | None = None
    """The time limit of one call; None: the setting for all tools."""

    @abstractmethod
    async def call(self, arguments: str) -> str:
        """Run the tool once with the arguments' JSON text, and return the text for the model.

        When cancelled, it returns within a moment, though its work may continue.

        Raises:
            ToolError: The call failed; the text is for the model. Any other exception is a fault of
                the tool.
        """

    async def call_for(self, context: ToolContext, arguments: str) -> str:  # noqa: ARG002
        """Run the tool like ``call``, with the context of the call."""
        return await self.call(arguments)

    async def ready(self) -> "Tool":
        """Return the tool with its description and schema, waiting briefly for them."""
        return self

    def is_for(self, tenant: TenantId | None) -> bool:
        """Whether agents of the tenant may use it; None is the operator."""
        return tenant is None or self.tenants is None or tenant in self.tenants

    @property
    def id(self) -> ToolId:
        return tool_id(self.name)


class ToolSource(ABC):
    """Tools that change while the server runs."""

    @abstractmethod
    def tools(self) -> Sequence[Tool]:
        """Return the known tools."""

    @abstractmethod
    def find(self, name: str) -> Tool | None:
        """Return the tool of that name; a placeholder while the source is not known yet."""


def tool_id(name: str) -> ToolId:
    """Return the id of a tool, the same in every process and after every restart."""
    return ToolId(f"tool-{derived_uuid(f'reattach tool {name}')}")


@dataclass(frozen=True, slots=True)
class AttachedTool:
    """A tool of one agent."""

    tool: Tool
    requires_approval: bool

    @property
    def definition(self) -> ServerTool:
        """The definition of the tool for an engine."""
        tool = self.tool
        return ServerTool(tool.name, tool.description, tool.parameters, self.requires_approval)


class Toolbox:
    """All tools of a server, sorted by name."""

    def __init__(self, tools: Iterable[Tool] = (), source: ToolSource | None = None) -> None:
        """``tools`` are permanent, and take precedence over those of ``source``.

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
        """Return the toolbox without the tools of other tenants."""
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

    def attached_tools(self, wanted: Mapping[str, bool | None]) -> Sequence[AttachedTool]:
        """Return the tools of an agent (``Agent.tools``), in the order of attachment.

        Tools that the server no longer has, or has only for other tenants, are left out; tools of a
        source that is not known yet are not. An agent may require more approvals than the operator,
        but not fewer.
        """
        return [
            AttachedTool(tool, tool.requires_approval or bool(asked))
            for name, asked in wanted.items()
            if (tool := self._find(name)) is not None and tool.is_for(self._tenant)
        ]

    def _find(self, name: str) -> Tool | None:
        if name in self._tools or self._source is None:
            return self._tools.get(name)
        return self._source.find(name)
