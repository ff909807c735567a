"""``python -m bench.yardsticks.publisher``: post the events of runs to a server.

For servers that receive events by HTTP. Its standard input has a line with the port, a line with
the pace, and for each run a line with the head of its requests. Requests are pipelined.
"""

import asyncio
import sys
from dataclasses import dataclass

import uvloop

from bench.measuring.frames import FrameMaker, stamped
from bench.measuring.schedule import Gates, Ticker
from reattach.wire.sse import frame_data, split_frames

CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Order:
    port: int
    events: int
    per_second: float
    gate: str
    heads: list[str]
    """The head of a request; LENGTH stands for the length of the body."""

    def lines(self) -> str:
        pace = f"{self.events} {self.per_second} {self.gate}"
        return "\n".join([str(self.port), pace, *self.heads, ""])


def read_order() -> Order:
    port, pace, *heads = sys.stdin.read().splitlines()
    events, per_second, gate = pace.split(" ", 2)
    return Order(int(port), int(events), float(per_second), gate, heads)


def request(head: str, body: bytes) -> bytes:
    """Write ``head`` on one line, as ``POST /path|name: value``."""
    lines = head.replace("LENGTH", str(len(body))).split("|")
    return "\r\n".join([f"{lines[0]} HTTP/1.1", *lines[1:], "", ""]).encode() + body


async def publish(order: Order) -> None:
    writers = []
    for _ in range(min(CONNECTIONS, len(order.heads))):
        reader, writer = await asyncio.open_connection("127.0.0.1", order.port)
        writers.append((writer, asyncio.create_task(_forget(reader))))
    gate_ns = await Gates().start_ns(order.gate)
    ticker = Ticker()
    interval_ns = 1e9 / order.per_second
    ended = asyncio.Event()
    left = len(order.heads)

    def begin(number: int, head: str) -> None:
        writer, _ = writers[number % len(writers)]
        start_ns = gate_ns + int(number * interval_ns / len(order.heads))
        maker = FrameMaker()
        index = 0

        def say() -> None:
            nonlocal index, left
            due_ns = start_ns + int(index * interval_ns)
            writer.write(request(head, frame_data(maker.text(stamped(due_ns)))))
            index += 1
            if index < order.events:
                ticker.at(start_ns + int(index * interval_ns), say)
                return
            for frame in split_frames(maker.terminal()):
                writer.write(request(head, frame_data(frame)))
            left -= 1
            if left == 0:
                ended.set()

        ticker.at(start_ns, say)

    for number, head in enumerate(order.heads):
        begin(number, head)
    await ended.wait()
    await asyncio.sleep(1.0)  # The last answers must still be read.


async def _forget(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


if __name__ == "__main__":
    uvloop.run(publish(read_order()))
