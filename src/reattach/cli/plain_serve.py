"""``reattach serve`` with plain options, without Typer.

A server would keep Typer in memory for as long as it runs, 2 MiB with the commands for all else.
Options that are not plain are for Typer to explain.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from reattach import __version__

VALUES: Final[Mapping[str, type[str | int | Path]]] = {
    "--host": str,
    "--port": int,
    "--fd": int,
    "--workers": int,
    "--data-dir": Path,
    "--database-url": str,
    "--log-url": str,
    "--config": Path,
    "--durability": str,
    "--default-model": str,
    "--log-format": str,
    "--log-level": str,
}
"""The options with a value that is given once."""

LISTS: Final = {"--model": "models"}
"""The options that may be given several times, with their settings."""

FLAGS: Final = {
    "--scripted": ("scripted", True),
    "--no-scripted": ("scripted", False),
    "--require-key": ("require_key", True),
}


def plain_options(words: Sequence[str]) -> Mapping[str, Any] | None:
    """Return the settings that the words after ``serve`` give; None if Typer has to read them.

    Plain are ``--name value`` with a value of the right type, and flags, each one once.
    """
    given: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        if word in FLAGS:
            name, value = FLAGS[word]
            if name in given:
                return None
            given[name] = value
            continue
        text = next(rest, "")
        if not text or text.startswith("-"):
            return None
        if word in LISTS:
            given[LISTS[word]] = (*given.get(LISTS[word], ()), text)
            continue
        name, kind = word.removeprefix("--").replace("-", "_"), VALUES.get(word)
        if kind is None or name in given or (kind is int and not _is_number(text)):
            return None
        given[name] = kind(text)
    return given


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def run_server(options: Mapping[str, Any]) -> int:
    """Serve until SIGTERM, and return the status of the program. Raises StartupError.

    ``options`` are settings that override the environment and the file.
    """
    from reattach.settings import Settings

    settings = Settings(**options)
    import uvloop

    from reattach.server.imports import import_fastapi, import_structlog

    import_structlog()

    from reattach.observe import configure_logging
    from reattach.server.tune_gc import tune_gc

    configure_logging(settings.log_format, settings.log_level)
    if settings.workers == 1:
        import_fastapi()
        from reattach.server.process import serve

        tune_gc()
        uvloop.run(serve(settings, on_ready=_print_ready))
        return 0
    from reattach.server.supervisor import supervise

    tune_gc()
    return 0 if uvloop.run(supervise(settings, on_ready=_print_ready)) else 1


def _print_ready(url: str) -> None:
    """Print the address to standard output, where a script can wait for it."""
    sys.stdout.write(f"Reattach {__version__} is listening on {url}\n")
    sys.stdout.flush()
