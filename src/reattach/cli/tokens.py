"""``reattach tokens``: the keys that sign stream tokens."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reattach.cli.keys import with_records
from reattach.cli.options import StoreFlags, fail, settings_with, with_store_flags
from reattach.records.base import Actor

if TYPE_CHECKING:
    from reattach.records.records import Records

tokens = typer.Typer(no_args_is_help=True, help="Rotate the keys that sign stream tokens.")


@tokens.callback()
def tokens_group() -> None:
    """Keep ``rotate`` a subcommand although it is the only one."""


@tokens.command("rotate")
@with_store_flags
def rotate_key(
    *,
    at_once: Annotated[
        bool,
        typer.Option("--at-once", help="Make all issued tokens invalid, of all tenants."),
    ] = False,
    stores: StoreFlags,
) -> None:
    """Create a new key that signs stream tokens. Servers use it within a few seconds.

    The old key verifies for 24 hours more, which no token outlives, and is then deleted.
    """
    settings = settings_with(**stores)
    if settings.token_keys:
        fail(
            "REATTACH_TOKEN_KEYS has the keys of this server, so those in the database are not "
            "used. Put a new key in front of that list and restart the servers."
        )

    async def rotate(records: "Records") -> Literal[True]:
        await records.tokens.rotate_key(at_once=at_once, by=Actor.of_command_line())
        return True

    with_records(settings, rotate, makes=False)
    old = "All tokens issued before are invalid." if at_once else "The old key verifies for 24 h."
    typer.echo(f"A new key signs stream tokens. {old}", err=True)
