from __future__ import annotations

import pytest
from sqlalchemy import select

from reattach.domain.errors import NotFoundError
from reattach.records.base import ALL_SCOPES, KeyScope
from reattach.records.database import schema
from reattach.records.database.database import Database
from reattach.records.records import Records
from tests.support.record_samples import OURS, THEIRS, HandClock, at, ids


@pytest.mark.promise("S11")
async def test_a_key_is_found_by_its_secret_until_it_is_revoked(
    records: Records, clock: HandClock
) -> None:
    keys = records.keys
    assert not await keys.exist()
    key, secret = await keys.create(OURS, "laptop")
    assert secret.startswith("rk_")
    assert secret.startswith(key.prefix)
    assert len(secret) > 40
    assert await keys.exist()
    assert await keys.find(secret) == key
    for wrong in ("", "rk_", secret[:-1], secret.upper(), "\ud800", key.prefix, key.id):
        assert await keys.find(wrong) is None
    clock.time = at(1)
    await keys.revoke(key.id)
    clock.time = at(2)
    await keys.revoke(key.id)
    assert await keys.find(secret) is None
    assert [found.revoked_at for found in await keys.list(OURS)] == [at(1)]
    with pytest.raises(NotFoundError, match="key-x"):
        await keys.revoke("key-x")


@pytest.mark.promise("S11")
async def test_a_server_whose_last_key_was_revoked_still_requires_keys(records: Records) -> None:
    key, _ = await records.keys.create(OURS, "laptop")
    await records.keys.revoke(key.id)
    assert await records.keys.exist()


@pytest.mark.promise("S11")
async def test_the_secret_of_a_key_is_stored_nowhere(records: Records, url: str) -> None:
    _, secret = await records.keys.create(OURS, "laptop")
    database = await Database.open(url)
    stored: list[object] = []
    for table in schema.metadata.sorted_tables:
        stored += await database.rows(select(table))
    await database.aclose()
    assert "laptop" in repr(stored)
    assert secret not in repr(stored)


async def test_keys_are_listed_by_tenant_or_for_all_and_show_their_last_use(
    records: Records,
) -> None:
    ours, secret = await records.keys.create(OURS, "a")
    theirs, _ = await records.keys.create(THEIRS, "b")
    assert ids(await records.keys.list(OURS)) == [ours.id]
    assert ids(await records.keys.list(None)) == [ours.id, theirs.id]
    await records.keys.mark_used([ours.id], at(5))
    found = await records.keys.find(secret)
    assert found is not None
    assert found.last_used_at == at(5)


@pytest.mark.promise("S11")
async def test_a_key_is_found_and_valid_until_it_expires_and_keeps_its_scopes(
    records: Records, clock: HandClock
) -> None:
    """D13: keys may expire, and may allow less than everything."""
    keys = records.keys
    whole, whole_secret = await keys.create(OURS, "whole")
    short, secret = await keys.create(OURS, "short", scopes=[KeyScope.READ], expires_at=at(2))
    gone, _ = await keys.create(THEIRS, "gone")
    await keys.revoke(gone.id)
    asked = [whole.id, short.id, gone.id, "key-x"]
    clock.time = at(1)
    assert await keys.find(secret) == short
    assert await keys.filter_valid(asked) == {whole.id, short.id}
    assert await keys.filter_valid([*asked, *(f"key-{n}" for n in range(1200))]) == {
        whole.id,
        short.id,
    }
    clock.time = at(2)
    assert await keys.find(secret) is None
    assert await keys.find(whole_secret) == whole
    assert await keys.filter_valid(asked) == {whole.id}
    assert await keys.filter_valid([]) == frozenset()
    listed = await keys.list(OURS)
    assert [key.expires_at for key in listed] == [None, at(2)]
    assert [key.scopes for key in listed] == [ALL_SCOPES, {KeyScope.READ}]


async def test_only_a_key_that_was_asked_for_it_reaches_beyond_its_tenant(
    records: Records,
) -> None:
    keys = records.keys
    _, whole = await keys.create(OURS, "whole")
    _, operator = await keys.create(OURS, "operator", scopes=[KeyScope.OPERATOR])
    found = [await keys.find(whole), await keys.find(operator)]
    assert [one and one.scopes for one in found] == [ALL_SCOPES, {KeyScope.OPERATOR}]
    assert KeyScope.OPERATOR not in ALL_SCOPES
