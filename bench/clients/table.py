"""The benchmark ``clients``: for each client and fault, what its user sees."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench.clients.clients import ENDED, UNEXPLAINED, Client, View, clients
from bench.clients.faults import FAULTS, Fault
from bench.clients.scene import LIMIT_SECONDS, Scene, until
from bench.measuring.cells import CellTable
from bench.measuring.load import SpoiledError
from bench.measuring.results import NO_FIGURE
from bench.options import Options

TABLE: Final = CellTable("clients")

ALL: Final = "all, once"
HANGS: Final = "hangs"

FIRST_WORDS: Final = 10
"""A fault hits when the client shows so many words of the answer."""
TRIES: Final = 3

Made = Callable[[], Client]


def observe(make: Made, fault: Fault) -> str:
    """Perform one experiment, and return what the user saw.

    Raises:
        SpoiledError: The fault did not hit the client in the middle of the answer.
    """
    with (
        TemporaryDirectory(prefix="bench-data-") as folder,
        Scene(
            Path(folder),
            retention_seconds=fault.retention_seconds,
            token_seconds=fault.token_seconds,
        ) as scene,
        make() as client,
    ):
        run = scene.send(fault.words, fault.per_second)
        client.start(scene, run)
        _wait_for_words(client, min(FIRST_WORDS, fault.words // 2))
        before = fault.trace(scene)
        fault.inject(scene, run, client)
        view = _last_view(client)
        if fault.trace(scene) == before:
            raise SpoiledError(f"{fault.name} did not hit the client")
        return described(view, run.answer)


def observed(make: Made, fault: Fault) -> str:
    """Perform an experiment, again if it failed by itself, as on a machine that is too busy.

    Raises:
        SpoiledError: It failed TRIES times.
    """
    why = ""
    for _ in range(TRIES):
        try:
            return observe(make, fault)
        except (SpoiledError, RuntimeError, TimeoutError) as error:
            why = str(error)
            print(f"    no result: {why}", flush=True)
    raise SpoiledError(why)


def _wait_for_words(client: Client, words: int) -> None:
    def has_begun() -> bool:
        view = client.view
        if view.end is not None and view.end != ENDED:
            raise SpoiledError(f"the client stopped before the fault: {view.end}")
        return view.text.count(" ") >= words

    until(has_begun)


def _last_view(client: Client) -> View:
    """Wait until the client ends, and return its view; ``end`` is None if it hangs."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while (view := client.view).end is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return view


def described(view: View, answer: str) -> str:
    """Return in a few words what a user sees who expected the answer."""
    end = {None: HANGS, ENDED: "", UNEXPLAINED: f"stops {UNEXPLAINED}"}.get(
        view.end, f"stops: {view.end}"
    )
    if view.text == answer:
        return f"{ALL}; then {end}" if end else ALL
    if answer.startswith(view.text) and end:
        return end
    expected, seen = Counter(answer.split()), Counter(view.text.split())
    lost, doubled = (expected - seen).total(), (seen - expected).total()
    return "; ".join([f"**{lost} words lost, {doubled} doubled**", *([end] if end else [])])


def main(options: Options) -> None:
    """Print the table, and write it into the page that ``--table`` names."""
    faults = [fault for fault in FAULTS if options.only in fault.name]
    found: dict[tuple[str, str], str] = {}
    missing = []
    with clients() as makers:
        names = list(makers)
        for name, make in makers.items():
            if options.contenders and not any(word in name for word in options.contenders):
                continue
            for fault in faults:
                try:
                    found[name, fault.name] = seen = observed(make, fault)
                except SpoiledError as error:
                    found[name, fault.name] = seen = NO_FIGURE
                    missing.append(f"{name}, {fault.name}: {error}")
                print(f"  {name}, {fault.name}: {seen}", flush=True)
    print(f"\n{TABLE.printed(found)}")
    if missing:
        raise SystemExit("\n".join(["Without a result:", *missing]))
    if options.table:
        order = [(name, fault.name) for name in names for fault in FAULTS]
        TABLE.write(found, Path(options.table), order)
