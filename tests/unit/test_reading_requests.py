"""Requests are read alike however the network divides their bytes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reattach.domain.errors import ReattachError
from reattach.domain.limits import MAX_CHUNK_EXTENSION_BYTES, MAX_HEAD_BYTES, MAX_TRAILER_BYTES
from reattach.http.connection.body import Body, ChunkedBody, LengthBody
from reattach.http.connection.head import Head


class Reading:
    """The requests read from the bytes, up to the first error."""

    def __init__(self) -> None:
        self.outcome: list[Any] = []
        self._head: Head | None = None
        self._body: Body | None = None
        self._read = b""
        self._failed = False

    def feed(self, data: bytes) -> None:
        rest: bytes | None = data
        while rest and not self._failed:
            try:
                rest = self._feed(rest)
            except ReattachError as error:
                self.outcome.append((type(error), error.detail))
                self._failed = True

    def _feed(self, data: bytes) -> bytes | None:
        if self._body is None:
            self._head = self._head or Head()
            rest = self._head.feed(data)
            if rest is not None:
                self._begin(self._head)
            return rest
        piece, rest = self._body.feed(data)
        self._read += piece
        if rest is not None:
            self._end()
        return rest

    def _begin(self, head: Head) -> None:
        self._head = None
        self.outcome.append(
            [head.method, head.path, head.query_string, head.version, head.headers, head.keep_alive,
             head.expects_continue]
        )  # fmt: skip
        self._body = ChunkedBody() if head.chunked else LengthBody(head.content_length)
        if not head.chunked and not head.content_length:
            self._end()

    def _end(self) -> None:
        self.outcome.append(self._read)
        self._body, self._read = None, b""


PIECES = [
    b"GET /a?b=c HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /b%20c HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde",
    b"POST / HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"5\r\nabcde\r\n",
    b"a;x=y\r\n0123456789\r\n",
    b"0\r\n\r\n",
    b"0\r\nX: y\r\nAuthorization: z\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h\r\nContent-Length: 1\r\n\r\nG",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (MAX_HEAD_BYTES - 40),
    b"GET /\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n",
    b"1;" + b"x" * MAX_CHUNK_EXTENSION_BYTES,
    b"X: " + b"y" * (MAX_TRAILER_BYTES - 10),
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b":",
    b"\0",
    b"G",
]


@st.composite
def divided(draw: st.DrawFn) -> list[bytes]:
    """Bytes of requests, good and bad, as they come in several reads."""
    data = b"".join(draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8)))
    places = st.integers(0, len(data))
    cuts = sorted({0, len(data), *draw(st.lists(places, max_size=12))})
    near_end = draw(st.integers(1, 12))
    cuts = sorted({*cuts, *range(max(0, len(data) - near_end), len(data))})
    return [data[start:end] for start, end in pairwise(cuts)]


@given(divided())
def test_any_division_of_the_same_bytes_has_the_same_outcome(pieces: list[bytes]) -> None:
    """B7: a limit, an error or a request depends on which bytes come in one read."""
    whole, divided = Reading(), Reading()
    whole.feed(b"".join(pieces))
    for piece in pieces:
        divided.feed(piece)
    assert divided.outcome == whole.outcome


@given(st.binary(max_size=300), st.integers(0, 300))
def test_a_body_in_chunks_is_read_as_it_was_written(body: bytes, place: int) -> None:
    pieces = [piece for piece in (body[:place], body[place:]) if piece]
    said = b"".join(b"%X\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\nrest"
    reading = ChunkedBody()
    assert reading.feed(said) == (body, b"rest")
    reading, received = ChunkedBody(), b""
    for number in range(len(said)):
        piece, rest = reading.feed(said[number : number + 1])
        received += piece
        if rest is not None:
            break
    assert received == body
    assert said[number + 1 :] == b"rest"
