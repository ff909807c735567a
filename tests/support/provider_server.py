"""A small server of Anthropic's messages and Google's contents over real HTTP.

It records requests and answers "hi".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.http_server import listening, read_request


@dataclass
class ProviderServer:
    base_url: str = ""
    requests: list[Mapping[str, Any]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await read_request(reader)
            self.requests.append(request.body)
            events = _google() if "streamGenerateContent" in request.line else _anthropic()
            data = "".join(
                (f"event: {event['type']}\n" if "type" in event else "")
                + f"data: {json.dumps(event)}\n\n"
                for event in events
            )
            writer.write(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                f"content-length: {len(data)}\r\nconnection: close\r\n\r\n{data}".encode()
            )
            await writer.drain()
        finally:
            writer.close()


def _anthropic() -> list[dict[str, Any]]:
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    return [
        {"type": "message_start", "message": message},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "hi"},
        },
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 2},
        },
        {"type": "message_stop"},
    ]


def _google() -> list[dict[str, Any]]:
    content = {"role": "model", "parts": [{"text": "hi"}]}
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 2, "totalTokenCount": 3}
    return [
        {
            "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
            "usageMetadata": usage,
            "modelVersion": "gemini",
        }
    ]


@asynccontextmanager
async def provider_server() -> AsyncIterator[ProviderServer]:
    """Serve on a free loopback port."""
    state = ProviderServer()
    async with listening(state.serve) as state.base_url:
        yield state
