"""Log output, as lines for people or as JSON."""

import io
import logging
import select
import sys
from typing import Final, Literal, TextIO

import structlog
from typing_extensions import override

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
    handler = _UnwaitingHandler(sys.stderr)
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


_PIECE_CHARACTERS: Final = 400
"""The size of a write. A pipe with room takes 4,096 bytes (PIPE_BUF on Linux) without waiting, and
an unencodable character becomes ten."""


class _UnwaitingHandler(logging.StreamHandler[TextIO]):
    """Writes log lines without waiting until they are read.

    A pipe that nobody reads, or a terminal that was stopped, would hold up the event loop, and with
    it every stream and the signals. Lines without room are dropped, and the next one with room is
    preceded by their number.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._dropped = 0
        self._is_cut = False
        """Whether the last line lacks its end."""
        self._poll: select.poll | None = None
        try:
            descriptor = stream.fileno()
        except (AttributeError, io.UnsupportedOperation):
            return  # It is no file, so it has room.
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            dropped, self._dropped = self._dropped, 0
            if dropped and not self._write(self.format(_dropped_lines(dropped))):
                self._dropped = dropped
            if self._dropped or not self._write(self.format(record)):
                self._dropped += 1
        except Exception:  # noqa: BLE001  as in every handler of ``logging``
            self.handleError(record)

    def _write(self, text: str) -> bool:
        """Write a line, and return whether there was room for all of it."""
        line = (self.terminator if self._is_cut else "") + text + self.terminator
        for begin in range(0, len(line), _PIECE_CHARACTERS):
            if self._poll is not None and not self._poll.poll(0):
                self._is_cut = self._is_cut or begin > 0
                return False
            self.stream.write(line[begin : begin + _PIECE_CHARACTERS])
            self.stream.flush()
        self._is_cut = False
        return True


def _dropped_lines(count: int) -> logging.LogRecord:
    message = "log lines were dropped, because nothing read the output: %d"
    return logging.LogRecord(__name__, logging.WARNING, "", 0, message, (count,), None)


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
