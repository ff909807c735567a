"""A reader that costs little: one socket, and no parsing but what is measured."""

import asyncio
import json
from urllib.request import Request, urlopen

from bench.server import BenchServer


def post(server: BenchServer, path: str, body: object) -> dict[str, str]:
    """A JSON request with its JSON answer."""
    request = Request(
        f"{server.url}{path}",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
        method="POST",
    )
    with urlopen(request, timeout=30) as response:
        answer: dict[str, str] = json.load(response)
        return answer


def conversation_with(server: BenchServer, model: str) -> str:
    """A new conversation with a new agent of that model."""
    agent = post(server, "/v1/agents/", {"name": "bench", "model": f"function/{model}"})
    return post(server, f"/v1/conversations/?agent_id={agent['id']}", {})["id"]


async def open_stream(
    server: BenchServer, path: str, body: object
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Post ``body`` and return when the stream's headers are there."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    data = json.dumps(body).encode()
    writer.write(
        b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (path.encode(), len(data), data)
    )
    headers = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in headers.split(b"\r\n", 1)[0]:
        raise RuntimeError(headers.decode())
    return reader, writer
