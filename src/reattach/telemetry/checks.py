"""The check of traces, for ``reattach doctor``."""

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from reattach.diagnostics import Diagnostic
from reattach.domain.errors import StartupError
from reattach.extras import install_hint
from reattach.redact import redact_url
from reattach.telemetry.wanted import (
    ENDPOINT_REMEDY,
    fault_of_endpoint,
    wanted_exporters,
    wanted_protocol,
)

_WHAT: Final = "traces"
_DEFAULT_ENDPOINT: Final = "http://localhost:4318"


async def check_traces(environ: Mapping[str, str] = os.environ) -> list[Diagnostic]:
    """Check that the exporters which the environment asks for take spans. Never raises.

    Without such a variable there is nothing to say.
    """
    exporters = wanted_exporters(environ)
    return [await asyncio.to_thread(_check, name, environ) for name in exporters]


def _check(name: str, environ: Mapping[str, str]) -> Diagnostic:
    """Send an empty batch, as a server would send its spans."""
    try:
        from opentelemetry.sdk.trace.export import SpanExportResult  # needs an extra

        from reattach.telemetry.exporting import load_exporter
    except ModuleNotFoundError:
        detail = "wanted by an OTEL_ variable, but OpenTelemetry is not installed"
        return Diagnostic("warning", _WHAT, detail, install_hint("telemetry"))
    if name == "console":
        return Diagnostic("ok", _WHAT, "written to standard output")
    fault = fault_of_endpoint(environ) if name == "otlp" else None
    if fault is not None:
        return Diagnostic("warning", _WHAT, fault, ENDPOINT_REMEDY)
    try:
        exporter = load_exporter(name, wanted_protocol(environ))
        with _silenced():
            result = exporter.export(())
            exporter.shutdown()
    except StartupError as error:
        return Diagnostic("wrong", _WHAT, error.fact, error.remedy)
    except Exception as error:  # noqa: BLE001  an exporter of any package may raise anything
        detail = f"the exporter {name} failed: {type(error).__name__}"
        return Diagnostic("warning", _WHAT, detail, "Check the OTEL_EXPORTER_ variables.")
    where = _place(name, environ)
    if result is SpanExportResult.SUCCESS:
        return Diagnostic("ok", _WHAT, f"{where} takes spans")
    detail = f"{where} takes no spans: it does not answer, or refuses them"
    remedy = (
        "Check OTEL_EXPORTER_OTLP_ENDPOINT (the collector's port for HTTP is mostly 4318) and "
        "OTEL_EXPORTER_OTLP_HEADERS."
    )
    return Diagnostic("warning", _WHAT, detail, remedy)


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep the exporter from logging a failure that the check reports."""
    exporters = logging.getLogger("opentelemetry")
    before = exporters.level
    exporters.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        exporters.setLevel(before)


def _place(name: str, environ: Mapping[str, str]) -> str:
    if name != "otlp":
        return f"the exporter {name}"
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    return f"the collector at {redact_url(endpoint or _DEFAULT_ENDPOINT)}"
