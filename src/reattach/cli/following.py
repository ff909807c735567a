"""``reattach attach``: follows an answer in the terminal."""

import asyncio
import shlex
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from reattach.cli.options import fail

if TYPE_CHECKING:
    from reattach.client import Event, Retry, Takeover

_QUIET_SECONDS = 1.0
"""Connection trouble shorter than this is not reported."""

_GIVE_UP_SECONDS = 120.0
"""A person at a terminal waits no longer for a server that is away."""

_LONGEST_WAIT_SECONDS = 5.0
"""The person sees the answer go on within this time after the server is back."""


def attach(
    conversation: Annotated[
        str, typer.Argument(help="Id of a conversation, or 'default' with --agent-id.")
    ] = "default",
    run_id: Annotated[str | None, typer.Option(help="Run; default: the active one.")] = None,
    otid: Annotated[str | None, typer.Option(help="OTID of a message of the run.")] = None,
    agent_id: Annotated[str | None, typer.Option(help="Agent, with 'default'.")] = None,
    after: Annotated[int, typer.Option(help="Cursor: seq_id of the last event you have.")] = 0,
    url: Annotated[
        str, typer.Option(envvar="REATTACH_URL", help="URL of the server.")
    ] = "http://127.0.0.1:8283",
    api_key: Annotated[
        str | None, typer.Option(envvar="REATTACH_API_KEY", help="API key for the server.")
    ] = None,
) -> None:
    """Follow an answer in the terminal until it ends, through every broken connection.

    The answer goes to standard output, everything else to standard error. Ctrl-C detaches and
    prints the command that attaches again; the run continues on the server.
    """
    from reattach.client import Client
    from reattach.server.tune_gc import tune_gc

    tune_gc()
    named = {"--run-id": run_id, "--otid": otid, "--agent-id": agent_id, "--url": url}
    options = [part for name, value in named.items() if value for part in (name, value)]
    reporter = _Reporter(url, after, [conversation, *options])

    async def follow() -> None:
        client = Client(
            url,
            api_key=api_key,
            give_up_seconds=_GIVE_UP_SECONDS,
            longest_wait_seconds=_LONGEST_WAIT_SECONDS,
            on_retry=reporter.lost,
            on_attached=reporter.attached,
            on_takeover=reporter.taken_over,
        )
        reporter.connecting()
        async with client:
            following = client.follow(
                conversation, run_id=run_id, otid=otid, agent_id=agent_id, starting_after=after
            )
            async with aclosing(following) as events:
                async for event in events:
                    _show(event)
                    reporter.see(event)

    try:
        asyncio.run(follow())
    except TimeoutError as error:
        fail(str(error))
    except KeyboardInterrupt:
        reporter.detached()
        raise SystemExit(130) from None
    if reporter.failed:
        raise SystemExit(1)


class _Reporter:
    """Reports the state of the connection on standard error, once trouble lasts for a second."""

    def __init__(self, url: str, cursor: int, arguments: Sequence[str]) -> None:
        self.cursor = cursor
        self._start = cursor
        self.failed = False
        """Whether the run failed or was cancelled."""
        self._url = url
        self._arguments = arguments
        self._trouble = f"Connecting to {url} …"
        self._cause: str | None = None
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reported = False

    def connecting(self) -> None:
        loop = asyncio.get_running_loop()
        self._since = loop.time()
        self._timer = loop.call_later(_QUIET_SECONDS, self._report_trouble)

    def lost(self, retry: "Retry") -> None:
        self._trouble = (
            f"No connection to {self._url}: {retry.cause}. "
            f"Retrying for up to {retry.remaining_seconds:.0f} s."
        )
        if self._since is None:
            self.connecting()
        elif self._reported and retry.cause != self._cause:
            self._report_trouble()
        self._cause = retry.cause

    def see(self, event: "Event") -> None:
        """Take in an event that was shown."""
        self.cursor = event["seq_id"]
        if event["message_type"] == "error_message" or event.get("stop_reason") == "cancelled":
            self.failed = True

    def attached(self, run_id: str | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._reported and self._since is not None:
            seconds = asyncio.get_running_loop().time() - self._since
            self._write(f"Attached after {seconds:.1f} s, at event {self.cursor}.")
        if run_id is not None:
            self._arguments = ["--run-id", run_id, "--url", self._url]
        self._since, self._reported, self._cause = None, False, None

    def taken_over(self, takeover: "Takeover") -> None:
        """Say that the answer goes on in another process."""
        if takeover.was_refused:
            text = "The server was restarted"
        elif takeover.cause == "handover":
            text = "The server's process was stopped and handed the answer over"
        else:
            text = "The server's process failed, and another one took the answer over"
        seconds = takeover.gap_seconds
        self._write(f"{text}; the answer goes on after {seconds:.1f} s, at event {self.cursor}.")

    def detached(self) -> None:
        again = shlex.join(["reattach", "attach", *self._arguments, "--after", str(self.cursor)])
        self._write(f"Detached after event {self.cursor}. Attach again with: {again}")

    def _report_trouble(self) -> None:
        self._reported = True
        self._write(self._trouble)

    def _write(self, text: str) -> None:
        """Write a line, after a line break if the answer may have left one unfinished."""
        line_end = "\n" if self.cursor > self._start else ""
        typer.echo(f"{line_end}reattach: {text}", err=True)


def _show(event: "Event") -> None:
    """Write the answer to standard output, and other events to standard error."""
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
