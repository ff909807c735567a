"""The log on a Redis that requires TLS and a user with minimal rights."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Self

import pytest
import trustme

from reattach.domain.errors import StartupError
from reattach.domain.ids import Seq, Token
from reattach.log.open import open_log
from reattach.testing.conformance.log_reader import follow
from reattach.testing.conformance.log_samples import append
from reattach.testing.programs.redis import RedisServer

pytestmark = pytest.mark.slow

FRAMES = [b"data: one\n\n", b"data: two\n\n"]


class TlsRelay:
    """A Redis behind a TLS relay, because the Redis of the tests has no TLS."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self._socket_path = server.socket_path
        self._folder = folder
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "authority.pem")
        trustme.CA().cert_pem.write_to_path(folder / "stranger.pem")
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(self._context)
        self._port = 0

    def url(self, *, user: str = "writer:sesame", authority: str = "authority.pem") -> str:
        file = self._folder / authority
        return f"rediss://{user}@localhost:{self._port}?ssl_ca_certs={file}&prefix=mine"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Self]:
        listener = await asyncio.start_server(self._relay, "localhost", 0, ssl=self._context)
        self._port = listener.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listener.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(self._socket_path)
        ways = [asyncio.create_task(_pipe(reader, back)), asyncio.create_task(_pipe(there, writer))]
        await asyncio.wait(ways)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(65536):
            writer.write(piece)
    writer.close()


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[TlsRelay]:
    with RedisServer() as server:
        rights = ("~mine:*", "&mine:*", "+@all", "-@dangerous", "+info")
        server.command("ACL", "SETUSER", "writer", "on", ">sesame", *rights)
        server.command("ACL", "SETUSER", "default", "off")
        async with TlsRelay(server, tmp_path).listening() as relay:
            yield relay


async def test_a_user_with_minimal_rights_writes_and_follows_a_log_over_tls(
    relay: TlsRelay,
) -> None:
    url = relay.url()
    async with (
        aclosing(await open_log(url, retention_seconds=60)) as owner,
        aclosing(await open_log(url, retention_seconds=60)) as other,
    ):
        await owner.open("run", Token(1), aliases=["otid"])
        await append(owner, "run", Token(1), 1, FRAMES[:1])
        assert await other.find("otid") == "run"
        async with other.follow("run") as tail:
            assert tail.last_seq == 1
            await append(owner, "run", Token(1), 2, FRAMES[1:], close=True)
            assert await follow(other, "run", 0) == FRAMES
        await owner.trim("run", Seq(2))
        await owner.delete("run")


@pytest.mark.parametrize("wrong", [{"user": "writer:x"}, {"authority": "stranger.pem"}])
async def test_the_error_for_a_wrong_password_or_certificate_shows_no_secret(
    relay: TlsRelay, wrong: dict[str, str]
) -> None:
    with pytest.raises(StartupError) as refused:
        await open_log(relay.url(**wrong), retention_seconds=60)
    assert "sesame" not in refused.value.detail
