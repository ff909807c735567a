"""A provider of chat completions whose streams a relay cuts."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from reattach.engine.script import Script
from reattach.testing.programs.relay import Relay
from reattach.testing.providers import openai

MODEL: Final = "openai/words"

_WORD: Final = re.compile(r"\s*\S+\s*")


@dataclass(frozen=True, slots=True)
class CutProvider:
    """The relay in front of the provider, and the environment of servers that use it."""

    relay: Relay
    environment: dict[str, str]


@contextmanager
def cut_provider() -> Iterator[CutProvider]:
    """Serve a model that says ``[chunks=N][rate=R]`` numbered words, and continues begun answers.

    Like vLLM, it produces only the rest of an answer whose beginning is the last message.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True, name="provider")
    thread.start()
    try:
        with Relay(("127.0.0.1", server.server_port)) as relay:
            environment = {
                "REATTACH_MODELS": MODEL,
                "REATTACH_OPENAI_BASE_URL": f"{relay.url}/v1",
                "REATTACH_OPENAI_API_KEY": "sk-bench",
                "REATTACH_CONTINUE_MODELS": "openai/*=flags",
            }
            yield CutProvider(relay, environment)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        messages = body["messages"]
        script = Script.parse(next(_text(m) for m in reversed(messages) if m["role"] == "user"))
        answer = "".join(f"t{number} " for number in range(script.chunks or 10))
        if messages[-1]["role"] == "assistant" and body.get("continue_final_message"):
            answer = answer.removeprefix(_text(messages[-1]))
        try:
            self._send(openai.START)
            for word in _WORD.findall(answer):
                time.sleep(1 / (script.rate or 1000))
                self._send(b"".join(openai.says(word)))
            self._send(openai.stops() + openai.DONE)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True

    def _send(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Print nothing."""


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
