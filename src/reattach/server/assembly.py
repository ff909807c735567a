"""Assembly of a server from its settings."""

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import structlog
from pydantic import SecretStr

from reattach import __version__
from reattach.domain.clock import Clock, SharedClock, SystemClock
from reattach.domain.errors import StartupError
from reattach.domain.limits import MCP_START_WAIT_SECONDS
from reattach.engine.base import Engine
from reattach.engine.catalog import Catalog
from reattach.engine.local import LocalEngine
from reattach.engine.providers import OPENAI_RESPONSES, Account, accounts
from reattach.engine.scripted import ScriptedEngine
from reattach.extras import install_hint
from reattach.http.context import Context
from reattach.log.base import Log
from reattach.log.metered import MeteredLog
from reattach.log.open import open_log
from reattach.meters.meters import Meters
from reattach.records.database.failure import explain_startup_failures
from reattach.records.records import Records
from reattach.redact import redact_url
from reattach.runs.attempts.policy import ContinuePolicy
from reattach.runs.observing.counting import RunCounts
from reattach.runs.observing.observer import RunObserver
from reattach.runs.reports.reports import Reports
from reattach.runs.service import RunService
from reattach.runs.upkeep.heartbeat import heartbeat
from reattach.runs.upkeep.schedule import listen, records_upkeep, set_clock, upkeep
from reattach.server import datadir
from reattach.server.announcing import announce, check_default
from reattach.server.boot import BootId, boot_id
from reattach.server.metrics.measuring import measure
from reattach.settings import Settings
from reattach.telemetry.setup import traces_of
from reattach.telemetry.traces import Traces
from reattach.tools.base import Toolbox
from reattach.tools.connections import Connect, McpServers
from reattach.tools.function import function_tools
from reattach.tools.servers import check_names
from reattach.tools.threads import Threads
from reattach.webhooks.receivers import Receivers
from reattach.webhooks.sender import Callbacks

logger = structlog.get_logger(__name__)


def engines_of(settings: Settings, clock: Clock) -> list[Engine]:
    """Return the engines that the settings ask for, hosted models first.

    Reads files and may import the providers' packages, so it must not run on the event loop. Raises
    StartupError if a setting cannot be met.
    """
    engines: list[Engine] = []
    if settings.models:
        engines.extend(_named_engines(settings, clock))
    local = LocalEngine(settings.local_model)
    if local.missing is None:
        engines.append(local)
    elif settings.local_model is not None:
        raise StartupError(local.missing)
    if settings.scripted:
        engines.append(ScriptedEngine(clock=clock))
    if not settings.models and (found := accounts_of(settings)):
        engines.extend(_discovery_engines(settings, found, clock))
    return engines


def accounts_of(settings: Settings) -> Sequence[Account]:
    """Return the providers for which the settings or the environment have a key or URL."""
    return accounts(
        os.environ,
        openai_base_url=settings.openai_base_url,
        openai_api_key=_reveal(settings.openai_api_key),
    )


def _reveal(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _named_engines(settings: Settings, clock: Clock) -> list[Engine]:
    """Return the engines of the hosted models in the settings, that of the first model first."""
    from reattach.engine.openai_responses import OpenAIResponsesEngine  # needs an extra
    from reattach.engine.pydantic_ai import PydanticAIEngine
    from reattach.engine.pydantic_ai.images import ImageFetcher

    kept = [handle for handle in settings.models if _keeps_answers(handle)]
    others = [handle for handle in settings.models if not _keeps_answers(handle)]
    url, key = settings.openai_base_url, _reveal(settings.openai_api_key)
    images = ImageFetcher(to_private=settings.callbacks_to_private)
    engines: list[Engine] = []
    if others:
        engines.append(
            PydanticAIEngine(
                others,
                openai_base_url=url,
                openai_api_key=key,
                silence_seconds=settings.model_silence_seconds,
                images=images,
                continue_models=settings.continue_models,
            )
        )
    if kept:
        engines.insert(
            0 if settings.models[0] in kept else 1,
            OpenAIResponsesEngine(kept, base_url=url, api_key=key, clock=clock, images=images),
        )
    return engines


def _keeps_answers(handle: str) -> bool:
    return handle.partition("/")[0] == OPENAI_RESPONSES


def _discovery_engines(settings: Settings, found: Sequence[Account], clock: Clock) -> list[Engine]:
    """Return the engines for the models of these providers; none without the extra."""
    try:
        from reattach.engine.openai_responses import OpenAIResponsesEngine  # needs an extra
        from reattach.engine.pydantic_ai.discovery import DiscoveringEngine
        from reattach.engine.pydantic_ai.images import ImageFetcher
    except StartupError:
        sources = ", ".join(account.source for account in found)
        logger.warning("hosted models not offered", set=sources, remedy=install_hint("providers"))
        return []
    url, key = settings.openai_base_url, _reveal(settings.openai_api_key)
    images = ImageFetcher(to_private=settings.callbacks_to_private)
    engines: list[Engine] = [
        DiscoveringEngine(
            found,
            openai_base_url=url,
            openai_api_key=key,
            silence_seconds=settings.model_silence_seconds,
            images=images,
            continue_models=settings.continue_models,
        )
    ]
    if any(account.provider.name == "openai" and account.key for account in found):
        engines.append(
            OpenAIResponsesEngine(
                accepts_any=True, base_url=url, api_key=key, clock=clock, images=images
            )
        )
    return engines


def toolbox_of(settings: Settings, mcp_servers: McpServers | None = None) -> Toolbox:
    """Return the tools of the settings and of installed packages, and import them.

    Raises StartupError if one cannot be imported.
    """
    return Toolbox(function_tools(settings.tools, Threads()), mcp_servers)


def mcp_servers_of(settings: Settings, clock: Clock) -> McpServers | None:
    """Return the MCP servers of the settings, not yet connected; None if there are none.

    Imports the SDK and raises as ``mcp_connect_of`` does.
    """
    connect = mcp_connect_of(settings)
    return None if connect is None else McpServers(settings.mcp, connect, clock)


def mcp_connect_of(settings: Settings) -> Connect | None:
    """Return the function that connects to the MCP servers of the settings; None without servers.

    Imports the SDK, so it must not run on the event loop. Raises StartupError if it is missing.
    """
    if not settings.mcp:
        return None
    check_names(settings.mcp)
    try:
        from reattach.tools.mcp import connect  # needs an extra
    except ModuleNotFoundError as error:
        raise StartupError(
            "The settings name MCP servers, and the package `mcp` is not installed.",
            remedy=install_hint("mcp"),
        ) from error
    return connect


@asynccontextmanager
async def assemble(
    settings: Settings,
    *,
    engines: Sequence[Engine] | None = None,
    toolbox: Toolbox | None = None,
    clock: Clock | None = None,
    boot: BootId = boot_id,
    worker: int = 0,
) -> AsyncIterator[Context]:
    """Run a whole server except its port: stores opened, upkeep running.

    ``engines`` and ``toolbox`` replace those of the settings; ``boot`` identifies the boot of the
    machine, ``worker`` this process among several that share a port. On exit, open runs are handed
    over, or end if none can continue them. Raises StartupError, StoreUnavailableError.
    """
    clock = clock or SystemClock()
    shared_clock = SharedClock(clock)
    if settings.stores is not None:
        clock = shared_clock
    catalog = await _catalog(settings, engines, clock)
    toolbox, mcp_servers = await _tools(settings, toolbox, clock)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(catalog.aclose)
        traces = await _traces(stack)
        records, log, after_power_cut = await _stores(settings, clock, boot, stack)
        meters, log = _measured(settings, records, log, catalog)
        await set_clock(records, shared_clock)
        if mcp_servers is not None:
            # Closed after the runs, whose tools they may be running.
            waiting = mcp_servers.running(wait_seconds=MCP_START_WAIT_SECONDS)
            await stack.enter_async_context(waiting)
        callbacks = _callbacks(settings, records, clock, meters)
        runs = _run_service(
            settings,
            records=records,
            log=log,
            catalog=catalog,
            clock=clock,
            toolbox=toolbox,
            callbacks=callbacks,
            meters=meters,
            traces=traces,
            boot=await asyncio.to_thread(boot),
        )
        # Else the upkeep takes the runs up, so that the port opens at once.
        await runs.start(recovers=after_power_cut or not settings.continue_runs)
        await stack.enter_async_context(
            _kept_up(runs, records, clock, shared_clock, settings.retention_seconds)
        )
        await stack.enter_async_context(_run_task(callbacks.run()))
        await announce(settings, catalog, records)
        await stack.enter_async_context(_run_task(catalog.keep_current()))
        reports = Reports(runs, records, clock)
        stack.push_async_callback(reports.aclose)
        context = Context(
            records, catalog, settings, clock, runs, reports, toolbox, mcp_servers, meters,
            traces, worker,
        )  # fmt: skip
        await stack.enter_async_context(_run_task(measure(context)))
        yield context


@asynccontextmanager
async def _kept_up(
    runs: RunService,
    records: Records,
    clock: Clock,
    shared_clock: SharedClock,
    retention_seconds: float,
) -> AsyncIterator[None]:
    """Do the regular work for the runs while the context lasts, then close them."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(runs.release_lease)
        stack.push_async_callback(runs.history.cut_offs.aclose)
        if records.shared:
            # Closed after the runs: a process keeps its lease until its last run has ended.
            await stack.enter_async_context(heartbeat(runs, records, clock))
            await stack.enter_async_context(_run_task(listen(runs, records, clock)))
        stack.push_async_callback(runs.aclose)
        await stack.enter_async_context(_run_task(upkeep(runs, clock, retention_seconds)))
        await stack.enter_async_context(_run_task(records_upkeep(records, shared_clock)))
        yield


def _callbacks(settings: Settings, records: Records, clock: Clock, meters: Meters) -> Callbacks:
    receivers = Receivers(to_private=settings.callbacks_to_private)
    return Callbacks(records, clock, receivers, meters=meters)


async def _tools(
    settings: Settings, toolbox: Toolbox | None, clock: Clock
) -> tuple[Toolbox, McpServers | None]:
    """Return the given tools, or those of the settings with their MCP servers."""
    if toolbox is not None:
        return toolbox, None
    mcp_servers = await asyncio.to_thread(mcp_servers_of, settings, clock)
    return await asyncio.to_thread(toolbox_of, settings, mcp_servers), mcp_servers


async def _traces(stack: AsyncExitStack) -> Traces:
    """Return the traces that the environment asks for. The stack exports the last ones."""
    traces = await asyncio.to_thread(traces_of, version=__version__)
    stack.push_async_callback(traces.aclose)
    return traces


def _run_service(
    settings: Settings,
    *,
    records: Records,
    log: Log,
    catalog: Catalog,
    clock: Clock,
    toolbox: Toolbox,
    callbacks: Callbacks,
    meters: Meters,
    traces: Traces,
    boot: str | None,
) -> RunService:
    observers: list[RunObserver] = [RunCounts(meters)]
    if traces.observer is not None:
        observers.append(traces.observer)
    return RunService(
        log,
        records,
        catalog,
        clock,
        default_model=settings.default_model,
        toolbox=toolbox,
        tool_seconds=settings.tool_seconds,
        retention=timedelta(seconds=settings.retention_seconds),
        boot=boot,
        ping_interval_seconds=settings.ping_interval_seconds,
        lease_seconds=settings.lease_seconds,
        callback_due=callbacks.wake,
        policy=_continue_policy(settings),
        observers=observers,
        meters=meters,
    )


def _measured(
    settings: Settings, records: Records, log: Log, catalog: Catalog
) -> tuple[Meters, Log]:
    """Return the meters of a server, and the log that they measure."""
    meters = Meters(enabled=settings.metrics)
    meters.model_names = lambda: {model.handle for model in catalog.models()}
    if not meters.enabled:
        return meters, log
    records.measure(meters.store("records"))
    return meters, MeteredLog(log, meters)


def _continue_policy(settings: Settings) -> ContinuePolicy:
    return ContinuePolicy(
        enabled=settings.continue_runs,
        max_interruptions=settings.continue_tries,
        max_silent=settings.continue_silent_tries,
        within_seconds=settings.continue_within_seconds,
        may_ask=settings.continue_asks,
    )


async def _catalog(settings: Settings, engines: Sequence[Engine] | None, clock: Clock) -> Catalog:
    """Return the models of ``engines``, or of the settings. Raises StartupError."""
    if engines is None:
        engines = await asyncio.to_thread(engines_of, settings, clock)
    catalog = Catalog(engines)
    try:
        check_default(settings, catalog)
    except StartupError:
        await catalog.aclose()
        raise
    return catalog


@asynccontextmanager
async def _run_task(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _stores(
    settings: Settings, clock: Clock, boot: BootId, stack: AsyncExitStack
) -> tuple[Records, Log, bool]:
    """Open the stores that the settings name, and return whether they may lack the newest events.

    The stack closes them.
    """
    durability = settings.durability
    after_power_cut = False
    if (stores := settings.stores) is not None:
        records_url, log_url = stores.database.get_secret_value(), stores.log.get_secret_value()
    else:
        await asyncio.to_thread(stack.enter_context, datadir.lock(settings.data_dir))
        after_power_cut = await asyncio.to_thread(datadir.may_lack_events, settings.data_dir, boot)
        records_url = datadir.records_url(settings.data_dir)
        log_url = datadir.log_url(settings.data_dir, durability=durability)
    logger.info("records", store=redact_url(records_url))
    with explain_startup_failures(records_url):
        records = await Records.open(
            records_url,
            clock=clock,
            durability=durability,
            audit_days=settings.audit_days,
            context_cache_bytes=settings.context_cache_mib * 1024**2,
            deletes_nameless_chats=settings.nameless_chats == "delete",
        )
    stack.push_async_callback(records.aclose)
    logger.info("event log", store=redact_url(log_url))
    log = await open_log(
        log_url,
        retention_seconds=settings.retention_seconds,
        after_power_cut=after_power_cut,
    )
    stack.push_async_callback(log.aclose)
    if after_power_cut and (active := await records.runs.distrust_active()):
        logger.warning("power cut: the last events of open runs may be lost", runs=active)
    if settings.stores is None:
        await asyncio.to_thread(datadir.note_boot, settings.data_dir, durability, boot)
    return records, log, after_power_cut
