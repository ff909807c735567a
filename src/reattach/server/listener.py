"""A socket of its own on which a server listens."""

import errno
import socket

from reattach.domain.errors import StartupError
from reattach.domain.limits import (
    KEEPALIVE_IDLE_SECONDS,
    KEEPALIVE_INTERVAL_SECONDS,
    KEEPALIVE_PROBES,
    LISTEN_BACKLOG,
    SEND_BUFFER_BYTES,
)


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Bind a socket as ``bind_socket`` does, and listen on it. Raises StartupError."""
    listener = bind_socket(host, port, shared=shared)
    try:
        listener.listen(LISTEN_BACKLOG)
    except OSError as error:
        listener.close()
        raise _not_listening(host, port, error) from error
    return listener


def bind_socket(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Bind a socket, not listening yet, whose connections have ``set_connection_options``.

    ``shared`` lets other processes bind the port too. Raises StartupError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm only on sockets that name the protocol.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        set_connection_options(listener)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _not_listening(host, port, error) from error
    listener.setblocking(False)
    return listener


def set_connection_options(one: socket.socket) -> None:
    """Bound the kernel's send buffer, and make TCP detect dead clients.

    Bytes in that buffer have not reached the reader; without the bound it takes megabytes for each
    slow or dead reader. Connections that are made later inherit the options of a listener.
    """
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for names, value in (
        (("TCP_KEEPIDLE", "TCP_KEEPALIVE"), KEEPALIVE_IDLE_SECONDS),  # Linux, macOS
        (("TCP_KEEPINTVL",), KEEPALIVE_INTERVAL_SECONDS),
        (("TCP_KEEPCNT",), KEEPALIVE_PROBES),
    ):
        option = next((getattr(socket, name) for name in names if hasattr(socket, name)), None)
        if option is not None:
            one.setsockopt(socket.IPPROTO_TCP, option, value)


def _not_listening(host: str, port: int, error: OSError) -> StartupError:
    if error.errno == errno.EADDRINUSE:
        remedy = (
            "Stop the program that uses the port, or choose another port with --port (0 picks a "
            "free one)."
        )
    elif error.errno in {errno.EACCES, errno.EPERM}:
        remedy = "Choose a port above 1023 with --port, and put a proxy before it if necessary."
    else:
        remedy = "Choose an address of this machine with --host, such as 127.0.0.1 or 0.0.0.0."
    return StartupError(f"Cannot listen on {host}:{port}: {error.strerror}.", remedy=remedy)


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
