"""A listening socket that another process keeps open, so that a restart refuses no client.

Clients that connect while no server runs wait in the socket, and the next server answers them.
systemd keeps such a socket for a ``.socket`` unit; any parent process can do the same.
"""

import errno
import os
import socket
from contextlib import suppress
from typing import Final

import structlog

from reattach.domain.errors import StartupError
from reattach.server.listener import set_connection_options

logger = structlog.get_logger(__name__)

_FIRST_FD: Final = 3
"""The first descriptor that systemd passes; more follow it without a gap."""

_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
"""The variables by which systemd passes sockets to a process."""


def is_inherited(fd: int | None) -> bool:
    """Return whether ``take_inherited`` would take a socket, or refuse to."""
    return fd is not None or (_is_passed_here() and os.environ.get("LISTEN_FDS") != "0")


def take_inherited(fd: int | None) -> socket.socket | None:
    """Take the listening socket that another process keeps open; None if there is none.

    ``fd`` is its descriptor. Without it, the first socket is taken that systemd passes to this
    process. Children inherit neither the descriptor nor systemd's variables.

    Closing the socket leaves it open for the process that keeps it, and for the next server. The
    backlog stays as its owner chose it.

    Raises:
        StartupError: The descriptor is not a listening TCP socket. It stays open.
    """
    passed = os.environ.get("LISTEN_FDS", "0")
    is_passed = _is_passed_here()
    if is_passed:
        _hide_from_children(passed)
    if fd is not None:
        return _take(fd, f"REATTACH_FD is {fd}", _OWN_REMEDY)
    if not is_passed:
        _warn_if_passed_elsewhere()
        return None
    if passed == "0":
        return None
    if passed != "1":
        logger.warning(
            "only the first of several inherited sockets is served",
            sockets=passed,
            remedy="Keep one ListenStream= in the .socket unit, or choose with REATTACH_FD.",
        )
    return _take(_FIRST_FD, f"LISTEN_FDS is {passed}", _SYSTEMD_REMEDY)


_OWN_REMEDY: Final = (
    "Start the server from the process that keeps a listening TCP socket open at this descriptor, "
    "or unset REATTACH_FD to let the server open its own port."
)
_SYSTEMD_REMEDY: Final = (
    "In the .socket unit, set ListenStream= to an address and a port, and Accept=no."
)


def _is_passed_here() -> bool:
    return os.environ.get("LISTEN_PID") == str(os.getpid())


def _hide_from_children(passed: str) -> None:
    for name in _VARIABLES:
        os.environ.pop(name, None)
    count = int(passed) if passed.isdecimal() else 0
    with suppress(OSError):  # The end of the open descriptors.
        for fd in range(_FIRST_FD, _FIRST_FD + count):
            os.set_inheritable(fd, False)


def _warn_if_passed_elsewhere() -> None:
    """Report a wrapper between systemd and the server, which would keep the socket from it."""
    pid = os.environ.get("LISTEN_PID")
    if pid is not None:
        logger.warning(
            "inherited sockets are not used",
            reason=f"LISTEN_PID is {pid}, and this process is {os.getpid()}",
            remedy="If the server should use them, start it without a wrapper, by exec, or set "
            f"REATTACH_FD={_FIRST_FD}.",
        )


def _take(fd: int, given: str, remedy: str) -> socket.socket:
    def refused(problem: str) -> StartupError:
        return StartupError(f"{given}, and descriptor {fd} {problem}.", remedy=remedy)

    try:
        listener = socket.socket(fileno=fd)
    except OSError as error:
        is_closed = error.errno == errno.EBADF
        raise refused("is not open" if is_closed else "is not a socket") from error
    problem = _problem_of(listener)
    if problem is not None:
        listener.detach()
        raise refused(problem)
    try:
        listener.set_inheritable(False)
        set_connection_options(listener)
        listener.setblocking(False)
    except OSError as error:
        listener.detach()
        raise refused(f"cannot be used: {error.strerror}") from error
    return listener


def _problem_of(listener: socket.socket) -> str | None:
    """Return why the server cannot use the socket; None if it can."""
    # Unix sockets are refused too: access without keys, bounds and proxies need clients' addresses.
    is_ip = listener.family in {socket.AF_INET, socket.AF_INET6}
    if not is_ip or listener.type != socket.SOCK_STREAM:
        return "is not a TCP socket"
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "is a socket that does not listen"
    return None
