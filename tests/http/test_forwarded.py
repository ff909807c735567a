"""The client and scheme that a trusted proxy names are those that uvicorn's middleware finds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from reattach.http.connection.forwarded import ForwardedHeaders

ADDRESSES = st.sampled_from(
    [
        *("127.0.0.1", "10.1.2.3", "192.0.2.7:8080", "::1", "[::1]", "[2001:db8::1]:443", "proxy"),
        *("", " 10.0.0.9 ", "[::1", "[::1]x", "[::1]:x", "host:port", "a:b:c", "x" * 254, "unix:"),
    ]
)
LISTS = st.lists(ADDRESSES, min_size=1, max_size=4).map(",".join)
TRUSTED = st.one_of(
    st.sampled_from(["*", "", "127.0.0.1", "10.0.0.0/8, ::1", "proxy,10.0.0.9", "10.0.0.1/8"]),
    LISTS,
)
HEADERS = st.lists(
    st.one_of(
        st.tuples(st.just(b"x-forwarded-for"), LISTS.map(str.encode)),
        st.tuples(
            st.just(b"x-forwarded-proto"),
            st.sampled_from([b"http", b" https ", b"HTTPS", b"ftp", b"", b"\xff"]),
        ),
        st.just((b"host", b"127.0.0.1")),
    ),
    max_size=4,
)


def passed(make: Any, scope: dict[str, Any]) -> Scope:
    """The scope with which the application behind a middleware is called."""
    seen: list[Scope] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    middleware: ASGIApp = make(application)

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    asyncio.run(middleware({**scope}, nothing, nothing))  # type: ignore[arg-type]
    return seen[0]


@example("proxy," + "x" * 254, "proxy", [(b"x-forwarded-for", b"::1," + b"x" * 254)])
@given(
    TRUSTED,
    st.one_of(st.none(), st.sampled_from(["127.0.0.1", "10.1.2.3", "::1", "proxy", ""])),
    HEADERS,
)
def test_headers_mean_what_they_mean_to_uvicorn(
    trusted: str, host: str | None, headers: list[tuple[bytes, bytes]]
) -> None:
    client = None if host is None else (host, 50_000)
    scope = {"type": "http", "scheme": "http", "client": client, "headers": headers}

    ours = passed(lambda app: ForwardedHeaders(app, trusted), scope)

    assert ours == passed(lambda app: ProxyHeadersMiddleware(app, trusted), scope)


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("192.0.2.7", ("192.0.2.7", 0)),
        ("198.51.100.9, 192.0.2.7:81", ("192.0.2.7", 81)),
        ("192.0.2.7, 10.9.9.9", ("192.0.2.7", 0)),
    ],
)
def test_the_last_address_that_is_no_proxys_is_the_client(
    forwarded: str, client: tuple[str, int]
) -> None:
    headers = [(b"x-forwarded-for", forwarded.encode())]
    scope = {"type": "http", "scheme": "http", "client": ("10.0.0.1", 1), "headers": headers}

    assert passed(lambda app: ForwardedHeaders(app, "10.0.0.0/8"), scope)["client"] == client
