"""Tools that the server runs: what one is, and all that a server has."""

import hashlib
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from reattach.engine.base import ServerTool
from reattach.errors import StartupError
from reattach.ids import ToolId

SETTING: Final = "server_tools"
"""The member of an agent's settings that names its tools, with what it wants of approvals."""


class Tool(ABC):
    """A tool that agents can be given. Its name is its own within a server."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    """The JSON schema of its arguments, an object."""
    requires_approval: bool
    """Whether its calls wait for an approval where the agent does not say."""
    kind: Literal["custom", "external_mcp"]

    @abstractmethod
    async def call(self, arguments: str) -> str:
        """Run it once with the arguments' JSON text, and return what the model is told.

        Raises ToolError with a text for the model; anything else that it raises is a fault of
        the tool. When it is cancelled it lets go within a moment, though its work may go on.
        """

    @property
    def id(self) -> ToolId:
        """The same for the same name, in every process and after every restart."""
        digest = hashlib.sha256(f"reattach tool {self.name}".encode()).digest()
        return ToolId(f"tool-{uuid.UUID(bytes=digest[:16], version=4)}")


@dataclass(frozen=True, slots=True)
class AttachedTool:
    """A tool of one agent."""

    tool: Tool
    requires_approval: bool

    @property
    def told(self) -> ServerTool:
        """What an engine is told of it."""
        tool = self.tool
        return ServerTool(tool.name, tool.description, tool.parameters, self.requires_approval)


class Toolbox:
    """All tools of a server, in the order of their names."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        """Raises StartupError if two tools have one name."""
        self._tools: dict[str, Tool] = {}
        for tool in sorted(tools, key=lambda tool: tool.name):
            if tool.name in self._tools:
                raise StartupError(
                    f"Two tools have the name {tool.name}. Rename one of them, or leave it out."
                )
            self._tools[tool.name] = tool

    def tools(self) -> Sequence[Tool]:
        return list(self._tools.values())

    def by_name(self, name: str) -> Tool | None:
        return self._tools.get(name)

    def by_id(self, tool_id: str) -> Tool | None:
        return next((tool for tool in self._tools.values() if tool.id == tool_id), None)

    def attached(self, settings: Mapping[str, Any]) -> Sequence[AttachedTool]:
        """The tools of the agent with these settings, in the order in which it got them.

        Those that the server does not have any more are left out.
        """
        wanted: Mapping[str, bool | None] = settings.get(SETTING) or {}
        return [
            AttachedTool(tool, tool.requires_approval if asked is None else asked)
            for name, asked in wanted.items()
            if (tool := self.by_name(name)) is not None
        ]
