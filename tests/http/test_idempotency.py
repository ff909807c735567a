from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.domain.errors import StoreUnavailableError
from reattach.domain.ids import DEFAULT_TENANT, RunId, new_uuid
from reattach.records.base import RunKnown
from reattach.records.runs.created import RunCreated
from tests.support.asgi_server import OTHER_TENANT
from tests.support.live_server import LiveServer, joined, listening, message_body, new_threads, to

MODES: dict[str, dict[str, Any]] = {
    "background": {"background": True},
    "foreground": {"background": False},
    "json": {"streaming": False, "stream_tokens": False},
}


async def posted(live: LiveServer, conversation: str, body: dict[str, Any]) -> bytes:
    """The body of the answer, whatever form it has; fails unless it is one."""
    response = await live.client.post(to(conversation), json=body)
    assert response.status_code == 200, response.text
    return response.content


def tuple_of(otids: Sequence[str | None], text: str = "hi") -> dict[str, Any]:
    """The body of a send of one message for each OTID."""
    items = [{"role": "user", "content": text, "otid": otid} for otid in otids]
    return {"messages": items, "background": True}


async def refused(response: httpx2.Response, code: str, run: str) -> dict[str, Any]:
    """The body of a 409 that names the run."""
    assert response.status_code == 409, response.text
    assert response.headers["x-should-retry"] == "false"
    error: dict[str, Any] = response.json()
    assert (error["code"], error["run_id"]) == (code, run)
    assert error["detail"].startswith("CONFLICT: ")
    return error


# One key, one run.


@pytest.mark.promise("P9")
@pytest.mark.parametrize("second", MODES)
@pytest.mark.parametrize("first", MODES)
async def test_a_duplicate_gets_the_run_of_the_first_in_the_form_that_it_asks_for(
    live: LiveServer, first: str, second: str
) -> None:
    agent, conversation = await new_threads(live)
    body = message_body("[think=1][chunks=4]", otid=new_uuid())
    answer = await posted(live, conversation, body | MODES[first])
    again = await posted(live, conversation, body | MODES[second])
    assert len(await live.run_ids(agent_id=agent)) == 1
    if first == second or "json" not in {first, second}:
        assert again == answer
    else:
        assert await posted(live, conversation, body | MODES[second]) == again
        assert await posted(live, conversation, body | MODES[first]) == answer
    assert len(await live.contents(conversation)) == 3


@pytest.mark.promise("P9")
@pytest.mark.parametrize("mode", MODES)
async def test_fifty_sends_of_one_key_at_once_make_one_run_and_get_one_answer(
    live: LiveServer, mode: str
) -> None:
    agent, conversation = await new_threads(live)
    body = message_body("[chunks=3]", otid=new_uuid()) | MODES[mode]
    answers = await asyncio.gather(*(posted(live, conversation, body) for _ in range(50)))
    assert len(set(answers)) == 1
    assert len(await live.run_ids(agent_id=agent)) == 1
    assert await live.contents(conversation) == [
        ("user_message", "[chunks=3]"),
        ("assistant_message", "t0 t1 t2 "),
    ]


@pytest.mark.promise("P9")
async def test_duplicates_of_all_kinds_join_a_run_under_way(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    body = message_body("[chunks=6]", otid=new_uuid())
    live.gates.hold(agent, 3)
    async with live.stream(to(conversation), body) as first:
        seen = [await first.next() for _ in range(4)]
        async with (
            live.stream(to(conversation), body | MODES["foreground"]) as again,
            live.stream(to(conversation), body | MODES["background"]) as later,
        ):
            assert first.run_id == again.run_id == later.run_id
            assert [await again.next() for _ in range(4)] == seen
            as_json = asyncio.create_task(posted(live, conversation, body | MODES["json"]))
            live.gates.open(agent)
            whole = seen + await first.rest()
            assert joined(seen + await again.rest()) == joined(await later.rest()) == joined(whole)
    assert b'"content":"t0 t1 t2 t3 t4 t5 "' in await as_json
    assert len(await live.run_ids(agent_id=agent)) == 1


@pytest.mark.promise("P9")
async def test_how_an_answer_is_to_be_shown_makes_no_other_request(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    body = message_body("one two", otid=new_uuid(), background=True)
    answer = await posted(live, conversation, body)
    for options in (
        {"stream_tokens": False},
        {"include_pings": False},
        {"max_steps": 3},
        {"override_model": "scripted/slow"},
        {"override_system": "Be brief."},
        {"include_return_message_types": ["reasoning_message"]},
        {"unknown": 1},
    ):
        assert await posted(live, conversation, body | options) == answer
    assert len(await live.run_ids(agent_id=agent)) == 1


@pytest.mark.promise("P9")
async def test_the_key_is_the_tuple_of_the_otids_and_nothing_that_looks_like_it(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    one, two = new_uuid(), new_uuid()
    requests = [
        [one],
        [two],
        [one, two],
        [two, one],
        [one, one],
        [f"{one}|{two}"],
        [f"{one},{two}"],
        [f'{one}", "{two}'],
        [one.upper()],
        [f" {one}"],
    ]
    answers = [await posted(live, conversation, tuple_of(otids)) for otids in requests]
    assert len(set(answers)) == len(requests)
    for otids, answer in zip(requests, answers, strict=True):
        assert await posted(live, conversation, tuple_of(otids)) == answer
    assert len(await live.run_ids(agent_id=agent)) == len(requests)


@pytest.mark.promise("P9")
@pytest.mark.parametrize("otids", [[None], ["partly", None], [None, "partly"]], ids=repr)
async def test_a_send_without_an_otid_for_every_message_has_no_idempotency_key(
    live: LiveServer, otids: list[str | None]
) -> None:
    agent, conversation = await new_threads(live)
    for number in (1, 2):
        await posted(live, conversation, tuple_of(otids))
        assert len(await live.run_ids(agent_id=agent)) == number


@pytest.mark.promise("P9")
async def test_an_empty_otid_is_refused_and_starts_nothing(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    path = f"/v1/conversations/{conversation}/messages"
    response = await live.client.post(path, json=tuple_of([""]))
    assert response.status_code == 422
    assert await live.run_ids(agent_id=agent) == []


@pytest.mark.promise("P9")
async def test_input_has_no_key(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    for number in (1, 2):
        await posted(live, conversation, {"input": "hi", "otid": "ignored"})
        assert len(await live.run_ids(agent_id=agent)) == number


@pytest.mark.promise("P9")
async def test_the_same_otid_with_another_payload_is_a_conflict_that_names_the_run(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    otid = new_uuid()
    run = await live.held_run(agent, conversation, "[chunks=2]", after=1, otid=otid)
    item = {"role": "user", "content": "[chunks=2]", "otid": otid}
    others: list[dict[str, Any]] = [
        {**item, "content": "[chunks=3]"},
        {**item, "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {**item, "role": "system"},
        {**item, "name": "Ada"},
        {**item, "sender_id": "s"},
    ]

    async def all_conflict() -> None:
        before = live.rows()
        for other in others:
            for mode in MODES.values():
                sent = {"messages": [other], **mode}
                response = await live.client.post(to(conversation), json=sent)
                error = await refused(response, "otid_conflict", run)
                assert run in error["detail"]
        assert live.rows() == before

    await all_conflict()
    await live.ended(run)
    await all_conflict()
    assert await live.run_ids(agent_id=agent) == [run]


@pytest.mark.promise("P9")
async def test_the_same_otid_in_another_conversation_is_a_conflict(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    other_agent, other = await new_threads(live)
    same_agent = (await live.conversation(agent))["id"]
    body = message_body("hi", otid=new_uuid(), background=True)
    async with live.stream(to(conversation), body) as stream:
        run = stream.run_id
        await stream.rest()
    for thread, named in (
        (other, None),
        (same_agent, None),
        ("default", agent),
        ("default", other_agent),
        (agent, None),
    ):
        sent = body if named is None else {**body, "agent_id": named}
        await refused(await live.client.post(to(thread), json=sent), "otid_conflict", run)
    assert await live.run_ids(agent_id=other_agent) == []


@pytest.mark.promise("P9")
async def test_the_ways_to_the_default_conversation_share_their_keys(live: LiveServer) -> None:
    agent, _ = await new_threads(live)
    body = message_body("hi", otid=new_uuid(), background=True)
    answers = [
        await posted(live, "default", {**body, "agent_id": agent}),
        await posted(live, agent, body),
        (await live.client.post(f"/v1/agents/{agent}/messages/stream", json=body)).content,
        (
            await live.client.post(f"/v1/agents/{agent}/messages", json={**body, "streaming": True})
        ).content,
    ]
    assert len(set(answers)) == 1
    assert len(await live.run_ids(agent_id=agent)) == 1


@pytest.mark.promise("P9", "P11")
async def test_keys_are_the_tenants(tmp_path: Path) -> None:
    async with listening(tmp_path) as live:
        own, stranger = [await live.as_tenant(one) for one in (DEFAULT_TENANT, OTHER_TENANT)]
        otid = new_uuid()
        runs: list[str] = []
        async with own, stranger:
            for client, words in ((own, "my secret"), (stranger, "hello")):
                response = await client.post("/v1/agents/", json={})
                agent = response.json()["id"]
                live.gates.open(agent)
                path = f"/v1/agents/{agent}/messages/stream"
                body = message_body(words, otid=otid, background=True)
                first = await live.streamed(path, body, client=client)
                assert await live.streamed(path, body, client=client) == first
                assert words.split()[0] in str(first)
                runs.append(first[0].event["run_id"])
                async with live.stream(
                    "/v1/conversations/default/stream", {"otid": otid}, client=client
                ) as stream:
                    assert stream.run_id == runs[-1]
        assert runs[0] != runs[1]


@pytest.mark.promise("P9", "P14")
async def test_a_duplicate_after_the_retention_gets_410_and_starts_nothing(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    body = message_body("hi", otid=new_uuid(), background=True)
    await posted(live, conversation, body)
    [run] = await live.run_ids(agent_id=agent)
    await live.context.runs.delete_logs([run])
    now = live.context.clock.now()
    await live.context.records.runs.mark_log_deleted([RunId(run)], now)
    response = await live.client.post(to(conversation), json=body)
    assert (response.status_code, response.json()["code"]) == (410, "expired")
    as_json = await posted(live, conversation, body | MODES["json"])
    assert b'"content":"hi"' in as_json
    assert await live.run_ids(agent_id=agent) == [run]


@pytest.mark.promise("P9")
@pytest.mark.parametrize("message", ["[fail=0]", "[fail=2]", "[crash=1]"])
async def test_a_duplicate_of_a_run_that_failed_fails_in_the_same_way(
    live: LiveServer, message: str
) -> None:
    agent, conversation = await new_threads(live)
    body = message_body(message, otid=new_uuid())
    assert await posted(live, conversation, body) == await posted(live, conversation, body)
    answers = [
        await live.client.post(to(conversation), json=body | MODES["json"]) for _ in range(2)
    ]
    assert {answer.status_code for answer in answers} == {500}
    assert answers[0].content == answers[1].content
    assert len(await live.run_ids(agent_id=agent)) == 1


# One active run for each conversation.


@pytest.mark.promise("P10")
@pytest.mark.parametrize("mode", MODES)
async def test_a_second_send_gets_409_with_the_active_run(live: LiveServer, mode: str) -> None:
    agent, conversation = await new_threads(live)
    run = await live.held_run(agent, conversation, "[chunks=2]", after=1)
    before = live.rows()
    for body in ({}, {"otid": new_uuid()}):
        response = await live.client.post(
            to(conversation), json=message_body("too early", **body) | MODES[mode]
        )
        error = await refused(response, "conversation_busy", run)
        assert error == {
            "detail": "CONFLICT: Cannot send a new message: Another request "
            f"(run_id={run}) is currently being processed for this conversation. "
            "Please wait for it to complete.",
            "code": "conversation_busy",
            "run_id": run,
            "conversation_id": conversation,
        }
    assert live.rows() == before
    await live.ended(run)
    await posted(live, conversation, message_body("now") | MODES[mode])


@pytest.mark.promise("P10")
async def test_the_default_conversation_is_busy_by_all_of_its_ways(live: LiveServer) -> None:
    agent, named = await new_threads(live)
    run = await live.held_run(agent, "default", "[chunks=2]", after=1, agent_id=agent)
    for path, body in (
        (to("default"), {"agent_id": agent}),
        (to(agent), {}),
        (f"/v1/agents/{agent}/messages", {}),
        (f"/v1/agents/{agent}/messages/stream", {}),
    ):
        response = await live.client.post(path, json={"input": "too early", **body})
        error = await refused(response, "conversation_busy", run)
        assert error["conversation_id"] == agent
    live.gates.open(agent)
    await posted(live, named, message_body("a named one is free"))
    await live.ended(run)


@pytest.mark.promise("P10")
async def test_of_fifty_different_sends_at_once_one_is_admitted(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    live.gates.hold(agent, 0)
    sends = [
        live.client.post(to(conversation), json=message_body(f"[chunks={number}]", otid=new_uuid()))
        for number in range(1, 51)
    ]
    answers = []
    for sent in asyncio.as_completed(sends, timeout=30):
        answers.append(await sent)
        if len(answers) == 49:
            [run] = await live.run_ids(agent_id=agent)
            live.gates.open(agent)
    for answer in answers[:-1]:
        await refused(answer, "conversation_busy", run)
    assert answers[-1].status_code == 200
    assert answers[-1].headers["x-run-id"] == run
    assert await live.run_ids(agent_id=agent) == [run]


@pytest.mark.promise("P10")
async def test_a_conversation_is_free_as_soon_as_done_was_read(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    for _ in range(30):
        async with live.stream(to(conversation), message_body("hi")) as stream:
            assert stream.status_code == 200, await stream.error()
            await stream.until("[DONE]")
    assert len(await live.run_ids(agent_id=agent)) == 30


@pytest.mark.promise("P9", "P10")
async def test_a_duplicate_of_an_ended_run_is_answered_in_a_busy_conversation(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    first = message_body("first", otid=new_uuid(), background=True)
    answer = await posted(live, conversation, first)
    run = await live.held_run(agent, conversation, "[chunks=2]", after=1, otid=new_uuid())
    assert await posted(live, conversation, first) == answer
    await live.ended(run)


# Admission, when something goes wrong in the middle of it.


@pytest.mark.promise("P7", "P10")
async def test_a_run_whose_creation_was_not_acknowledged_gets_its_end(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, conversation = await new_threads(live)
    runs = live.context.records.runs
    create = runs.create

    async def create_and_lose_the_answer(*arguments: Any, **more: Any) -> RunCreated | RunKnown:
        await create(*arguments, **more)
        raise StoreUnavailableError("The records do not answer. Try again.")

    with monkeypatch.context() as patched:
        patched.setattr(runs, "create", create_and_lose_the_answer)
        response = await live.client.post(to(conversation), json=message_body("lost"))
    assert response.status_code == 503
    assert response.headers["retry-after"]
    await live.context.runs.recover()
    [run] = await live.run_ids(agent_id=agent)
    await live.ended(run)
    assert (await live.run(run))["status"] == "completed"
    await posted(live, conversation, message_body("found"))


@pytest.mark.promise("P6", "P7")
async def test_a_sender_that_is_cancelled_while_its_run_is_created_leaves_no_orphan(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, conversation = await new_threads(live)
    runs = live.context.records.runs
    create = runs.create
    created, go_on = asyncio.Event(), asyncio.Event()

    async def create_slowly(*arguments: Any, **more: Any) -> RunCreated | RunKnown:
        outcome = await create(*arguments, **more)
        created.set()
        await go_on.wait()
        return outcome

    monkeypatch.setattr(runs, "create", create_slowly)
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(live.app), base_url="http://localhost"
    ) as client:
        sending = asyncio.create_task(client.post(to(conversation), json=message_body("hi")))
        async with asyncio.timeout(20):
            await created.wait()
        sending.cancel()
        await asyncio.wait({sending})
    go_on.set()
    [run] = await live.run_ids(agent_id=agent)
    assert (await live.ended(run))["status"] == "completed"
