"""A small server of OpenAI's Responses API over real HTTP, which keeps its answers.

It produces the answer that the test sets, or repeats the last user message word by word, except
``[history]`` and ``[system]``. Streams can be cut after any event; the answer goes on without them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.http_server import listening, read_request

Json = dict[str, Any]

TOO_OLD = "This response can no longer be streamed because it is more than 5 minutes old"


class _CutError(Exception):
    """Raised to break the connection."""


@dataclass
class Kept:
    """An answer that the server keeps."""

    id: str
    events: list[Json]
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class ResponsesServer:
    """The server's answers, its requests, and the faults of the next requests."""

    base_url: str = ""
    items: list[Json] | None = None
    """The items of the next answers; None: one message that repeats the last user's."""
    end: Json = field(default_factory=lambda: {"status": "completed"})
    """Members of the response at its end."""
    arrange: Callable[[list[Json]], list[Json]] = list
    """Puts the events of the next answers into the order in which they are sent."""
    kept: dict[str, Kept] = field(default_factory=dict)
    requests: list[Json] = field(default_factory=list)
    """The bodies of the requests that generate an answer."""
    keys: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """The first lines of all requests."""
    cut_after: list[int] = field(default_factory=list)
    """The number of events after which each of the next streams breaks; the others are whole."""
    ends_cleanly: bool = False
    """Whether a cut is a clean end of the stream, without an end event."""
    hangs: bool = False
    """Whether a cut is silence."""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the server generates an answer."""
    held: asyncio.Event | None = None
    """Holds back the streams until it is set."""
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    too_old: bool = False
    """Whether answers can no longer be streamed, only asked for."""
    unfinished_polls: int = 0
    """The number of the next requests for a whole answer that find it in progress."""
    refusals: list[tuple[int, Json, Mapping[str, str]]] = field(default_factory=list)
    """The status, error and headers of the next requests."""
    extra: list[str] = field(default_factory=list)
    """Lines that are sent in place of events, where a stream is cut."""

    @property
    def cancelled(self) -> list[str]:
        return [one.id for one in self.kept.values() if one.cancelled.is_set()]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await read_request(reader)
            method, target, _ = request.line.split(" ")
            self.lines.append(f"{method} {target}")
            self.keys.append(request.headers.get("authorization", ""))
            await self._answer(method, target, request.body, reader, writer)
        except (_CutError, ConnectionError, asyncio.IncompleteReadError):
            writer.transport.abort()
        finally:
            writer.close()

    async def _answer(
        self,
        method: str,
        target: str,
        body: Mapping[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        url = urlsplit(target)
        query = parse_qs(url.query)
        _, is_api, rest = url.path.partition("/v1/responses")
        response_id, _, action = rest.strip("/").partition("/")
        if not is_api:
            await _send(writer, 404, {"message": "404 page not found"})
            return
        if method == "POST" and not response_id:
            self.requests.append(dict(body))
        if self.refusals:
            await _send(writer, *self.refusals.pop(0))
        elif method == "POST" and not response_id:
            kept = Kept(f"resp_{len(self.kept) + 1}", [])
            events = self.arrange(answer_events(kept.id, self._items(body), self.end))
            kept.events = [{**one, "sequence_number": n} for n, one in enumerate(events)]
            self.kept[kept.id] = kept
            self.asked.set()
            await self._stream(kept.events, reader, writer)
        elif (found := self.kept.get(response_id)) is None:
            await _send(writer, 404, {"message": f"Response {response_id} not found."})
        elif action == "cancel":
            found.cancelled.set()
            await _send(writer, 200, found.events[-1]["response"] | {"status": "cancelled"})
        elif query.get("stream") == ["true"]:
            if self.too_old:
                await _send(writer, 400, {"message": TOO_OLD, "type": "invalid_request_error"})
                return
            after = int(query.get("starting_after", ["-1"])[0])
            await self._stream(found.events[after + 1 :], reader, writer)
        elif self.unfinished_polls:
            self.unfinished_polls -= 1
            await _send(writer, 200, _response(response_id, {"status": "in_progress"}))
        else:
            await _send(writer, 200, found.events[-1]["response"])

    def _items(self, body: Mapping[str, Any]) -> Sequence[Json]:
        if self.items is not None:
            return self.items
        return [message_item(*_words(body))]

    async def _stream(
        self, events: Sequence[Json], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self.held is not None:
            await self.held.wait()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        )
        limit = self.cut_after.pop(0) if self.cut_after else None
        lines = [json.dumps(event) for event in events[:limit]]
        for line in [*lines, *(self.extra if limit is not None else ())]:
            data = f"data: {line}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
        if limit is not None and self.hangs:
            await reader.read()
            self.hung_up.set()
            return
        if limit is not None and not self.ends_cleanly:
            raise _CutError
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def _send(
    writer: asyncio.StreamWriter, status: int, body: Json, headers: Mapping[str, str] | None = None
) -> None:
    content = json.dumps(body if status == 200 else {"error": body})
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    writer.write(
        f"HTTP/1.1 {status} As asked\r\ncontent-type: application/json\r\n{lines}"
        f"content-length: {len(content.encode())}\r\nconnection: close\r\n\r\n{content}".encode()
    )
    await writer.drain()


# The items of answers. Each has its fragments beside what the API sends.


def message_item(*fragments: str) -> Json:
    return {"type": "message", "fragments": [fragments]}


def refusal_item(*fragments: str) -> Json:
    return {"type": "refusal", "fragments": [fragments]}


def reasoning_item(*summaries: Sequence[str]) -> Json:
    return {"type": "reasoning", "fragments": list(summaries)}


def call_item(call_id: str, name: str, *fragments: str) -> Json:
    return {"type": "function_call", "call_id": call_id, "name": name, "fragments": [fragments]}


def answer_events(response_id: str, items: Sequence[Json], end: Json) -> list[Json]:
    """Return the events of an answer."""
    events: list[Json] = [
        {"type": f"response.{kind}", "response": _response(response_id, {"status": status})}
        for kind, status in (
            ("created", "queued"),
            ("queued", "queued"),
            ("in_progress", "in_progress"),
        )
    ]
    output = []
    for index, item in enumerate(items):
        output.append(_whole(index, item))
        events += _item_events(index, item, output[-1])
    texts = [text for item in items for fragments in item["fragments"] for text in fragments]
    usage = {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": len(texts),
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 7 + len(texts),
    }
    response = _response(response_id, {"output": output, "usage": usage, **end})
    return [*events, {"type": f"response.{end['status']}", "response": response}]


def _item_events(index: int, item: Json, whole: Json) -> list[Json]:
    place = {"item_id": whole["id"], "output_index": index}
    started = {**whole, "status": "in_progress", "content": [], "summary": [], "arguments": ""}
    events: list[Json] = [
        {"type": "response.output_item.added", "output_index": index, "item": started}
    ]
    for number, fragments in enumerate(item["fragments"]):
        text = "".join(fragments)
        match item["type"]:
            case "message":
                kind, at, member = "output_text", {"content_index": number}, "text"
            case "refusal":
                kind, at, member = "refusal", {"content_index": number}, "refusal"
            case "reasoning":
                kind, at, member = "reasoning_summary_text", {"summary_index": number}, "text"
            case _:
                kind, at, member = "function_call_arguments", {}, "arguments"
        events += [
            {"type": f"response.{kind}.delta", **place, **at, "delta": one} for one in fragments
        ]
        events.append({"type": f"response.{kind}.done", **place, **at, member: text})
    events.append({"type": "response.output_item.done", "output_index": index, "item": whole})
    return events


def _whole(index: int, item: Json) -> Json:
    texts = ["".join(fragments) for fragments in item["fragments"]]
    match item["type"]:
        case "message":
            content = [{"type": "output_text", "text": one, "annotations": []} for one in texts]
            more: Json = {"type": "message", "role": "assistant", "content": content}
        case "refusal":
            content = [{"type": "refusal", "refusal": one} for one in texts]
            more = {"type": "message", "role": "assistant", "content": content}
        case "reasoning":
            summary = [{"type": "summary_text", "text": one} for one in texts]
            more = {"type": "reasoning", "summary": summary}
        case _:
            more = {
                "type": "function_call",
                "call_id": item["call_id"],
                "name": item["name"],
                "arguments": texts[0],
            }
    return {"id": f"item_{index}", "status": "completed", **more}


def _response(response_id: str, more: Json) -> Json:
    return {
        "id": response_id,
        "object": "response",
        "created_at": 1,
        "model": "small",
        "output": [],
        "usage": None,
        "error": None,
        "incomplete_details": None,
        "background": True,
        **more,
    }


def _words(body: Mapping[str, Any]) -> list[str]:
    said = [(one["role"], _text(one["content"])) for one in body["input"] if "role" in one]
    asked = said[-1][1]
    if asked == "[history]":
        return [f"{role}: {text}\n" for role, text in said[:-1]]
    if asked == "[system]":
        asked = body["instructions"]
    first, *rest = asked.split(" ")
    return [first, *(f" {word}" for word in rest)]


def _text(content: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


@asynccontextmanager
async def responses_server() -> AsyncIterator[ResponsesServer]:
    """Serve on a free loopback port."""
    state = ResponsesServer()
    async with listening(state.serve) as origin:
        state.base_url = f"{origin}/v1"
        yield state
