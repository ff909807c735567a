"""The server under measurement: Reattach with an engine that stamps its events.

As a program it serves with the environment's REATTACH_ settings and prints its URL.
"""

import gc

# As ``reattach serve`` does.
gc.disable()

import asyncio  # noqa: E402
from collections.abc import AsyncIterator  # noqa: E402

import uvloop  # noqa: E402

from bench.measuring.frames import UNSTAMPED, stamped  # noqa: E402
from bench.measuring.schedule import Gates, Ticker  # noqa: E402
from reattach.engine.base import Turn  # noqa: E402
from reattach.engine.function import FunctionEngine  # noqa: E402
from reattach.engine.scripted import ScriptedEngine  # noqa: E402
from reattach.observe import configure_logging  # noqa: E402
from reattach.server.process import serve  # noqa: E402
from reattach.server.tune_gc import tune_gc  # noqa: E402
from reattach.settings import Settings  # noqa: E402

tune_gc()

_ticker = Ticker()
_gates = Gates()


async def paced(turn: Turn) -> AsyncIterator[str]:
    """``COUNT RATE PHASE_NS PAUSE_NS GATE``: yield COUNT events at RATE once the gate opens."""
    count, rate, phase_ns, pause_ns, gate = turn.input[-1].text.split(" ", 4)
    due_ns = start_ns = await _gates.start_ns(gate) + int(phase_ns)
    for index in range(int(count)):
        due_ns = start_ns + int(index * 1e9 / float(rate))
        await _ticker.until(due_ns)
        yield stamped(due_ns)
    await _ticker.until(due_ns + int(pause_ns))


async def burst(turn: Turn) -> AsyncIterator[str]:
    """``COUNT``: yield COUNT events as fast as possible."""
    for _ in range(int(turn.input[-1].text)):
        yield UNSTAMPED


async def half_done(turn: Turn) -> AsyncIterator[str]:
    """``COUNT``: yield COUNT events as fast as possible, and then nothing until cancelled."""
    async for event in burst(turn):
        yield event
    await asyncio.Event().wait()


async def silent(_turn: Turn) -> AsyncIterator[str]:
    """Yield one event, and then nothing until the run is cancelled."""
    yield UNSTAMPED
    await asyncio.Event().wait()


def main() -> None:
    configure_logging("console", "error")
    models = {"paced": paced, "burst": burst, "half_done": half_done, "silent": silent}
    engines = [FunctionEngine(models), ScriptedEngine()]
    # The benchmarks exceed the quotas of a tenant.
    settings = Settings(
        port=0, log_level="error", quota_runs=0, quota_streams=0, quota_requests_per_second=0
    )
    uvloop.run(serve(settings, engines=engines, on_ready=lambda url: print(url, flush=True)))


if __name__ == "__main__":
    main()
