"""``reattach doctor``: checks of a server's settings and dependencies, with remedies."""

import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from reattach.cli.options import AsJson, StoreFlags, settings_with, with_store_flags
from reattach.cli.remote.server import ApiKey
from reattach.redact import without_secrets

if TYPE_CHECKING:
    from reattach.diagnostics import Diagnostic
    from reattach.path.findings import Report

_LEVEL_CHARS: Final = 8
_CHECK_CHARS: Final = 22
_LINE_CHARS: Final = 79


@with_store_flags
def doctor(
    *,
    stores: StoreFlags,
    as_json: AsJson = False,
    models: Annotated[
        bool,
        typer.Option(
            "--models",
            help="Ask each model for one token, and those that REATTACH_CONTINUE_MODELS names for "
            "a few more; this may cost money.",
        ),
    ] = False,
    through: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Examine the path to the server at this URL instead: proxies that withhold, "
            "compress or cut streams. Needs an API key with the scope admin.",
        ),
    ] = None,
    api_key: ApiKey = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="With --through: half a minute, without long silences and streams."
        ),
    ] = False,
) -> None:
    """Check the settings and all dependencies of a server; status 1 if something is wrong."""
    if through is not None:
        if models or any(value is not None for value in stores.values()):
            raise typer.BadParameter(
                "--through examines only the path to a server. Leave out --models and the flags of "
                "stores, or run `reattach doctor` without --through for them."
            )
        _examine_path(through, api_key, quick=quick, as_json=as_json)
        return
    if quick:
        raise typer.BadParameter("--quick needs --through URL.")
    _check_server(stores, ask_models=models, as_json=as_json)


def _check_server(stores: StoreFlags, *, ask_models: bool, as_json: bool) -> None:
    """Run all checks of the server with these stores, and show their results."""
    import asyncio
    import json
    import logging
    from dataclasses import asdict

    from reattach.observe import silence_mcp
    from reattach.server.checks.checks import run_checks

    settings = settings_with(**stores)
    # The diagnostics contain what drivers log while they try.
    logging.getLogger("reattach").addHandler(logging.NullHandler())
    silence_mcp()
    show = None if as_json else _show
    diagnostics = asyncio.run(run_checks(settings, show=show, ask_models=ask_models))
    counts = dict.fromkeys(("ok", "warning", "wrong"), 0)
    for diagnostic in diagnostics:
        counts[diagnostic.level] += 1
    if as_json:
        typer.echo(json.dumps({"findings": [asdict(one) for one in diagnostics], **counts}))
    else:
        warnings = "warning" if counts["warning"] == 1 else "warnings"
        typer.echo(f"{counts['ok']} ok, {counts['warning']} {warnings}, {counts['wrong']} wrong")
    if counts["wrong"]:
        raise typer.Exit(1)


def _examine_path(url: str, api_key: str | None, *, quick: bool, as_json: bool) -> None:
    """Examine the path to the server at ``url``, and show the report."""
    import asyncio
    import json
    from contextlib import suppress

    from reattach.path.examination import examine
    from reattach.path.report import counts_of, json_of, lines_of
    from reattach.path.timing import FULL, QUICK

    timing = QUICK if quick else FULL
    progress = _Progress(timing.expected_seconds)

    async def run() -> "Report":
        shown = asyncio.create_task(progress.show(url, is_quick=quick))
        try:
            return await examine(url, api_key, timing=timing, progress=progress.note)
        finally:
            shown.cancel()
            with suppress(asyncio.CancelledError):
                await shown

    try:
        report = asyncio.run(run())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if as_json:
        typer.echo(json.dumps(json_of(report)))
    else:
        for line in lines_of(report):
            typer.echo(line)
    if counts_of(report)["wrong"]:
        raise typer.Exit(1)


class _Progress:
    """Shows on standard error how long an examination still takes, and for which checks."""

    def __init__(self, expected_seconds: float) -> None:
        self._expected_seconds = expected_seconds
        self._open: frozenset[str] = frozenset()

    def note(self, names: frozenset[str]) -> None:
        """Take the names of the checks that have not ended."""
        self._open = names

    async def show(self, url: str, *, is_quick: bool) -> None:
        """Say how long it takes, and in a terminal count the seconds until cancelled."""
        import asyncio

        shorter = "" if is_quick else "; --quick takes half a minute"
        seconds = self._expected_seconds
        typer.echo(
            f"Examining the path to {without_secrets(url)} takes {seconds:.0f} s{shorter}.",
            err=True,
        )
        if not sys.stderr.isatty():
            return
        began = asyncio.get_running_loop().time()
        try:
            while True:
                passed = asyncio.get_running_loop().time() - began
                names = ", ".join(sorted(self._open))
                text = f"{passed:4.0f} of {seconds:.0f} s: {names}"
                sys.stderr.write(f"\r\x1b[K{text[:_LINE_CHARS]}")
                sys.stderr.flush()
                await asyncio.sleep(1)
        finally:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _show(diagnostic: "Diagnostic") -> None:
    typer.echo(
        f"{diagnostic.level:{_LEVEL_CHARS}}{diagnostic.what:{_CHECK_CHARS}}{diagnostic.detail}"
    )
    if diagnostic.level != "ok":
        typer.echo(f"{'':{_LEVEL_CHARS}}{diagnostic.remedy}")
