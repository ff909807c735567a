"""``reattach doctor``: checks of a server's settings and dependencies, with remedies."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from reattach.cli.options import AsJson, StoreFlags, settings_with, with_store_flags

if TYPE_CHECKING:
    from reattach.diagnostics import Diagnostic

_LEVEL_CHARS: Final = 8
_CHECK_CHARS: Final = 22


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
) -> None:
    """Check the settings and all dependencies of a server; status 1 if something is wrong."""
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
    diagnostics = asyncio.run(run_checks(settings, show=show, ask_models=models))
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


def _show(diagnostic: "Diagnostic") -> None:
    typer.echo(
        f"{diagnostic.level:{_LEVEL_CHARS}}{diagnostic.what:{_CHECK_CHARS}}{diagnostic.detail}"
    )
    if diagnostic.level != "ok":
        typer.echo(f"{'':{_LEVEL_CHARS}}{diagnostic.remedy}")
