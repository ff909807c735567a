"""The tools that a model may call in one turn, and the error for a call of any other."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from reattach.domain.limits import MAX_NAMED_TOOLS, MAX_NAMED_TOOLS_CHARS, MAX_SHOWN_NAME_CHARS
from reattach.domain.messages import ToolCallPart, ToolReturnPart
from reattach.tools.base import AttachedTool


@dataclass(frozen=True, slots=True)
class Offer:
    """All tools of a turn: the agent's, the client's and the engine's own."""

    tools: Mapping[str, AttachedTool]
    """The agent's tools, which the server runs."""
    client_tools: Collection[str]
    own_tools: Collection[str] | None
    """The engine's tools; None: it may have any."""

    def has(self, name: str) -> bool:
        """Whether a tool of that name exists."""
        if name in self.tools or name in self.client_tools:
            return True
        return bool(name.strip()) if self.own_tools is None else name in self.own_tools

    def answers(self, name: str) -> bool:
        """Whether the server answers a call of that name, by running the tool or with an error."""
        return name in self.tools or not self.has(name)

    def needs_approval(self, name: str, *, asked: bool) -> bool:
        """Whether a call waits for the client. ``asked`` is the engine's request for that."""
        if name in self.tools:
            return self.tools[name].requires_approval
        return asked and self.has(name)

    def unknown_tool(self, call: ToolCallPart) -> ToolReturnPart:
        """Return the error for a call of a tool that does not exist."""
        return call.error_return(self._text(call.name))

    def _text(self, name: str) -> str:
        shown = name[:MAX_SHOWN_NAME_CHARS]
        fact = f'There is no tool "{shown}".' if name else "The call names no tool."
        names = sorted({*self.tools, *self.client_tools, *(self.own_tools or ())})
        if not names:
            return f"{fact} There are no tools; answer without one."
        listed: list[str] = []
        for one in names[:MAX_NAMED_TOOLS]:
            if sum(map(len, listed)) + len(one) > MAX_NAMED_TOOLS_CHARS:
                break
            listed.append(one)
        left = len(names) - len(listed)
        more = f", and {left} more" if left else ""
        return f"{fact} The tools are: {', '.join(listed)}{more}. Call one by its exact name."
