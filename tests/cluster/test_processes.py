"""Three server processes that share only their stores."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack
from typing import Any

import pytest

from reattach.testing.programs.cluster import Cluster
from tests.cluster.clients import WAIT_SECONDS, Client, client_at, send_body

SPOKEN = 20
"""Events after which a run is silent: its ping and 19 deltas."""

SILENT = f"[hang={SPOKEN - 1}][chunks=100]"
SLOW_CHUNKS = 200
SLOW = f"[chunks={SLOW_CHUNKS}][rate=40]"
"""An answer that takes longer than a lease."""

CURSORS = [0, 1, 7, SPOKEN - 1, SPOKEN]

TALKS = 10
"""Concurrent conversations of ``TURNS`` messages, each sent to all servers at once."""
TURNS = 4


def ways(conversation_id: str, agent_id: str, run_id: str, otid: str) -> dict[str, dict[str, Any]]:
    """Every reference to an active run, as path and body."""
    by_agent = {"agent_id": agent_id} if conversation_id == "default" else {}
    path = f"/v1/conversations/{conversation_id}/stream"
    return {
        "the run's own path": {"path": f"/v1/runs/{run_id}/stream", "body": {}},
        "its id": {"path": path, "body": {"run_id": run_id}},
        "its OTID": {"path": path, "body": {"otid": otid}},
        "what is active": {"path": path, "body": by_agent},
    }


@pytest.mark.promise("P4", "P6", "P8")
@pytest.mark.parametrize("named", [True, False], ids=["conversation", "default"])
async def test_a_run_of_one_server_is_resumed_at_the_others_by_every_reference(
    clients: list[Client], named: bool
) -> None:
    first = clients[0]
    agent_id = await first.agent()
    conversation_id = "default"
    if named:
        made = await first.post(f"/v1/conversations/?agent_id={agent_id}", {})
        conversation_id = made.json()["id"]
    of_agent = {} if named else {"agent_id": agent_id}
    sent = first.sent(conversation_id, SILENT, otid=f"ways-{named}", **of_agent)
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(sent)
        known = (await own.until(SPOKEN)).by_seq
        named_by = ways(conversation_id, agent_id, own.run_id, f"ways-{named}")
        streams = []
        for client, way, cursor in itertools.product(clients[1:], named_by.values(), CURSORS):
            opened = client.stream(way["path"], way["body"], cursor=cursor)
            stream = await stack.enter_async_context(opened)
            assert stream.run_id == own.run_id
            received = await stream.until(SPOKEN)
            assert received.frames == [known[seq] for seq in range(cursor + 1, SPOKEN + 1)]
            streams.append(stream)
        states = await clients[2].post(f"/v1/agents/{agent_id}/messages/cancel",
                                       {"run_ids": [own.run_id]})  # fmt: skip
        assert states.json() == {own.run_id: "cancelled"}
        whole = (await own.to_end()).by_seq
        assert own.received.end()["stop_reason"] == "cancelled"
        for stream in streams:
            assert (await stream.to_end()).by_seq.items() <= whole.items()
    active = named_by.pop("what is active")
    for client, way, cursor in itertools.product(
        clients, named_by.values(), [*CURSORS, len(whole)]
    ):
        async with client.stream(way["path"], way["body"], cursor=cursor) as stream:
            rest = await stream.to_end()
            assert rest.frames == [whole[seq] for seq in range(cursor + 1, len(whole) + 1)]
    for client in clients:
        assert (await client.post(active["path"], active["body"])).status_code == 400


@pytest.mark.promise("P6")
async def test_a_cancel_at_any_server_ends_the_run_for_the_readers_of_all(
    clients: list[Client],
) -> None:
    conversation_id = await clients[0].conversation()
    async with (
        clients[0].sent(conversation_id, SILENT) as own,
        clients[1].stream(f"/v1/runs/{own.run_id}/stream", {}) as other,
    ):
        await other.until(SPOKEN)
        assert await clients[2].cancel(conversation_id) == {own.run_id: "cancelled"}
        ended = await own.to_end()
        assert ended.end()["stop_reason"] == "cancelled"
        assert (await other.to_end()).frames == ended.frames
    assert (await clients[1].got(f"/v1/runs/{own.run_id}"))["status"] == "cancelled"


@pytest.mark.promise("P9")
async def test_concurrent_sends_with_one_otid_to_three_servers_create_one_run(
    clients: list[Client],
) -> None:
    async def talk(number: int) -> None:
        conversation_id = await clients[number % 3].conversation()
        run_ids = set()
        for turn in range(TURNS):

            async def send(client: Client, turn: int = turn) -> tuple[str, list[bytes]]:
                text = f"say {turn}"
                sent = client.sent(conversation_id, text, otid=f"at-once-{number}-{turn}")
                async with sent as stream:
                    return stream.run_id, (await stream.to_end()).frames

            answers = await asyncio.gather(*map(send, clients))
            assert all(answer == answers[0] for answer in answers)
            run_ids.add(answers[0][0])
        listed = await clients[0].got("/v1/runs/", conversation_id=conversation_id, limit=100)
        assert {run["id"] for run in listed} == run_ids
        assert len(run_ids) == TURNS

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(TALKS):
            group.create_task(talk(number))


@pytest.mark.promise("P10")
async def test_of_three_concurrent_sends_to_one_conversation_one_is_accepted_and_the_others_name_it(
    clients: list[Client],
) -> None:
    conversation_id = await clients[0].conversation()

    async def send(client: Client, text: str) -> tuple[int, str]:
        path = f"/v1/conversations/{conversation_id}/messages"
        async with client.http.stream("POST", path, json=send_body(text)) as answer:
            if answer.status_code == 200:
                return 200, answer.headers["x-run-id"]
            await answer.aread()
            return answer.status_code, answer.json()["run_id"]

    for turn in range(10):
        texts = [f"{SILENT} {turn} {client}" for client in range(3)]
        answers = await asyncio.gather(*map(send, clients, texts))
        assert sorted(status for status, _ in answers) == [200, 409, 409]
        (run_id,) = {run_id for _, run_id in answers}
        canceller = clients[turn % 3]
        assert await canceller.cancel(conversation_id) == {run_id: "cancelled"}


@pytest.mark.promise("P7", "P19")
async def test_the_run_of_a_killed_server_goes_on_elsewhere_within_the_lease_and_five_seconds(
    cluster: Cluster, clients: list[Client]
) -> None:
    conversation_id = await clients[0].conversation()
    async with clients[0].sent(conversation_id, SLOW, otid="killed") as own:
        await own.until(SPOKEN)
        async with clients[1].stream(f"/v1/runs/{own.run_id}/stream", {}) as other:
            await other.until(SPOKEN)
            await asyncio.to_thread(cluster.servers[0].kill)
            await other.until(SLOW_CHUNKS // 2)
            ended = await other.to_end()
        assert await own.is_cut()
    assert ended.end() == {"stop_reason": "end_turn", "error_type": None}
    assert ended.frames[: len(own.received.frames)] == own.received.frames
    assert (await clients[2].resumed(own.run_id)).frames == ended.frames
    run = await clients[1].got(f"/v1/runs/{own.run_id}")
    assert run["status"] == "completed"
    assert [one["interruption"] for one in run["metadata"]["attempts"]] == [None, "crash"]
    async with clients[2].sent(conversation_id, "and now") as again:
        assert (await again.to_end()).text == "and now"


@pytest.mark.promise("P7", "P19")
async def test_a_server_that_was_paused_beyond_its_lease_appends_nothing_and_keeps_serving(
    cluster: Cluster, clients: list[Client]
) -> None:
    paused = cluster.servers[0]
    printed = len(paused.output)
    conversation_id = await clients[0].conversation()
    async with clients[0].sent(conversation_id, SLOW) as own:
        await own.until(SPOKEN)
        async with clients[1].stream(f"/v1/runs/{own.run_id}/stream", {}) as other:
            await other.until(SPOKEN)
            paused.pause()
            ended = await other.to_end()
            assert ended.end() == {"stop_reason": "end_turn", "error_type": None}
            paused.resume()
        at_the_paused_one = await own.to_end()
        assert at_the_paused_one.frames == ended.frames
    async with asyncio.timeout(WAIT_SECONDS):
        while "run taken over by another process" not in paused.output[printed:]:
            await asyncio.sleep(0.02)
    async with clients[0].sent(conversation_id, "and now") as again:
        assert (await again.to_end()).text == "and now"
    for client in clients:
        assert (await client.resumed(own.run_id)).frames == ended.frames


@pytest.mark.promise("P15")
async def test_a_draining_server_disconnects_readers_of_other_servers_runs_so_that_they_resume(
    cluster: Cluster, clients: list[Client]
) -> None:
    conversation_id = await clients[1].conversation()
    async with clients[1].sent(conversation_id, SILENT) as own:
        path = f"/v1/runs/{own.run_id}/stream"
        async with clients[0].stream(path, {}) as stream:
            await stream.until(SPOKEN)
            assert await asyncio.to_thread(cluster.servers[0].stop) == 0
            assert await stream.is_cut()
            assert not stream.received.done
        async with clients[2].stream(path, {}, cursor=stream.received.cursor) as resumed:
            assert await clients[2].cancel(conversation_id) == {own.run_id: "cancelled"}
            rest = await resumed.to_end()
        whole = await own.to_end()
    assert stream.received.frames + rest.frames == whole.frames


@pytest.mark.promise("P11")
async def test_a_tenants_key_is_valid_on_every_server_and_for_no_other_tenant(
    cluster: Cluster, clients: list[Client]
) -> None:
    key = cluster.new_key()
    agent_ids = set()
    for url in cluster.urls:
        async with client_at(url, key) as stranger:
            agent_ids.add(await stranger.agent())
            listed = await stranger.got("/v1/agents/")
            assert {agent["id"] for agent in listed} == agent_ids
    for client in clients:
        for agent_id in agent_ids:
            answer = await client.http.get(f"/v1/agents/{agent_id}")
            assert answer.status_code == 404
    async with client_at(cluster.urls[0], "sk-nobody") as nobody:
        assert (await nobody.http.get("/v1/agents/")).status_code == 401
