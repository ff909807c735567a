"""Server-sent events, as far as the clients of the Letta API bear them.

The grammar is the WHATWG HTML standard's event stream, section 9.2, without ``id:``, ``retry:``
and comments: the official SDKs take a frame without data for a broken one.
"""

from typing import Final

DONE: Final = b"data: [DONE]\n\n"
"""Not an event: says that the log is closed and everything of it was sent."""


def data_frame(data: bytes) -> bytes:
    """A frame of the default event. ``data`` must hold no line break."""
    return b"data: %b\n\n" % data


def error_frame(data: bytes) -> bytes:
    """A frame that the SDKs raise as their own exception."""
    return b"event: error\ndata: %b\n\n" % data


def frame_data(frame: bytes) -> bytes:
    """The data of a frame made by one of the above."""
    return frame[frame.index(b"data: ") + 6 : -2]


def split_frames(frames: bytes) -> list[bytes]:
    """The single frames of a joined stretch of them."""
    return [frame + b"\n\n" for frame in frames.split(b"\n\n")[:-1]]
