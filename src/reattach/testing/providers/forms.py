"""A form of a provider's answer, and the run that an engine must produce from it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Json = Mapping[str, Any]

CUT: Final = "cut"
"""Stands for a piece of a body: the connection breaks here, within a chunk."""


@dataclass(frozen=True, slots=True)
class Run:
    """The run that an engine must produce from a form."""

    text: str = ""
    status: Literal["completed", "failed"] = "completed"
    stop_reason: str = "end_turn"
    error: str = ""
    """A part of the error's message. Empty: no error."""
    reasoning: str = ""
    ran: tuple[int, ...] = ()
    """The arguments of the calls of the tool ``add``, in order."""
    waiting: tuple[str, ...] = ()
    """The tool names of the calls that wait for the client."""
    refused: int = 0
    """The number of calls that returned an error."""
    prompt_tokens: int | None = None
    """The prompt tokens of all steps. None: not checked."""
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """One answer of a provider, well-formed or not."""

    name: str
    """The form's name, which is also the user message that selects it."""
    body: tuple[bytes, ...]
    """The chunks of the body. ``CUT`` in ASCII breaks the connection."""
    run: Run
    status: int = 200
    content_type: str = "text/event-stream"
    offers_client_tools: bool = False
    """Whether the run offers the client's tool ``look`` beside the server's ``add``."""


def failed(error: str, **more: Any) -> Run:
    """Return the run of an answer that fails."""
    return Run(
        status="failed", stop_reason=more.pop("stop_reason", "llm_api_error"), error=error, **more
    )


def data(event: Json | str, *, name: str | None = None) -> bytes:
    """Encode one server-sent event."""
    head = f"event: {name}\n" if name else ""
    text = event if isinstance(event, str) else json.dumps(event)
    return f"{head}data: {text}\n\n".encode()


def joined(*parts: Sequence[bytes] | bytes) -> tuple[bytes, ...]:
    """Join chunks and lists of chunks to one body."""
    return tuple(
        piece for part in parts for piece in ((part,) if isinstance(part, bytes) else part)
    )
