"""Stream tokens in the records, and the keys that sign them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import select

from reattach.domain.errors import NotFoundError
from reattach.domain.ids import TenantId
from reattach.domain.limits import MAX_STREAM_TOKEN_SECONDS
from reattach.domain.stream_tokens import new_token_id
from reattach.records.base import Page, Thread
from reattach.records.database import schema
from reattach.records.records import Records
from reattach.records.tokens.tokens import StreamToken, Uses
from tests.support.record_samples import OURS, THEIRS, HandClock, World, at, ids

PAGE = Page(limit=100, ascending=True)


async def issued(
    records: Records,
    *,
    tenant: TenantId = OURS,
    run_id: str | None = "run-1",
    conversation_id: str | None = None,
    key_id: str | None = None,
    seconds: float = 600,
) -> StreamToken:
    now = records.tokens._clock.now()
    token = StreamToken(
        id=new_token_id(),
        tenant=tenant,
        run_id=run_id,
        conversation_id=conversation_id,
        key_id=key_id,
        scope_names=("read",),
        origin=None,
        created_at=now,
        expires_at=now + timedelta(seconds=seconds),
    )
    await records.tokens.add(token)
    return token


async def revoked(records: Records) -> frozenset[str]:
    return (await records.tokens.standing()).revoked


@pytest.mark.promise("S11")
async def test_all_processes_get_the_key_that_one_of_them_creates(
    records: Records, other_process: Records
) -> None:
    assert (await records.tokens.standing()).secrets == ()
    creating = [one.tokens.create_first_key() for one in (records, other_process) * 4]
    await asyncio.gather(*creating)
    standing = await records.tokens.standing()
    assert len(standing.secrets) == 1
    assert standing.signs
    assert await other_process.tokens.standing() == standing


@pytest.mark.promise("S11")
async def test_a_replaced_key_verifies_as_long_as_its_tokens_live_and_is_then_deleted(
    records: Records, clock: HandClock
) -> None:
    tokens = records.tokens
    await tokens.create_first_key()
    (first,) = (await tokens.standing()).secrets
    clock.time = at(10)
    await tokens.rotate_key()
    second, old = (await tokens.standing()).secrets
    assert old == first != second
    clock.time = at(10 + MAX_STREAM_TOKEN_SECONDS)
    await tokens.sweep()
    assert (await tokens.standing()).secrets == (second, first)
    clock.time = at(30 + MAX_STREAM_TOKEN_SECONDS)
    assert (await tokens.standing()).secrets == (second,)
    await tokens.sweep()
    rows = await records._database.rows(select(schema.signing_keys.c.secret))
    assert [row["secret"] for row in rows] == [second]
    assert (await tokens.standing()).signs


@pytest.mark.promise("S11")
async def test_a_rotation_at_once_leaves_no_other_key(records: Records) -> None:
    await records.tokens.create_first_key()
    before = await records.tokens.standing()
    await records.tokens.rotate_key(at_once=True)
    after = await records.tokens.standing()
    assert len(after.secrets) == 1
    assert set(after.secrets).isdisjoint(before.secrets)
    await records.tokens.create_first_key()
    assert await records.tokens.standing() == after


@pytest.mark.promise("S11", "P11")
async def test_a_token_is_revoked_by_its_id_by_its_run_by_its_conversation_or_by_its_key(
    records: Records, other_process: Records, clock: HandClock, world: World
) -> None:
    thread = world.conversation.id
    key, _ = await records.keys.create(OURS, "page server")
    one = await issued(records)
    two = await issued(records)
    talk = await issued(records, run_id=None, conversation_id=thread)
    other = await issued(records, run_id="run-2", key_id=key.id)
    theirs = await issued(records, tenant=THEIRS)
    assert await revoked(records) == frozenset()

    clock.time = at(1)
    await records.tokens.revoke(OURS, one.id)
    clock.time = at(2)
    await records.tokens.revoke(OURS, one.id)
    assert await revoked(other_process) == {one.id}
    (row,) = [row for row in await records.tokens.list(OURS, PAGE) if row.id == one.id]
    assert row.revoked_at == at(1)
    for unknown in (theirs.id, "token-x", ""):
        with pytest.raises(NotFoundError):
            await records.tokens.revoke(OURS, unknown)

    assert await records.tokens.revoke_all(OURS, run_id="run-1") == 1
    assert await records.tokens.revoke_all(OURS, run_id="run-1") == 0
    assert await revoked(records) == {one.id, two.id}
    assert await records.tokens.revoke_all(OURS, conversation_id=thread) == 1
    assert await revoked(records) == {one.id, two.id, talk.id}
    await records.keys.revoke(key.id)
    assert await revoked(records) == {one.id, two.id, talk.id, other.id}


@pytest.mark.promise("S11", "P11")
@pytest.mark.parametrize("what", ["conversation", "run", "agent", "revoke"])
async def test_tokens_end_with_what_they_are_for(
    records: Records, other_process: Records, world: World, what: str
) -> None:
    thread, agent = world.conversation.id, world.agent.id
    run, _ = await world.turn("hello")
    in_default, _ = await world.turn("hello", thread=world.default)
    elsewhere = await world.another()
    tokens = {
        "conversation": await issued(records, run_id=None, conversation_id=thread),
        "run": await issued(records, run_id=run),
        "default": await issued(records, run_id=in_default),
        "another": await issued(records, run_id=None, conversation_id=elsewhere.id),
    }
    theirs = await issued(records, tenant=THEIRS, run_id="run-of-theirs")
    of_thread = ids(await records.tokens.list(OURS, PAGE, conversation_id=thread))
    assert of_thread == [tokens["conversation"].id, tokens["run"].id]
    if what == "conversation":
        await records.conversations.delete(OURS, thread)
        ended = ["conversation", "run"]
    elif what == "run":
        await records.runs.delete(OURS, run)
        ended = ["run"]
    elif what == "agent":
        await records.agents.delete(OURS, agent)
        ended = [*tokens]
    else:
        assert await records.tokens.revoke_all(THEIRS, conversation_id=thread) == 0
        assert await records.tokens.revoke_all(OURS, conversation_id=thread) == 2
        ended = ["conversation", "run"]
    assert await revoked(other_process) == {tokens[name].id for name in ended}
    assert theirs.id not in await revoked(other_process)


@pytest.mark.promise("S11")
async def test_no_token_is_recorded_for_a_conversation_that_is_deleted_meanwhile(
    records: Records, other_process: Records, world: World
) -> None:
    for _ in range(5):
        thread = await world.another()
        run, _ = await world.turn("hello", thread=Thread(world.agent.id, thread.id))
        results = await asyncio.gather(
            issued(records, run_id=None, conversation_id=thread.id),
            issued(records, run_id=run),
            other_process.conversations.delete(OURS, thread.id),
            return_exceptions=True,
        )
        made = {one.id for one in results if isinstance(one, StreamToken)}
        assert made <= await revoked(records)
        for subject in ({"run_id": run}, {"run_id": None, "conversation_id": thread.id}):
            with pytest.raises(NotFoundError):
                await issued(records, **subject)


@pytest.mark.promise("P11")
async def test_tokens_are_listed_by_tenant_until_they_expire_and_are_then_deleted(
    records: Records, clock: HandClock, world: World
) -> None:
    thread = world.conversation.id
    short = await issued(records, seconds=5)
    clock.time = at(1)
    long = await issued(records, run_id="run-2", seconds=50)
    talk = await issued(records, run_id=None, conversation_id=thread, seconds=50)
    theirs = await issued(records, tenant=THEIRS, seconds=50)
    tokens = records.tokens
    assert ids(await tokens.list(OURS, PAGE)) == [short.id, long.id, talk.id]
    assert ids(await tokens.list(OURS, PAGE, run_id="run-2")) == [long.id]
    assert ids(await tokens.list(OURS, PAGE, conversation_id=thread)) == [talk.id]
    assert ids(await tokens.list(THEIRS, PAGE)) == [theirs.id]
    assert ids(await tokens.list(OURS, Page(1, ascending=True, after=short.id))) == [long.id]
    await tokens.revoke(OURS, short.id)
    clock.time = at(5)
    assert ids(await tokens.list(OURS, PAGE)) == [long.id, talk.id]
    assert await revoked(records) == frozenset()
    await tokens.sweep()
    rows = await records._database.rows(select(schema.stream_tokens.c.id))
    assert {row["id"] for row in rows} == {long.id, talk.id, theirs.id}


async def test_the_uses_of_many_tokens_are_added_up_over_all_processes(
    records: Records, other_process: Records
) -> None:
    one, two = await issued(records), await issued(records)
    await records.tokens.count_uses({one.id: Uses(3, at(5)), two.id: Uses(1, at(6))})
    await other_process.tokens.count_uses({one.id: Uses(2, at(4)), "token-gone": Uses(1, at(4))})
    found = {token.id: token for token in await records.tokens.list(OURS, PAGE)}
    assert (found[one.id].uses, found[one.id].last_used_at) == (5, at(5))
    assert (found[two.id].uses, found[two.id].last_used_at) == (1, at(6))
