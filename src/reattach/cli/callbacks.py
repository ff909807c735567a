"""``reattach callbacks``: the secrets that sign callbacks."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from reattach.cli.keys import with_records
from reattach.cli.options import AsJson, StoreFlags, settings_with, with_store_flags
from reattach.domain.errors import NotFoundError
from reattach.domain.ids import DEFAULT_TENANT, TenantId
from reattach.records.base import Actor

if TYPE_CHECKING:
    from reattach.records.records import Records

callbacks = typer.Typer(no_args_is_help=True, help="Show and rotate signing secrets of callbacks.")


@callbacks.callback()
def callbacks_group() -> None:
    """Keep ``secret`` a subcommand although it is the only one."""


@callbacks.command("secret")
@with_store_flags
def show_secret(
    *,
    tenant: Annotated[
        str | None, typer.Option(help="Tenant of the secret. Default: the default tenant.")
    ] = None,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Create a new one; the old one signs for 24 h more.")
    ] = False,
    as_json: AsJson = False,
    stores: StoreFlags,
) -> None:
    """Show the secret that signs a tenant's callbacks; the first call creates it.

    While two secrets are in use, both are shown, the newest first.
    """
    owner = TenantId(tenant or DEFAULT_TENANT)
    settings = settings_with(**stores)

    async def secrets(records: "Records") -> tuple[str, ...]:
        if owner != DEFAULT_TENANT and not await records.keys.list(owner):
            raise NotFoundError(
                f"No key belongs to the tenant {owner!r}, so it cannot ask for callbacks.",
                remedy=f"`{settings.command('keys list')}` shows the tenants of the keys.",
            )
        if rotate:
            await records.callbacks.rotate_secret(owner, by=Actor.of_command_line())
        return tuple(await records.callbacks.secrets(owner))

    found = with_records(settings, secrets)
    if as_json:
        typer.echo(json.dumps({"tenant": owner, "secrets": found}))
        return
    for secret in found:
        typer.echo(secret)
    typer.echo(f"This secret signs the callbacks of tenant {owner} (Standard Webhooks).", err=True)
