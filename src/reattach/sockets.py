"""Facts about sockets that only the kernel has."""

import fcntl
import struct
import termios
from contextlib import suppress
from typing import Final

_UNACKNOWLEDGED: Final[int | None] = getattr(termios, "TIOCOUTQ", None)
_INT: Final = struct.Struct("i")


def unacknowledged_bytes(fileno: int) -> int:
    """Count the bytes that were written to a socket and that the other side has not acknowledged.

    0 if the socket is closed or the kernel does not say.
    """
    if _UNACKNOWLEDGED is not None:
        with suppress(OSError):
            packed = fcntl.ioctl(fileno, _UNACKNOWLEDGED, bytes(_INT.size))
            (count,) = _INT.unpack(packed)
            return int(count)
    return 0
