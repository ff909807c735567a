"""``reattach top``: a table on a terminal, lines or JSON elsewhere."""

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from reattach.cli.remote.server import RemoteServer, explained, with_server_flags
from reattach.domain.errors import ReattachError

if TYPE_CHECKING:
    from reattach.cli.top.samples import Sample, Sampler

_LIVE_SECONDS: Final = 0.5
_PLAIN_SECONDS: Final = 2.0


@with_server_flags
def top(
    *,
    interval: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=3600,
            help="Seconds between updates. Default: 0.5 on a terminal, 2 elsewhere.",
        ),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Only runs of this tenant, with a key of scope 'operator'.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one sample, and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each sample as a line of JSON, for programs.")
    ] = False,
    server: RemoteServer,
) -> None:
    """Watch the processes and open runs of a server, live.

    Keys: q quits, s and S choose the column to sort by, r reverses the order, / filters, the arrow
    keys select a run, x cancels it, space pauses. Without a terminal it prints lines: totals,
    processes and runs with tabs between their members. It needs a key with scope 'admin', or
    'operator' for all tenants.
    """
    import asyncio

    from reattach.cli.top.samples import Sampler
    from reattach.client import Client
    from reattach.domain.clock import SystemClock

    is_live = not (once or as_json) and _is_screen()
    seconds = interval or (_LIVE_SECONDS if is_live else _PLAIN_SECONDS)

    async def watch() -> None:
        async with Client(server.url, api_key=server.api_key) as client:
            sampler = Sampler(client, SystemClock(), url=server.url, tenant=tenant)
            if is_live:
                from reattach.cli.top.live import LiveTable

                table = LiveTable(
                    sampler, url=server.url, key=server.api_key, interval_seconds=seconds
                )
                await table.run()
            else:
                await _print(sampler, seconds, once=once, as_json=as_json)

    try:
        asyncio.run(watch())
    except ReattachError as error:
        raise explained(error, server.url, server.api_key) from error.__cause__
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _is_screen() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


async def _print(sampler: "Sampler", seconds: float, *, once: bool, as_json: bool) -> None:
    """Print samples. Raises ReattachError at the first that fails."""
    import asyncio

    while True:
        sample = await sampler.take()
        for line in [json.dumps(sample.as_json())] if as_json else _lines_of(sample):
            typer.echo(line)
        sys.stdout.flush()
        if once:
            return
        await asyncio.sleep(seconds)


def _lines_of(sample: "Sample") -> list[str]:
    from reattach.cli.top.screen import process_row, run_row

    rows: list[tuple[str, ...]] = [("total", f"{sample.at:%Y-%m-%d %H:%M:%S} UTC", *sample.summary)]
    rows += [("process", *process_row(one)) for one in sample.processes]
    rows += [("run", *run_row(run)) for run in sample.runs]
    return ["\t".join(row) for row in rows]
