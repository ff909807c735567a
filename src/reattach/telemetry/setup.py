"""Traces as the ``OTEL_…`` variables of the environment want them."""

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog

from reattach.domain.ids import new_uuid
from reattach.extras import install_hint
from reattach.telemetry.conventions import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION
from reattach.telemetry.traces import Traces
from reattach.telemetry.wanted import (
    ENDPOINT_REMEDY,
    fault_of_endpoint,
    wanted_exporters,
    wanted_protocol,
    wants_content,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

logger = structlog.get_logger(__name__)

_QUEUE_SPANS: Final = 2048
"""The default of ``OTEL_BSP_MAX_QUEUE_SIZE``."""


def traces_of(environ: Mapping[str, str] = os.environ, *, version: str) -> Traces:
    """Return the traces that the environment or the embedding application asks for.

    OpenTelemetry is imported only then, so this must not run on the event loop. If the extra is
    missing, a warning is logged.

    Raises:
        StartupError: A variable names an exporter that is not installed.
    """
    exporters = wanted_exporters(environ)
    provider = _provider_of_application()
    if provider is None and not exporters:
        return Traces()
    try:
        from reattach.telemetry.spans import SpanTraces  # needs an extra
    except ModuleNotFoundError:
        logger.warning(
            "traces off: OpenTelemetry is not installed", remedy=install_hint("telemetry")
        )
        return Traces()
    with_content = wants_content(environ)
    if provider is not None:
        return SpanTraces(provider, with_content=with_content)
    traces = SpanTraces.exporting(
        exporters,
        resource=_resource(version),
        protocol=wanted_protocol(environ),
        queue_spans=_whole(environ, "OTEL_BSP_MAX_QUEUE_SIZE", _QUEUE_SPANS),
        with_content=with_content,
    )
    logger.info("traces on", exporters=",".join(exporters), content=with_content)
    fault = fault_of_endpoint(environ) if "otlp" in exporters else None
    if fault is not None:
        logger.warning("spans cannot be exported", reason=fault, remedy=ENDPOINT_REMEDY)
    return traces


def _provider_of_application() -> Any:
    """Return the tracer provider of the application that embeds Reattach; None if it has none."""
    api = sys.modules.get("opentelemetry.trace")
    sdk = sys.modules.get("opentelemetry.sdk.trace")
    if api is None or sdk is None:
        return None
    provider = api.get_tracer_provider()
    return provider if isinstance(provider, sdk.TracerProvider) else None


def _resource(version: str) -> "Resource":
    """Return the identity of this process. The environment's values take precedence."""
    from opentelemetry.sdk.resources import Resource

    named = Resource.create().attributes
    own = {SERVICE_NAME: "reattach", SERVICE_VERSION: version, SERVICE_INSTANCE_ID: new_uuid()}
    unnamed = str(named.get(SERVICE_NAME, "")).startswith("unknown_service")
    given = _given_attributes()
    return Resource.create(
        {
            name: value
            for name, value in own.items()
            if (unnamed if name == SERVICE_NAME else name not in given)
        }
    )


def _given_attributes() -> set[str]:
    listed = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return {one.partition("=")[0].strip() for one in listed.split(",")}


def _whole(environ: Mapping[str, str], name: str, default: int) -> int:
    """Return a positive number, or the default as the SDK does."""
    try:
        value = int(environ.get(name, ""))
    except ValueError:
        return default
    return value if value > 0 else default
