"""Programs of the examples that serve, in a thread of the test."""

from __future__ import annotations

import runpy
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from tests.support.threads import WAIT_SECONDS

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextmanager
def program_served(program: Path, **environment: str) -> Iterator[str]:
    """Serve the ``app`` of a program on a free loopback port, and yield its URL.

    The environment is that of its import; ``{url}`` in a value becomes the URL.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in environment.items():
            patch.setenv(variable, value.format(url=url))
        app: Any = runpy.run_path(str(program))["app"]
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), name=program.stem)
    thread.start()
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join(WAIT_SECONDS)
        listener.close()
    assert not thread.is_alive()
