"""Senders that wait for the whole answer as one JSON object, while their server ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.live_server import listening, message_body, new_threads, to


@pytest.mark.promise("P9", "P15", "P19")
async def test_a_sender_that_waits_while_its_server_stops_gets_the_answer_by_sending_again(
    tmp_path: Path,
) -> None:
    body = message_body("[chunks=4]", otid="mine", streaming=False)
    async with listening(tmp_path) as live:
        agent, thread = await new_threads(live)
        live.gates.hold(agent, 2)
        waiting = asyncio.create_task(live.client.post(to(thread), json=body))
        await live.gates.reached(agent, 2)
        await live.context.runs.drain(0)
        refused = await waiting
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert int(refused.headers["retry-after"]) > 0
        assert "Send the same request again, with its otid" in refused.json()["detail"]
    async with listening(tmp_path) as live:
        answer = await live.client.post(to(thread), json=body)
        assert answer.status_code == 200, answer.text
        [message] = answer.json()["messages"]
        assert message["content"] == "t0 t1 t2 t3 "
        [run] = await live.got("/v1/runs/", agent_id=agent)
    assert [one["interruption"] for one in run["metadata"]["attempts"]] == [None, "handover"]
