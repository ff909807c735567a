"""A small server of chat completions over real HTTP, with faults on demand.

It repeats the last user message word by word, except ``[history]`` and ``[system]``. The model's
name selects faults; see ``_answer``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.http_server import listening, read_request

Json = Mapping[str, Any]


class _CutError(Exception):
    """Raised to break the connection."""


@dataclass
class OpenAIServer:
    """The server's address, its requests, and the clients that hung up."""

    base_url: str = ""
    requests: list[Json] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await read_request(reader)
            self.requests.append(request.body)
            self.keys.append(request.headers.get("authorization", ""))
            await self._answer(request.body, reader, writer)
        except (_CutError, ConnectionError, asyncio.IncompleteReadError):
            writer.transport.abort()
        finally:
            writer.close()

    async def _answer(
        self, body: Json, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        behaviour, _, argument = body["model"].partition("-")
        if behaviour in {"status", "toolong"}:
            code = "no" if behaviour == "status" else "context_length_exceeded"
            argument = argument or "400"
            secret = json.dumps({"error": {"message": "sk-secret is wrong", "code": code}})
            writer.write(
                f"HTTP/1.1 {argument} No\r\ncontent-type: application/json\r\n"
                f"content-length: {len(secret)}\r\nconnection: close\r\n\r\n{secret}".encode()
            )
            await writer.drain()
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        )
        for event in _events(body, behaviour):
            if event == "hang":
                await reader.read()
                self.hung_up.set()
                return
            if event == "cut":
                raise _CutError
            text = event if isinstance(event, str) else json.dumps(event)
            data = f"data: {text}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _events(body: Json, behaviour: str) -> Sequence[Json | str]:
    words = [] if behaviour in {"empty", "tool"} else _words(body)
    deltas: list[Json] = [{"content": word} for word in words]
    events: list[Json | str] = [_chunk({"role": "assistant", "content": ""})]
    reason = "stop"
    match behaviour:
        case "reasoning":
            events += [_chunk({"reasoning_content": f"r{n} "}) for n in range(2)]
        case "tool":
            call = {"index": 0, "id": "call_1", "type": "function"}
            deltas = [
                {"tool_calls": [call | {"function": {"name": "ask", "arguments": ""}}]},
                {"tool_calls": [{"index": 0, "function": {"arguments": '{"q":'}}]},
                {"tool_calls": [{"index": 0, "function": {"arguments": " 1}"}}]},
            ]
            reason = "tool_calls"
        case "length":
            reason = "length"
        case _:
            pass
    events += [_chunk(delta) for delta in deltas]
    if behaviour in {"hang", "cut"}:
        return [*events[:3], behaviour]
    if behaviour == "garbage":
        return [*events[:3], "{not json"]
    if behaviour == "error":
        return [*events[:3], {"error": {"message": "sk-secret broke", "code": 500}}]
    prompt = sum(len(str(m["content"]).split()) for m in body["messages"])
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": len(words),
        "total_tokens": prompt + len(words),
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    return [*events, _chunk({}, reason), _chunk(None, usage=usage), "[DONE]"]


def _chunk(delta: Json | None, reason: str | None = None, usage: Json | None = None) -> Json:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "small",
        "choices": choices,
        "usage": usage,
    }


def _words(body: Json) -> list[str]:
    said = [(m["role"], _text(m["content"])) for m in body["messages"]]
    asked = said[-1][1]
    if asked == "[history]":
        return [f"{role}: {text}\n" for role, text in said[:-1] if role != "system"]
    if asked == "[system]":
        asked = next(text for role, text in said if role == "system")
    first, *rest = asked.split(" ")
    return [first, *(f" {word}" for word in rest)]


def _text(content: str | list[Json] | None) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


@asynccontextmanager
async def openai_server() -> AsyncIterator[OpenAIServer]:
    """Serve on a free loopback port."""
    state = OpenAIServer()
    async with listening(state.serve) as origin:
        state.base_url = f"{origin}/v1"
        yield state
