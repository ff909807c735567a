"""``reattach doctor``: what is wrong with what a server depends on, and how to mend it."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Final

import typer

from reattach.cli.model_checks import check_models
from reattach.cli.options import AsJson, Config, DatabaseUrl, DataDir, LogUrl, settings_with
from reattach.diagnostics import Diagnostic
from reattach.domain.clock import SystemClock
from reattach.domain.errors import ReattachError, StartupError
from reattach.http.middleware.loopback import is_loopback
from reattach.log.checks import check_log
from reattach.observe import silence_mcp
from reattach.records.database.checks import check_records
from reattach.records.records import Records
from reattach.redact import redact_url
from reattach.server import datadir
from reattach.server.assembly import mcp_connect_of
from reattach.settings import Settings
from reattach.tools.checks import check_functions, check_servers

_WHAT_CHARS: Final = 22
_LEVEL_CHARS: Final = 8


def doctor(
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    log_url: LogUrl = None,
    config: Config = None,
    as_json: AsJson = False,
    models: Annotated[
        bool, typer.Option("--models", help="Ask each model for a token, which may cost something.")
    ] = False,
) -> None:
    """Look at all that a server with these settings depends on; status 1 if something is wrong."""
    settings = settings_with(
        data_dir=data_dir, database_url=database_url, log_url=log_url, config=config
    )
    # What drivers log while they try is in the diagnostics.
    logging.getLogger("reattach").addHandler(logging.NullHandler())
    silence_mcp()
    diagnostics = asyncio.run(_all(settings, shown=not as_json, ask_models=models))
    counts = dict.fromkeys(("ok", "warning", "wrong"), 0)
    for diagnostic in diagnostics:
        counts[diagnostic.level] += 1
    if as_json:
        typer.echo(json.dumps({"findings": [asdict(one) for one in diagnostics], **counts}))
    else:
        typer.echo(", ".join(f"{count} {level}" for level, count in counts.items()))
    if counts["wrong"]:
        raise typer.Exit(1)


async def _all(settings: Settings, *, shown: bool, ask_models: bool) -> list[Diagnostic]:
    diagnostics: list[Diagnostic] = []

    def note(diagnostic: Diagnostic) -> None:
        diagnostics.append(diagnostic)
        if shown:
            _show(diagnostic)

    for examined in (
        _examined(settings),
        _examined_beside_stores(settings),
        check_models(settings, ask=ask_models),
    ):
        try:
            async for diagnostic in examined:
                note(diagnostic)
        except Exception as error:  # noqa: BLE001  a look at what is broken may meet anything
            remedy = "Report this: the doctor should have known."
            note(Diagnostic("wrong", "doctor", f"{type(error).__name__}", remedy))
    return diagnostics


def _show(diagnostic: Diagnostic) -> None:
    typer.echo(
        f"{diagnostic.level:{_LEVEL_CHARS}}{diagnostic.what:{_WHAT_CHARS}}{diagnostic.detail}"
    )
    if diagnostic.level != "ok":
        typer.echo(f"{'':{_LEVEL_CHARS}}{diagnostic.remedy}")


async def _examined(settings: Settings) -> AsyncIterator[Diagnostic]:
    try:
        stores = settings.stores
    except StartupError as error:
        said, _, remedy = error.detail.partition(". ")
        yield Diagnostic("wrong", "settings", said, remedy)
        fitting = False
        # Each of them may have faults of its own.
        database, log = settings.database_url, settings.log_url
    else:
        fitting = True
        yield _pair(settings)
        database, log = (None, None) if stores is None else (stores.database, stores.log)
    if database is None and log is None:
        for diagnostic in await asyncio.to_thread(datadir.check, settings.data_dir):
            yield diagnostic
    records_url = None
    if database is not None:
        records_url = database.get_secret_value()
    elif log is None and await asyncio.to_thread(datadir.has_records, settings.data_dir):
        records_url = datadir.records_url(settings.data_dir)
    if records_url is not None:
        async for diagnostic in check_records(records_url, processes=settings.workers):
            yield diagnostic
    # To open a file that does not exist yet would make it.
    yield await _strangers(settings, records_url if fitting else None)
    if log is not None:
        async for diagnostic in check_log(log.get_secret_value()):
            yield diagnostic


async def _examined_beside_stores(settings: Settings) -> AsyncIterator[Diagnostic]:
    yield _callbacks(settings)
    for diagnostic in await asyncio.to_thread(check_functions, settings.tools):
        yield diagnostic
    for diagnostic in await _mcp_servers(settings):
        yield diagnostic


async def _mcp_servers(settings: Settings) -> list[Diagnostic]:
    try:
        connect = await asyncio.to_thread(mcp_connect_of, settings)
    except StartupError as error:
        said, _, remedy = error.detail.partition(". ")
        return [Diagnostic("wrong", "mcp", said, remedy)]
    return [] if connect is None else await check_servers(settings.mcp, connect)


def _callbacks(settings: Settings) -> Diagnostic:
    if not settings.callbacks_to_private:
        return Diagnostic("ok", "callbacks", "signed, to public addresses only")
    said = "signed, to any address that this machine reaches, private ones too"
    if is_loopback(settings.host):
        return Diagnostic("ok", "callbacks", said)
    remedy = (
        "Whoever has an API key may have the server post there. Leave out "
        "REATTACH_CALLBACKS_TO_PRIVATE unless all of them may."
    )
    return Diagnostic("warning", "callbacks", said, remedy)


def _pair(settings: Settings) -> Diagnostic:
    stores = settings.stores
    if stores is None:
        said = "everything is in the data directory"
    else:
        urls = [redact_url(url.get_secret_value()) for url in (stores.database, stores.log)]
        said = f"records at {urls[0]}, event logs at {urls[1]}"
    if settings.workers > 1 and stores is None:
        remedy = "Set REATTACH_DATABASE_URL and REATTACH_LOG_URL to shared ones, or one worker."
        return Diagnostic("wrong", "settings", f"workers={settings.workers}, but {said}", remedy)
    return Diagnostic("ok", "settings", said)


async def _strangers(settings: Settings, records_url: str | None) -> Diagnostic:
    """Whether a server that others may reach asks for a key."""
    host = settings.host
    has_keys = False
    if records_url is not None:
        try:
            records = await Records.open(records_url, clock=SystemClock())
        except ReattachError:
            if is_loopback(host):
                return Diagnostic("ok", "network", f"{host} is reached from this machine only")
            said = f"{host} is reached by other machines; keys cannot be looked for"
            return Diagnostic("warning", "network", said, "Mend the database first.")
        try:
            has_keys = await records.keys.any()
        finally:
            await records.aclose()
    if has_keys:
        reached_by = "this machine only" if is_loopback(host) else "other machines"
        return Diagnostic("ok", "network", f"{host} is reached from {reached_by}, and needs a key")
    if settings.require_key:
        said = f"{host} refuses everything: no API key exists, and require_key is set"
        return Diagnostic("warning", "network", said, "Make a key: reattach keys create NAME")
    if is_loopback(host):
        said = (
            f"{host} is reached from this machine only, by any program and without a key; a proxy "
            "or tunnel in front of it would open it to others: make a key first"
        )
        return Diagnostic("ok", "network", said)
    said = f"{host} is reached by other machines, and no API key exists"
    remedy = "Make a key with `reattach keys create NAME`, or listen on 127.0.0.1."
    return Diagnostic("wrong", "network", said, remedy)
