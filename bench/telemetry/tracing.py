"""The cost of traces: a server without them, and one that sends them to a collector."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from typing import Final

from bench.contenders.contender import fresh
from bench.contenders.product import Reattach, ReattachServer
from bench.growth import send
from bench.measuring.load import Reader
from bench.measuring.reading import live, repeated
from bench.measuring.results import NO_FIGURE, Chapter, Table, figure
from bench.measuring.rounds import Measurement, Results, Turn, interleaved
from bench.options import Options

OFF, ON = "traces off", "traces on"
ROUNDS: Final = 5
SECONDS, QUICK_SECONDS = 3.0, 0.4
RUNS, QUICK_RUNS = 200, 10
EVENTS: Final = 1_000
CONVERSATIONS, QUICK_CONVERSATIONS = 8, 2
TURNS, QUICK_TURNS = 25, 2
RATE: Final = 25.0
LAST: Final = 10

LIVE, SEND, RESUME = "live, many runs of one reader", "send and its run", "resume at the end"
COSTS: Final = {
    LIVE: "CPU µs per delivery",
    SEND: "CPU µs per request",
    RESUME: "CPU µs per request",
}
"""The measurements, and the cost that counts in each."""


class _Taking(BaseHTTPRequestHandler):
    """Takes every batch of spans and keeps none."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name of the base
        """Log nothing."""


@contextmanager
def collecting() -> Iterator[dict[str, str]]:
    """Run a collector, and yield the variables that send spans to it."""
    collector = ThreadingHTTPServer(("127.0.0.1", 0), _Taking)
    thread = threading.Thread(target=collector.serve_forever, daemon=True)
    thread.start()
    try:
        yield {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()


def measurements(server: ReattachServer, options: Options) -> Iterator[Measurement]:
    quick, cores = options.quick, options.cores
    seconds = QUICK_SECONDS if quick else SECONDS
    runs = QUICK_RUNS if quick else RUNS
    yield LIVE, partial(live, server, cores, per_second=RATE, seconds=seconds, runs=runs, readers=1)
    conversations = QUICK_CONVERSATIONS if quick else CONVERSATIONS
    yield SEND, partial(send, server, conversations, QUICK_TURNS if quick else TURNS, cores)
    (stream,) = server.ended(EVENTS)
    end = Reader(stream.at(stream.last - LAST), after=stream.last - LAST, last=stream.last)
    yield RESUME, partial(repeated, server, end, readers=16, cores=cores, seconds=seconds)


def main(options: Options) -> Chapter:
    with ExitStack() as stack:
        environment = stack.enter_context(collecting())
        turns = []
        for contender in (Reattach(OFF), Reattach(ON, environment=environment)):
            server = stack.enter_context(fresh(contender, options.cores))
            assert isinstance(server, ReattachServer)
            turns.append(Turn(contender.name, partial(measurements, server, options)))
        results = interleaved(turns, options.times(ROUNDS))
    rows = []
    for work, cost in COSTS.items():
        figures = [figure(results.get((one, work)), cost) for one in (OFF, ON)]
        found = ratio(results, work, cost)
        rows.append([work, cost, *figures, NO_FIGURE if found is None else f"{found:.3f}"])
    return Chapter(
        "tracing",
        "Tracing",
        "The cost of traces. Both servers run at the same time and are measured in turn. Live "
        "events have no spans. A send with its run has three, and a resume has one.",
        [Table("CPU of the server", ["work", "cost", OFF, ON, "on/off"], rows)],
        [],
        notes=results.failures(),
    )


def ratio(results: Results, work: str, cost: str) -> float | None:
    """Return the median of the rounds' ratios, because the machine differs from round to round."""
    pairs = zip(results[ON, work].rounds, results[OFF, work].rounds, strict=False)
    found = [on[cost] / off[cost] for on, off in pairs if off[cost]]
    return median(found) if found else None
