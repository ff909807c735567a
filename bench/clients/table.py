"""The benchmark ``clients``: for each client and fault, what its user sees."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench.clients.clients import ENDED, UNEXPLAINED, Client, View, clients
from bench.clients.faults import FAULTS, Fault
from bench.clients.scene import LIMIT_SECONDS, Scene, until
from bench.measuring.load import SpoiledError
from bench.measuring.results import NO_FIGURE
from bench.options import Options

BEGIN: Final = "<!-- Written by `scripts/bench clients`. -->\n"
END: Final = "<!-- End of the table. -->\n"

ALL: Final = "all, once"
HANGS: Final = "hangs"

FIRST_WORDS: Final = 10
"""A fault hits when the client shows so many words of the answer."""
TRIES: Final = 3

Made = Callable[[], Client]
Cells = Mapping[tuple[str, str], str]
"""The texts of the table, by client and fault."""


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


def table(found: Cells) -> str:
    """Format what was found, by client and fault, as a markdown table."""
    names = list(dict.fromkeys(name for name, _ in found))
    faults = list(dict.fromkeys(fault for _, fault in found))
    rows = [
        ["Client", *faults],
        ["---"] * (1 + len(faults)),
        *([name, *(found[name, fault] for fault in faults)] for name in names),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cells_of(page: str) -> Cells:
    """Return the cells of the table between the marks of a page."""
    lines = page.partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines]
    if not rows:
        return {}
    (_, *faults), _, *rest = rows
    return {
        (name, fault): cell
        for name, *cells in rest
        for fault, cell in zip(faults, cells, strict=True)
    }


def write(found: Cells, file: Path, names: Sequence[str]) -> None:
    """Put the cells into the table between the marks of a page, in the order of the clients' names.

    Cells of other clients and faults stay.
    """
    page = file.read_text("utf-8")
    before, mark, rest = page.partition(BEGIN)
    if not mark:
        raise SystemExit(f"bench: {file} has no line {BEGIN.strip()!r} for the table.")
    cells = {**cells_of(page), **found}
    order = [(name, fault.name) for name in names for fault in FAULTS]
    text = table({place: cells[place] for place in order if place in cells})
    file.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", "utf-8")


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
    print(f"\n{table(found)}")
    if missing:
        raise SystemExit("\n".join(["Without a result:", *missing]))
    if options.table:
        write(found, Path(options.table), names)
