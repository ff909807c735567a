from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from reattach.domain.ids import DEFAULT_TENANT, new_agent_id, new_conversation_id, new_run_id
from reattach.runs import service
from tests.support.asgi_server import OTHER_TENANT
from tests.support.live_server import (
    LiveServer,
    hold_settlements,
    joined,
    kinds,
    listening,
    new_threads,
)


def of_conversation(conversation: str) -> str:
    return f"/v1/conversations/{conversation}/cancel"


def of_agent(agent: str) -> str:
    return f"/v1/agents/{agent}/messages/cancel"


async def refusal(live: LiveServer, path: str, body: Any = None) -> tuple[int, str, str]:
    response = await live.client.post(path, **({} if body is None else {"json": body}))
    error = response.json()
    if response.status_code == 409:
        assert response.headers["x-should-retry"] == "false"
    return response.status_code, error["code"], error["detail"]


@pytest.mark.promise("P6", "P3")
@pytest.mark.parametrize("message", ["[chunks=5]", "[hang=3]", "[think=3][chunks=5]"])
async def test_a_cancelled_run_ends_all_its_streams_with_one_cancelled_group(
    live: LiveServer, message: str
) -> None:
    agent, conversation = await new_threads(live)
    run = await live.held_run(agent, conversation, message, after=2)
    if "hang" in message:
        live.gates.open(agent)
    async with live.stream(f"/v1/runs/{run}/stream", {}) as stream:
        seen = [await stream.next() for _ in range(3)]
        assert await live.made(of_conversation(conversation), None) == {run: "cancelled"}
        frames = seen + await stream.rest()
    assert kinds(frames)[-3:] == ["stop_reason", "usage_statistics", "[DONE]"]
    assert kinds(frames).count("stop_reason") == 1
    assert frames[-3].event["stop_reason"] == "cancelled"
    assert joined(await live.streamed(f"/v1/runs/{run}/stream", {})) == joined(frames)
    ended = await live.run(run)
    assert (ended["status"], ended["stop_reason"]) == ("cancelled", "cancelled")
    assert ended["metadata"].get("error") is None


@pytest.mark.promise("P6")
async def test_inactive_runs_cannot_be_cancelled(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    live.gates.open(agent)
    text = "CONFLICT: No active runs to cancel for conversation {}".format
    expected = (409, "no_active_runs", text(conversation))
    assert await refusal(live, of_conversation(conversation)) == expected
    await live.ended(await live.background_run(conversation, "hi"))
    assert await refusal(live, of_conversation(conversation)) == expected
    for path in (
        f"{of_conversation('default')}?agent_id={agent}",
        of_conversation(agent),
        of_agent(agent),
    ):
        assert await refusal(live, path) == (409, "no_active_runs", text("default"))
    assert (await refusal(live, of_agent(agent), {"run_ids": []}))[0] == 409
    assert (await refusal(live, of_agent(agent), {"run_ids": None}))[0] == 409


@pytest.mark.promise("P6")
async def test_unknown_runs_cannot_be_cancelled(live: LiveServer) -> None:
    agent, _ = await new_threads(live)
    for path, body in (
        (of_conversation(new_conversation_id()), None),
        (of_conversation("default"), None),
        (f"{of_conversation('default')}?agent_id={new_agent_id()}", None),
        (f"{of_conversation('default')}?agent_id=nobody", None),
        (of_conversation(new_agent_id()), None),
        (of_agent(new_agent_id()), None),
        (of_agent(agent), {"run_ids": [new_run_id()]}),
    ):
        status, code, _ = await refusal(live, path, body)
        assert (status, code) == (404, "not_found")
    status, code, detail = await refusal(live, of_agent(agent), {"run_ids": ["run-1"]})
    assert (status, code) == (400, "invalid_argument")
    assert "Invalid run ID format: run-1" in detail


@pytest.mark.promise("P6")
async def test_default_cancels_the_run_outside_named_conversations_and_no_other(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    named = await live.held_run(agent, conversation, "[chunks=3]", after=1)
    paths = [
        f"{of_conversation('default')}?agent_id={agent}",
        of_conversation(agent),
        of_agent(agent),
    ]
    for path in paths:
        assert (await refusal(live, path))[:2] == (409, "no_active_runs")
        run = await live.held_run(agent, "default", "[chunks=3]", after=1, agent_id=agent)
        assert await live.made(path, None) == {run: "cancelled"}
    assert (await live.run(named))["status"] == "running"
    assert (await live.ended(named))["status"] == "completed"


@pytest.mark.promise("P6")
async def test_runs_are_cancelled_by_id_and_ended_runs_do_not_change(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    live.gates.open(agent)
    completed = await live.background_run(conversation, "hi")
    await live.ended(completed)
    failed = await live.background_run(conversation, "[fail=1]")
    await live.ended(failed)
    before = {run: await live.run(run) for run in (completed, failed)}
    foreground = asyncio.create_task(
        live.client.post(f"/v1/agents/{agent}/messages", json={"input": "[hang=1]"})
    )
    while not (in_front := await live.run_ids(agent_id=agent, active=True)):
        await asyncio.sleep(0)
    behind = await live.background_run(conversation, "[hang=1]")
    wanted = {
        completed: "completed",
        failed: "failed",
        behind: "cancelled",
        in_front[0]: "cancelled",
    }
    body = {"run_ids": list(wanted)}
    assert await live.made(of_agent(agent), body) == wanted
    answer = await foreground
    assert answer.status_code == 200
    assert answer.json()["stop_reason"]["stop_reason"] == "cancelled"
    assert await live.made(of_agent(agent), body) == wanted
    assert {run: await live.run(run) for run in before} == before
    assert await live.made(of_agent(agent), {"run_ids": [behind, behind]}) == {behind: "cancelled"}


@pytest.mark.promise("P6")
async def test_run_ids_sent_to_a_conversation_are_refused_and_cancel_nothing(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    live.gates.open(agent)
    ended = await live.background_run(conversation, "hi")
    await live.ended(ended)
    run = await live.held_run(agent, conversation, "[chunks=3]", after=1)
    assert await refusal(live, of_conversation(conversation), {"run_ids": [ended]}) == (
        422,
        "validation_error",
        (
            "body.run_ids: This route reads no body. Send 'run_ids' to "
            "POST /v1/agents/{agent_id}/messages/cancel."
        ),
    )
    assert (await live.run(run))["status"] == "running"
    assert await live.made(of_conversation(conversation), {}) == {run: "cancelled"}


@pytest.mark.promise("P6")
async def test_a_run_of_a_deleted_conversation_continues_and_is_cancelled_by_its_id(
    live: LiveServer,
) -> None:
    agent, conversation = await new_threads(live)
    run = await live.held_run(agent, conversation, "[chunks=3]", after=1)
    path = f"/v1/conversations/{conversation}"
    assert (await live.client.delete(path)).status_code == 200
    assert (await live.run(run))["status"] == "running"
    assert await refusal(live, of_conversation(conversation)) == (
        404,
        "not_found",
        (
            f"Conversation not found with id={conversation}. To cancel a run of a deleted "
            "conversation, send its id in 'run_ids' to POST /v1/agents/{agent_id}/messages/cancel."
        ),
    )
    async with live.stream(f"/v1/runs/{run}/stream", {}) as stream:
        assert await live.made(of_agent(agent), {"run_ids": [run]}) == {run: "cancelled"}
        assert kinds(await stream.rest())[-1] == "[DONE]"


@pytest.mark.promise("P6", "P11")
async def test_if_one_of_the_runs_is_not_the_agents_none_is_cancelled(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    other, elsewhere = await new_threads(live)
    run = await live.held_run(agent, conversation, "[chunks=3]", after=1)
    foreign = await live.held_run(other, elsewhere, "[chunks=3]", after=1)
    for one, status in ((foreign, 409), (new_run_id(), 404), ("run-1", 400)):
        assert (await refusal(live, of_agent(agent), {"run_ids": [run, one]}))[0] == status
    for one in (run, foreign):
        assert (await live.run(one))["status"] == "running"
        assert (await live.ended(one))["status"] == "completed"


@pytest.mark.promise("P6")
async def test_many_cancels_at_once_tell_one_end(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    run = await live.held_run(agent, conversation, "[chunks=3]", after=2)
    path, body = of_agent(agent), {"run_ids": [run]}
    answers = await asyncio.gather(*(live.made(path, body) for _ in range(20)))
    assert answers == [{run: "cancelled"}] * 20
    frames = await live.streamed(f"/v1/runs/{run}/stream", {})
    assert kinds(frames).count("stop_reason") == 1


@pytest.mark.promise("P6", "P10")
async def test_after_a_cancel_the_conversation_is_free_at_once(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    for _ in range(10):
        run = await live.held_run(agent, conversation, "[chunks=3]", after=1)
        assert await live.made(of_conversation(conversation), None) == {run: "cancelled"}
    assert len(await live.run_ids(agent_id=agent)) == 10


@pytest.mark.promise("P6")
async def test_a_slow_cancel_returns_cancelling_and_is_not_lost(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, conversation = await new_threads(live)
    run = await live.held_run(agent, conversation, "[chunks=3]", after=1)
    settlements = hold_settlements(live, monkeypatch)
    monkeypatch.setattr(service, "CANCEL_WAIT_SECONDS", 0.01)
    assert await live.made(of_conversation(conversation), None) == {run: "cancelling"}
    settlements.go_on.set()
    assert (await live.ended(run))["status"] == "cancelled"


@pytest.mark.promise("P11")
async def test_a_run_of_another_tenant_cannot_be_cancelled(tmp_path: Path) -> None:
    async with listening(tmp_path) as live:
        agent, conversation = await new_threads(live)
        run = await live.held_run(agent, conversation, "[chunks=3]", after=1)
        own, stranger = [await live.as_tenant(one) for one in (DEFAULT_TENANT, OTHER_TENANT)]
        async with own, stranger:
            theirs = (await stranger.post("/v1/agents/", json={})).json()["id"]
            for path, body in (
                (of_conversation(conversation), {}),
                (f"{of_conversation('default')}?agent_id={agent}", {}),
                (of_conversation(agent), {}),
                (of_agent(agent), {}),
                (of_agent(agent), {"run_ids": [run]}),
                (of_agent(theirs), {"run_ids": [run]}),
            ):
                response = await stranger.post(path, json=body)
                assert response.status_code == 404
            assert (await own.get(f"/v1/runs/{run}")).json()["status"] == "running"
            response = await own.post(of_conversation(conversation))
            assert response.json() == {run: "cancelled"}
