"""An answer after a reload of its page: by a replay of its events, or by a snapshot."""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPConnection

from bench.contenders.contender import fresh
from bench.contenders.product import Reattach, ReattachServer
from bench.measuring.load import SpoiledError
from bench.measuring.machine import cpu_seconds
from bench.measuring.results import Chapter, Goal, at_most, table
from bench.measuring.rounds import Figures, Measurement, Turn, interleaved
from bench.options import Options

EVENTS, QUICK_EVENTS = 20_000, 2000
SNAPSHOTS, QUICK_SNAPSHOTS = 1000, 100
ROUNDS = 3
LIMIT_SECONDS = 120.0
REPLAY, FIRST, NEXT = "replay", "first snapshot", "next snapshot"
RUN = "the run alone, as a yardstick of requests"
OWN = Reattach().name


class Page:
    """A page that shows the answer of one open run, over a connection that stays open."""

    def __init__(self, server: ReattachServer, run_id: str) -> None:
        self._server = server
        self._path = f"/v1/runs/{run_id}"
        self._connection = HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_SECONDS)

    def by_replay(self, last: int) -> tuple[str, int]:
        """Return the text, and the bytes that were read for it."""
        connection = HTTPConnection("127.0.0.1", self._server.port, timeout=LIMIT_SECONDS)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", f"{self._path}/stream", "{}", headers)
        response = connection.getresponse()
        pieces, read_bytes, seq = [], 0, 0
        while seq < last:
            line = response.readline()
            read_bytes += len(line)
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                seq = event["seq_id"]
                pieces.append(event.get("content", ""))
        connection.close()
        return "".join(pieces), read_bytes

    def by_snapshot(self) -> tuple[str, int, int]:
        """Return the text, the bytes that were read for it, and the seq of its newest event."""
        self._connection.request("GET", f"{self._path}/snapshot")
        body = self._connection.getresponse().read()
        found = json.loads(body)
        text = "".join(
            one["content"]
            for one in found["messages"]
            if one["message_type"] == "assistant_message"
        )
        return text, len(body), found["seq"]

    def run(self) -> tuple[str, int]:
        """Get the run without its answer."""
        self._connection.request("GET", self._path)
        return "", len(self._connection.getresponse().read())

    def until_whole(self, events: int) -> int:
        """Wait until the run has all its events, and return the seq of the last one."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while (last := self.by_snapshot()[2]) < events:
            if time.monotonic() > deadline:
                raise SpoiledError(f"the run has {last} of {events} events")
            time.sleep(0.05)
        return last


def measured(server: ReattachServer, show: Callable[[], tuple[str, int]], times: int) -> Figures:
    """Show the answer some times, and return the figures of one of them."""
    before, begin = cpu_seconds(server.pids), time.monotonic()
    for _ in range(times):
        _, read_bytes = show()
    used, seconds = cpu_seconds(server.pids) - before, time.monotonic() - begin
    return {
        "bytes": read_bytes,
        "ms": 1000 * seconds / times,
        "server CPU ms": 1000 * used / times,
        "server CPU ms in all": 1000 * used,
    }


def reloads(options: Options) -> Iterator[Measurement]:
    """Measure on a new server, whose first snapshot has to fold all events."""
    events = QUICK_EVENTS if options.quick else EVENTS
    snapshots = QUICK_SNAPSHOTS if options.quick else SNAPSHOTS
    with fresh(Reattach(settings={"ping_interval_seconds": "0.5"}), options.cores) as server:
        page = Page(server, server.half_done(events))
        last = page.until_whole(events)
        text, _ = page.by_replay(last)
        if page.by_snapshot()[0] != text:
            raise SpoiledError("the snapshot has another text than the replay")
        time.sleep(2.0)  # The fold is dropped, because nobody has asked for it for a while.

        def shown() -> tuple[str, int]:
            found, read_bytes, _ = page.by_snapshot()
            return found, read_bytes

        yield FIRST, partial(measured, server, shown, 1)
        yield NEXT, partial(measured, server, shown, snapshots)
        yield RUN, partial(measured, server, page.run, snapshots)
        yield REPLAY, partial(measured, server, partial(page.by_replay, last), 5)


def main(options: Options) -> Chapter:
    results = interleaved([Turn(OWN, partial(reloads, options))], options.times(ROUNDS))
    events = QUICK_EVENTS if options.quick else EVENTS
    snapshots = QUICK_SNAPSHOTS if options.quick else SNAPSHOTS
    columns = ("bytes", "ms", "server CPU ms", "server CPU ms in all")
    return Chapter(
        "reload",
        "Reload of a page",
        f"An open run of {events:,} events of about 350 bytes is shown by a page that has nothing: "
        "by the replay of its events, and by a snapshot. The page is a Python program; its time is "
        "from its request until it has decoded everything. The first snapshot folds the events; "
        f"the next {snapshots:,} find that fold.",
        [table(results, "Answers shown", [REPLAY, FIRST, NEXT, RUN],
               dict(zip(columns, columns, strict=True)))],
        [
            Goal("a snapshot: bytes", "≤ 0.1 × a replay's",
                 results.ratio("bytes", (OWN, NEXT), (OWN, REPLAY)), at_most(0.1), "× replay"),
            Goal("a snapshot that finds a fold: server CPU", "≤ 1 × a replay's",
                 results.ratio("server CPU ms", (OWN, NEXT), (OWN, REPLAY)), at_most(1),
                 "× replay"),
        ],
        notes=results.failures(),
    )  # fmt: skip
