"""The benchmark ``matrix``: every client in every situation, one experiment for each cell."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import reattach.wire.dialects
from bench.dialects.clients import CLIENTS, Client
from bench.dialects.sessions import Sessions
from bench.dialects.situations import SITUATIONS, WITHOUT, Trial, UnmetError
from bench.dialects.stage import Stage
from bench.measuring.cells import CellTable
from bench.measuring.load import CACHE
from bench.options import Options
from tests.support.browser import BrowserError

TABLE: Final = CellTable("matrix")

YES: Final = "✓"
CUTS, QUICK_CUTS = 24, 3
QUICK: Final = ("`openai`, Node: Responses",)
"""The clients of a quick run, unless others are named: both forms of one."""
_TRIES: Final = 2


def observe(stage: Stage, client: Client, sessions: Sessions, situation: str, cuts: int) -> str:
    """Return the cell: YES, the reason why the client cannot handle it, or what went wrong."""
    cell, experiments = YES, SITUATIONS
    if situation in client.lacks:
        cell, experiments = client.lacks[situation], WITHOUT
        if situation not in experiments:
            return cell
    why = ""
    for _ in range(_TRIES):
        agent = stage.agent()
        trial = Trial(
            stage,
            agent,
            lambda agent=agent: sessions.open(stage.relay.url, stage.server.url, agent),  # type: ignore[misc]
            cuts,
            client.cut_from_bytes,
        )
        try:
            experiments[situation](trial)
        except UnmetError as error:
            return f"**no**: {error}"
        except (RuntimeError, TimeoutError, BrowserError) as error:
            why = f"{type(error).__name__}: {error}"
            print(f"    no result: {why}", flush=True)
        else:
            return cell
        finally:
            sessions.end()
    return f"**no result**: {why.strip().splitlines()[-1]}"


def lines_of_dialects() -> Mapping[str, int]:
    """Return the lines of each file of the dialects."""
    folder = Path(reattach.wire.dialects.__path__[0])
    return {
        file.name: len(file.read_text("utf-8").splitlines())
        for file in sorted(folder.glob("*.py"))
        if file.name != "__init__.py"
    }


def main(options: Options) -> None:
    """Print the matrix, and write it into the page that ``--table`` names."""
    words = options.contenders or (QUICK if options.quick else ("",))
    clients = [one for one in CLIENTS if any(word in one.name for word in words)]
    situations = [name for name in SITUATIONS if options.only in name]
    found: dict[tuple[str, str], str] = {}
    with TemporaryDirectory(prefix="bench-data-") as folder, Stage(Path(folder)) as stage:
        for client in clients:
            with client.opened() as sessions:
                for name in situations:
                    began = time.monotonic()
                    cuts = QUICK_CUTS if options.quick else CUTS
                    cell = observe(stage, client, sessions, name, cuts)
                    found[client.name, name] = cell
                    took = time.monotonic() - began
                    print(f"  {client.name}, {name}: {cell} ({took:.1f} s)", flush=True)
    print(f"\n{TABLE.printed(found)}")
    lines = lines_of_dialects()
    print("\n".join(f"{count:5} lines  wire/dialects/{name}" for name, count in lines.items()))
    CACHE.mkdir(exist_ok=True)
    cells = [
        {"client": one, "situation": name, "cell": cell} for (one, name), cell in found.items()
    ]
    (CACHE / "matrix.json").write_text(json.dumps({"cells": cells, "lines": lines}, indent=1))
    if unmet := [f"{', '.join(place)}: {cell}" for place, cell in found.items() if "**" in cell]:
        raise SystemExit("\n".join(["Cells that do not hold:", *unmet]))
    if options.table:
        names = [one.name for one in CLIENTS]
        order = [(name, situation) for name in names for situation in SITUATIONS]
        TABLE.write(found, Path(options.table), order)
