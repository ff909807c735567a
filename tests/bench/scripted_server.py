"""A server that answers requests with given bytes in given chunks."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

PIECE_SECONDS = 0.002
"""Pause between two chunks, so that they arrive separately."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"
STOP = b'data: {"message_type":"stop_reason","seq_id":%d}\n\n'


def event(seq: int, content: str = "x") -> bytes:
    text = f'{{"message_type":"assistant_message","seq_id":{seq},"content":"{content}"}}'
    return f"data: {text}\n\n".encode()


def ping(seq: int) -> bytes:
    return b'data: {"message_type":"ping","seq_id":%d}\n\n' % seq


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def run(events: int, *, after: int = 0) -> bytes:
    """Encode the body of a run of this many events, the last of which is its stop reason."""
    texts = b"".join(event(seq) for seq in range(after + 1, events))
    return texts + STOP % events + DONE


def whole(body: bytes) -> bytes:
    return HEAD + chunk(body) + END


class Scripted:
    """The received requests in order."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[bytes] = []


@contextmanager
def answering(*answers: Sequence[bytes]) -> Iterator[Scripted]:
    """Serve the answers, one for each request in order of arrival.

    After an answer that ends with an empty chunk the connection is closed. The last answer
    repeats.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    server = Scripted(listener.getsockname()[1])
    left = list(answers)

    def take() -> Sequence[bytes]:
        return left.pop(0) if len(left) > 1 else left[0]

    def converse(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while request := connection.recv(65536):
                server.requests.append(request)
                for piece in take():
                    if not piece:
                        return
                    connection.sendall(piece)
                    time.sleep(PIECE_SECONDS)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=converse, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
