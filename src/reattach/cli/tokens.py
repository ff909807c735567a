"""``reattach tokens``: stream tokens for web pages, and the keys that sign them."""

import json
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import quote

import typer

from reattach.cli.keys import duration, with_records
from reattach.cli.options import AsJson, StoreFlags, settings_with, with_store_flags
from reattach.cli.printable import fail
from reattach.cli.remote.answers import IssuedToken, Revoked, StreamToken
from reattach.cli.remote.completion import conversation_ids, model_handles, run_ids, token_ids
from reattach.cli.remote.server import RemoteServer, path_with, with_server_flags
from reattach.cli.remote.tables import Column, duration_text, moment_of, show_rows
from reattach.domain.clock import SystemClock
from reattach.domain.limits.requests import MAX_PAGE_ITEMS
from reattach.domain.stream_tokens import TokenScope
from reattach.records.base import Actor

if TYPE_CHECKING:
    from reattach.records.records import Records

tokens = typer.Typer(
    no_args_is_help=True,
    help="Issue, list and revoke stream tokens, and rotate the keys that sign them.",
)

OfRun = Annotated[
    str | None, typer.Option("--run-id", help="Run.", autocompletion=run_ids, metavar="RUN")
]
OfConversation = Annotated[
    str | None,
    typer.Option(
        "--conversation-id",
        help="Conversation with all its runs.",
        autocompletion=conversation_ids,
        metavar="CONVERSATION",
    ),
]

_COLUMNS: Final = (
    Column("TOKEN", is_whole=True),
    Column("FOR", is_whole=True),
    Column("SCOPES"),
    Column("ORIGIN", rank=2),
    Column("KEY", rank=3),
    Column("CREATED", rank=1),
    Column("STATE"),
    Column("USES", is_number=True),
)


@tokens.command("issue")
@with_server_flags
def issue_token(
    *,
    run_id: OfRun = None,
    conversation_id: OfConversation = None,
    scope: Annotated[
        list[TokenScope] | None,
        typer.Option(help="Permission of the token; repeatable. Default: read."),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(help="How long it is valid, such as 15m; at most 24h. Default: 10m."),
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option(help="Only pages of this origin may use it, such as https://app.example.com."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="With 'send': model that a send may choose; repeatable.",
            autocompletion=model_handles,
        ),
    ] = None,
    client_tool: Annotated[
        list[str] | None,
        typer.Option(help="With 'send': client tool that a send may offer; repeatable."),
    ] = None,
    as_json: AsJson = False,
    server: RemoteServer,
) -> None:
    """Issue a token with which a web page can use one run or one conversation.

    The token goes to standard output and cannot be shown again. Scopes: 'read' follows runs and
    reads messages, 'send' sends to the conversation, 'cancel' cancels its runs. It gets no rights
    that the API key lacks, and is revoked together with it.
    """
    _require_one(run_id, conversation_id)
    body: dict[str, Any] = {
        "run_id": run_id,
        "conversation_id": conversation_id,
        "scope": scope or ["read"],
        "origin": origin,
        "models": model or [],
        "client_tools": client_tool or [],
    }
    if expires is not None:
        body["expires_in_seconds"] = int(duration(expires, "a token").total_seconds())
    issued = server.send("POST", "/v1/tokens", IssuedToken, body=body)
    if as_json:
        typer.echo(json.dumps(issued))
        return
    typer.echo(issued["token"])
    until = moment_of(issued["expires_at"])
    typer.echo(
        f"Token {issued['id']} for {run_id or conversation_id}, scopes "
        f"{','.join(issued['scope'])}, valid until {until:%Y-%m-%d %H:%M} "
        "UTC. It cannot be shown again. Pages send it as 'Authorization: Bearer <token>'.",
        err=True,
    )


@tokens.command("list")
@with_server_flags
def list_tokens(
    *,
    run_id: OfRun = None,
    conversation_id: OfConversation = None,
    limit: Annotated[
        int, typer.Option(min=1, max=MAX_PAGE_ITEMS - 1, help="The most tokens to list.")
    ] = 100,
    as_json: AsJson = False,
    server: RemoteServer,
) -> None:
    """List the tokens that have not expired, the newest first.

    Columns: id, run or conversation, scopes, origin, API key that issued it, creation (UTC), state,
    requests with it.
    """
    found = server.get(
        "/v1/tokens",
        list[StreamToken],
        run_id=run_id,
        conversation_id=conversation_id,
        limit=limit + 1,
    )
    if not found:
        server.require_reattach()
    shown = found[:limit]
    if as_json:
        typer.echo(json.dumps(shown))
    else:
        show_rows(_COLUMNS, [_row_of(token) for token in shown])
        if not found:
            typer.echo(
                "No token is valid. Issue one with `reattach tokens issue --conversation-id ID`.",
                err=True,
            )
    if len(found) > limit:
        typer.echo(f"More tokens exist; --limit shows more than {limit}.", err=True)


@tokens.command("revoke")
@with_server_flags
def revoke_tokens(
    *,
    token_id: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ids of tokens, from `reattach tokens list`.", autocompletion=token_ids
        ),
    ] = None,
    run_id: OfRun = None,
    conversation_id: OfConversation = None,
    as_json: AsJson = False,
    server: RemoteServer,
) -> None:
    """Revoke tokens by id, or all of a run or a conversation.

    They stop working within 5 s on every server, and their open streams end.
    """
    given = token_id or []
    if not given:
        _require_one(run_id, conversation_id, or_else=" or ids of tokens")
        query = {"run_id": run_id, "conversation_id": conversation_id}
        count: int = server.send("DELETE", path_with("/v1/tokens", query), Revoked)["revoked"]
    else:
        if run_id or conversation_id:
            raise typer.BadParameter(
                "Ids of tokens do not go with --run-id or --conversation-id. Give either."
            )
        for one in given:
            server.send("DELETE", f"/v1/tokens/{quote(one, safe='')}", Any)
        count = len(given)
    if as_json:
        typer.echo(json.dumps({"revoked": count}))
    else:
        typer.echo(f"{count} {'token is' if count == 1 else 'tokens are'} revoked.", err=True)


@tokens.command("rotate")
@with_store_flags
def rotate_key(
    *,
    at_once: Annotated[
        bool,
        typer.Option("--at-once", help="Make all issued tokens invalid, of all tenants."),
    ] = False,
    as_json: AsJson = False,
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
    if as_json:
        typer.echo(json.dumps({"rotated": True, "at_once": at_once}))
        return
    old = "All tokens issued before are invalid." if at_once else "The old key verifies for 24 h."
    typer.echo(f"A new key signs stream tokens. {old}", err=True)


def _require_one(run_id: str | None, conversation_id: str | None, *, or_else: str = "") -> None:
    """Raise typer.BadParameter unless exactly one subject is named."""
    if (run_id is None) is (conversation_id is None):
        raise typer.BadParameter(
            f"Give exactly one of --run-id and --conversation-id{or_else and ','}{or_else}."
        )


def _row_of(token: dict[str, Any]) -> tuple[str, ...]:
    left_seconds = (moment_of(token["expires_at"]) - SystemClock().now()).total_seconds()
    return (
        token["id"],
        token["run_id"] or token["conversation_id"],
        ",".join(token["scope"]),
        token["origin"] or "any origin",
        token["key_id"] or "no key",
        f"{moment_of(token['created_at']):%Y-%m-%d %H:%M}",
        "revoked" if token["revoked_at"] else f"{duration_text(max(left_seconds, 0))} left",
        str(token["uses"]),
    )
