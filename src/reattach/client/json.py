"""JSON objects in answers, frames and storages."""

import json
from typing import Any


def object_of(content: str | bytes) -> dict[str, Any] | None:
    """Return the JSON object, or None if the content is none."""
    try:
        found = json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
