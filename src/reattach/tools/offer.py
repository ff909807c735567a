"""The tools that a model may call in one turn, and the answer to a call of any other."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from reattach.domain.limits import MAX_NAMED_TOOLS, MAX_NAMED_TOOLS_CHARS, MAX_SHOWN_NAME_CHARS
from reattach.domain.messages import ToolCallPart
from reattach.engine.base import ToolReturn
from reattach.tools.base import AttachedTool


@dataclass(frozen=True, slots=True)
class Offer:
    """All tools of a turn: the agent's, the client's, and the engine's own."""

    tools: Mapping[str, AttachedTool]
    """The agent's, which the server runs."""
    client_tools: Collection[str]
    own_tools: Collection[str] | None
    """The engine's; None: it may have any."""

    def has(self, name: str) -> bool:
        """Whether somebody may run a call of that name."""
        if name in self.tools or name in self.client_tools:
            return True
        return bool(name.strip()) if self.own_tools is None else name in self.own_tools

    def answers(self, name: str) -> bool:
        """Whether the server answers a call of that name: it runs the tool, or nobody has it."""
        return name in self.tools or not self.has(name)

    def needs_approval(self, name: str, *, asked: bool) -> bool:
        """Whether a call waits for the client, where its engine has ``asked`` for that or not."""
        if name in self.tools:
            return self.tools[name].requires_approval
        return asked and self.has(name)

    def refused(self, call: ToolCallPart) -> ToolReturn:
        """Return the error for a call of a tool that nobody has."""
        return ToolReturn(call.tool_call_id, call.name, "error", self._text(call.name))

    def _text(self, name: str) -> str:
        shown = name[:MAX_SHOWN_NAME_CHARS]
        fact = f'There is no tool "{shown}".' if name else "The call names no tool."
        names = sorted({*self.tools, *self.client_tools, *(self.own_tools or ())})
        if not names:
            return f"{fact} There are no tools at all; answer without."
        listed: list[str] = []
        for one in names[:MAX_NAMED_TOOLS]:
            if sum(map(len, listed)) + len(one) > MAX_NAMED_TOOLS_CHARS:
                break
            listed.append(one)
        left = len(names) - len(listed)
        more = f", and {left} more" if left else ""
        return f"{fact} The tools are: {', '.join(listed)}{more}. Call one by its exact name."
