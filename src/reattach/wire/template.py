"""Frames that differ only in the values of some members."""

from typing import Final

import msgspec

EMPTY_TEXT: Final = b'""'
"""The JSON of an empty text."""

decode_text: Final = msgspec.json.Decoder(str).decode
"""Returns the text of its JSON."""


def around(frame: bytes, *members: tuple[bytes, bytes]) -> list[bytes]:
    """Return the bytes of a frame before, between and after the values of some members.

    A member is its name in quotes with a colon, and its value in this frame. They are given in
    their order. Quotes in texts are escaped, so no text looks like a member.
    """
    found = []
    for name, value in members:
        before, member, frame = frame.partition(name + value)
        assert member, f"The frame has no {name.decode()}{value.decode()}."
        found.append(before + name)
    return [*found, frame]
