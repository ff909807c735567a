"""``reattach attach``: an answer in the terminal."""

import asyncio
from typing import Annotated

import typer

from reattach.cli.options import fail
from reattach.client import Client, Event


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
        fail(str(error))


def _show(event: Event) -> None:
    """The answer on standard output, and what else happens on standard error."""
    match event["message_type"]:
        case "assistant_message":
            typer.echo(event["content"], nl=False)
        case "reasoning_message":
            typer.echo(event["reasoning"], nl=False, err=True)
        case "tool_call_message" | "approval_request_message" | "tool_return_message":
            typer.echo(f"\n[{event['message_type']}]", err=True)
        case "error_message":
            typer.echo(f"\n{event['error_type']}: {event['message']}", err=True)
        case "stop_reason":
            typer.echo(f"\n[{event['stop_reason']}]", err=True)
        case _:
            pass
