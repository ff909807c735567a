"""Server-sent events, limited to what the clients of the Letta API accept.

The grammar is the event stream of the WHATWG HTML standard, section 9.2. The routes of the Letta
API send it without ``id:``, ``retry:`` and comments, because the official SDKs treat a frame
without data as broken. Routes for other clients add them.
"""

from typing import Final

DONE: Final = b"data: [DONE]\n\n"
"""Not an event: the log is closed and everything was sent."""


def data_frame(data: bytes) -> bytes:
    """Return a frame of the default event. ``data`` must not contain a line break."""
    return b"data: %b\n\n" % data


def error_frame(data: bytes) -> bytes:
    """Return a frame that the SDKs raise as their own exception."""
    return b"event: error\ndata: %b\n\n" % data


def frame_data(frame: bytes) -> bytes:
    """Return the data of a frame made by this module."""
    return frame[frame.index(b"data: ") + 6 : -2]


def split_frames(frames: bytes) -> list[bytes]:
    """Split concatenated frames, without the rest of one that is cut off."""
    lines = frames.split(b"\n")
    if len(lines) % 2 and not any(lines[1::2]):  # Each has one line: found in half the time.
        return [line + b"\n\n" for line in lines[:-1:2]]
    return [frame + b"\n\n" for frame in frames.split(b"\n\n")[:-1]]
