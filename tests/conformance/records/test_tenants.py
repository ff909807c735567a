"""The rows of tenants: every table has a place, and nothing of a deleted tenant is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, Table, select

from reattach.domain.ids import RunId, TenantId, new_message_id
from reattach.domain.stream_tokens import new_token_id
from reattach.records.base import Actor, Thread
from reattach.records.database import schema
from reattach.records.database.database import Database
from reattach.records.records import Records
from reattach.records.tenants import deletion
from reattach.records.tenants.export import Line
from reattach.records.tenants.tables import (
    DELETED,
    DELETED_WITH_PARENTS,
    EXPORTED,
    EXPORTED_WITH_PARENTS,
    NOT_EXPORTED,
    OF_THE_SERVER,
    parents_of,
)
from reattach.records.tokens.tokens import StreamToken
from tests.support.record_samples import (
    NOON,
    OURS,
    THEIRS,
    World,
    a_block,
    a_conversation,
    a_key,
    a_message,
    a_run,
    a_settlement,
    a_step,
    a_system_message,
    an_agent,
    at,
)

US = Actor("cli", name="root")

Dump = Mapping[str, Sequence[Any]]


def tables_of_tenants() -> set[str]:
    """Return the tables with a tenant column, and those that reach one through their parents."""
    found = {table for table in schema.metadata.sorted_tables if "tenant" in table.c}
    for table in schema.metadata.sorted_tables:  # Parents come first.
        if any(parent in found for _, parent in parents_of(table)):
            found.add(table)
    return {table.name for table in found}


def names(tables: Any) -> set[str]:
    return {table.name for table in tables}


def test_every_table_of_the_schema_is_deleted_with_its_tenant_or_has_none() -> None:
    assert names(DELETED) | names(DELETED_WITH_PARENTS) == tables_of_tenants()
    assert names(OF_THE_SERVER) == names(schema.metadata.sorted_tables) - tables_of_tenants()
    for table in DELETED_WITH_PARENTS:
        for column, parent in parents_of(table):
            assert parent in DELETED
            assert [key.ondelete for key in column.foreign_keys] == ["CASCADE"]


def test_every_table_of_tenants_is_exported_or_has_a_reason_not_to_be() -> None:
    exported = names(EXPORTED) | names(EXPORTED_WITH_PARENTS)
    assert exported | names(NOT_EXPORTED) == tables_of_tenants()
    assert not exported & names(NOT_EXPORTED)
    assert all(NOT_EXPORTED.values())
    for _, parent in EXPORTED_WITH_PARENTS.values():
        assert parent in EXPORTED


async def fill(records: Records, tenant: TenantId) -> set[str]:
    """Give the tenant rows in every table, and return all ids and texts of its own."""
    key, _ = await records.keys.create(tenant, f"key of {tenant}", by=US)
    block = a_block("human", value=f"block of {tenant}")
    agent = await records.agents.create(
        tenant, an_agent(f"agent of {tenant}", tags=("a", "b"), blocks=(block,))
    )
    own = a_conversation(agent.id, isolated_blocks=(a_block("mine"),))
    conversation = await records.conversations.create(tenant, own, a_system_message())
    thread = Thread(agent.id, conversation.id)
    run = a_run(thread, tenant)
    otid = f"otid-{new_message_id()}"
    await records.runs.create(tenant, run, a_key(otid), [otid])
    text = f"text of {tenant}"
    settlement = a_settlement(a_message(text, run_id=run.id, otid=otid), steps=(a_step(run),))
    await records.runs.settle(run.id, settlement)
    await records.callbacks.secrets(tenant)
    token = StreamToken(
        id=new_token_id(),
        tenant=tenant,
        run_id=run.id,
        conversation_id=None,
        key_id=key.id,
        scope_names=("read",),
        origin=None,
        created_at=NOON,
        expires_at=at(3600),
    )
    await records.tokens.add(token, by=US)

    of_run = {"run_id": run.id}
    cut = {"at": NOON, "reason": "error", "cursor": 1, "client": text, "transport": "get"}
    rows: dict[Table, dict[str, Any]] = {
        schema.hidden_events: of_run | {"after_seq": 1, "frame": text},
        schema.run_timelines: of_run | {"token": 1, "commits": "[]"},
        schema.cut_offs: of_run | cut | {"process": "p"},
        schema.conversation_keys: {
            "tenant": tenant,
            "agent_id": agent.id,
            "dialect": "ui_messages",
            "key": text,
            "conversation_id": conversation.id,
        },
    }

    def add(connection: Connection) -> None:
        for table, row in rows.items():
            connection.execute(table.insert().values(row))

    await records.tenants._database.in_write(add)
    return {tenant, key.id, agent.id, block.id, conversation.id, run.id, token.id, otid, text}


async def dump(database: Database) -> Dump:
    """Return all rows of all tables."""

    def read(connection: Connection) -> Dump:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table))]
            for table in schema.metadata.sorted_tables
        }

    return await database.in_read(read)


async def delete_all(
    records: Records, tenant: TenantId, *, active_too: bool = False
) -> list[RunId]:
    logs: list[RunId] = []
    for table in DELETED:
        while (
            batch := await records.tenants.delete_batch(table, tenant, active_too=active_too)
        ).rows:
            assert batch.rows <= deletion.BATCH_ROWS
            logs += batch.logs
    return logs


@pytest.mark.promise("P12")
async def test_nothing_of_a_deleted_tenant_is_left_and_others_keep_everything(
    records: Records, shared_database: Database
) -> None:
    theirs = await fill(records, THEIRS)
    before = await dump(shared_database)
    ours = await fill(records, OURS)
    assert set(await records.tenants.remaining(OURS)) == tables_of_tenants()

    [run_id] = await delete_all(records, OURS)

    assert await records.tenants.remaining(OURS) == {}
    after = await dump(shared_database)
    assert after["abandoned_logs"] == [(run_id, NOON)]
    await records.runs.mark_log_deleted([run_id], NOON)
    after = await dump(shared_database)
    assert after == before
    assert [one for one in ours if one in repr(after)] == []
    assert all(one in repr(after) for one in theirs)


@pytest.mark.parametrize("bound", [("BATCH_ROWS", 2), ("_BATCH_BYTES", 100)])
async def test_a_deletion_in_batches_takes_all_rows(
    world: World, records: Records, monkeypatch: pytest.MonkeyPatch, bound: tuple[str, int]
) -> None:
    monkeypatch.setattr(deletion, *bound)
    run_ids = [(await world.turn("one", "two"))[0] for _ in range(5)]
    assert sorted(await delete_all(records, OURS)) == sorted(run_ids)
    assert await records.tenants.remaining(OURS) == {}


async def test_an_active_run_is_not_deleted_and_neither_are_its_conversation_and_agent(
    world: World, records: Records
) -> None:
    run = await world.start()
    await world.turn("ended", thread=world.default)
    assert await records.tenants.active_runs(OURS, limit=5) == [run.id]

    await delete_all(records, OURS)

    left = await records.tenants.remaining(OURS)
    assert {name: left[name] for name in ("runs", "conversations", "agents")} == {
        "runs": 1,
        "conversations": 1,
        "agents": 1,
    }
    assert await delete_all(records, OURS, active_too=True) == [run.id]
    assert await records.tenants.remaining(OURS) == {}


@pytest.mark.promise("P12")
async def test_reports_of_processes_that_may_name_a_deleted_tenant_are_forgotten(
    records: Records,
) -> None:
    await records.owners.register("process-9", 15)
    await records.owners.save_report("process-9", f"a reader of {OURS}")
    await records.owners.forget_reports()
    [kept] = await records.owners.reports()
    assert (kept.owner, kept.has_lease, kept.report, kept.reported_at) == (
        "process-9",
        True,
        None,
        None,
    )


@pytest.mark.promise("S11")
async def test_a_server_stays_closed_after_the_deletion_of_the_last_tenant_with_keys(
    records: Records,
) -> None:
    _, secret = await records.keys.create(OURS, "app")
    assert await records.tenants.revoke_all(OURS, by=US) == 1
    assert await records.keys.find(secret) is None
    for _ in range(2):
        await delete_all(records, OURS)
    assert await records.keys.exist()
    [kept] = await records.keys.list(None)
    assert kept.revoked_at is not None
    await delete_all(records, kept.tenant)
    assert await records.keys.exist()
    assert await records.tenants.remaining(kept.tenant) == {}


async def test_an_export_has_every_row_once_in_pages_and_no_secret(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reattach.records.tenants.export.PAGE_ROWS", 2)
    _, secret = await records.keys.create(OURS, "app")
    for _ in range(3):
        ours = await fill(records, OURS)
    theirs = await fill(records, THEIRS)
    remaining = await records.tenants.remaining(OURS)

    lines = [line for table in EXPORTED for line in await exported(records, table)]

    counts = {kind: sum(one == kind for one, _ in lines) for kind in KINDS.values()}
    assert counts == {KINDS[name]: remaining[name] for name in KINDS}
    assert [one for one in ours - {OURS} if one not in repr(lines)] == []
    assert [one for one in theirs if one in repr(lines)] == []
    assert not any("secret" in name for _, line in lines for name in line)
    assert secret not in repr(lines)


KINDS = {
    **{table.name: kind for table, kind in EXPORTED.items()},
    **{table.name: kind for table, (kind, _) in EXPORTED_WITH_PARENTS.items()},
}


async def exported(records: Records, table: Table) -> list[Line]:
    lines: list[Line] = []
    after: int | None = 0
    while after is not None:
        page = await records.tenants.export_page(table, OURS, after)
        lines += page.lines
        after = page.next_after
    return lines
