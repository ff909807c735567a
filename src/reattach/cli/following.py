"""``reattach attach``: follows an answer in the terminal."""

import asyncio
import json
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from reattach.cli.printable import fail, printable
from reattach.cli.remote.completion import active_run_ids, agent_ids, conversation_ids
from reattach.cli.remote.server import DEFAULT_URL, ApiKey, Url, explained
from reattach.domain.errors import ReattachError
from reattach.redact import without_secrets

if TYPE_CHECKING:
    from reattach.client import Client, Event, ManyStream, Retry, Stream, Takeover

_QUIET_SECONDS = 1.0
"""Connection trouble shorter than this is not reported."""

_GIVE_UP_SECONDS = 120.0
"""A person at a terminal waits no longer for a server that is away."""

_LONGEST_WAIT_SECONDS = 5.0
"""The person sees the answer go on within this time after the server is back."""


_RUN_PREFIX = "run-"


def attach(
    conversation: Annotated[
        str,
        typer.Argument(
            help="Id of a conversation, or 'default' with --agent-id.",
            autocompletion=conversation_ids,
        ),
    ] = "default",
    run_id: Annotated[
        str | None,
        typer.Option(help="Run; default: the active one.", autocompletion=active_run_ids),
    ] = None,
    otid: Annotated[str | None, typer.Option(help="OTID of a message of the run.")] = None,
    agent_id: Annotated[
        str | None, typer.Option(help="Agent, with 'default'.", autocompletion=agent_ids)
    ] = None,
    after: Annotated[int, typer.Option(help="Cursor: seq_id of the last event you have.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each event as a line of JSON, for programs.")
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Follow an answer in the terminal until it ends, through every broken connection.

    The answer goes to standard output, everything else to standard error. Ctrl-C detaches and
    prints the command that attaches again; the run continues on the server.
    """
    if conversation.startswith(_RUN_PREFIX):
        fail(
            f"{conversation} is the id of a run. Follow its answer with `reattach attach --run-id "
            f"{conversation}`, or see its events with `reattach runs tail {conversation}`."
        )
    named = {"--run-id": run_id, "--otid": otid, "--agent-id": agent_id, "--url": url}
    options = [part for name, value in named.items() if value for part in (name, value)]
    follow(
        Reporter(url, after, ["attach", conversation, *options], names_run=True),
        api_key,
        lambda client: client.follow(
            conversation, run_id=run_id, otid=otid, agent_id=agent_id, starting_after=after
        ),
        show_json if as_json else _show,
    )


def follow(
    reporter: "Reporter",
    api_key: str | None,
    stream_of: "Callable[[Client], Stream | ManyStream]",
    show: "Callable[[Event], object]",
) -> None:
    """Show each event of a stream until it ends, and report trouble on standard error.

    Exits with status 1 if a run failed or was cancelled or cannot be followed, and 130 after
    Ctrl-C.
    """
    from reattach.client import Client
    from reattach.server.tune_gc import tune_gc

    tune_gc()

    async def show_all() -> None:
        client = Client(
            reporter.url,
            api_key=api_key,
            give_up_seconds=_GIVE_UP_SECONDS,
            longest_wait_seconds=_LONGEST_WAIT_SECONDS,
            on_retry=reporter.lost,
            on_attached=reporter.attached,
            on_takeover=reporter.taken_over,
        )
        reporter.connecting()
        async with client, stream_of(client) as events:
            async for event in events:
                show(event)
                reporter.see(event)

    try:
        asyncio.run(show_all())
    except TimeoutError as error:
        fail(str(error))
    except ReattachError as error:
        raise explained(error, reporter.url, api_key) from error.__cause__
    except KeyboardInterrupt:
        reporter.detached()
        raise SystemExit(130) from None
    reporter.ended()
    if reporter.failed:
        raise SystemExit(1)


class Reporter:
    """Reports the state of the connection on standard error, once trouble lasts for a second.

    ``arguments`` are those of the command, which Ctrl-C prints with the cursor. With ``names_run``
    the command names the run as soon as it is known; without ``has_cursor`` it prints no cursor.
    """

    def __init__(
        self,
        url: str,
        cursor: int,
        arguments: Sequence[str],
        *,
        names_run: bool = False,
        has_cursor: bool = True,
    ) -> None:
        self.url = url
        self._shown_url = without_secrets(url)
        self.cursor = cursor
        self._start = cursor
        self.failed = False
        """Whether the run failed or was cancelled."""
        self._arguments = arguments
        self._names_run = names_run
        self._has_cursor = has_cursor
        self._trouble = f"Connecting to {self._shown_url} …"
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
            f"No connection to {self._shown_url}: {retry.cause}. "
            f"Retrying for up to {retry.remaining_seconds:.0f} s."
        )
        if self._since is None:
            self.connecting()
        elif self._reported and retry.cause != self._cause:
            self._report_trouble()
        self._cause = retry.cause

    def see(self, event: "Event") -> None:
        """Take in an event that was shown."""
        if self._has_cursor:
            self.cursor = event["seq_id"]
        else:
            self.cursor += 1  # Only to know that something was written.
        is_failure = event["message_type"] in {"error_message", "run_error"}
        if is_failure or event.get("stop_reason") == "cancelled":
            self.failed = True

    def attached(self, run_id: str | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._reported and self._since is not None:
            seconds = asyncio.get_running_loop().time() - self._since
            place = f", at event {self.cursor}" if self._has_cursor else ""
            self._write(f"Attached after {seconds:.1f} s{place}.")
        if run_id is not None and self._names_run:
            self._arguments = ["attach", "--run-id", run_id, "--url", self.url]
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

    def ended(self) -> None:
        """Say that a cursor was at the end of a run, which would otherwise show nothing."""
        if self._has_cursor and self.cursor == self._start > 0:
            self._write(f"The run has ended, and has no event after {self.cursor}.")

    def detached(self) -> None:
        after = ["--after", str(self.cursor)] if self._has_cursor else []
        place = f" after event {self.cursor}" if self._has_cursor else ""
        arguments = [self._shown_url if one == self.url else one for one in self._arguments]
        again = shlex.join(["reattach", *arguments, *after])
        self._write(f"Detached{place}. Attach again with: {again}")

    def _report_trouble(self) -> None:
        self._reported = True
        self._write(self._trouble)

    def _write(self, text: str) -> None:
        """Write a line, after a line break if the answer may have left one unfinished."""
        line_end = "\n" if self.cursor > self._start else ""
        typer.echo(f"{line_end}reattach: {printable(text)}", err=True)


def show_json(event: "Event") -> None:
    """Write an event as a line of JSON to standard output."""
    typer.echo(json.dumps(event))


def _show(event: "Event") -> None:
    """Write the answer to standard output, and other events to standard error.

    Control characters are shown as escapes, because a model or a tool may have been made to write
    them; ``--json`` has the exact text.
    """
    match event["message_type"]:
        case "assistant_message":
            typer.echo(printable(event["content"]), nl=False)
        case "reasoning_message":
            typer.echo(printable(event["reasoning"]), nl=False, err=True)
        case "tool_call_message" | "approval_request_message" | "tool_return_message":
            typer.echo(f"\n[{event['message_type']}]", err=True)
        case "error_message":
            typer.echo(printable(f"\n{event['error_type']}: {event['message']}"), err=True)
        case "stop_reason":
            typer.echo(printable(f"\n[{event['stop_reason']}]"), err=True)
        case _:
            pass
