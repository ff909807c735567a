"""The environment's answer to whether runs are traced, without an import of OpenTelemetry."""

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from reattach.redact import redact_text, redact_url

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SHOWN_CHARS: Final = 100

ENDPOINT_REMEDY: Final = "Set it to the collector's address, such as http://127.0.0.1:4318."
"""The remedy for ``fault_of_endpoint``."""

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


def wanted_protocol(environ: Mapping[str, str]) -> str | None:
    """Return the protocol of OTLP that the variables name; None: the default, over HTTP."""
    return environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL"
    )


def fault_of_endpoint(environ: Mapping[str, str]) -> str | None:
    """Return the fault of an endpoint that cannot be one; None if there is none.

    Over gRPC an endpoint needs no scheme.
    """
    name = next((one for one in reversed(_ENDPOINTS) if environ.get(one, "").strip()), None)
    if name is None or wanted_protocol(environ) == "grpc":
        return None
    value = environ[name].strip()
    try:
        parts = urlsplit(value)
        is_url = parts.scheme.lower() in {"http", "https"} and bool(parts.hostname)
        _ = parts.port  # ValueError if it is no number.
    except ValueError:
        is_url = False
    if is_url:
        return None
    shown = redact_url(value) if "@" in value else redact_text(value, max_chars=_SHOWN_CHARS)
    return f"{name} is '{shown}', which is no URL that begins with http:// or https://"


def wants_content(environ: Mapping[str, str]) -> bool:
    """Whether spans get the messages. The standard variable may be true, or name a place."""
    return environ.get(_CONTENT, "").strip().lower() in _WITH_CONTENT
