from __future__ import annotations

from typing import Any

import msgspec
import pytest

from reattach.domain.events import RunStatus, StopReason
from reattach.domain.ids import DEFAULT_TENANT, AgentId, ConversationId, RunId, Seq, Token
from reattach.http.schemas.run import RunState, run_state
from reattach.records.base import Attempt, RequestConfig, RunError, Thread
from reattach.records.runs.lists.summaries import RunSummary
from tests.support.asgi_server import Server, started
from tests.support.record_samples import a_run, at

UNKNOWN = "run-123e4567-e89b-42d3-8456-426614174000"


async def ids(server: Server, **query: Any) -> list[str]:
    return [run["id"] for run in await server.got("/v1/runs/", **query)]


async def test_runs_can_be_filtered_in_lists(server: Server) -> None:
    agent, other = await server.agent(), await server.agent()
    conversation = await server.conversation(agent["id"])
    await server.send(conversation["id"], "one")
    await server.send(agent["id"], "two [stop=max_steps]")
    hanging = await started(server, other["id"], "[hang=1]")
    three, two, one = every = await ids(server)
    assert three == hanging
    assert await ids(server, order="asc") == every[::-1]
    assert await ids(server, agent_id=agent["id"]) == [two, one]
    assert await ids(server, agent_ids=[agent["id"], other["id"]]) == every
    assert await ids(server, conversation_id=conversation["id"]) == [one]
    assert await ids(server, conversation_id="default") == [three, two]
    assert await ids(server, statuses=["completed"]) == [two, one]
    assert await ids(server, statuses=["running", "created"]) == [three]
    assert await ids(server, stop_reason="max_steps") == [two]
    assert await ids(server, background=True) == [three]
    assert await ids(server, active=True) == [three]
    active = await server.got("/v1/runs/active")
    assert [run["id"] for run in active] == [three]
    assert await server.got("/v1/runs/active", agent_id=agent["id"]) == []
    await server.client.post(f"/v1/agents/{other['id']}/messages/cancel", json={})


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_runs_are_paged_whole_and_once_in_both_directions(server: Server, order: str) -> None:
    agent = await server.agent()
    for _ in range(5):
        await server.send(agent["id"], "hi")
    every = await ids(server, order=order)
    forwards: list[str] = []
    while page := await ids(server, order=order, limit=2, after=(forwards or [""])[-1]):
        forwards += page
    assert forwards == every
    backwards = every[-1:]
    while page := await ids(server, order=order, limit=2, before=backwards[0]):
        backwards = page + backwards
    assert backwards == every


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"statuses": ["bogus"]}, 400),
        ({"stop_reason": "bogus"}, 422),
        ({"limit": 0}, 422),
        ({"limit": 1001}, 422),
        ({"after": UNKNOWN}, 404),
        ({"before": "x"}, 404),
        ({"agent_id": "x"}, 422),
        ({"agent_ids": ["x"]}, 422),
        ({"conversation_id": "x"}, 422),
    ],
)
async def test_an_invalid_query_of_runs_is_refused(
    server: Server, query: dict[str, Any], status: int
) -> None:
    response = await server.client.get("/v1/runs/", params=query)
    assert response.status_code == status
    assert isinstance(response.json()["detail"], str)


async def test_a_failed_run_shows_its_error_and_keeps_the_sent_messages(server: Server) -> None:
    agent = await server.agent()
    body = {"messages": [{"role": "user", "content": "[fail=0:llm_timeout]"}], "streaming": False}
    path = f"/v1/conversations/{agent['id']}/messages"
    assert (await server.client.post(path, json=body)).status_code == 504
    [run] = await server.got("/v1/runs/")
    assert (run["status"], run["stop_reason"]) == ("failed", "llm_api_error")
    assert run["metadata"]["error"]["error_type"] == "llm_timeout"
    [item] = await server.got(f"/v1/runs/{run['id']}/messages")
    assert item["content"] == "[fail=0:llm_timeout]"
    after = await server.got(f"/v1/runs/{run['id']}/messages", after=item["id"])
    assert after == []


async def test_an_active_run_shows_the_sent_messages_and_cannot_be_deleted(server: Server) -> None:
    agent = await server.agent()
    run_id = await started(server, agent["id"], "hi [hang=1]")
    path = f"/v1/runs/{run_id}"
    items = await server.got(f"{path}/messages")
    assert [item["content"] for item in items] == ["hi [hang=1]"]
    assert await server.got(f"{path}/messages", before=items[0]["id"], order="desc") == []
    unknown = "message-123e4567-e89b-42d3-8456-426614174000"
    assert await server.got(f"{path}/messages", after=unknown) == items
    usage = await server.got(f"{path}/usage")
    assert usage["total_tokens"] == 0
    assert await server.got(f"{path}/steps") == []
    metrics = await server.got(f"{path}/metrics")
    assert (metrics["run_ns"], metrics["num_steps"]) == (None, None)
    refused = await server.client.delete(path)
    assert refused.status_code == 409
    assert refused.json()["run_id"] == run_id
    assert refused.headers["x-should-retry"] == "false"
    await server.client.post(f"/v1/agents/{agent['id']}/messages/cancel", json={})
    assert (await server.got(path))["status"] == "cancelled"


async def test_a_deleted_run_is_gone_and_its_messages_stay(server: Server) -> None:
    agent = await server.agent()
    await server.send(agent["id"], "hi")
    [run] = await ids(server)
    response = await server.client.delete(f"/v1/runs/{run}")
    assert (response.status_code, response.json()) == (200, None)
    for path in ("", "/messages", "/usage", "/steps", "/metrics"):
        assert (await server.client.get(f"/v1/runs/{run}{path}")).status_code == 404
    assert (await server.client.delete(f"/v1/runs/{run}")).status_code == 404
    assert len(await server.got(f"/v1/agents/{agent['id']}/messages")) == 3
    assert await server.context.records.runs.list_expired(server.clock.now(), 10) == []


@pytest.mark.parametrize("path", ["", "/messages", "/usage", "/steps", "/metrics"])
async def test_an_unknown_run_gets_404_and_a_malformed_id_400(server: Server, path: str) -> None:
    assert (await server.client.get(f"/v1/runs/{UNKNOWN}{path}")).status_code == 404
    malformed = await server.client.get(f"/v1/runs/run-x{path}")
    assert malformed.status_code == 400
    assert malformed.json()["detail"] == (
        "INVALID_ARGUMENT: Invalid run ID format: run-x. Expected format: 'run-<uuid4>'"
    )


async def test_the_steps_of_a_run_add_up_to_its_usage(server: Server) -> None:
    agent = await server.agent()
    await server.send(agent["id"], "[steps=2][chunks=3]")
    [run] = await ids(server)
    steps = await server.got(f"/v1/runs/{run}/steps", order="asc")
    usage = await server.got(f"/v1/runs/{run}/usage")
    assert len(steps) == 2
    assert sum(step["total_tokens"] for step in steps) == usage["total_tokens"] > 0
    assert await server.got(f"/v1/runs/{run}/steps") == steps[::-1]
    assert await server.got(f"/v1/runs/{run}/steps", order="asc", after=steps[0]["id"]) == steps[1:]
    metrics = await server.got(f"/v1/runs/{run}/metrics")
    assert metrics["num_steps"] == 2
    assert metrics["organization_id"] == DEFAULT_TENANT


FAILED = RunError(RunId("run-1"), "llm_timeout", "It took too long.", "secret")
ATTEMPT = Attempt(at(3), Seq(4), Seq(5), 0, "prefix", "crash", "process-2", Token(2))
RUNS = {
    "new": {},
    "in the default conversation": {"thread": Thread(AgentId("agent-1"), None)},
    "ended": {
        "status": RunStatus.COMPLETED,
        "stop_reason": StopReason.END_TURN,
        "completed_at": at(5).replace(microsecond=0),
        "first_event_at": at(1),
        "duration_ns": 5_000_000_000,
        "request_config": RequestConfig(
            include_return_message_types=("assistant_message", "user_message")
        ),
        "callback_url": "https://example.com/done",
        "callback_sent_at": at(6),
        "callback_status_code": 500,
        "callback_error": "It answered 500.",
    },
    "failed": {"status": RunStatus.FAILED, "error": FAILED, "attempts": (ATTEMPT,)},
}


@pytest.mark.parametrize("members", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("for_token", [False, True])
def test_a_run_is_shown_with_the_members_that_the_api_describes_in_the_same_bytes(
    members: dict[str, Any], for_token: bool
) -> None:
    thread = Thread(AgentId("agent-1"), ConversationId("conv-1"))
    run = a_run(**{"thread": thread, **members})
    shown = run_state(RunSummary.of(run), for_token=for_token)
    described = RunState.model_validate_json(msgspec.json.encode(shown))
    assert described.model_dump_json().encode() == msgspec.json.encode(shown)
    assert for_token <= (not any(name.startswith("callback_") and shown[name] for name in shown))
