"""A server whose streams begin and then hang, and which notices when its clients leave."""

from __future__ import annotations

import queue
import socket
import ssl
import threading
from contextlib import suppress
from typing import Final

from reattach.testing.closing import Closing
from tests.support.client_script import RUN, frame
from tests.support.threads import WAIT_SECONDS

HEAD: Final = (
    f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-run-id: {RUN}\r\n"
    "connection: close\r\n\r\n"
)
"""The beginning of a stream without events."""

BUSY: Final = (
    "HTTP/1.1 503 busy\r\nretry-after: 60\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)


def page(status: int) -> str:
    """Return a whole response with a page, as a proxy or a captive portal sends it."""
    return (
        f"HTTP/1.1 {status} x\r\ncontent-type: text/html\r\ncontent-length: 12\r\n"
        "connection: close\r\n\r\n<h1>Hi!</h1>"
    )


class HangingServer(Closing):
    """Answers each request with an event, or with the next of ``answers``, and then hangs."""

    def __init__(self, *answers: str, tls: ssl.SSLContext | None = None) -> None:
        self._answers = list(answers)
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._heads: queue.Queue[str] = queue.Queue()
        self._left: queue.Queue[int] = queue.Queue()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()
        return host, port

    @property
    def url(self) -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self.address[1]}"

    def head(self) -> str:
        """Wait for the next request, and return its head."""
        return self._heads.get(timeout=WAIT_SECONDS)

    def wait_left(self) -> None:
        """Wait until one more client has closed its connection."""
        self._left.get(timeout=WAIT_SECONDS)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # A close alone would not end the accept.
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        with connection:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += connection.recv(4096)
            self._heads.put(head.decode())
            answer = self._answers.pop(0) if self._answers else HEAD + frame(1)
            connection.sendall(answer.encode())
            with suppress(OSError):
                while connection.recv(4096):
                    pass
        self._left.put(1)
