"""A cheap reader: one socket, and only the parsing that a measurement needs."""

import asyncio
import json
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import Request, urlopen


@dataclass(frozen=True)
class ServerAddress:
    """The URL and API key of a server. An empty key is not sent."""

    url: str
    api_key: str = ""


def post(server: ServerAddress, path: str, body: object) -> dict[str, str]:
    """Post JSON and return the JSON answer."""
    request = Request(
        f"{server.url}{path}",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json", **_key(server)},
        method="POST",
    )
    with urlopen(request, timeout=30) as response:
        answer: dict[str, str] = json.load(response)
        return answer


def _key(server: ServerAddress) -> dict[str, str]:
    return {"authorization": f"Bearer {server.api_key}"} if server.api_key else {}


def conversation_with(server: ServerAddress, model: str) -> str:
    """Create a conversation with a new agent of this model."""
    agent = post(server, "/v1/agents/", {"name": "bench", "model": model})
    return post(server, f"/v1/conversations/?agent_id={agent['id']}", {})["id"]


async def open_stream(
    server: ServerAddress, path: str, body: object
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Post ``body`` and return once the stream's headers have arrived."""
    parts = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    data = json.dumps(body).encode()
    key = "".join(f"{name}: {value}\r\n" for name, value in _key(server).items()).encode()
    writer.write(
        b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n%b"
        b"content-length: %d\r\n\r\n%b" % (path.encode(), key, len(data), data)
    )
    headers = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in headers.split(b"\r\n", 1)[0]:
        raise RuntimeError(headers.decode())
    return reader, writer
