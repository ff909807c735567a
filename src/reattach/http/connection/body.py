"""Parsing of request bodies, by length or in chunks, without I/O.

Trailers are counted, bounded and dropped: they arrive after the application has read the headers,
so they are never treated as headers (RFC 9110, section 6.5.1). Chunk extensions are dropped too.
"""

import re
from typing import Final, Protocol

from reattach.domain.errors.connection import HeadTooLargeError, InvalidHttpError
from reattach.domain.limits import MAX_CHUNK_EXTENSION_BYTES, MAX_TRAILER_BYTES, MAX_TRAILERS

_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*(;[\t\x20-\x7e\x80-\xff]*))?")
_TRAILER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_SIZE_LINE_BYTES: Final = 15 + MAX_CHUNK_EXTENSION_BYTES
_TRAILERS: Final = f"{MAX_TRAILERS} trailers with {MAX_TRAILER_BYTES} bytes in total"
_EXTENSIONS: Final = f"{MAX_CHUNK_EXTENSION_BYTES} bytes of chunk extensions"


class Body(Protocol):
    """Parser for the rest of a request."""

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Return the parsed bytes, and the bytes after the body or None while it is incomplete.

        Raises InvalidHttpError, HeadTooLargeError.
        """


class LengthBody:
    """A body of ``left`` bytes."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        if len(data) < self.left:
            self.left -= len(data)
            return data, None
        body, rest = (
            (data, b"") if len(data) == self.left else (data[: self.left], data[self.left :])
        )
        self.left = 0
        return body, rest


class ChunkedBody:
    """A chunked body (RFC 9112, section 7.1)."""

    __slots__ = ("_extension_bytes", "_in_trailers", "_left", "_line", "_trailer_bytes",
                 "_trailers")  # fmt: skip

    def __init__(self) -> None:
        self._line = b""
        """The start of an incomplete line."""
        self._left = 0
        """The missing bytes of the chunk, including its line end (2 bytes)."""
        self._in_trailers = False
        self._extension_bytes = 0
        self._trailers = 0
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        pieces: list[bytes] = []
        data, self._line = self._line + data, b""
        place = 0
        while place < len(data):
            if self._left:
                place = self._read_chunk(data, place, pieces)
                continue
            end = data.find(b"\n", place)
            line = data[place:] if end < 0 else data[place : end + 1]
            self._bound_line(len(line), whole=end >= 0)
            if end < 0:
                self._line = line
                break
            if not line.endswith(b"\r\n"):
                raise InvalidHttpError
            place = end + 1
            if not self._in_trailers:
                self._begin_chunk(line[:-2])
            elif line == b"\r\n":
                return b"".join(pieces), data[place:]
            else:
                self._drop_trailer(line)
        return b"".join(pieces), None

    def _read_chunk(self, data: bytes, place: int, pieces: list[bytes]) -> int:
        """Take the available bytes of the chunk; return the index after them."""
        if self._left > 2:
            piece = data[place : place + self._left - 2]
            pieces.append(piece)
            self._left -= len(piece)
            return place + len(piece)
        if data[place] != (0x0D if self._left == 2 else 0x0A):
            raise InvalidHttpError
        self._left -= 1
        return place + 1

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise InvalidHttpError
        self._extension_bytes += len(match[2] or b"")
        if self._extension_bytes > MAX_CHUNK_EXTENSION_BYTES:
            raise HeadTooLargeError(_EXTENSIONS)
        size = int(match[1], 16)
        if size:
            self._left = size + 2
        else:
            self._in_trailers = True

    def _drop_trailer(self, line: bytes) -> None:
        self._trailers += 1
        self._trailer_bytes += len(line)
        if self._trailers > MAX_TRAILERS:
            raise HeadTooLargeError(_TRAILERS)
        if _TRAILER.fullmatch(line[:-2]) is None:
            raise InvalidHttpError

    def _bound_line(self, length: int, *, whole: bool) -> None:
        """Refuse a line that is too long, whether or not it is complete."""
        if self._in_trailers:
            if self._trailer_bytes + length > MAX_TRAILER_BYTES:
                raise HeadTooLargeError(_TRAILERS)
        elif length > _SIZE_LINE_BYTES + (2 if whole else 1):
            raise HeadTooLargeError(_EXTENSIONS)
