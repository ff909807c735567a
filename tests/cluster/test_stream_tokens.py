"""Stream tokens in several processes: one signs, all verify, and all learn of a revocation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from reattach.domain.clock import SystemClock
from reattach.domain.limits import KEY_CACHE_SECONDS
from reattach.domain.stream_tokens import kid_of
from reattach.records.records import Records
from reattach.testing.programs.cluster import Cluster
from tests.cluster.clients import WAIT_SECONDS, Client

SPOKEN = 4


async def issued(client: Client, run_id: str) -> dict[str, Any]:
    answer = await client.post("/v1/tokens", {"run_id": run_id, "scope": "read"})
    assert answer.status_code == 200, answer.text
    token: dict[str, Any] = answer.json()
    return token


async def statuses(cluster: Cluster, token: dict[str, Any], run_id: str) -> set[int]:
    """The answers of all servers to a request with the token."""
    headers = {"Authorization": f"Bearer {token['token']}"}
    found = set()
    for url in cluster.urls:
        async with httpx2.AsyncClient(base_url=url, headers=headers) as page:
            found.add((await page.get(f"/v1/runs/{run_id}")).status_code)
    return found


async def _read_until(text: bytes, chunks: AsyncIterator[bytes]) -> None:
    found = b""
    async with asyncio.timeout(WAIT_SECONDS):
        while text not in found:
            found += await anext(chunks)


async def _read_all(chunks: AsyncIterator[bytes]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        async for _ in chunks:
            pass


async def until_refused(cluster: Cluster, token: dict[str, Any], run_id: str) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while await statuses(cluster, token, run_id) != {401}:
            await asyncio.sleep(0.1)


@pytest.mark.promise("S11")
async def test_a_token_of_one_server_is_valid_at_all_until_any_of_them_revokes_it(
    cluster: Cluster, clients: list[Client]
) -> None:
    first, second, third = clients
    text = f"[hang={SPOKEN - 1}][chunks=9]"
    conversation_id = await first.conversation()
    async with first.sent(conversation_id, text) as own:
        run_id = own.run_id
        made = await asyncio.gather(*(issued(client, run_id) for client in clients))
        assert len({kid_of(token["token"]) for token in made}) == 1
        token, kept = made[:2]
        assert await statuses(cluster, token, run_id) == {200}
        query = {"token": token["token"]}
        async with (
            httpx2.AsyncClient(base_url=second.http.base_url, timeout=WAIT_SECONDS) as page,
            page.stream("GET", f"/v1/runs/{run_id}/stream", params=query) as stream,
        ):
            chunks = stream.aiter_raw()
            await _read_until(b"\nid: 1\n", chunks)
            assert (await third.http.delete(f"/v1/tokens/{token['id']}")).status_code == 200
            with pytest.raises(httpx2.TransportError):
                await _read_all(chunks)
        await until_refused(cluster, token, run_id)
        assert await statuses(cluster, kept, run_id) == {200}
        await first.cancel(conversation_id)


@pytest.mark.promise("S11")
async def test_all_servers_take_a_new_signing_key_and_verify_with_the_old_one(
    cluster: Cluster, clients: list[Client]
) -> None:
    client = clients[0]
    async with client.sent(await client.conversation(), "[chunks=3]") as own:
        await own.to_end()
    old = await issued(client, own.run_id)
    records = await Records.open(cluster.postgresql.url(), clock=SystemClock())
    try:
        await records.tokens.rotate_key()
        new = await issued(client, own.run_id)
        async with asyncio.timeout(KEY_CACHE_SECONDS + WAIT_SECONDS):
            while kid_of(new["token"]) == kid_of(old["token"]):
                await asyncio.sleep(0.1)
                new = await issued(client, own.run_id)
        # The others verify at once with a key that they have not read yet.
        assert await statuses(cluster, new, own.run_id) == {200}
        assert await statuses(cluster, old, own.run_id) == {200}
        await records.tokens.rotate_key(at_once=True)
        for token in (old, new):
            await until_refused(cluster, token, own.run_id)
        assert await statuses(cluster, await issued(client, own.run_id), own.run_id) == {200}
    finally:
        await records.aclose()
