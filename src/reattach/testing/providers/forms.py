"""A form of a provider's answer, and the run that it must make."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Json = Mapping[str, Any]

CUT: Final = "cut"
"""Instead of a piece of a body: the connection breaks off here, in the middle of a chunk."""


@dataclass(frozen=True, slots=True)
class Run:
    """The run that a form must make."""

    text: str = ""
    status: Literal["completed", "failed"] = "completed"
    stop_reason: str = "end_turn"
    error: str = ""
    """A part of the error's message; empty: there is no error."""
    reasoning: str = ""
    ran: tuple[int, ...] = ()
    """The numbers that the tool ``add`` was called with, in order."""
    waiting: tuple[str, ...] = ()
    """The names of the calls that wait for the client."""
    refused: int = 0
    """The calls that got an error for their return."""
    prompt_tokens: int | None = None
    """The tokens of all steps; None: they are not looked at."""
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """One odd or even way in which a provider answers."""

    name: str
    """Doubles as the user's message that asks for it."""
    body: tuple[bytes, ...]
    """The pieces of the body, each written on its own; ``CUT`` in ASCII breaks off."""
    run: Run
    status: int = 200
    content_type: str = "text/event-stream"
    offers_client_tools: bool = False
    """Whether the run has the client's tool ``look`` beside the server's ``add``."""


def failed(error: str, **more: Any) -> Run:
    """A run that the provider failed."""
    return Run(
        status="failed", stop_reason=more.pop("stop_reason", "llm_api_error"), error=error, **more
    )


def data(event: Json | str, *, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    text = event if isinstance(event, str) else json.dumps(event)
    return f"{head}data: {text}\n\n".encode()


def joined(*parts: Sequence[bytes] | bytes) -> tuple[bytes, ...]:
    """One body of several stretches."""
    return tuple(
        piece for part in parts for piece in ((part,) if isinstance(part, bytes) else part)
    )
