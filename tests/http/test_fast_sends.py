"""Sends past the routing: the same bytes, and whatever is unusual goes the long way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from reattach.domain.ids import DEFAULT_TENANT, new_agent_id, new_conversation_id
from reattach.runs.service import RunService
from tests.http.test_fast_path import USUAL, App
from tests.support.live_server import LiveServer, listening, new_threads, to


@pytest.fixture
def app(live: LiveServer) -> App:
    return App(live)


@pytest.fixture
async def threads(live: LiveServer) -> tuple[str, str]:
    """An agent that answers at once, and a conversation with it."""
    agent, conversation = await new_threads(live)
    live.gates.open(agent)
    return agent, conversation


def body(otid: str, message: str = "hello", **more: Any) -> bytes:
    sent = {"role": "user", "content": message, "otid": otid}
    return json.dumps({"messages": [sent], "background": True, **more}).encode()


async def both_ways(app: App, data: bytes, **scope: Any) -> list[Message]:
    """Send on the short way, and again on the long one, which must give the same answer."""
    before, short = app.long_ways, await app.asked(data, **scope)
    assert app.long_ways == before
    fast_path, app.api.fast_path = app.api.fast_path, None
    assert await app.asked(data, **scope) == short
    app.api.fast_path = fast_path
    return short


@pytest.mark.parametrize(
    "more", [{}, {"stream_tokens": True, "include_pings": True}, {"streaming": False}]
)
async def test_a_usual_send_is_answered_past_the_routing_in_the_same_bytes(
    app: App, threads: tuple[str, str], more: dict[str, Any]
) -> None:
    agent, conversation = threads
    for number, path in enumerate((to(conversation), to(agent), to("default")), 1):
        data = body(f"{number} {agent}", agent_id=agent, **more)
        assert (await app.asked(data, path=path))[0]["status"] == 200
        # The run has ended, so both get all of it.
        head, *_ = await both_ways(app, data, path=path)
        assert head["status"] == 200


async def test_below_a_mount_the_short_way_is_the_same(app: App, threads: tuple[str, str]) -> None:
    path = to(threads[1])
    await app.asked(body("a"), path=path)
    mounted = await both_ways(app, body("a"), path=f"/letta{path}", root_path="/letta")
    assert mounted == await app.asked(body("a"), path=path)


async def test_errors_of_an_operation_are_the_same_on_both_ways(
    app: App, live: LiveServer, threads: tuple[str, str]
) -> None:
    agent, conversation = threads
    path = to(conversation)
    await app.asked(body("known"), path=path)
    answers = {
        "not found": await both_ways(app, body("a"), path=to(new_conversation_id())),
        "no agent": await both_ways(app, body("b"), path=to("default")),
        "unknown": await both_ways(app, body("c", agent_id=new_agent_id()), path=to("default")),
        "bad agent": await both_ways(app, body("c", agent_id="agent-1"), path=to("default")),
        "conflict": await both_ways(app, body("known", "something else"), path=path),
        "nothing": await both_ways(app, b"{}", path=path),
        "model": await both_ways(app, body("d", override_model="no/model"), path=path),
    }
    live.gates.hold(agent)
    run = await live.background_run(conversation, "held")
    answers["busy"] = await both_ways(app, body("e"), path=path)
    live.gates.open(agent)
    await live.ended(run)
    statuses = {name: answer[0]["status"] for name, answer in answers.items()}
    assert statuses == {
        "not found": 404,
        "no agent": 404,
        "unknown": 404,
        "bad agent": 422,
        "conflict": 409,
        "nothing": 422,
        "model": 404,
        "busy": 409,
    }
    assert all((b"vary", b"Origin") in answer[0]["headers"] for answer in answers.values())


UNUSUAL: dict[str, dict[str, Any]] = {
    "a query": {"query_string": b"x=1"},
    "a longer content type": {
        "headers": [USUAL[0], (b"content-type", b"application/json; charset=utf-8")]
    },
    "an origin": {"headers": [*USUAL, (b"origin", b"http://localhost:3000")]},
    "a compressed body": {"headers": [*USUAL, (b"content-encoding", b"gzip")]},
    "a cursor of a stream": {"headers": [*USUAL, (b"last-event-id", b"3")]},
    "a host that is not this machine": {"headers": [(b"host", b"example.com"), USUAL[1]]},
    "no body": {"body": b""},
    "a large body": {"body": b'{"input": "' + b"x" * 5000 + b'"}'},
    "no JSON": {"body": b"{"},
    "a name twice": {"body": b'{"input": "a", "input": "a"}'},
    "null": {"body": b"null"},
    "a wrong type": {"body": b'{"input": 1}'},
    "a wrong member": {"body": b'{"input": "a", "max_steps": "many"}'},
    "half of a surrogate pair": {"body": rb'{"input": "\ud800"}'},
}


@pytest.mark.parametrize("name", UNUSUAL)
async def test_unusual_sends_are_answered_by_the_regular_routes(
    app: App, threads: tuple[str, str], name: str
) -> None:
    asked = {"path": to(threads[1]), "body": body(threads[1]), **UNUSUAL[name]}
    first = await app.asked(**asked)
    assert app.long_ways == 1
    app.api.fast_path = None
    again = await app.asked(**asked)
    assert again[0]["status"] == first[0]["status"]
    if first[0]["status"] != 200:
        assert again == first


async def test_a_fault_in_a_send_is_answered_and_never_tried_again(
    app: App, threads: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    async def fail(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise RuntimeError("A fault.")

    monkeypatch.setattr(RunService, "send", fail)
    head, _ = await both_ways(app, body("a"), path=to(threads[1]))
    assert head["status"] == 500
    assert len(calls) == 2  # Once on each way.


async def test_a_key_without_the_scope_and_a_stream_token_go_the_long_way(tmp_path: Path) -> None:
    async with listening(tmp_path) as own:
        agent, conversation = await new_threads(own)
        own.gates.open(agent)
        _, secret = await own.context.records.keys.create(DEFAULT_TENANT, "ours")
        app, ways = App(own), []
        for key in (secret, "rk_wrong"):
            headers = [*USUAL, (b"authorization", f"Bearer {key}".encode())]
            answer = await app.asked(body("a"), path=to(conversation), headers=headers)
            ways.append((answer[0]["status"], app.long_ways))
    assert ways == [(200, 0), (401, 1)]


async def test_the_access_log_has_sends(tmp_path: Path) -> None:
    async with listening(tmp_path, access_log=True) as own:
        agent, conversation = await new_threads(own)
        own.gates.open(agent)
        app = App(own)
        assert (await app.asked(body("a"), path=to(conversation)))[0]["status"] == 200
        assert app.long_ways == 1
