"""The things that a user sees of an answer, in order, as in ``shown.mjs`` of the Node clients."""

from typing import Any

Shown = list[list[str]]


def added(shown: Shown, kind: str, piece: str | None) -> Shown:
    """Return the list with a piece of text at its end."""
    if not piece:
        return shown
    if shown and shown[-1][0] == kind:
        return [*shown[:-1], [kind, shown[-1][1] + piece]]
    return [*shown, [kind, piece]]


def tool(name: str, result: Any) -> list[str]:
    return ["tool", f"{name}: {result}"]
