from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import JSON, Connection, Text, cast, select, type_coerce, update

from reattach.domain.errors import ConflictError, NotFoundError
from reattach.domain.events import RunStatus, StopReason, Usage
from reattach.domain.ids import AgentId, ConversationId, RunId, Seq, Token, new_run_id
from reattach.records.base import RequestConfig, Run, RunError, Target, Thread
from reattach.records.database import schema
from reattach.records.database.database import Database
from reattach.records.records import Records
from reattach.records.runs.created import RunCreated
from reattach.records.runs.hidden_events import HiddenEvent
from reattach.records.runs.lists.pages import (
    MOST_FORMS,
    RunPages,
    form_of,
    run_filters,
    statement_of,
)
from reattach.records.runs.lists.summaries import RunSummary
from tests.support.record_samples import (
    OURS,
    THEIRS,
    HandClock,
    World,
    a_key,
    a_message,
    a_run,
    a_settlement,
    a_step,
    a_world,
    at,
    first,
    ids,
    last,
)


async def test_an_unknown_run_is_not_found(records: Records) -> None:
    unknown = new_run_id()
    with pytest.raises(NotFoundError, match=f"^Run not found with id={unknown}$"):
        await records.runs.get(OURS, unknown)


async def test_a_settlement_writes_the_end_the_messages_and_the_steps_of_the_run(
    world: World,
) -> None:
    runs = world.records.runs
    run = await world.start()
    user, answer = a_message("hi", run_id=run.id), a_message("hello", run_id=run.id)
    steps = (a_step(run), a_step(run, usage=Usage(total_tokens=1)))
    usage = Usage(completion_tokens=3, prompt_tokens=5, total_tokens=8, cached_input_tokens=2)
    settlement = a_settlement(user, answer, steps=steps, usage=usage)
    assert await runs.settle(run.id, settlement)

    assert await runs.get(OURS, run.id) == structs.replace(
        run,
        status=RunStatus.COMPLETED,
        stop_reason=StopReason.END_TURN,
        completed_at=at(5),
        usage=usage,
        duration_ns=5_000_000_000,
    )
    assert await runs.steps(OURS, run.id, first()) == list(steps)
    history = await world.records.messages.history(OURS, world.thread)
    assert history == [world.system_message, user, answer]
    agent = await world.records.agents.get(OURS, world.agent.id)
    assert agent.last_run_completion == at(5)
    assert agent.last_run_duration_ms == 5000
    assert agent.last_stop_reason is StopReason.END_TURN
    conversation = await world.records.conversations.get(OURS, world.conversation.id)
    assert conversation.last_message_at == at(5)


async def test_the_stored_error_and_options_of_a_run_are_those_of_the_api(world: World) -> None:
    run = await world.start()
    error = RunError(run.id, "llm_error", "no")
    settlement = a_settlement(stop_reason=StopReason.MODEL_API_ERROR, error=error)
    assert await world.records.runs.settle(run.id, settlement)
    table, database = schema.runs, world.records._database
    columns = (cast(table.c.error, Text), cast(table.c.request_config, Text))
    [stored] = await database.rows(select(*columns).where(table.c.id == run.id))
    assert [json.loads(text) for text in stored.values()] == [
        {
            "message_type": "error_message",
            "run_id": run.id,
            "error_type": "llm_error",
            "message": "no",
            "detail": None,
        },
        {
            "use_assistant_message": False,
            "assistant_message_tool_name": "send_message",
            "assistant_message_tool_kwarg": "message",
            "include_return_message_types": None,
            "include_compaction_messages": False,
        },
    ]


async def test_options_that_an_earlier_version_did_not_store_have_their_defaults(
    world: World,
) -> None:
    run = await world.start()
    assert run.request_config == RequestConfig(use_assistant_message=False)
    empty = update(schema.runs).values(request_config=type_coerce({}, JSON))
    await world.records._database.in_write(lambda connection: connection.execute(empty).rowcount)
    assert (await world.records.runs.get(OURS, run.id)).request_config == RequestConfig()


async def test_a_failed_run_keeps_its_error_and_may_leave_the_conversation_as_it_was(
    world: World,
) -> None:
    run = await world.start()
    error = RunError(run.id, "llm_error", "no", "because")
    settlement = a_settlement(stop_reason=StopReason.MODEL_API_ERROR, error=error, duration_ns=None)
    assert await world.records.runs.settle(run.id, settlement)
    ended = await world.records.runs.get(OURS, run.id)
    assert (ended.status, ended.error, ended.input) == (RunStatus.FAILED, error, run.input)
    history = await world.records.messages.history(OURS, world.thread)
    assert history == [world.system_message]
    conversation = await world.records.conversations.get(OURS, world.conversation.id)
    assert conversation.last_message_at == run.created_at


async def test_settled_messages_have_the_id_of_the_run_and_follow_the_earlier_ones(
    world: World,
) -> None:
    run_id, _ = await world.turn("one")
    run = await world.start()
    unmarked = a_message("two")
    await world.records.runs.settle(run.id, a_settlement(unmarked))
    history = await world.records.messages.history(OURS, world.thread)
    assert [message.run_id for message in history] == [None, run_id, run.id]
    assert history[2].id == unmarked.id


async def test_a_run_is_settled_once(world: World, other_process: Records) -> None:
    run = await world.start()
    mine = a_settlement(a_message("mine"), stop_reason=StopReason.CANCELLED)
    theirs = a_settlement(a_message("theirs"), steps=(a_step(run),))
    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(
            world.records.runs.settle(run.id, mine),
            other_process.runs.settle(run.id, theirs),
            world.records.runs.settle(run.id, mine),
            other_process.runs.settle(run.id, theirs),
        )
    assert sorted(outcomes) == [False, False, False, True]
    history = await world.records.messages.history(OURS, world.thread)
    winner = mine if any(outcomes[::2]) else theirs
    assert ids(history[1:]) == ids(winner.messages)
    assert (await world.records.runs.get(OURS, run.id)).status is winner.status


async def test_a_settlement_that_fails_changes_nothing(world: World) -> None:
    run = await world.start()
    message = a_message("twice")
    with pytest.raises(ConflictError):
        await world.records.runs.settle(
            run.id, a_settlement(message, message, steps=(a_step(run),))
        )
    assert await world.records.runs.get(OURS, run.id) == run
    history = await world.records.messages.history(OURS, world.thread)
    assert history == [world.system_message]
    assert await world.records.runs.steps(OURS, run.id, first()) == []
    assert (await world.records.agents.get(OURS, world.agent.id)).last_run_completion is None
    assert await world.records.runs.settle(run.id, a_settlement(message))


async def test_an_unknown_run_is_not_settled(records: Records) -> None:
    assert not await records.runs.settle(new_run_id(), a_settlement(a_message()))


async def test_the_agent_shows_its_last_ended_run(world: World) -> None:
    await world.turn("late", completed_at=at(9), stop_reason=StopReason.ERROR)
    await world.turn("early", thread=world.default, completed_at=at(3))
    agent = await world.records.agents.get(OURS, world.agent.id)
    assert (agent.last_run_completion, agent.last_stop_reason) == (at(9), StopReason.ERROR)


async def test_only_the_owner_marks_a_run_running_and_only_before_its_end(
    world: World,
) -> None:
    runs = world.records.runs
    run = await world.start()
    assert not await runs.mark_running(run.id, Token(2))
    assert (await runs.get(OURS, run.id)).status is RunStatus.CREATED
    assert await runs.mark_running(run.id, Token(1))
    assert await runs.mark_running(run.id, Token(1))
    assert (await runs.get(OURS, run.id)).status is RunStatus.RUNNING
    await runs.settle(run.id, a_settlement())
    assert not await runs.mark_running(run.id, Token(1))
    assert (await runs.get(OURS, run.id)).status is RunStatus.COMPLETED


@pytest.mark.promise("P17")
async def test_only_the_owner_notes_begun_tool_calls_and_only_before_the_end(
    world: World,
) -> None:
    runs = world.records.runs
    run = await world.start()
    assert (await runs.get(OURS, run.id)).begun_calls is None
    assert await runs.mark_running(run.id, Token(1), notes_begun=True)
    assert (await runs.get(OURS, run.id)).begun_calls == ()
    assert await runs.note_begun(run.id, Token(1), ["call-1"])
    assert await runs.note_begun(run.id, Token(1), ["call-1", "call-2"])
    (taken,) = await runs.take_over([(run.id, Token(1))], "another")
    assert taken.run.begun_calls == ("call-1", "call-2")
    assert not await runs.note_begun(run.id, Token(1), ["call-1", "call-2", "call-3"])
    await runs.settle(run.id, a_settlement())
    assert not await runs.note_begun(run.id, Token(2), ["call-3"])
    assert (await runs.get(OURS, run.id)).begun_calls == ("call-1", "call-2")


@pytest.mark.promise("P6")
async def test_a_cancel_request_marks_active_runs_once_and_leaves_ended_ones(
    world: World, clock: HandClock
) -> None:
    runs = world.records.runs
    ended_id, _ = await world.turn("x")
    run = await world.start()
    clock.time = at(1)
    ended, asked = await runs.request_cancel(OURS, [ended_id, run.id])
    assert (ended.status, ended.cancel_requested_at) == (RunStatus.COMPLETED, None)
    assert (asked.status, asked.cancel_requested_at) == (RunStatus.CREATED, at(1))
    clock.time = at(2)
    (again,) = await runs.request_cancel(OURS, [run.id])
    assert again == asked
    assert await runs.request_cancel(OURS, []) == []


async def test_a_cancel_request_with_an_unknown_run_changes_nothing(world: World) -> None:
    run = await world.start()
    with pytest.raises(NotFoundError):
        await world.records.runs.request_cancel(OURS, [run.id, new_run_id()])
    assert (await world.records.runs.get(OURS, run.id)).cancel_requested_at is None


@pytest.mark.promise("P7")
async def test_a_disclaimed_run_is_an_orphan_until_it_is_taken_over(
    world: World,
) -> None:
    runs, owners = world.records.runs, world.records.owners
    for owner in ("process-1", "process-2"):
        await owners.register(owner, 1000)
    run = await world.start()
    assert not await runs.disclaim(run.id, "process-2")
    assert await runs.orphans(10) == []
    assert await runs.disclaim(run.id, "process-1")
    assert not await runs.disclaim(run.id, "process-1")
    assert ids(await runs.orphans(10)) == [run.id]
    (taken,) = await runs.take_over([(run.id, run.token)], "process-2")
    assert taken.run.token > run.token
    assert await runs.orphans(10) == []
    await runs.settle(run.id, a_settlement())
    assert not await runs.disclaim(run.id, "process-2")


@pytest.mark.promise("P7")
async def test_concurrent_takeovers_of_a_run_give_it_to_one_owner(
    world: World, other_process: Records
) -> None:
    run = await world.start()
    stores = [world.records, other_process]
    async with asyncio.timeout(30):
        taken = await asyncio.gather(
            *(stores[n % 2].runs.take_over([(run.id, Token(1))], f"process-{n}") for n in range(10))
        )
    ((winner,),) = (found for found in taken if found)
    assert winner.run.token == 2
    assert winner.run == await world.records.runs.get(OURS, run.id)
    assert await world.records.runs.take_over([(run.id, Token(1))], "late") == []
    (again,) = await world.records.runs.take_over([(run.id, Token(2))], "next")
    assert again.run == structs.replace(winner.run, token=Token(3), owner="next")
    await world.records.runs.settle(run.id, a_settlement())
    assert await world.records.runs.take_over([(run.id, Token(3))], "too late") == []


@pytest.mark.promise("P7", "P19")
async def test_runs_are_taken_over_together_with_the_records_around_them(world: World) -> None:
    runs = world.records.runs
    started = [await world.start(Thread(world.agent.id, (await world.another()).id)) for _ in "123"]
    await runs.settle(started[0].id, a_settlement())
    hidden = HiddenEvent(Seq(0), "data: {}\n\n")
    assert await runs.keep_hidden(started[1].id, Token(1), [hidden])
    claims = [*((run.id, Token(1)) for run in started), (new_run_id(), Token(1))]
    taken = {one.run.id: one for one in await runs.take_over(claims, "next", step=2)}
    assert taken.keys() == {run.id for run in started[1:]}
    for run in started[1:]:
        one = taken[run.id]
        assert one.run == structs.replace(run, token=Token(3), owner="next")
        assert one.agent == await world.records.agents.get(OURS, run.thread.agent_id)
        assert one.conversation == await world.records.conversations.get(
            OURS, ConversationId(run.conversation_id or "")
        )
        assert one == await runs.find_owned(run.id, "next")
    assert [list(taken[run.id].hidden) for run in started[1:]] == [[hidden], []]
    assert await runs.find_owned(started[1].id, "another") is None


@pytest.mark.promise("P7")
async def test_concurrent_takeovers_of_many_runs_give_each_to_one_owner(
    world: World, other_process: Records
) -> None:
    threads = [Thread(world.agent.id, (await world.another()).id) for _ in range(20)]
    claims = [((await world.start(thread)).id, Token(1)) for thread in threads]
    stores = [world.records, other_process]
    async with asyncio.timeout(30):
        taken = await asyncio.gather(
            *(
                stores[n % 2].runs.take_over(claims[:: -1 if n % 3 else 1], f"process-{n}")
                for n in range(6)
            )
        )
    owned = [one.run for found in taken for one in found]
    assert sorted(run.id for run in owned) == sorted(run_id for run_id, _ in claims)
    for run in owned:
        assert run == await world.records.runs.get(OURS, run.id)


async def test_runs_are_filtered(world: World) -> None:
    runs = world.records.runs
    done, _ = await world.turn("x")
    failed, _ = await world.turn("x", thread=world.default, stop_reason=StopReason.ERROR)
    active = (await world.start(background=False)).id
    other = await a_world(world.records)
    elsewhere = await world.start(other.thread)

    async def found(**filters: object) -> list[str]:
        return ids(await runs.list(OURS, first(), **filters))  # type: ignore[arg-type]

    mine = world.agent.id
    assert await found() == [done, failed, active, elsewhere.id]
    assert await found(agent_ids=[mine]) == [done, failed, active]
    assert await found(agent_ids=[mine, other.agent.id], active_only=True) == [
        active,
        elsewhere.id,
    ]
    assert await found(statuses=[RunStatus.FAILED, RunStatus.COMPLETED]) == [done, failed]
    assert await found(stop_reason=StopReason.ERROR) == [failed]
    assert await found(background=False) == [active]
    assert await found(background=True, active_only=True) == [elsewhere.id]
    assert await found(conversation_id=world.conversation.id) == [done, active]
    assert await found(conversation_id="default") == [failed]


@pytest.mark.parametrize("ascending", [True, False])
async def test_the_pages_contain_every_run_once(world: World, ascending: bool) -> None:
    for seconds in (1, 0, 1, 1, 2):
        run = await world.start(created_at=at(seconds))
        await world.records.runs.settle(run.id, a_settlement())

    async def page(**cursor: str) -> list[Run]:
        wanted = (first if ascending else last)(2, **cursor)
        return await world.records.runs.list(OURS, wanted)

    walked = await page()
    while found := await page(after=walked[-1].id):
        walked += found
    moments = [run.created_at for run in walked]
    assert moments == sorted(moments, reverse=not ascending)
    assert len(set(ids(walked))) == 5
    assert ids(await page(before=walked[3].id)) == ids(walked[1:3])


@pytest.mark.promise("P11")
async def test_the_summary_of_a_run_equals_the_run_of_the_record(world: World) -> None:
    runs, summaries = world.records.runs, world.records.run_summaries
    done, _ = await world.turn("x")
    await world.turn("x", thread=world.default, stop_reason=StopReason.ERROR)
    await world.start(callback_url="https://example.com/done")
    expected = [RunSummary.of(run) for run in await runs.list(OURS, first())]
    assert await summaries.list(OURS, first(), run_filters()) == expected
    assert [await summaries.get(OURS, one.id) for one in expected] == expected
    only = run_filters(statuses=[RunStatus.COMPLETED])
    assert ids(await summaries.list(OURS, first(), only)) == [done]
    for call in (
        summaries.get(THEIRS, RunId(done)),
        summaries.list(THEIRS, first(after=done), run_filters()),
    ):
        with pytest.raises(NotFoundError, match=f"^Run not found with id={done}$"):
            await call


@pytest.mark.parametrize(
    ("filters", "cursor", "index"),
    [
        ({}, {}, "ix_runs_tenant_created_at (tenant=?)"),
        ({}, {"after": "run-1"}, "ix_runs_tenant_created_at (tenant=? AND created_at<?)"),
        ({}, {"before": "run-1"}, "ix_runs_tenant_created_at (tenant=? AND created_at>?)"),
        ({"agent_ids": ["a"]}, {}, "ix_runs_agent_id_created_at (agent_id=?)"),
        ({"agent_ids": ["a"]}, {"after": "run-1"}, "(agent_id=? AND created_at<?)"),
        ({"conversation_id": "c"}, {}, "ix_runs_conversation_id (conversation_id=?)"),
        ({"conversation_id": "c"}, {"after": "run-1"}, "ix_runs_conversation_id"),
    ],
)
async def test_no_list_of_runs_reads_other_runs_than_its_own_on_sqlite(
    shared_database: Database, filters: dict[str, Any], cursor: dict[str, str], index: str
) -> None:
    if shared_database.backend != "sqlite":
        return
    form, values = form_of(last(100, **cursor), run_filters(**filters))

    def explain(connection: Connection) -> str:
        statement = statement_of(form, [schema.runs.c.id, schema.runs.c.input])
        bound = statement.params(tenant=OURS, limit=100, **values)
        text = bound.compile(connection, compile_kwargs={"literal_binds": True})
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")
        return "\n".join(row[-1] for row in plan)

    assert index in await shared_database.in_read(explain)


async def test_few_statements_are_kept_however_many_filters_are_asked_for(world: World) -> None:
    agents = [AgentId(f"agent-{number}") for number in range(2 * MOST_FORMS)]
    pages = RunPages(schema.runs.c.id)
    database = world.records.runs._database
    for number in range(len(agents)):
        filters = run_filters(agent_ids=[world.agent.id, *agents[:number]])
        assert await database.in_read(pages.read, OURS, first(), filters) == []
    assert 0 < len(pages._prepared) <= MOST_FORMS


async def test_steps_are_listed_in_both_directions(world: World) -> None:
    run = await world.start()
    steps = [a_step(run, created_at=at(min(n, 2)), status="failed") for n in range(4)]
    await world.records.runs.settle(run.id, a_settlement(steps=tuple(steps)))
    listed = world.records.runs.steps
    assert await listed(OURS, run.id, first()) == steps
    assert await listed(OURS, run.id, last(2)) == [steps[3], steps[2]]
    assert await listed(OURS, run.id, last(2, after=steps[2].id)) == [steps[1], steps[0]]
    with pytest.raises(NotFoundError, match="Step not found"):
        await listed(OURS, run.id, first(after="step-x"))


@pytest.mark.promise("P14")
async def test_a_log_expires_after_the_end_of_its_run_until_it_is_marked_deleted(
    world: World,
) -> None:
    runs = world.records.runs
    late, _ = await world.turn("x", completed_at=at(20))
    early, _ = await world.turn("x", completed_at=at(10))
    active = await world.start(created_at=at(-1000))
    assert await runs.list_expired(at(10), 10) == []
    assert await runs.list_expired(at(10.1), 10) == [early]
    assert await runs.list_expired(at(21), 10) == [early, late]
    assert await runs.list_expired(at(21), 1) == [early]
    await runs.mark_log_deleted([early, RunId("run-x")], at(30))
    await runs.mark_log_deleted([early], at(40))
    assert (await runs.get(OURS, early)).log_deleted_at == at(30)
    assert await runs.list_expired(at(99), 10) == [late]
    assert (await runs.get(OURS, active.id)).log_deleted_at is None


async def test_a_deleted_run_is_gone_with_its_key_and_its_messages_stay(world: World) -> None:
    runs = world.records.runs
    run = a_run(world.thread)
    await runs.create(OURS, run, a_key("a"), ["a"])
    with pytest.raises(ConflictError, match="is active"):
        await runs.delete(OURS, run.id)
    message = a_message("kept", run_id=run.id)
    await runs.settle(run.id, a_settlement(message, steps=(a_step(run),)))
    await runs.delete(OURS, run.id)
    for call in (runs.get(OURS, run.id), runs.delete(OURS, run.id)):
        with pytest.raises(NotFoundError):
            await call
    assert await world.records.messages.get(OURS, message.id) == message
    assert await runs.newest_by_otid(OURS, "a") is None
    assert await runs.list_expired(at(-999), 10) == [run.id]
    await runs.mark_log_deleted([run.id], at(1))
    assert await runs.list_expired(at(999), 10) == []
    again = a_run(world.thread)
    assert await runs.create(OURS, again, a_key("a"), ["a"]) == RunCreated(again)


@pytest.mark.promise("P11")
async def test_another_tenant_does_not_see_a_run(world: World) -> None:
    runs = world.records.runs
    run = a_run(world.thread)
    await runs.create(OURS, run, a_key("a"), ["a"])
    for call in (
        runs.get(THEIRS, run.id),
        runs.request_cancel(THEIRS, [run.id]),
        runs.steps(THEIRS, run.id, first()),
        runs.delete(THEIRS, run.id),
        runs.list(THEIRS, first(after=run.id)),
    ):
        with pytest.raises(NotFoundError, match=f"^Run not found with id={run.id}$"):
            await call
    assert await runs.active(THEIRS, world.thread) is None
    assert await runs.newest_by_otid(THEIRS, "a") is None
    assert await runs.list(THEIRS, first(), agent_ids=[world.agent.id]) == []
    assert await runs.get(OURS, run.id) == run


@pytest.mark.promise("P11")
async def test_the_target_of_a_reader_equals_the_run_of_the_record(world: World) -> None:
    runs = world.records.runs
    run = a_run(world.thread)
    await runs.create(OURS, run, a_key("a"), ["a"])
    assert await runs.target(OURS, run.id) == Target.of(run)
    assert await runs.target_by_otid(OURS, "a") == Target.of(run)
    assert await runs.active_target(OURS, world.thread) == Target.of(run)
    await runs.settle(run.id, a_settlement())
    ended = Target.of(await runs.get(OURS, run.id))
    assert ended.status is RunStatus.COMPLETED
    assert await runs.active_target(OURS, world.thread) is None
    newer = structs.replace(a_run(world.thread), background=False)
    await runs.create(OURS, newer, a_key("b"), ["a"])
    assert await runs.target(OURS, run.id) == ended
    assert await runs.target_by_otid(OURS, "a") == Target.of(newer)
    assert await runs.target_by_otid(THEIRS, "a") is None
    assert await runs.active_target(THEIRS, world.thread) is None
    with pytest.raises(NotFoundError, match=f"^Run not found with id={run.id}$"):
        await runs.target(THEIRS, run.id)
