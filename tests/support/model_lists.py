"""A server that lists models as the providers do, over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.support.http_server import listening


@dataclass
class ModelLists:
    """``answer`` is sent to the next requests: JSON, or a text as it is. None sends no answer."""

    answer: Any = None
    status: int = 200
    url: str = ""
    heads: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            if self.answer is None:
                await reader.read()  # until the client gives up
            else:
                text = self.answer if isinstance(self.answer, str) else json.dumps(self.answer)
                head = (
                    f"HTTP/1.1 {self.status} Said\r\ncontent-type: application/json\r\n"
                    f"content-length: {len(text.encode())}\r\nconnection: close\r\n\r\n"
                )
                writer.write((head + text).encode())
                await writer.drain()
        writer.close()


@asynccontextmanager
async def listing(answer: Any = None, status: int = 200) -> AsyncIterator[ModelLists]:
    server = ModelLists(answer, status)
    async with listening(server.serve) as server.url:
        yield server


def openai_list(*names: str, **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model"} | more for name in names]}
