"""Log output, as lines for people or as JSON."""

import logging
import sys
from typing import Final, Literal

import structlog

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_VERBOSE = (
    *("alembic", "anthropic", "asyncio", "google_genai", "httpcore", "httpcore2"),
    *("httpx", "httpx2", "openai", "psycopg", "pydantic_ai", "redis", "sqlalchemy", "uvicorn"),
)
"""Libraries that log every step."""

_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def configure_logging(
    form: Literal["console", "json"], level: Literal["debug", "info", "warning", "error"]
) -> None:
    """Write log lines, including those of libraries, to standard error, one event a line."""
    render: structlog.typing.Processor
    if form == "json":
        render = structlog.processors.JSONRenderer()
    else:
        render = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([] if form == "json" else [one_line]),
                render,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # At DEBUG, and some at INFO, libraries log request bodies, SQL with its values, and rows.
    root.setLevel(max(_LEVELS[level], logging.INFO))
    logging.getLogger("reattach").setLevel(_LEVELS[level])
    for library in _VERBOSE:
        logging.getLogger(library).setLevel(max(_LEVELS[level], logging.WARNING))
    silence_mcp()


def one_line(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape characters that could fake another log line or control a terminal.

    Tracebacks keep their line breaks and are indented, so that no line looks like a new event.
    """
    for key, value in event.items():
        if key in _MULTILINE and isinstance(value, str):
            event[key] = "\n".join(f"    {_escape(line)}" for line in value.splitlines())
        elif isinstance(value, str):
            event[key] = _escape(value)
        elif not isinstance(value, _PLAIN):
            event[key] = _escape(repr(value))
    return event


_MULTILINE: Final = frozenset({"exception", "stack"})
_PLAIN: Final = (bool, int, float, type(None))
_ESCAPES: Final = {
    code: repr(chr(code))[1:-1]
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F),
                 *range(0x2066, 0x206A))
}  # fmt: skip
"""Control characters, line separators, and characters that change the text direction."""


def _escape(text: str) -> str:
    return text.translate(_ESCAPES)


def silence_mcp() -> None:
    """Silence the MCP SDK: it logs what servers send, secrets too. Connections report errors."""
    logging.getLogger("mcp").setLevel(logging.CRITICAL)


def _append_values(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Append the values to the message, because the application's format may show only that."""
    values = [f"{key}={event[key]}" for key in event if key not in {"event", "exc_info"}]
    event["event"] = " ".join([str(event["event"]), *values])
    return event


def log_through_application() -> None:
    """Send log lines to the standard ``logging`` of the application that embeds Reattach.

    Does nothing if the application has configured structlog itself.
    """
    if not structlog.is_configured():
        structlog.configure(
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.contextvars.merge_contextvars,
                _append_values,
                structlog.stdlib.render_to_log_kwargs,
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
        )
