"""``reattach keys``: the API keys of the server."""

import json
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import typer

from reattach.cli.options import (
    AsJson,
    StoreFlags,
    records_url,
    settings_with,
    with_store_flags,
)
from reattach.cli.printable import fail, one_line
from reattach.domain.clock import SystemClock
from reattach.domain.ids import DEFAULT_TENANT, TenantId, new_tenant_id
from reattach.records.base import ALL_SCOPES, Actor, ApiKey, KeyScope

if TYPE_CHECKING:
    from reattach.records.records import Records
    from reattach.settings import Settings

_T = TypeVar("_T")

keys = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")


@keys.command("create")
@with_store_flags
def create_key(
    *,
    name: Annotated[str, typer.Argument(help="Name of the key, such as that of the application.")],
    tenant: Annotated[
        str | None,
        typer.Option(help="Tenant of the key; 'new' creates one. Default: the default tenant."),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(help="How long it is valid, such as 30d, 12h or 90m. Default: forever."),
    ] = None,
    scope: Annotated[
        list[KeyScope] | None,
        typer.Option(
            help="Permission of the key; repeatable. Default: read, send and admin of its tenant."
        ),
    ] = None,
    as_json: AsJson = False,
    stores: StoreFlags,
) -> None:
    """Create a key and show it once; the server stores only its hash.

    Scopes: 'read' reads agents and conversations and follows runs. 'send' sends, creates
    conversations and cancels runs. 'admin' changes and deletes what its tenant has, and
    manages its keys and tokens. 'operator' is for those who run the server, and shows the
    processes, runs and use of all tenants: it has to be asked for.
    """
    _check(name, tenant)
    owner = new_tenant_id() if tenant == "new" else TenantId(tenant or DEFAULT_TENANT)
    expires_at = None if expires is None else SystemClock().now() + duration(expires, "a key")

    async def create(records: "Records") -> tuple[bool, ApiKey, str]:
        is_first = not await records.keys.list(owner)
        key, secret = await records.keys.create(
            owner,
            name,
            scopes=scope or ALL_SCOPES,
            expires_at=expires_at,
            by=Actor.of_command_line(),
        )
        return is_first, key, secret

    settings = settings_with(**stores)
    is_first, key, secret = with_records(settings, create)
    if as_json:
        typer.echo(json.dumps(_json_of(key) | {"secret": secret}))
        return
    typer.echo(secret)
    typer.echo(
        f"Key {key.id} of tenant {key.tenant}, scopes {_scopes_of(key)}, "
        f"valid {_until(key)}. It cannot be shown again. "
        "Clients send it as 'Authorization: Bearer <key>'.",
        err=True,
    )
    if is_first and tenant not in (None, "new"):
        typer.echo(
            f"This is the first key of tenant {owner}. If the name is a typo, revoke the key with "
            f"`{settings.command(f'keys revoke {key.id}')}`.",
            err=True,
        )


def _check(name: str, tenant: str | None) -> None:
    """Raise typer.BadParameter for a name or tenant that nobody can have meant."""
    if not name.strip() or not name.isprintable():
        raise typer.BadParameter(
            "The name is empty, or has line ends or other control characters. Give one that "
            "identifies the key, such as the application's.",
            param_hint="'name'",
        )
    if tenant is not None and re.fullmatch(r"[!-~]+", tenant) is None:
        raise typer.BadParameter(
            "The tenant is empty, or has spaces or other characters than ASCII. Use 'new', or the "
            "id of a tenant as `reattach keys list` shows it.",
            param_hint="'--tenant'",
        )


@keys.command("list")
@with_store_flags
def list_keys(*, as_json: AsJson = False, stores: StoreFlags) -> None:
    """List all keys, including revoked ones.

    Columns: id, first characters, name, tenant, day of creation, scopes, expiry, last use (to the
    minute, in UTC), state.
    """

    async def find(records: "Records") -> list[ApiKey]:
        return await records.keys.list(None)

    settings = settings_with(**stores)
    found = with_records(settings, find, makes=False)
    if as_json:
        typer.echo(json.dumps([_json_of(key) for key in found]))
        return
    for key in found:
        columns = (
            key.id,
            f"{key.prefix}…",
            key.name,
            key.tenant,
            f"{key.created_at:%Y-%m-%d}",
            _scopes_of(key),
            _until(key),
            f"used {key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never used",
            _state_of(key),
        )
        typer.echo("\t".join(map(one_line, columns)))
    if not found:
        create = settings.command("keys create NAME")
        typer.echo(f"No keys exist. Create one with `{create}`.", err=True)


@keys.command("revoke")
@with_store_flags
def revoke_key(
    *,
    key_id: Annotated[str, typer.Argument(help="Id of the key, from `reattach keys list`.")],
    as_json: AsJson = False,
    stores: StoreFlags,
) -> None:
    """Revoke a key. Servers refuse it within a few seconds."""

    async def revoke(records: "Records") -> Literal[True]:
        await records.keys.revoke(key_id, by=Actor.of_command_line())
        return True

    with_records(settings_with(**stores), revoke, makes=False)
    if as_json:
        typer.echo(json.dumps({"id": key_id, "revoked": True}))
        return
    typer.echo(f"Key {key_id} is revoked.", err=True)


def duration(text: str, subject: str) -> timedelta:
    """Parse a duration of ``--expires`` such as 30d. Raises typer.BadParameter."""
    match = re.fullmatch(r"([1-9][0-9]{0,3})([mhdw])", text.strip())
    if match is None:
        raise typer.BadParameter(
            f"'{text}' is not a time for which {subject} can be valid. Use 1 to 9999 minutes, "
            "hours, days or weeks, such as 90m, 12h, 30d or 4w.",
            param_hint="'--expires'",
        )
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _scopes_of(key: ApiKey) -> str:
    return ",".join(sorted(key.scopes)) or "none"


def _until(key: ApiKey) -> str:
    return f"until {key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "forever"


def _state_of(key: ApiKey) -> str:
    if key.revoked_at:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    is_over = key.expires_at is not None and key.expires_at <= SystemClock().now()
    return "expired" if is_over else "active"


def _json_of(key: ApiKey) -> dict[str, Any]:
    """The key as JSON for programs, without its hash."""
    moments = {
        name: moment.isoformat() if (moment := getattr(key, name)) else None
        for name in ("created_at", "revoked_at", "last_used_at", "expires_at")
    }
    return {
        "id": key.id,
        "prefix": key.prefix,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        **moments,
    }


def with_records(
    settings: "Settings", work: "Callable[[Records], Awaitable[_T]]", *, makes: bool = True
) -> _T:
    """Run ``work`` on the records, whether or not a server is using them.

    Without ``makes`` the data directory must exist.
    """
    import asyncio

    from reattach.records.database.failure import explain_startup_failures
    from reattach.records.records import Records

    url = records_url(settings, makes=makes)
    if not makes and settings.database_url is None and not settings.data_dir.exists():
        fail(f"The data directory {settings.data_dir} does not exist. Check --data-dir.")

    async def run() -> _T:
        with explain_startup_failures(url):
            records = await Records.open(url, clock=SystemClock(), durability="power")
        try:
            return await work(records)
        finally:
            await records.aclose()

    return asyncio.run(run())
