"""``reattach serve`` and ``reattach models``: the server, and the models it offers."""

from typing import Annotated

import typer

from reattach.cli.options import AsJson, Config, StoreFlags, settings_with, with_store_flags
from reattach.cli.plain_serve import run_server


@with_store_flags
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one.")] = None,
    fd: Annotated[
        int | None,
        typer.Option(help="Descriptor of a listening socket that another process keeps open."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that share the port; needs both store URLs.")
    ] = None,
    stores: StoreFlags,
    durability: Annotated[
        str | None,
        typer.Option(help="Events survive a killed 'process', or also a 'power' cut."),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Hosted model to offer, such as openai/gpt-4o-mini.")
    ] = None,
    default_model: Annotated[str | None, typer.Option(help="Model of agents without one.")] = None,
    scripted: Annotated[
        bool | None, typer.Option(help="Offer the deterministic models scripted/….")
    ] = None,
    require_key: Annotated[
        bool | None,
        typer.Option("--require-key", help="Refuse all requests until an API key exists."),
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="'console' or 'json'.")] = None,
    log_level: Annotated[
        str | None, typer.Option(help="'debug', 'info', 'warning' or 'error'.")
    ] = None,
) -> None:
    """Serve the API until SIGTERM. Every setting also has an environment variable REATTACH_…."""
    given = {
        **stores,
        "host": host,
        "port": port,
        "fd": fd,
        "workers": workers,
        "durability": durability,
        "models": tuple(model) if model else None,
        "default_model": default_model,
        "scripted": scripted,
        "require_key": require_key,
        "log_format": log_format,
        "log_level": log_level,
    }
    status = run_server({name: value for name, value in given.items() if value is not None})
    if status:
        raise typer.Exit(status)


def models(
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List the models that a server with these settings offers."""
    import asyncio
    import json
    from dataclasses import asdict

    from reattach.domain.clock import SystemClock
    from reattach.engine.catalog import Catalog
    from reattach.server.announcing import check_default, missing
    from reattach.server.assembly import engines_of

    settings = settings_with(config=config)
    catalog = Catalog(engines_of(settings, SystemClock()))
    check_default(settings, catalog)
    asyncio.run(catalog.refresh())
    offered = catalog.models()
    default = settings.default_model or catalog.first()
    if as_json:
        rows = [asdict(model) | {"default": model.handle == default} for model in offered]
        typer.echo(json.dumps(rows))
        return
    for model in offered:
        mark = "\tdefault" if model.handle == default else ""
        typer.echo(f"{model.handle}\t{model.context_window_tokens} tokens{mark}")
    for warning in missing(settings, catalog):
        typer.echo(f"{warning.detail} {warning.remedy}", err=True)
