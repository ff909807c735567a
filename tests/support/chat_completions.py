"""Requests for chat completions as clients and chat applications make them, and their answers."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from tests.support.live_server import LiveServer

PATH = "/openai/v1/chat/completions"

Json = dict[str, Any]


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def assistant(text: str | None, *calls: Json) -> Json:
    return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}


def returned(call: Json, content: str) -> Json:
    return {"role": "tool", "tool_call_id": call["id"], "content": content}


def body_of(agent: str, *messages: Json, **more: Any) -> Json:
    return {"model": agent, "messages": messages, **more}


async def posted(
    live: LiveServer, agent: str, *messages: Json, headers: Any = None, **more: Any
) -> httpx2.Response:
    response = await live.client.post(PATH, json=body_of(agent, *messages, **more), headers=headers)
    assert response.status_code == 200, response.text
    return response


async def completed(live: LiveServer, agent: str, *messages: Json, **more: Any) -> Json:
    answer: Json = (await posted(live, agent, *messages, **more)).json()
    return answer


async def refused(
    live: LiveServer, agent: str, *messages: Json, status: int, headers: Any = None, **more: Any
) -> Json:
    body = body_of(agent, *messages, **more)
    response = await live.client.post(PATH, json=body, headers=headers)
    assert response.status_code == status, response.text
    error: Json = response.json()["error"]
    return error


def message_of(answer: Json) -> Json:
    message: Json = answer["choices"][0]["message"]
    return message


def chunks_of(stream: str) -> list[Json]:
    """Parse a stream that has come to its proper end."""
    frames = [frame for frame in stream.split("\n\n") if frame and not frame.startswith(":")]
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def text_of(chunks: list[Json]) -> str:
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


async def conversation(live: LiveServer, response: httpx2.Response) -> list[tuple[str, Any]]:
    return await live.contents(response.headers["x-conversation-id"])
