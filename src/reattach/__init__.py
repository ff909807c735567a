"""A server for the Letta API that writes every run to a durable, numbered event log.

A client that reconnects with the last number that it has receives exactly the events after it.

The public API is what ``__all__`` names here, in ``reattach.embed``, ``reattach.client`` and
``reattach.testing``. Every other module may change between releases.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from reattach.domain.errors import ToolError
    from reattach.tools.base import ToolContext
    from reattach.tools.function import tool

__all__ = ["ToolContext", "ToolError", "__version__", "tool"]

__version__ = "0.1.0"

_MODULES: Final = {
    "ToolContext": "reattach.tools.base",
    "ToolError": "reattach.domain.errors",
    "tool": "reattach.tools.function",
}


if not TYPE_CHECKING:  # A type checker would accept every name.

    def __getattr__(name: str) -> Any:
        """Import a public name on first use, so that a start imports only what it needs."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)
