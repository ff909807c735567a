"""Sends that are answered with their run at once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.live_server import LiveServer, joined, kinds, message_body, text


def to(agent_id: str) -> str:
    return f"/v1/agents/{agent_id}/messages/async"


async def test_an_async_send_returns_its_run_before_the_run_ends(live: LiveServer) -> None:
    agent = (await live.agent())["id"]
    live.gates.hold(agent)
    run = await live.made(to(agent), message_body("lantern"))
    assert run["status"] in {"created", "running"}
    assert (run["agent_id"], run["conversation_id"]) == (agent, None)
    assert run["background"] is True
    assert run["metadata"] == {"run_type": "send_message_async"}
    ended = await live.ended(run["id"])
    assert (ended["status"], ended["stop_reason"]) == ("completed", "end_turn")
    assert await live.contents(agent) == [
        ("user_message", "lantern"),
        ("assistant_message", "lantern"),
    ]


@pytest.mark.promise("P1", "S1", "S2")
async def test_the_stream_of_an_async_run_resumes_by_run_otid_and_conversation(
    live: LiveServer,
) -> None:
    agent = (await live.agent())["id"]
    live.gates.hold(agent, 3)
    run = await live.made(to(agent), message_body("[chunks=6]", otid="async-1", background=False))
    await live.gates.reached(agent, 3)
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "run": (f"/v1/runs/{run['id']}/stream", {}),
        "run in its conversation": (f"/v1/conversations/{agent}/stream", {"run_id": run["id"]}),
        "otid": ("/v1/conversations/default/stream", {"otid": "async-1"}),
        "conversation": ("/v1/conversations/default/stream", {"agent_id": agent}),
    }
    for path, body in ways.values():
        async with live.stream(path, body) as stream:
            assert stream.run_id == run["id"]
            await stream.next()
    await live.ended(run["id"])
    whole = await live.streamed(f"/v1/runs/{run['id']}/stream", {"starting_after": 0})
    assert text(whole) == "t0 t1 t2 t3 t4 t5 "
    assert kinds(whole)[-3:] == ["stop_reason", "usage_statistics", "[DONE]"]
    by_otid = await live.streamed(*ways["otid"])
    assert joined(by_otid) == joined(whole)
    rest = await live.streamed(f"/v1/runs/{run['id']}/stream", {"starting_after": 4})
    assert joined(rest) == joined([f for f in whole if f.kind == "[DONE]" or (f.seq or 0) > 4])


@pytest.mark.promise("P9")
async def test_a_repeated_async_send_returns_the_same_run(
    live: LiveServer,
) -> None:
    agent = (await live.agent())["id"]
    live.gates.hold(agent)
    first = await live.made(to(agent), message_body("once", otid="async-2"))
    again = await live.made(to(agent), message_body("once", otid="async-2"))
    assert again["id"] == first["id"]
    await live.ended(first["id"])
    after = await live.made(to(agent), message_body("once", otid="async-2"))
    assert (after["id"], after["status"]) == (first["id"], "completed")
    assert await live.run_ids(agent_id=agent) == [first["id"]]
    other = await live.client.post(to(agent), json=message_body("twice", otid="async-2"))
    assert (other.status_code, other.json()["code"]) == (409, "otid_conflict")


async def test_an_async_send_to_a_busy_conversation_is_refused(live: LiveServer) -> None:
    agent = (await live.agent())["id"]
    live.gates.hold(agent)
    run = await live.made(to(agent), message_body("first"))
    busy = await live.client.post(to(agent), json=message_body("second"))
    assert (busy.status_code, busy.json()["code"]) == (409, "conversation_busy")
    assert busy.json()["run_id"] == run["id"]
    await live.ended(run["id"])


async def test_an_async_run_is_cancelled_like_any_other(live: LiveServer) -> None:
    agent = (await live.agent())["id"]
    live.gates.hold(agent)
    run = await live.made(to(agent), message_body("never"))
    cancelled = await live.made(f"/v1/agents/{agent}/messages/cancel", {"run_ids": [run["id"]]})
    assert cancelled == {run["id"]: "cancelled"}


SKILLS = [
    {"name": "tides", "description": "Reads tide tables.", "location": "skills/tides/SKILL.md"},
    {"name": 'a "b"', "description": "Quotes.", "location": "x"},
]


async def test_skills_of_the_client_stand_in_the_system_prompt_of_that_turn_only(
    live: LiveServer,
) -> None:
    agent = (await live.agent(system="Be brief."))["id"]
    listed = (
        "<available_skills>\n"
        '<skill name="tides" location="skills/tides/SKILL.md">\nReads tide tables.\n</skill>\n'
        '<skill name=\'a "b"\' location="x">\nQuotes.\n</skill>\n'
        "</available_skills>"
    )

    async def system(**body: Any) -> str:
        answer = await live.send(agent, "[system]", **body)
        return str(answer["messages"][-1]["content"])

    plain = await system()
    assert "Be brief." in plain
    assert await system(client_skills=SKILLS) == f"{plain}\n\n{listed}"
    assert await system(client_skills=SKILLS, override_system="Else.") == f"Else.\n\n{listed}"
    assert await system(client_skills=[]) == plain
