"""Tools for testing applications, backends and engines that are built on Reattach.

The extra ``testing`` installs what they need. The server never imports this package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from reattach.testing.conformance.engine import EngineConformance, Subject
    from reattach.testing.conformance.log import LogConformance, LogStore
    from reattach.testing.conformance.log_machine import LogMachine
    from reattach.testing.programs.cluster import Cluster
    from reattach.testing.programs.postgresql import PostgresqlServer
    from reattach.testing.programs.redis import RedisServer
    from reattach.testing.programs.relay import Relay
    from reattach.testing.programs.server import ServerProcess
    from reattach.testing.providers.conformance import AnthropicForms, OpenAIForms
    from reattach.testing.recording import Recording, frames_to, seq_of, whole_frames

__all__ = [
    "AnthropicForms",
    "Cluster",
    "EngineConformance",
    "LogConformance",
    "LogMachine",
    "LogStore",
    "OpenAIForms",
    "PostgresqlServer",
    "Recording",
    "RedisServer",
    "Relay",
    "ServerProcess",
    "Subject",
    "frames_to",
    "seq_of",
    "whole_frames",
]

_NAMES: Final = {
    "conformance.engine": ("EngineConformance", "Subject"),
    "conformance.log": ("LogConformance", "LogStore"),
    "conformance.log_machine": ("LogMachine",),
    "programs.cluster": ("Cluster",),
    "programs.postgresql": ("PostgresqlServer",),
    "programs.redis": ("RedisServer",),
    "programs.relay": ("Relay",),
    "programs.server": ("ServerProcess",),
    "providers.conformance": ("AnthropicForms", "OpenAIForms"),
    "recording": ("Recording", "frames_to", "seq_of", "whole_frames"),
}
_MODULES: Final = {name: module for module, names in _NAMES.items() for name in names}


if not TYPE_CHECKING:  # A type checker would accept every name.

    def __getattr__(name: str) -> Any:
        """Import a public name on first use, because pytest or httpx may not be installed."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
