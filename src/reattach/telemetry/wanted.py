"""The environment's answer to whether runs are traced, without an import of OpenTelemetry."""

from collections.abc import Mapping, Sequence
from typing import Final

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_CONTENT: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_WITH_CONTENT: Final = frozenset({"true", "1", "span_only", "span_and_event"})


def wanted_exporters(environ: Mapping[str, str]) -> Sequence[str]:
    """Return the names of the exporters that the variables ask for; empty: no traces.

    ``OTEL_TRACES_EXPORTER`` names them. An endpoint alone asks for ``otlp``.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    named = environ.get("OTEL_TRACES_EXPORTER", "")
    names = [name.strip().lower() for name in named.split(",") if name.strip()]
    if names:
        return [] if "none" in names else names
    return ["otlp"] if any(environ.get(name, "").strip() for name in _ENDPOINTS) else []


def wants_content(environ: Mapping[str, str]) -> bool:
    """Whether spans get the messages. The standard variable may be true, or name a place."""
    return environ.get(_CONTENT, "").strip().lower() in _WITH_CONTENT
