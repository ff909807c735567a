from __future__ import annotations

import pytest

from reattach.domain.errors import ConflictError, NotFoundError
from reattach.domain.stream_tokens import new_token_id
from reattach.records import audit_log
from reattach.records.audit_log import Action, AuditEntry
from reattach.records.base import Actor
from reattach.records.database.database import Database
from reattach.records.records import Records
from reattach.records.tokens.tokens import StreamToken
from tests.support.record_samples import NOON, OURS, THEIRS, HandClock, World, a_settlement, at

US = Actor("key", "key-1", "backend")
THEM = Actor("cli", name="root")


def acts(entries: list[AuditEntry]) -> list[tuple[str, str | None]]:
    return [(entry.action, entry.subject) for entry in entries]


async def test_the_life_of_a_key_is_in_the_audit_log_once(
    records: Records, clock: HandClock
) -> None:
    key, secret = await records.keys.create(OURS, "laptop", by=THEM)
    clock.time = at(1)
    for _ in range(2):
        await records.keys.revoke(key.id, by=US)
    with pytest.raises(NotFoundError):
        await records.keys.revoke("key-x", by=US)

    revoked, created = await records.audit_log.list(None, limit=10)

    assert (created.action, created.subject, created.tenant) == ("key.created", key.id, OURS)
    assert (created.actor_kind, created.actor_id, created.actor_name) == ("cli", None, "root")
    assert created.detail == {"name": "laptop", "scopes": ["admin", "read", "send"]}
    assert (revoked.action, revoked.at, revoked.actor_id) == ("key.revoked", at(1), "key-1")
    assert secret not in repr((revoked, created))


async def test_tokens_and_deletions_and_cancels_are_in_the_audit_log_of_their_tenant(
    world: World, records: Records, clock: HandClock
) -> None:
    run, thread = await world.start(), world.thread
    assert thread.conversation_id is not None
    token = StreamToken(
        id=new_token_id(),
        tenant=OURS,
        run_id=run.id,
        conversation_id=None,
        key_id=None,
        scope_names=("read",),
        origin=None,
        created_at=NOON,
        expires_at=at(60),
    )
    await records.tokens.add(token, by=US)
    for _ in range(2):
        await records.runs.request_cancel(OURS, [run.id], by=US)
    await records.runs.settle(run.id, a_settlement())
    for _ in range(2):
        await records.tokens.revoke_all(OURS, run_id=run.id, by=US)
    await records.runs.delete(OURS, run.id, by=US)
    await records.conversations.delete(OURS, thread.conversation_id, by=US)
    await records.agents.delete(OURS, thread.agent_id, by=US)
    await records.callbacks.rotate_secret(THEIRS, by=THEM)
    await records.tokens.rotate_key(by=THEM)

    ours = await records.audit_log.list(OURS, limit=10)

    assert acts(ours[::-1]) == [
        (Action.TOKEN_ISSUED, token.id),
        (Action.RUN_CANCELLED, run.id),
        (Action.TOKEN_REVOKED, run.id),
        (Action.RUN_DELETED, run.id),
        (Action.CONVERSATION_DELETED, thread.conversation_id),
        (Action.AGENT_DELETED, thread.agent_id),
    ]
    everything = await records.audit_log.list(None, limit=10)
    assert acts(everything)[:2] == [
        (Action.SIGNING_KEY_ROTATED, None),
        (Action.CALLBACK_SECRET_ROTATED, None),
    ]
    assert [entry.tenant for entry in everything[:3]] == [None, THEIRS, OURS]


async def test_an_act_that_fails_leaves_no_entry(
    records: Records, shared_database: Database
) -> None:
    def fail(connection: object) -> None:
        audit_log.note(connection, US, Action.KEY_REVOKED, NOON, tenant=OURS)  # type: ignore[arg-type]
        raise ConflictError("The act fails.")

    with pytest.raises(ConflictError):
        await shared_database.in_write(fail)
    assert await records.audit_log.list(None, limit=10) == []


async def test_pages_of_the_audit_log_go_on_after_an_entry_of_the_same_tenant(
    records: Records,
) -> None:
    for number in range(5):
        await records.audit_log.add(US, Action.KEY_CREATED, tenant=OURS, subject=f"key-{number}")
        await records.audit_log.add(US, Action.KEY_CREATED, tenant=THEIRS, subject="theirs")

    seen: list[str | None] = []
    after: str | None = None
    while page := await records.audit_log.list(OURS, limit=2, after=after):
        seen += [entry.subject for entry in page]
        after = page[-1].id

    assert seen == [f"key-{number}" for number in (4, 3, 2, 1, 0)]
    theirs = (await records.audit_log.list(THEIRS, limit=1))[0]
    with pytest.raises(NotFoundError, match=theirs.id):
        await records.audit_log.list(OURS, limit=2, after=theirs.id)


async def test_old_entries_are_deleted_and_a_busy_tenant_pushes_out_only_its_own(
    records: Records,
    shared_database: Database,
    clock: HandClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit_log, "MAX_AUDIT_ENTRIES", 2)
    await records.audit_log.add(US, Action.KEY_CREATED, tenant=OURS, subject="old")
    clock.time = at(2 * 86400)
    await records.audit_log.add(US, Action.BACKUP_MADE, subject="server")
    for number in range(4):
        await records.audit_log.add(US, Action.KEY_CREATED, tenant=THEIRS, subject=f"n{number}")
    await records.audit_log.add(US, Action.KEY_CREATED, tenant=OURS, subject="new")

    await Records(shared_database, clock, audit_days=1).tidy()

    found = await records.audit_log.list(None, limit=10)
    assert [entry.subject for entry in found] == ["new", "n3", "n2", "server"]
