"""The checks of the doctor: settings, stores, callbacks, tools and models."""

import asyncio
from collections.abc import AsyncIterator, Callable

from reattach.diagnostics import Diagnostic
from reattach.domain.clock import SystemClock
from reattach.domain.errors import ReattachError, StartupError
from reattach.http.middleware.loopback import is_loopback
from reattach.log.checks import check_log
from reattach.records.database.checks import check_records
from reattach.records.records import Records
from reattach.redact import redact_url
from reattach.server import datadir
from reattach.server.announcing import check_origins
from reattach.server.assembly import mcp_connect_of
from reattach.server.checks.models import check_models
from reattach.settings import Settings
from reattach.telemetry.checks import check_traces
from reattach.tools.checks import check_functions, check_servers


async def run_checks(
    settings: Settings, *, show: Callable[[Diagnostic], None] | None, ask_models: bool
) -> list[Diagnostic]:
    """Return the results of all checks, each also given to ``show`` as soon as it is known."""
    diagnostics: list[Diagnostic] = []

    def note(diagnostic: Diagnostic) -> None:
        diagnostics.append(diagnostic)
        if show is not None:
            show(diagnostic)

    for checks in (
        _check_stores(settings),
        _check_callbacks_and_tools(settings),
        check_models(settings, ask=ask_models),
    ):
        try:
            async for diagnostic in checks:
                note(diagnostic)
        except Exception as error:  # noqa: BLE001  a broken dependency may raise anything
            detail = f"a check failed unexpectedly: {type(error).__name__}"
            note(Diagnostic("wrong", "doctor", detail, "Report this as a bug in Reattach."))
    return diagnostics


async def _check_stores(settings: Settings) -> AsyncIterator[Diagnostic]:
    try:
        stores = settings.stores
    except StartupError as error:
        yield Diagnostic("wrong", "settings", error.fact, error.remedy)
        valid = False
        # Each store is checked anyway, because it may have faults of its own.
        database, log = settings.database_url, settings.log_url
    else:
        valid = True
        yield _check_workers(settings)
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
        async for diagnostic in check_records(
            records_url, processes=settings.workers, upgrade=settings.command("db upgrade")
        ):
            yield diagnostic
    # None for a missing file, which opening would create.
    yield await _check_network(settings, records_url if valid else None)
    if log is not None:
        async for diagnostic in check_log(log.get_secret_value()):
            yield diagnostic


async def _check_callbacks_and_tools(settings: Settings) -> AsyncIterator[Diagnostic]:
    yield check_origins(settings)
    yield _check_callbacks(settings)
    for diagnostic in await asyncio.to_thread(check_functions, settings.tools):
        yield diagnostic
    for diagnostic in await _check_mcp_servers(settings):
        yield diagnostic
    for diagnostic in await check_traces():
        yield diagnostic


async def _check_mcp_servers(settings: Settings) -> list[Diagnostic]:
    try:
        connect = await asyncio.to_thread(mcp_connect_of, settings)
    except StartupError as error:
        return [Diagnostic("wrong", "mcp", error.fact, error.remedy)]
    return [] if connect is None else await check_servers(settings.mcp, connect)


def _check_callbacks(settings: Settings) -> Diagnostic:
    if not settings.callbacks_to_private:
        return Diagnostic("ok", "callbacks", "signed, to public addresses only")
    detail = "signed, to all addresses that this machine can reach, including private ones"
    if is_loopback(settings.host):
        return Diagnostic("ok", "callbacks", detail)
    remedy = (
        "Unset REATTACH_CALLBACKS_TO_PRIVATE, unless everyone with an API key may make this "
        "server send requests to private addresses."
    )
    return Diagnostic("warning", "callbacks", detail, remedy)


def _check_workers(settings: Settings) -> Diagnostic:
    stores = settings.stores
    if stores is None:
        detail = "everything is in the data directory"
    else:
        urls = [redact_url(url.get_secret_value()) for url in (stores.database, stores.log)]
        detail = f"records at {urls[0]}, event logs at {urls[1]}"
    if settings.workers > 1 and stores is None:
        remedy = "Set REATTACH_DATABASE_URL and REATTACH_LOG_URL, or set REATTACH_WORKERS to 1."
        detail = f"REATTACH_WORKERS is {settings.workers}, but {detail}"
        return Diagnostic("wrong", "settings", detail, remedy)
    return Diagnostic("ok", "settings", detail)


async def _check_network(settings: Settings, records_url: str | None) -> Diagnostic:
    """Check that a server requires a key if other machines can reach it."""
    host = settings.host
    has_keys = False
    if records_url is not None:
        try:
            records = await Records.open(records_url, clock=SystemClock())
        except ReattachError:
            if is_loopback(host):
                return Diagnostic("ok", "network", f"only this machine can reach {host}")
            detail = f"{host} is not a loopback address; the API keys cannot be read"
            return Diagnostic("warning", "network", detail, "Repair the database first.")
        try:
            has_keys = await records.keys.exist()
        finally:
            await records.aclose()
    if has_keys:
        reach = (
            "only this machine can reach {}"
            if is_loopback(host)
            else "{} is not a loopback address"
        )
        return Diagnostic("ok", "network", f"{reach.format(host)}; a key is required")
    create = settings.command("keys create NAME")
    if settings.require_key:
        detail = f"{host} refuses all requests: REATTACH_REQUIRE_KEY is set and no API key exists"
        remedy = f"Create a key with `{create}`."
        return Diagnostic("warning", "network", detail, remedy)
    if is_loopback(host):
        detail = (
            f"only this machine can reach {host}, without a key; create a key before you put a "
            "proxy or tunnel in front of it"
        )
        return Diagnostic("ok", "network", detail)
    detail = f"{host} is not a loopback address, and no API key exists"
    remedy = f"Create a key with `{create}`, or listen on 127.0.0.1."
    return Diagnostic("wrong", "network", detail, remedy)
