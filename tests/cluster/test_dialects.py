"""Runs in other dialects on several servers: begun at one, resumed and cancelled at the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pytest

from reattach.domain.ids import RunId, new_uuid
from reattach.wire.dialects.openai_items import response_id
from tests.cluster.clients import WAIT_SECONDS, Client

TEXT: Final = "[chunks=4][hang=4]"
LAST_WORD: Final = b"t3 "
MISSED_FROM: Final = 4
"""The frames that a client has when it resumes."""


@dataclass(frozen=True)
class Routes:
    """The requests of one dialect about one run."""

    send: str
    body: dict[str, Any]
    whole: str
    rest: str
    """The stream after the first MISSED_FROM frames."""
    cancel: str


def openai_responses(agent_id: str) -> Routes:
    path = "/openai/v1/responses"
    return Routes(
        path,
        {"model": agent_id, "input": TEXT, "stream": True},
        f"{path}/{{response}}?stream=true",
        f"{path}/{{response}}?stream=true&starting_after={MISSED_FROM - 1}",
        f"{path}/{{response}}/cancel",
    )


def ai_sdk(agent_id: str) -> Routes:
    path, chat = f"/ai-sdk/{agent_id}/chat", new_uuid()
    message = {"id": new_uuid(), "role": "user", "parts": [{"type": "text", "text": TEXT}]}
    return Routes(
        path,
        {"id": chat, "messages": [message]},
        f"{path}/{{run}}/stream",
        f"{path}/{{run}}/stream?startIndex={MISSED_FROM}",
        f"{path}/{chat}/stop",
    )


DIALECTS: Final[Mapping[str, Any]] = {"openai": openai_responses, "ai-sdk": ai_sdk}


async def read(chunks: AsyncIterator[bytes], until: bytes = b"") -> bytes:
    found = b""
    async with asyncio.timeout(WAIT_SECONDS):
        async for data in chunks:
            found += data
            if until and until in found:
                break
    return found


def frames_of(body: bytes) -> list[bytes]:
    return [frame for frame in body.split(b"\n\n") if frame and not frame.startswith(b":")]


@pytest.mark.promise("P4", "P8")
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_stream_of_one_server_is_the_same_at_others_and_ends_everywhere_when_cancelled(
    clients: list[Client], dialect: str
) -> None:
    first, second, third = clients
    agent = await first.agent()
    routes: Routes = DIALECTS[dialect](agent)
    async with first.http.stream("POST", routes.send, json=routes.body) as sent:
        run_id = sent.headers["x-run-id"]
        chunks = sent.aiter_raw()
        body = await read(chunks, until=LAST_WORD)
        names = {"run": run_id, "response": response_id(RunId(run_id))}
        async with (
            second.http.stream("GET", routes.whole.format_map(names)) as whole,
            third.http.stream("GET", routes.rest.format_map(names)) as rest,
        ):
            assert (whole.status_code, rest.status_code) == (200, 200)
            cancel = routes.cancel.format_map(names)
            assert (await third.http.post(cancel)).status_code == 200
            bodies = await asyncio.gather(*(read(one.aiter_raw()) for one in (whole, rest)))
        body += await read(chunks)
    frames = frames_of(body)
    assert [frames_of(one) for one in bodies] == [frames, frames[MISSED_FROM:]]
    assert (await second.http.get(f"/v1/runs/{run_id}")).json()["status"] == "cancelled"
    replays = [await client.http.get(routes.whole.format_map(names)) for client in clients]
    assert [frames_of(one.content) for one in replays] == [frames] * 3
