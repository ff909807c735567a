"""Errors as OpenAI's clients expect them."""

from collections.abc import Mapping
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field


class OpenAIError(BaseModel):
    """The reason why a request failed."""

    model_config = ConfigDict(extra="allow")

    message: str = Field(description="The failure and the next step, for people.")
    type: str = Field(description="`invalid_request_error` or `server_error`.")
    param: str | None = Field(description="The member of the request that is wrong.")
    code: str = Field(description="The failure, for programs; stable.")


class OpenAIErrorBody(BaseModel):
    error: OpenAIError


def error_body(status: int, members: Mapping[str, Any]) -> bytes:
    """Return the body of an error response. ``code`` is that of our own error."""
    error = {
        "message": members.get("detail") or "An unknown error occurred",
        "type": "server_error" if status >= 500 else "invalid_request_error",
        "param": _param_of(members),
        "code": members.get("code") or "internal_error",
    }
    rest = {name: value for name, value in members.items() if name not in _TAKEN}
    return msgspec.json.encode({"error": {**rest, **error}})


_TAKEN = frozenset({"detail", "code", "error", "errors", "message", "type", "param"})


def _param_of(members: Mapping[str, Any]) -> str | None:
    """Return the member of the request that is wrong, such as ``messages[0].role``."""
    faults = members.get("errors")
    if not isinstance(faults, list) or not faults or not isinstance(faults[0], dict):
        return None
    place = faults[0].get("loc")
    if not isinstance(place, list) or len(place) < 2:
        return None
    named = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place[1:])
    return named.removeprefix(".")
