"""``reattach keys``: who may use the server."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal, TypeVar

import typer

from reattach.cli.options import Config, DatabaseUrl, DataDir, LogUrl, records_url, settings_with
from reattach.clock import SystemClock
from reattach.ids import DEFAULT_TENANT, TenantId, new_tenant_id
from reattach.records.base import ApiKey
from reattach.records.failure import explaining
from reattach.records.records import Records
from reattach.settings import Settings

_T = TypeVar("_T")

keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for, such as the app's name.")],
    tenant: Annotated[
        str | None,
        typer.Option(help="Tenant of the key; 'new' makes one. Default: the first tenant."),
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    log_url: LogUrl = None,
    config: Config = None,
) -> None:
    """Make a key and show it, once: only its hash is kept."""
    owner = new_tenant_id() if tenant == "new" else TenantId(tenant or DEFAULT_TENANT)

    async def create(records: Records) -> tuple[ApiKey, str]:
        return await records.keys.create(owner, name)

    settings = settings_with(
        data_dir=data_dir, database_url=database_url, log_url=log_url, config=config
    )
    key, secret = _with_records(settings, create)
    typer.echo(secret)
    typer.echo(
        f"Key {key.id} of tenant {key.tenant}. It can not be shown again. "
        "Clients send it as 'Authorization: Bearer <key>'.",
        err=True,
    )


@keys.command("list")
def list_keys(
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    log_url: LogUrl = None,
    config: Config = None,
) -> None:
    """List all keys, revoked ones too."""

    async def find(records: Records) -> list[ApiKey]:
        return await records.keys.list(None)

    settings = settings_with(
        data_dir=data_dir, database_url=database_url, log_url=log_url, config=config
    )
    found = _with_records(settings, find)
    for key in found:
        state = f"revoked {key.revoked_at:%Y-%m-%d}" if key.revoked_at else "active"
        typer.echo(
            f"{key.id}\t{key.prefix}…\t{key.name}\t{key.tenant}\t{key.created_at:%Y-%m-%d}\t{state}"
        )
    if not found:
        typer.echo("No keys. Make one with `reattach keys create NAME`.", err=True)


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The id that `reattach keys list` shows.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    log_url: LogUrl = None,
    config: Config = None,
) -> None:
    """Revoke a key. Servers refuse it within a few seconds."""

    async def revoke(records: Records) -> Literal[True]:
        await records.keys.revoke(key_id)
        return True

    settings = settings_with(
        data_dir=data_dir, database_url=database_url, log_url=log_url, config=config
    )
    _with_records(settings, revoke)
    typer.echo(f"Key {key_id} is revoked.", err=True)


def _with_records(settings: Settings, work: Callable[[Records], Awaitable[_T]]) -> _T:
    """Do ``work`` on the records, whether or not a server is using them."""
    url = records_url(settings)

    async def run() -> _T:
        with explaining(url):
            records = await Records.open(url, clock=SystemClock(), durability="power")
        try:
            return await work(records)
        finally:
            await records.aclose()

    return asyncio.run(run())
