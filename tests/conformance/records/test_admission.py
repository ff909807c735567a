from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import structs

from reattach.domain.errors import (
    ConversationBusyError,
    NotFoundError,
    OtidConflictError,
)
from reattach.domain.events import RunStatus
from reattach.domain.ids import Token, new_agent_id, new_conversation_id
from reattach.records.base import Run, RunKnown, Thread
from reattach.records.records import Records
from reattach.records.runs import admission
from reattach.records.runs.created import RunCreated
from tests.support.record_samples import (
    OURS,
    THEIRS,
    World,
    a_key,
    a_run,
    a_settlement,
    a_world,
    at,
    first,
    ids,
)


async def test_a_created_run_is_read_back_unchanged(world: World) -> None:
    run = a_run(world.thread, created_at=at(0.000001), model=None, background=False)
    assert await world.records.runs.create(OURS, run, None, ()) == RunCreated(run)
    assert await world.records.runs.get(OURS, run.id) == run
    conversation = await world.records.conversations.get(OURS, world.conversation.id)
    assert conversation.last_message_at == run.created_at


@pytest.mark.promise("P9")
async def test_a_known_key_returns_its_run_during_the_run_and_after_it(world: World) -> None:
    runs = world.records.runs
    run = a_run(world.thread)
    key = a_key("a", "b")
    await runs.create(OURS, run, key, key.otids)
    again = a_run(world.thread)
    assert await runs.create(OURS, again, key, key.otids) == RunKnown(run)
    await runs.settle(run.id, a_settlement())
    ended = await runs.get(OURS, run.id)
    assert await runs.create(OURS, again, key, key.otids) == RunKnown(ended)
    assert ids(await runs.list(OURS, first())) == [run.id]


@pytest.mark.promise("P9")
async def test_a_known_key_with_another_payload_is_a_conflict_that_names_the_run(
    world: World,
) -> None:
    runs = world.records.runs
    run = a_run(world.thread)
    await runs.create(OURS, run, a_key("a"), ["a"])
    with pytest.raises(OtidConflictError) as refused:
        await runs.create(OURS, a_run(world.thread), a_key("a", payload="other"), ["a"])
    assert refused.value.extra == {"run_id": run.id}
    assert ids(await runs.list(OURS, first())) == [run.id]


@pytest.mark.promise("P9")
async def test_a_key_is_the_whole_tuple_of_its_otids(world: World) -> None:
    runs = world.records.runs
    for otids in (("a",), ("a", "b"), ("b", "a"), ("a|b",), ('a","b',)):
        run = a_run(world.thread)
        assert await runs.create(OURS, run, a_key(*otids), otids) == RunCreated(run)
        await runs.settle(run.id, a_settlement())


async def test_a_key_without_otids_is_ignored(world: World) -> None:
    for _ in range(2):
        run = a_run(world.thread)
        assert await world.records.runs.create(OURS, run, a_key(), ("a",)) == RunCreated(run)
        await world.records.runs.settle(run.id, a_settlement())


@pytest.mark.promise("P9", "P11")
async def test_two_tenants_may_use_one_key(world: World) -> None:
    runs = world.records.runs
    theirs = await a_world(world.records, THEIRS)
    our_run, their_run = a_run(world.thread), a_run(theirs.thread, THEIRS)
    assert await runs.create(OURS, our_run, a_key("a"), ["a"]) == RunCreated(our_run)
    assert await runs.create(THEIRS, their_run, a_key("a"), ["a"]) == RunCreated(their_run)
    assert await runs.newest_by_otid(OURS, "a") == our_run
    assert await runs.newest_by_otid(THEIRS, "a") == their_run


@pytest.mark.promise("P9")
@pytest.mark.parametrize("processes", [1, 2])
async def test_fifty_concurrent_sends_with_one_key_create_one_run(
    world: World, other_process: Records, processes: int
) -> None:
    stores = [world.records, other_process][:processes]
    key = a_key("a")

    async def send(number: int) -> RunCreated | RunKnown:
        runs = stores[number % processes].runs
        return await runs.create(OURS, a_run(world.thread), key, key.otids)

    async with asyncio.timeout(60):
        outcomes = await asyncio.gather(*map(send, range(50)))
    created = [outcome for outcome in outcomes if isinstance(outcome, RunCreated)]
    assert len(created) == 1
    assert {outcome.run.id for outcome in outcomes} == {created[0].run.id}
    assert ids(await world.records.runs.list(OURS, first())) == [created[0].run.id]


@pytest.mark.promise("P10")
@pytest.mark.parametrize("processes", [1, 2])
async def test_fifty_concurrent_sends_to_a_conversation_create_one_run_and_name_it_to_the_rest(
    world: World, other_process: Records, processes: int
) -> None:
    stores = [world.records, other_process][:processes]

    async def send(number: int) -> Run | ConversationBusyError:
        run = a_run(world.thread)
        try:
            outcome = await stores[number % processes].runs.create(
                OURS, run, a_key(f"otid-{number}"), ()
            )
        except ConversationBusyError as busy:
            return busy
        return outcome.run

    async with asyncio.timeout(60):
        outcomes = await asyncio.gather(*map(send, range(50)))
    (run,) = (outcome for outcome in outcomes if isinstance(outcome, Run))
    refused = [outcome for outcome in outcomes if not isinstance(outcome, Run)]
    assert len(refused) == 49
    for busy in refused:
        assert busy.extra == {"run_id": run.id, "conversation_id": world.conversation.id}
    assert ids(await world.records.runs.list(OURS, first())) == [run.id]


@pytest.mark.promise("P10")
async def test_a_thread_is_free_again_when_its_run_has_ended(world: World) -> None:
    for thread in (world.thread, world.default, world.thread):
        run = await world.start(thread)
        with pytest.raises(ConversationBusyError):
            await world.start(thread)
        assert await world.records.runs.mark_running(run.id, Token(1))
        with pytest.raises(ConversationBusyError):
            await world.start(thread)
        await world.records.runs.settle(run.id, a_settlement())
        assert await world.records.runs.active(OURS, thread) is None


@pytest.mark.promise("P10")
async def test_two_threads_of_an_agent_can_have_active_runs_at_once(world: World) -> None:
    named = await world.start(world.thread)
    other = await world.another()
    second = await world.start(Thread(world.agent.id, other.id))
    default = await world.start(world.default)
    runs = world.records.runs
    assert await runs.active(OURS, world.thread) == named
    assert await runs.active(OURS, world.default) == default
    assert ids(await runs.list(OURS, first(), active_only=True)) == [
        named.id,
        second.id,
        default.id,
    ]


@pytest.fixture
def blind_first_look(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hide the first query before an insert, as in a race with another process."""
    looks: list[str] = []

    def blinded(name: str) -> None:
        look = getattr(admission, name)

        def once_blind(*arguments: Any) -> Any:
            looks.append(name)
            return () if looks.count(name) == 1 else look(*arguments)

        monkeypatch.setattr(admission, name, once_blind)

    blinded("_find_known")
    blinded("_active_in")
    return looks


@pytest.mark.promise("P9")
async def test_the_index_on_keys_stops_a_second_run_after_a_race_with_another_process(
    world: World, request: pytest.FixtureRequest
) -> None:
    runs = world.records.runs
    run = a_run(world.thread)
    await runs.create(OURS, run, a_key("a"), ["a"])
    looks = request.getfixturevalue("blind_first_look")
    elsewhere = a_run(world.default)
    assert await runs.create(OURS, elsewhere, a_key("a"), ["a"]) == RunKnown(run)
    assert looks == ["_find_known", "_active_in", "_find_known"]
    assert ids(await runs.list(OURS, first())) == [run.id]


@pytest.mark.promise("P10")
async def test_the_index_on_active_runs_stops_a_second_run_after_a_race_with_another_process(
    world: World, request: pytest.FixtureRequest
) -> None:
    run = await world.start()
    looks = request.getfixturevalue("blind_first_look")
    with pytest.raises(ConversationBusyError) as busy:
        await world.start()
    assert busy.value.extra["run_id"] == run.id
    assert looks.count("_active_in") == 2
    assert ids(await world.records.runs.list(OURS, first())) == [run.id]


@pytest.mark.promise("P9")
async def test_a_run_of_the_key_that_was_created_in_a_race_is_returned_instead_of_a_refusal(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = a_key("a")
    winner = a_run(world.thread)
    await world.records.runs.create(OURS, winner, key, key.otids)
    known = admission._find_known
    looks = 0

    def blind_once(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        return () if looks == 1 else known(*arguments)

    monkeypatch.setattr(admission, "_find_known", blind_once)
    again = await world.records.runs.create(OURS, a_run(world.thread), key, key.otids)
    assert again == RunKnown(winner)
    assert looks == 2


async def test_a_key_is_checked_before_the_conversation(world: World) -> None:
    runs = world.records.runs
    run = a_run(world.thread)
    await runs.create(OURS, run, a_key("a"), ["a"])
    await world.start(world.default)
    elsewhere = a_run(world.default)
    assert await runs.create(OURS, elsewhere, a_key("a"), ["a"]) == RunKnown(run)


async def test_a_refused_run_leaves_no_rows(world: World) -> None:
    runs = world.records.runs
    running = await world.start(created_at=at(1))
    refused = a_run(world.thread, created_at=at(2))
    with pytest.raises(ConversationBusyError):
        await runs.create(OURS, refused, a_key("b"), ["b"])
    with pytest.raises(NotFoundError):
        await runs.get(OURS, refused.id)
    assert await runs.newest_by_otid(OURS, "b") is None
    conversation = await world.records.conversations.get(OURS, world.conversation.id)
    assert conversation.last_message_at == at(1)
    await runs.settle(running.id, a_settlement())
    assert await runs.create(OURS, refused, a_key("b"), ["b"]) == RunCreated(refused)


async def test_a_run_in_an_unknown_thread_is_refused(world: World) -> None:
    runs = world.records.runs
    no_agent = Thread(new_agent_id(), None)
    with pytest.raises(NotFoundError, match=f"Agent with ID {no_agent.key} not found"):
        await runs.create(OURS, a_run(no_agent), a_key("a"), ["a"])
    nowhere = Thread(world.agent.id, new_conversation_id())
    with pytest.raises(NotFoundError, match=f"Conversation not found with id={nowhere.key}"):
        await runs.create(OURS, a_run(nowhere), a_key("a"), ["a"])
    with pytest.raises(NotFoundError, match=world.conversation.id):
        await runs.create(THEIRS, a_run(world.thread, THEIRS), None, ())
    with pytest.raises(NotFoundError, match=world.agent.id):
        await runs.create(THEIRS, a_run(world.default, THEIRS), None, ())


async def test_an_otid_finds_the_newest_run_that_has_it(world: World) -> None:
    runs = world.records.runs
    older = a_run(world.thread)
    await runs.create(OURS, older, a_key("a"), ["a"])
    assert await runs.newest_by_otid(OURS, "a") == older
    await runs.settle(older.id, a_settlement())
    newer = a_run(world.thread)
    await runs.create(OURS, newer, a_key("a", "b", "b"), ["a", "b", "b"])
    assert await runs.newest_by_otid(OURS, "a") == newer
    assert await runs.newest_by_otid(OURS, "b") == newer
    assert await runs.newest_by_otid(OURS, "c") is None
    assert await runs.newest_by_otid(THEIRS, "a") is None


async def test_a_run_may_be_created_as_running(world: World) -> None:
    run = structs.replace(a_run(world.thread), status=RunStatus.RUNNING)
    assert await world.records.runs.create(OURS, run, None, ()) == RunCreated(run)
    with pytest.raises(ConversationBusyError):
        await world.start()


@pytest.mark.promise("P7", "P9")
@pytest.mark.parametrize("has_key", [True, False])
@pytest.mark.parametrize("lands_before", ["the look for the key", "the look for an active run"])
async def test_a_repeated_attempt_recognises_its_own_run_however_late_the_first_one_lands(
    world: World, monkeypatch: pytest.MonkeyPatch, has_key: bool, lands_before: str
) -> None:
    runs = world.records.runs
    run = a_run(world.thread)
    key = a_key("a") if has_key else None
    otids = () if key is None else key.otids
    await runs.create(OURS, run, key, otids)
    if lands_before == "the look for an active run" and has_key:
        # It lands after the key was looked for and not found.
        find_known, looks = admission._find_known, 0

        def miss_once(*arguments: Any) -> Any:
            nonlocal looks
            looks += 1
            return () if looks == 1 else find_known(*arguments)

        monkeypatch.setattr(admission, "_find_known", miss_once)
    find_own, own_looks = admission._find_own, 0

    def miss_own_once(*arguments: Any) -> RunCreated | None:
        nonlocal own_looks
        own_looks += 1
        return None if own_looks == 1 else find_own(*arguments)

    monkeypatch.setattr(admission, "_find_own", miss_own_once)
    assert await runs.create(OURS, run, key, otids, repeated=True) == RunCreated(run)
    assert ids(await runs.list(OURS, first())) == [run.id]
