"""Resumes that are answered in the callback that reads them: the same bytes as the routes give."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.domain.errors import ReattachError
from reattach.domain.ids import DEFAULT_TENANT, new_run_id, new_uuid
from reattach.domain.limits import KEY_CACHE_SECONDS
from reattach.http.connection.protocol import HttpConnection
from reattach.http.connection.states import State
from reattach.http.instant import InstantResumes, _body_of
from reattach.http.json import parse
from reattach.http.schemas.resuming import ResumeBody
from reattach.records.base import KeyScope
from tests.support.asgi_server import OTHER_TENANT
from tests.support.live_server import WAIT_SECONDS, LiveServer, listening, new_threads

LAST: Final = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
"""A pipelined request after which the connection closes."""
HOST, JSON = b"Host: localhost", b"Content-Type: application/json"
DATE: Final = re.compile(rb"(?i)\r\ndate: [^\r]*")


class Instant:
    """Counts the requests that were answered at once; none is while it is off."""

    def __init__(self) -> None:
        self.answered = 0
        self.is_on = True


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> Instant:
    counts, answer = Instant(), InstantResumes.answer

    def counted(self: InstantResumes, *request: Any) -> tuple[bytes, int] | None:
        answered = answer(self, *request) if counts.is_on else None
        counts.answered += answered is not None
        return answered

    monkeypatch.setattr(InstantResumes, "answer", counted)
    return counts


async def exchange(live: LiveServer, *said: bytes) -> bytes:
    """Return the responses until the server closes the connection, without their dates."""
    reader, writer = await asyncio.open_connection(*live.address)
    try:
        writer.write(b"".join(said))
        async with asyncio.timeout(WAIT_SECONDS):
            return DATE.sub(b"", await reader.read())
    finally:
        writer.close()


async def ended_run(live: LiveServer) -> tuple[str, str, str]:
    """A conversation, a run of it that has ended, and its OTID."""
    agent, conversation = await new_threads(live)
    live.gates.open(agent)
    otid = new_uuid()
    run = await live.background_run(conversation, "hello", otid=otid)
    await live.ended(run)
    return conversation, run, otid


def resume(
    path: str, body: bytes = b"{}", *headers: bytes, line: bytes = b"POST %b HTTP/1.1"
) -> bytes:
    shown = headers or (HOST, JSON)
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join((line % path.encode(), *shown, length, b"", body))


HEADS: Final[dict[str, tuple[bool, tuple[bytes, ...]]]] = {
    "usual": (True, (HOST, JSON)),
    "names in upper case": (True, (b"HOST: localhost", b"CONTENT-TYPE: application/json")),
    "spaces around values": (True, (HOST, b"Content-Type: \t application/json \t ")),
    "no spaces": (True, (b"Host:localhost", b"Content-Type:application/json")),
    "more headers": (True, (HOST, JSON, b"User-Agent: x", b"Accept: */*", b"X-Empty:")),
    "a port": (True, (b"Host: 127.0.0.1:8283", JSON)),
    "credentials that nobody needs": (True, (HOST, JSON, b"Authorization: Bearer x")),
    "keep-alive": (True, (HOST, JSON, b"Connection: keep-alive")),
    "an upgrade": (True, (HOST, JSON, b"Connection: Upgrade", b"Upgrade: websocket")),
    "no host": (False, (JSON,)),
    "no content type": (False, (HOST,)),
    "another content type": (False, (HOST, b"Content-Type: application/json; charset=utf-8")),
    "a value in upper case": (False, (HOST, b"Content-Type: APPLICATION/JSON")),
    "two hosts": (False, (HOST, HOST, JSON)),
    "a header twice": (False, (HOST, JSON, b"Accept: a", b"Accept: b")),
    "two lengths": (False, (HOST, JSON, b"Content-Length: 2")),
    "an origin": (False, (HOST, JSON, b"Origin: http://localhost:3000")),
    "a page of elsewhere": (False, (HOST, JSON, b"Sec-Fetch-Site: cross-site")),
    "a foreign host": (False, (b"Host: example.com", JSON)),
    "a proxy": (False, (HOST, JSON, b"X-Forwarded-For: 192.0.2.1")),
    "expect": (False, (HOST, JSON, b"Expect: 100-continue")),
    "a close": (False, (HOST, JSON, b"Connection: close")),
    "a compressed body": (False, (HOST, JSON, b"Content-Encoding: gzip")),
    "a folded header": (False, (HOST, JSON, b"X-Folded: a\r\n b")),
    "a space before the colon": (False, (HOST, b"Content-Type : application/json")),
    "no name": (False, (HOST, JSON, b": x")),
    "large headers": (False, (HOST, JSON, b"X-Large: " + b"x" * 5000)),
}
LINES: Final = {
    "HTTP/1.0": b"POST %b HTTP/1.0",
    "a method in lower case": b"post %b HTTP/1.1",
    "another method": b"PUT %b HTTP/1.1",
    "a query": b"POST %b?x=1 HTTP/1.1",
    "a fragment": b"POST %b#x HTTP/1.1",
    "an absolute target": b"POST http://localhost%b HTTP/1.1",
    "an escape in the path": b"POST /%%76%.0b1/runs/x/stream HTTP/1.1",
    "a slash at the end": b"POST %b/ HTTP/1.1",
    "two spaces": b"POST  %b HTTP/1.1",
    "an empty line before it": b"\r\nPOST %b HTTP/1.1",
}


async def compared(live: LiveServer, instant: Instant, request: bytes) -> tuple[int, bytes]:
    """How many of two equal requests were answered at once, and the bytes, which are the same."""
    counts = []
    answers = []
    for instant.is_on in (True, False):
        before = instant.answered
        answers.append(await exchange(live, request, request, LAST))
        counts.append(instant.answered - before)
    instant.is_on = True
    assert answers[0] == answers[1], request
    assert counts[1] == 0
    return counts[0], answers[0]


async def test_every_form_of_a_head_gets_the_bytes_of_the_routes(
    live: LiveServer, instant: Instant
) -> None:
    _, run, _ = await ended_run(live)
    path = f"/v1/runs/{run}/stream"
    for name, (is_instant, headers) in HEADS.items():
        count, answer = await compared(live, instant, resume(path, b'{"batch_size":9}', *headers))
        assert (name, count) == (name, 2 if is_instant else 0)
        assert not is_instant or answer.count(b"HTTP/1.1 200 OK\r\n") == 3
    for name, line in LINES.items():
        count, _ = await compared(live, instant, resume(path, b"{}", line=line))
        assert (name, count) == (name, 0)
    length = b"Content-Length: 4"
    for odd in (
        resume(path).replace(b"Content-Length: 2", b"Content-Length: 002"),
        resume(path).replace(b"Content-Length: 2", b"Content-Length: +2"),
        resume(path).replace(b"Content-Length: 2", b"Content-Length: 1"),
        resume(path).replace(b"Content-Length: 2", b"Content-Length: "),
        resume(path).replace(b"Content-Length: 2\r\n\r\n{}", length + b"\r\n\r\n{}\r\n"),
        resume(path).replace(b"\r\n", b"\n"),
        resume(path).replace(
            b"Content-Length: 2\r\n\r\n{}",
            b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        ),
    ):
        await compared(live, instant, odd)


async def test_every_form_of_a_body_gets_the_bytes_of_the_routes(
    live: LiveServer, instant: Instant
) -> None:
    conversation, run, otid = await ended_run(live)
    by_run, by_otid = b'"run_id":"%b"' % run.encode(), b'"otid":"%b"' % otid.encode()
    with_run = (
        b"{%b}" % by_run,
        b'{%b,"starting_after":1}' % by_otid,
        b'{%b,"otid":null,"agent_id":"x"}' % by_run,
    )
    without_run = (
        b"{}",
        b'{"starting_after":2}',
        b' {"starting_after" : 1000000 }\n',
        b'{"starting_after":-7,"batch_size":null,"include_pings":null,"poll_interval":1}',
        b'{"run_id":"run-1"}',
        b'{"run_id":"%b"}' % new_run_id().encode(),
        '{"otid":"ä"}'.encode(),
    )
    others = (
        b'{"batch_size":1}',
        b'{"otid":"\\u00e4"}',
        b'{"otid":""}',
        b'{"otid":"\xff"}',
        b'{"otid":"\t"}',
        b"{%b,%b}" % (by_otid, by_otid),
        b'{"starting_after":1,"starting_after":1}',
        b'{"starting_after":1.0}',
        b'{"starting_after":"1"}',
        b'{"starting_after":true}',
        b'{"starting_after":99999999999999999999}',
        b'{"starting_after":null}',
        b'{"poll_interval":1e999}',
        b'{"unknown":1}',
        b"{} x",
        b"[]",
        b"null",
        b"{",
        b"\xef\xbb\xbf{}",
    )
    for body in (*with_run, *without_run, *others):
        count, _ = await compared(live, instant, resume(f"/v1/runs/{run}/stream", body))
        assert (body, count) == (body, 0 if body in others else 2)
        path = f"/v1/conversations/{conversation}/stream"
        count, _ = await compared(live, instant, resume(path, body))
        assert (body, count) == (body, 2 if body in with_run else 0)


async def test_a_request_in_two_packets_gets_the_same_bytes_wherever_it_is_cut(
    live: LiveServer, instant: Instant, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections: list[HttpConnection] = []
    connection_made = HttpConnection.connection_made

    def noted(protocol: HttpConnection, transport: Any) -> None:
        connections.append(protocol)
        connection_made(protocol, transport)

    monkeypatch.setattr(HttpConnection, "connection_made", noted)
    _, run, _ = await ended_run(live)
    request = resume(f"/v1/runs/{run}/stream", b'{"starting_after": 1}')
    whole = await exchange(live, request, LAST)
    reader, writer = await asyncio.open_connection(*live.address)
    writer.write(request)
    async with asyncio.timeout(WAIT_SECONDS * 3):
        first = await reader.readuntil(b"\r\n0\r\n\r\n")
        assert whole.startswith(DATE.sub(b"", first))
        before = instant.answered
        for cut in range(1, len(request)):
            connections[-1].data_received(request[:cut])
            connections[-1].data_received(request[cut:])
            answer = await reader.readuntil(b"\r\n0\r\n\r\n")
            assert DATE.sub(b"", answer) == DATE.sub(b"", first)
        assert instant.answered == before
        connections[-1].data_received(request * 3 + request[:50])
        for _ in range(3):
            answer = await reader.readuntil(b"\r\n0\r\n\r\n")
            assert DATE.sub(b"", answer) == DATE.sub(b"", first)
        assert instant.answered == before + 3
        assert connections[-1].state is State.HEAD  # The rest of the fourth request may come.
    writer.close()


async def test_keys_open_and_refuse_as_on_the_routes(tmp_path: Path, instant: Instant) -> None:
    async with listening(tmp_path) as live:
        _, run, _ = await ended_run(live)
        keys = live.context.records.keys
        key, secret = await keys.create(DEFAULT_TENANT, "ours")
        _, theirs = await keys.create(OTHER_TENANT, "theirs")
        _, writing = await keys.create(DEFAULT_TENANT, "writes", scopes=[KeyScope.SEND])
        live.clock.skipped_seconds += KEY_CACHE_SECONDS
        path = f"/v1/runs/{run}/stream"

        def request_with(key: str) -> bytes:
            return resume(path, b"{}", HOST, JSON, f"Authorization: Bearer {key}".encode())

        for secret_given, status, is_instant in (
            (secret, b"200", True),
            (secret.upper(), b"401", False),
            (theirs, b"404", False),
            (writing, b"403", False),
        ):
            await exchange(live, request_with(secret_given), LAST)  # The key is looked up.
            count, answer = await compared(live, instant, request_with(secret_given))
            assert (answer[9:12], count) == (status, 2 if is_instant else 0)
        count, answer = await compared(live, instant, resume(path))
        assert (answer[9:12], count) == (b"401", 0)
        await keys.revoke(key.id)
        live.clock.skipped_seconds += KEY_CACHE_SECONDS
        count, answer = await compared(live, instant, request_with(secret))
        assert (answer[9:12], count) == (b"401", 0)


async def test_the_quota_of_requests_holds_for_resumes_that_are_answered_at_once(
    tmp_path: Path, instant: Instant
) -> None:
    async with listening(tmp_path, quota_requests_per_second=1) as live:
        _, run, _ = await ended_run(live)
        answer = await exchange(live, resume(f"/v1/runs/{run}/stream") * 50, LAST)
    assert b"HTTP/1.1 429 " in answer
    assert answer.count(b"HTTP/1.1 ") == 51
    assert answer.count(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream") == instant.answered
    assert live.context.meters.refused.value("requests") == 50 - instant.answered


async def test_resumes_that_are_answered_at_once_are_counted_like_others(
    live: LiveServer, instant: Instant
) -> None:
    _, run, _ = await ended_run(live)
    meters = live.context.meters
    counted = []
    for instant.is_on in (True, False):
        before = dict(meters.resumes.items()), meters.resume_events.sum
        for cursor in (0, 1, 10**6):
            body = b'{"starting_after":%d}' % cursor
            await exchange(live, resume(f"/v1/runs/{run}/stream", body), LAST)
        after = dict(meters.resumes.items()), meters.resume_events.sum
        counted.append(
            ({kind: after[0][kind] - before[0][kind] for kind in after[0]}, after[1] - before[1])
        )
    assert instant.answered == 3
    assert counted[0] == counted[1]


async def test_an_otid_of_two_runs_names_the_newest_one(live: LiveServer, instant: Instant) -> None:
    conversation, older, otid = await ended_run(live)
    request = resume(f"/v1/conversations/{conversation}/stream", b'{"otid":"%b"}' % otid.encode())
    count, answer = await compared(live, instant, request)
    assert (count, answer.count(older.encode()) > 0) == (2, True)
    messages = [{"role": "user", "content": "again", "otid": one} for one in (otid, new_uuid())]
    body = {"messages": messages, "background": True}
    async with live.stream(f"/v1/conversations/{conversation}/messages", body) as stream:
        newer = stream.run_id
        await stream.rest()
    await live.ended(newer)
    count, answer = await compared(live, instant, request)
    assert f"x-run-id: {newer}".encode() in answer
    assert (count, older.encode() in answer) == (0, False)


texts = st.none() | st.text(max_size=5) | st.sampled_from(["run-1", "é"])
numbers = (
    st.none()
    | st.integers()
    | st.integers(-5, 5)
    | st.floats()
    | st.booleans()
    | st.sampled_from(["1", [], {}])
)
members = st.lists(
    st.tuples(st.sampled_from(["agent_id", "run_id", "otid"]), texts)
    | st.tuples(
        st.sampled_from(["starting_after", "include_pings", "poll_interval", "batch_size", "x"]),
        numbers,
    ),
    max_size=5,
)


@given(members, st.booleans())
def test_a_body_that_is_accepted_at_once_means_the_same_to_the_routes(
    listed: list[tuple[str, Any]], is_ascii: bool
) -> None:
    pairs = (f"{json.dumps(name)}:{json.dumps(value, ensure_ascii=is_ascii)}"
             for name, value in listed)  # fmt: skip
    try:
        data = f"{{{','.join(pairs)}}}".encode()
    except UnicodeEncodeError:
        return
    body = _body_of(data)
    if body is None:
        return
    try:
        regular = ResumeBody.model_validate(parse(data))
    except ReattachError:
        pytest.fail(f"the routes refuse {data!r}")
    assert regular.model_fields_set == {name for name, _ in listed}
    assert regular.model_dump(exclude_unset=True) == {
        name: getattr(body, name) for name in regular.model_fields_set
    }
