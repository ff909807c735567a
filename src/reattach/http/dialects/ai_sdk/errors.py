"""Errors as clients of the AI SDK show them: the text of the body is the message of the error."""

from collections.abc import Mapping
from typing import Any

import msgspec


def error_body(status: int, members: Mapping[str, Any]) -> bytes:
    """Return the body of an error response, with the code first. The status is in the head."""
    first = {
        "code": members.get("code") or ("internal_error" if status >= 500 else "invalid_request"),
        "detail": members.get("detail") or "An unknown error occurred",
    }
    rest = {name: value for name, value in members.items() if name not in first}
    return msgspec.json.encode({**first, **rest})
