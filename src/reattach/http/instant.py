"""Resumes that are answered in the callback that reads them: no task, no application.

Most clients of a crowd that comes back find their run ended, and the few events that they missed
in memory. Anything else about a request, and every doubt, leaves it to the regular ways, which give
the same bytes and word all errors.
"""

import hashlib
import re
from collections import OrderedDict
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import UNSET, Meta, UnsetType

from reattach.domain.errors import QuotaError, ReattachError
from reattach.domain.ids import UUID4, RunId, TenantId, is_run_id
from reattach.domain.limits import (
    KNOWN_HEADERS,
    KNOWN_HEADERS_BYTES,
    MAX_CURSOR,
    REPLAY_SLICE_EVENTS,
)
from reattach.domain.limits.requests import MAX_ID_CHARS, MAX_OTID_CHARS, MAX_POLL_SECONDS
from reattach.http.connection.cycle import Headers, response_head
from reattach.http.connection.head import Head
from reattach.http.context import Context
from reattach.http.fast_path import is_usual
from reattach.http.middleware.auth import Authenticator, Credentials
from reattach.http.stream.framing import LETTA
from reattach.http.stream.resumes import count_position
from reattach.log.base import Slice
from reattach.records.base import KeyScope, Target
from reattach.wire.sse import DONE

logger = structlog.get_logger(__name__)

_LINE: Final = re.compile(
    rf"POST /v1/(?:conversations/(?:default|conv-{UUID4})|runs/(run-{UUID4}))/stream"
    r" HTTP/1\.1\r\n".encode()
)
_ANY_LINE: Final = b"POST / HTTP/1.1\r\n"
_END: Final = b"\r\n\r\n"

_RESPONSE: Final = (
    b"%bx-run-id: %b\r\nx-run-status: %b\r\nx-stream-starts-after: %d\r\nvary: Origin\r\n"
    b"transfer-encoding: chunked\r\n\r\n%x\r\n%b%b\r\n0\r\n\r\n"
)
"""The head and the only chunk, as ``RunStream`` sends them on the fast path."""

_Name = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]
_Otid = Annotated[str, Meta(min_length=1, max_length=MAX_OTID_CHARS)]
_Number = Annotated[int, Meta(ge=-MAX_CURSOR, le=MAX_CURSOR)]
_Seconds = Annotated[float, Meta(ge=-MAX_POLL_SECONDS, le=MAX_POLL_SECONDS)]


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    """A ``ResumeBody`` without any fault. Its texts come first."""

    agent_id: _Name | UnsetType | None = UNSET
    run_id: _Name | UnsetType | None = UNSET
    otid: _Otid | UnsetType | None = UNSET
    starting_after: _Number | UnsetType = UNSET
    include_pings: bool | UnsetType | None = UNSET
    poll_interval: _Seconds | UnsetType | None = UNSET
    batch_size: _Number | UnsetType | None = UNSET


_decode: Final = msgspec.json.Decoder(_Body).decode
_MEMBERS: Final = len(_Body.__struct_fields__)
_TEXTS: Final = 3


class _Headers(msgspec.Struct, frozen=True):
    """The facts that decide about a request with these headers."""

    body_bytes: int
    credentials: Credentials


class InstantResumes:
    """Answers resumes of ended runs on a server whose records are in SQLite.

    The facts of headers are kept by their digest, so no key is kept, for the KNOWN_HEADERS last
    seen. They depend on nothing else, so they are never out of date.
    """

    def __init__(self, context: Context, authenticator: Authenticator) -> None:
        self._runs = context.runs
        self._targets = context.records.known_targets
        self._authenticator = authenticator
        self._headers: OrderedDict[bytes, _Headers | None] = OrderedDict()
        self._default_headers: Headers = ()
        self._head = b""
        """The head of a response with the default headers, up to those of its run."""

    def answer(
        self,
        data: bytes,
        client: tuple[str, int],
        server: tuple[str, int] | None,
        default_headers: Headers,
    ) -> tuple[bytes, int] | None:
        """Return the response to the request that ``data`` begins with, and that request's length.

        None: the request takes the regular way.
        """
        try:
            return self._answer(data, client, server, default_headers)
        except Exception:
            logger.exception("instant resume failed; using the regular way")
            return None

    def _answer(
        self,
        data: bytes,
        client: tuple[str, int],
        server: tuple[str, int] | None,
        default_headers: Headers,
    ) -> tuple[bytes, int] | None:
        line = _LINE.match(data)
        if line is None:
            return None
        start = line.end()
        end = data.find(_END, start - 2) + 4
        headers = self._headers_of(data[start:end])
        if headers is None or len(data) < end + headers.body_bytes:
            return None
        access = self._authenticator.known_access(headers.credentials, client, server)
        if access is None or KeyScope.READ not in access.scopes:
            return None
        length = end + headers.body_bytes
        body = _body_of(data[end:length])
        if body is None:
            return None
        target = self._find(access.tenant, line[1], body)
        if target is None or not target.background:
            return None
        cursor, most = body.starting_after or 0, body.batch_size
        rest = self._runs.remainder(
            target, cursor, max_events=most if isinstance(most, int) else REPLAY_SLICE_EVENTS
        )
        if rest is None:
            return None
        try:
            access.use.admit()
        except QuotaError:
            return None
        missed = rest.last_seq - rest.first_seq + 1
        count_position(self._runs.meters, cursor, rest.last_seq, missed)
        return self._response(target, rest, default_headers), length

    def _headers_of(self, block: bytes) -> _Headers | None:
        """Return the facts of the headers with the empty line behind them; None: unusual ones."""
        if len(block) > KNOWN_HEADERS_BYTES:
            return None
        digest = hashlib.sha256(block).digest()
        known = self._headers
        if digest not in known:
            known[digest] = self._read(block)
            if len(known) > KNOWN_HEADERS:
                known.popitem(last=False)
        return known[digest]

    def _read(self, block: bytes) -> _Headers | None:
        head = Head()
        try:
            if head.feed(_ANY_LINE + block) != b"" or not head.keep_alive:
                return None
        except ReattachError:
            return None
        headers = dict(head.headers)
        if len(headers) != len(head.headers) or not is_usual(headers):
            return None
        credentials = self._authenticator.credentials(headers)
        return None if credentials is None else _Headers(head.content_length, credentials)

    def _find(self, tenant: TenantId, in_path: bytes | None, body: _Body) -> Target | None:
        if in_path is not None:
            return self._targets.find(tenant, run_id=RunId(in_path.decode()))
        if body.run_id:
            is_whole = is_run_id(body.run_id)
            run_id = RunId(body.run_id)
            return self._targets.find(tenant, run_id=run_id) if is_whole else None
        if body.otid:
            return self._targets.find(tenant, otid=body.otid)
        return None  # The active run of the conversation, which has not ended.

    def _response(self, target: Target, rest: Slice, default_headers: Headers) -> bytes:
        if default_headers is not self._default_headers:  # They have a new date.
            head = response_head(200, (*default_headers, *LETTA.headers))
            self._default_headers, self._head = default_headers, head.removesuffix(b"\r\n")
        return _RESPONSE % (
            self._head,
            target.run_id.encode(),
            target.status.value.encode(),
            rest.first_seq - 1,
            len(rest.frames) + len(DONE),
            rest.frames,
            DONE,
        )


def _body_of(data: bytes) -> _Body | None:
    """Decode the body; None if it has a fault, or an escape, or perhaps a member twice."""
    if b"\\" in data:
        return None
    try:
        body = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    # msgspec takes the last of two members with one name. Then there are more quotation marks.
    members = msgspec.structs.astuple(body)
    texts = [*map(type, members[:_TEXTS])].count(str)
    named = _MEMBERS - members.count(UNSET)
    return body if data.count(b'"') == 2 * (named + texts) else None
