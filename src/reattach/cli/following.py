"""``reattach attach``: an answer in the terminal."""

import asyncio
import shlex
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated

import typer

from reattach.cli.options import fail
from reattach.client import Client, Event, Retry

_QUIET_SECONDS = 1.0
"""Trouble that passes sooner is not worth a line."""


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
    """Follow an answer in the terminal, through every broken connection, until it ends.

    The answer goes to standard output, everything else to standard error. Ctrl-C detaches and
    prints the command that attaches again; the answer goes on.
    """
    named = {"--run-id": run_id, "--otid": otid, "--agent-id": agent_id, "--url": url}
    options = [part for name, value in named.items() if value for part in (name, value)]
    narrator = _Narrator(url, after, [conversation, *options])

    async def follow() -> None:
        client = Client(url, api_key=api_key, on_retry=narrator.lost, on_attached=narrator.attached)
        narrator.connecting()
        async with client:
            following = client.follow(
                conversation, run_id=run_id, otid=otid, agent_id=agent_id, starting_after=after
            )
            async with aclosing(following) as events:
                async for event in events:
                    _show(event)
                    narrator.cursor = event["seq_id"]

    try:
        asyncio.run(follow())
    except TimeoutError as error:
        fail(str(error))
    except KeyboardInterrupt:
        narrator.detached()
        raise SystemExit(130) from None


class _Narrator:
    """Says on standard error how the connection fares, once trouble lasts for a second."""

    def __init__(self, url: str, cursor: int, arguments: Sequence[str]) -> None:
        self.cursor = cursor
        self._start = cursor
        self._url = url
        self._arguments = arguments
        self._trouble = f"Connecting to {url} …"
        self._cause: str | None = None
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._spoke = False

    def connecting(self) -> None:
        loop = asyncio.get_running_loop()
        self._since = loop.time()
        self._timer = loop.call_later(_QUIET_SECONDS, self._speak)

    def lost(self, retry: Retry) -> None:
        self._trouble = (
            f"No connection to {self._url}: {retry.cause}. "
            f"Trying again for up to {retry.remaining_seconds:.0f} s."
        )
        if self._since is None:
            self.connecting()
        elif self._spoke and retry.cause != self._cause:
            self._speak()
        self._cause = retry.cause

    def attached(self, run_id: str | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._spoke and self._since is not None:
            seconds = asyncio.get_running_loop().time() - self._since
            self._say(f"Attached after {seconds:.1f} s, at event {self.cursor}.")
        if run_id is not None:
            self._arguments = ["--run-id", run_id, "--url", self._url]
        self._since, self._spoke, self._cause = None, False, None

    def detached(self) -> None:
        again = shlex.join(["reattach", "attach", *self._arguments, "--after", str(self.cursor)])
        self._say(f"Detached after event {self.cursor}. Attach again with: {again}")

    def _speak(self) -> None:
        self._spoke = True
        self._say(self._trouble)

    def _say(self, text: str) -> None:
        """Write a line of its own: after the first event the cursor may stand within one."""
        line_end = "\n" if self.cursor > self._start else ""
        typer.echo(f"{line_end}reattach: {text}", err=True)


def _show(event: Event) -> None:
    """Write the answer to standard output, and what else happens to standard error."""
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
