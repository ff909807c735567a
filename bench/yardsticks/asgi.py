"""The common part of the yardsticks on Starlette: a server, its routes and its runs."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from bench.measuring.frames import FrameMaker, ended_frames, stamped
from bench.measuring.schedule import Gates, Ticker
from reattach.wire.sse import DONE, split_frames

Frames = Callable[[], AsyncIterator[bytes]]
"""Yield all frames of a run and ``[DONE]``."""

_ticker = Ticker()
_gates = Gates()
_tasks: set[asyncio.Task[None]] = set()


async def ended(events: int) -> AsyncIterator[bytes]:
    for frame in ended_frames(events):
        yield frame
    yield DONE


async def paced(events: int, per_second: float, phase_ns: int, gate: str) -> AsyncIterator[bytes]:
    start_ns = await _gates.start_ns(gate) + phase_ns
    maker = FrameMaker()
    for index in range(events):
        due_ns = start_ns + int(index * 1e9 / per_second)
        await _ticker.until(due_ns)
        yield maker.text(stamped(due_ns))
    for frame in split_frames(maker.terminal()):
        yield frame
    yield DONE


def application(
    produce: Callable[[str, Frames], Awaitable[None]],
    stream: Callable[[str, int], Awaitable[Response]],
) -> Starlette:
    """Build the routes. ``produce`` stores a run's frames; ``stream`` answers from a cursor."""

    async def make_ended(request: Request) -> Response:
        events = int(request.query_params["events"])
        await produce(request.path_params["run"], lambda: ended(events))
        return Response()

    async def make_paced(request: Request) -> Response:
        asked = request.query_params
        run = request.path_params["run"]
        pace = int(asked["events"]), float(asked["rate"]), int(asked["phase_ns"]), asked["gate"]
        _begin(produce(run, lambda: paced(*pace)))
        return Response()

    async def send(request: Request) -> Response:
        return await stream(request.path_params["run"], int(request.query_params["after"]))

    return Starlette(
        routes=[
            Route("/ended/{run}", make_ended, methods=["POST"]),
            Route("/paced/{run}", make_paced, methods=["POST"]),
            Route("/stream/{run}", send),
        ]
    )


def _begin(work: Awaitable[None]) -> None:
    assert isinstance(work, Coroutine)
    task = asyncio.create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def serve(app: ASGIApp) -> None:
    """Serve on a free port with uvicorn's fastest settings, and print the URL."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", ws="none", lifespan="off",
        log_level="error", access_log=False, backlog=4096,
    )  # fmt: skip
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvloop.run(uvicorn.Server(config).serve(sockets=[listener]))
