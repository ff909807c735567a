"""The messages between a supervisor and its children."""

import json
from typing import Final, Literal

from pydantic import SecretStr

from reattach.settings import Settings

ShutdownCommand = Literal["drain", "hurry"]
"""A command to a child: start draining, or cut the drain short."""

READY: Final = "ready"
FAILED: Final = "failed"


def dump_settings(settings: Settings) -> str:
    """Serialize all settings for a child, which then reads no environment and no file."""
    values = settings.model_dump(mode="json")
    for name, value in settings:
        if isinstance(value, SecretStr):
            values[name] = value.get_secret_value()
    return json.dumps(values | {"config": None})
