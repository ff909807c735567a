"""Parsing of request heads (request line and headers), bounded and without I/O.

``httptools`` (llhttp) parses the grammar. The following violations of RFC 9110 and RFC 9112 are
refused here, because a proxy in front of this server may read them differently:

- versions other than 1.0 and 1.1, and HTTP/0.9, which has no head at all;
- an HTTP/1.1 request without Host, and a malformed Host;
- a repeated header that may occur only once;
- Transfer-Encoding in HTTP/1.0, together with Content-Length, or other than ``chunked``;
- expectations other than ``100-continue``, tunnels (CONNECT), and fragments in the target.

Requests to upgrade are handled as if they did not ask for it (RFC 9110, section 7.8).
"""

import re
from typing import Final
from urllib.parse import unquote

import httptools

from reattach.domain.errors import NotImplementedHereError
from reattach.domain.errors.connection import (
    ExpectationFailedError,
    HeadTooLargeError,
    HttpVersionError,
    InvalidHttpError,
    TunnelRefusedError,
)
from reattach.domain.limits import MAX_HEAD_BYTES
from reattach.domain.limits.requests import MAX_NAME_CHARS

_END: Final = b"\r\n\r\n"
_BLANK: Final = b"\r\n"
_HOST: Final = re.compile(rb"(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::([0-9]{0,5}))?")
_OTHER_VERSION: Final = re.compile(rb"(?!PRI )[A-Z]+ [!-~]+ HTTP/(?:[2-9]|1\.[2-9])")
_SPACE: Final = b" \t"
_MAX_PORT: Final = 65535
_KNOWN_HOSTS: Final[set[bytes]] = set()
"""Cache of well-formed hosts, because most requests name the same few."""
_MOST_KNOWN_HOSTS: Final = 100
_BOUND: Final = f"{MAX_HEAD_BYTES} bytes in its request line and headers"
_SINGLE: Final = (
    b"host",
    b"authorization",
    b"content-length",
    b"content-type",
    b"transfer-encoding",
)
"""Headers with one value; a proxy and this server could pick different ones of two."""


class Head:
    """The head of one request; fed with data until it is complete.

    The public fields are valid once ``feed`` has returned the bytes after the head.
    """

    __slots__ = ("_blank_bytes", "_complete", "_parser", "_seen", "_target", "chunked",
                 "content_length", "expects_continue", "headers", "keep_alive", "method", "path",
                 "query_string", "raw_path", "version")  # fmt: skip

    def __init__(self) -> None:
        self._parser: httptools.HttpRequestParser | None = None
        self._seen: bytearray | bytes = b""
        self._blank_bytes = 0
        self._complete = False
        self._target = b""
        self.version = ""
        self.method = ""
        self.path = ""
        self.raw_path = b""
        self.query_string = b""
        self.headers: list[tuple[bytes, bytes]] = []
        """Header names are in lower case."""
        self.keep_alive = False
        """The client wants to reuse the connection."""
        self.expects_continue = False
        """The client sends the body only after a 100 response."""
        self.chunked = False
        self.content_length = 0

    @property
    def has_begun(self) -> bool:
        """Whether any part of the request line has arrived."""
        return bool(self._seen)

    def feed(self, data: bytes) -> bytes | None:
        """Parse more data; return the bytes after the head, or None while it is incomplete.

        Raises HeadTooLargeError at MAX_HEAD_BYTES, and other errors for invalid requests.
        """
        if self._seen:
            start = len(self._seen)
            self._seen += data
            end = self._seen.find(_END, max(0, start - 3)) + 4
        else:
            start = 0
            if data[0] in _BLANK:
                data = self._skip_blank(data)
                if not data:
                    return None
            end = data.find(_END) + 4
            if end < 4:
                self._seen = bytearray(data)
        if end < 4 or end > MAX_HEAD_BYTES:
            self._parse(data[: max(0, MAX_HEAD_BYTES - start)])
            if end >= 4 or len(self._seen) >= MAX_HEAD_BYTES:
                raise HeadTooLargeError(_BOUND)
            self._refuse_version_0_9()
            return None
        rest = end - start
        self._parse(data[:rest])
        line = self._seen or data
        self._finish(bytes(line[: line.find(b"\r\n")]))
        return data[rest:]

    def _skip_blank(self, data: bytes) -> bytes:
        """Skip empty lines before the request."""
        rest = data.lstrip(_BLANK)
        self._blank_bytes += len(data) - len(rest)
        if self._blank_bytes >= MAX_HEAD_BYTES:
            raise HeadTooLargeError(_BOUND)
        return rest

    def _parse(self, data: bytes) -> None:
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # The head is complete, and the upgrade is declined.
        except httptools.HttpParserError:
            self._parser = None
            raise _unreadable(self._seen or data) from None

    def _refuse_version_0_9(self) -> None:
        """Refuse a one-line request without a version, whose client sends nothing more."""
        parser = self._parser
        if parser is not None and b"\r\n" in self._seen and parser.get_http_version() < "1":
            raise InvalidHttpError

    # Called by the parser.

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if value[-1:] in _SPACE:
            value = value.rstrip(_SPACE)
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        self._complete = True
        self.method = parser.get_method().decode("ascii")
        self.keep_alive = parser.should_keep_alive()

    # Once the head is complete.

    def _finish(self, line: bytes) -> None:
        self._parser = None  # Breaks a reference cycle, which only the collector would free.
        if not self._complete:
            raise InvalidHttpError
        if line.endswith(b" HTTP/1.1"):
            self.version = "1.1"
        elif line.endswith(b" HTTP/1.0"):
            self.version = "1.0"
        else:
            raise _unreadable(line)
        values = dict(self.headers)
        if len(values) != len(self.headers):
            self._refuse_repeated()
        self._read_host(values)
        self._read_target()
        self._read_framing(values)
        expected = values.get(b"expect")
        if expected is not None and self.version == "1.1":
            if expected.lower() != b"100-continue":
                raise ExpectationFailedError
            self.expects_continue = True

    def _refuse_repeated(self) -> None:
        names = [name for name, _ in self.headers]
        for name in _SINGLE:
            if names.count(name) > 1:
                raise InvalidHttpError(f"has more than one {name.decode()} header")

    def _read_host(self, values: dict[bytes, bytes]) -> None:
        host = values.get(b"host")
        if host is None:
            if self.version == "1.1":
                raise InvalidHttpError("has no Host header")
        elif host not in _KNOWN_HOSTS:
            if not _is_authority(host):
                raise InvalidHttpError("has a Host header that names no host")
            if len(_KNOWN_HOSTS) < _MOST_KNOWN_HOSTS and len(host) < MAX_NAME_CHARS:
                _KNOWN_HOSTS.add(host)

    def _read_target(self) -> None:
        target = self._target
        if self.method == "CONNECT":
            raise TunnelRefusedError
        if target[:1] != b"/":
            target = b"*" if target == b"*" and self.method == "OPTIONS" else self._absolute(target)
        if b"#" in target:
            raise InvalidHttpError("has a target with a fragment (#)")
        self.raw_path, _, self.query_string = target.partition(b"?")
        try:
            path = self.raw_path.decode("ascii")
        except UnicodeDecodeError:
            raise InvalidHttpError from None
        self.path = unquote(path) if "%" in path else path

    def _absolute(self, target: bytes) -> bytes:
        """Return the path and query of an absolute target, whose host replaces the Host header."""
        scheme, separator, rest = target.partition(b"://")
        place = re.search(rb"[/?]", rest)
        authority = rest if place is None else rest[: place.start()]
        host = authority.rpartition(b"@")[2]
        if scheme.lower() not in {b"http", b"https"} or not separator or not host:
            raise InvalidHttpError("has a target that is neither a path nor an HTTP URL")
        if not _is_authority(host):
            raise InvalidHttpError("has a target that names no host")
        self.headers = [(b"host", host), *(one for one in self.headers if one[0] != b"host")]
        path = rest[len(authority) :]
        return path if path.startswith(b"/") else b"/" + path

    def _read_framing(self, values: dict[bytes, bytes]) -> None:
        coding, length = values.get(b"transfer-encoding"), values.get(b"content-length")
        if coding is not None:
            if self.version == "1.0":
                raise InvalidHttpError("has a Transfer-Encoding header, but is HTTP/1.0")
            if length is not None:
                raise InvalidHttpError("has both a Transfer-Encoding and a Content-Length header")
            if coding.lower() != b"chunked":
                text = coding.decode("latin-1")
                raise NotImplementedHereError(
                    f"The server does not support the transfer coding {text!r}.",
                    remedy="Send the body as `chunked`, or with a Content-Length.",
                )
            self.chunked = True
        elif length is not None:
            self.content_length = int(length)  # The parser has validated it.


def _is_authority(host: bytes) -> bool:
    """Return whether it is a host with an optional port (RFC 9110, section 7.2)."""
    match = _HOST.fullmatch(host)
    return match is not None and int(match[1] or 0) <= _MAX_PORT


def _unreadable(head: bytes | bytearray) -> HttpVersionError | InvalidHttpError:
    return HttpVersionError() if _OTHER_VERSION.match(head) else InvalidHttpError()
