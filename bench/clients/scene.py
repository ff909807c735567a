"""The place of an experiment: a server, a run, a relay in front of the server, and tokens."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from reattach.domain.clock import SystemClock
from reattach.domain.ids import DEFAULT_TENANT
from reattach.records.database.database import upgrade
from reattach.records.records import Records
from reattach.server import datadir
from reattach.testing.closing import Closing
from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess

LIMIT_SECONDS: Final = 120.0
"""Bound of every wait."""

RETENTION_SECONDS: Final = 1.0
"""In experiments in which the log expires."""

DAY_SECONDS: Final = 86_400.0

_NOWHERE: Final = ("127.0.0.1", 1)
"""An address that refuses connections."""


@dataclass
class Run:
    """A run whose answer is ``t0 t1 t2 …``."""

    conversation_id: str
    run_id: str
    answer: str


class Scene(Closing):
    """A server with a key behind a relay, and an application's server that hands out tokens."""

    def __init__(self, folder: Path, *, retention_seconds: float, token_seconds: int) -> None:
        self._key = asyncio.run(_key_of(folder))
        self.server = ServerProcess(
            folder,
            arguments=["--scripted", "--log-level", "error"],
            environment={
                "REATTACH_PING_INTERVAL_SECONDS": "1",
                "REATTACH_RETENTION_SECONDS": f"{retention_seconds}",
            },
        )
        self._token_seconds = token_seconds
        self.tokens_issued = 0
        self._conversation_id = ""

    def __enter__(self) -> Self:
        self.server.__enter__()
        self.relay = Relay(self.server.address)
        self._tokens = _TokenServer(self)
        return self

    def close(self) -> None:
        self._tokens.close()
        self.relay.close()
        self.server.close()

    @property
    def token_url(self) -> str:
        """The address at which a client gets a token of the conversation."""
        return self._tokens.url

    def send(self, words: int, per_second: float) -> Run:
        """Start a run that says so many words at this rate."""
        agent = self.asked("POST", "/v1/agents/", {"name": "a", "model": "scripted/echo"})
        path = f"/v1/conversations/?agent_id={agent['id']}"
        self._conversation_id = self.asked("POST", path, {})["id"]
        body = {"input": f"[chunks={words}][rate={per_second:g}]", "stream_tokens": True}
        path = f"/v1/conversations/{self._conversation_id}/messages"
        with self._opened("POST", path, {**body, "background": True}) as response:
            run_id = response.headers["x-run-id"]
        return Run(self._conversation_id, run_id, "".join(f"t{n} " for n in range(words)))

    def token(self) -> dict[str, Any]:
        """Issue a token of the conversation."""
        self.tokens_issued += 1
        body = {
            "conversation_id": self._conversation_id,
            "scope": ["read"],
            "expires_in_seconds": self._token_seconds,
        }
        issued: dict[str, Any] = self.asked("POST", "/v1/tokens", body)
        return {"token": issued["token"], "expires_at": issued["expires_at"]}

    def wait_until_ended(self, run: Run) -> None:
        """Return when the records say that the run has ended."""
        until(lambda: self.asked("GET", f"/v1/runs/{run.run_id}")["status"] == "completed")

    def wait_until_expired(self, run: Run) -> None:
        """Return when the log of the run is gone."""

        def is_gone() -> bool:
            try:
                self._opened("POST", f"/v1/runs/{run.run_id}/stream", {}).close()
            except HTTPError as error:
                return error.code == 410
            return False

        until(is_gone)

    @contextmanager
    def offline(self) -> Iterator[None]:
        """Cut all connections and refuse new ones."""
        self.relay.target = _NOWHERE
        self.relay.cut()
        try:
            yield
        finally:
            self.relay.target = self.server.address

    def asked(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the server with the key, and return its answer."""
        with self._opened(method, path, body) as response:
            return json.load(response)

    def _opened(self, method: str, path: str, body: Any) -> HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", "authorization": f"Bearer {self._key}"}
        request = Request(f"{self.server.url}{path}", data, headers, method=method)
        return cast("HTTPResponse", urlopen(request, timeout=LIMIT_SECONDS))


def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds. Raises TimeoutError after LIMIT_SECONDS."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {LIMIT_SECONDS:g} s")
        time.sleep(0.02)


async def _key_of(folder: Path) -> str:
    url = f"sqlite:///{datadir.records_file(folder)}"
    await asyncio.to_thread(upgrade, url)
    records = await Records.open(url, clock=SystemClock())
    try:
        _, secret = await records.keys.create(DEFAULT_TENANT, "bench")
    finally:
        await records.aclose()
    return secret


class _TokenServer(Closing):
    """The server of an application, which knows its user and asks for tokens with its key."""

    def __init__(self, scene: Scene) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = json.dumps(scene.token()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Access-Control-Allow-Origin", "*")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/token"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
