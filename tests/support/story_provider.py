"""A provider over real HTTP that streams stories, counts its generations, and breaks off on demand.

One story has several steps, each the answer to one request: the step after the calls whose returns
the request has. It speaks chat completions, Anthropic's messages and the Responses API. A request
that ends with the beginning of the answer is answered with the rest, exactly.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from reattach.agent.compaction.summary import PROMPT
from reattach.testing.providers import anthropic, openai
from tests.support.http_server import Request, listening, read_request
from tests.support.responses_server import (
    answer_events,
    call_item,
    message_item,
    reasoning_item,
)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Think:
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Say:
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call:
    id: str
    name: str
    fragments: tuple[str, ...]


Piece = Think | Say | Call
Step = tuple[Piece, ...]
Story = tuple[Step, ...]


def text_of(steps: Sequence[Step]) -> str:
    """Join everything that the steps say."""
    said = (piece.texts for step in steps for piece in step if isinstance(piece, Say))
    return "".join(text for texts in said for text in texts)


@dataclass(frozen=True, slots=True)
class Fault:
    """The end of one answer after a number of its events."""

    after: int
    kind: Literal["cut", "silence"] = "cut"


@dataclass
class Telling:
    """A story, the faults of its next answers, and the requests that generated some of it."""

    story: Story
    faults: list[Fault | None] = field(default_factory=list)
    generations: list[int] = field(default_factory=list)
    """The number of the step that each generation answered."""
    silent: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an answer falls silent."""
    said_in: dict[int, str] = field(default_factory=dict)
    """The text of each step by its number, as far as it was sent."""

    @property
    def said(self) -> str:
        """All text so far."""
        return "".join(self.said_in.values())


@dataclass(frozen=True, slots=True)
class _Answer:
    """The answer to one request."""

    telling: Telling
    number: int
    """The number of the step."""
    begun: str
    step: Step
    """The rest of the step."""
    events: Sequence[bytes]


@dataclass
class StoryProvider:
    """The stories by the user's message that asks for them."""

    url: str = ""
    tellings: dict[str, Telling] = field(default_factory=dict)
    kept: dict[str, _Answer] = field(default_factory=dict)
    """The answers of the Responses API, by their ids."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await read_request(reader)
            await self._send(self._answer(request), reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.transport.abort()
        finally:
            writer.close()

    def _answer(self, request: Request) -> _Answer:
        _, target, _ = request.line.split(" ")
        path, _, query = target.partition("?")
        if path.endswith("/cancel"):
            return _Answer(Telling(()), 0, "", (), [])
        if not request.body:  # Somebody follows a kept answer.
            assert query == "stream=true"
            return self.kept[path.rpartition("/")[2]]
        asked = _Asked.of(request.body)
        if asked.is_summary:
            step: Step = (Say(("A summary.",)),)
            telling, number = Telling((step,)), 0
        else:
            telling = self.tellings[asked.key]
            number = step_after(telling.story, asked.returned)
            telling.generations.append(number)
            step = telling.story[number]
        if asked.begun:
            step = rest_of_step(step, asked.begun)
        if path.endswith("/responses"):
            kept_id = f"resp_{len(self.kept) + 1}"
            events = _responses(step, kept_id)
            self.kept[kept_id] = _Answer(telling, number, "", step, events)
            return self.kept[kept_id]
        events = [*(_messages if path.endswith("/messages") else _chat)(step)]
        return _Answer(telling, number, asked.begun, step, events)

    async def _send(
        self, answer: _Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        telling, events = answer.telling, answer.events
        fault = telling.faults.pop(0) if telling.faults else None
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        )
        sent = events if fault is None else events[: fault.after]
        for event in sent:
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        telling.said_in[answer.number] = answer.begun + _said(answer.step, b"".join(sent))
        await writer.drain()
        if fault is None or fault.after >= len(events):
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        elif fault.kind == "silence":
            telling.silent.set()
            await reader.read()


@asynccontextmanager
async def story_provider(tellings: Mapping[str, Telling]) -> AsyncIterator[StoryProvider]:
    """Serve on a free loopback port."""
    state = StoryProvider(tellings=dict(tellings))
    async with listening(state.serve) as state.url:
        yield state


# Requests.


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, whatever its dialect."""

    texts: Sequence[str]
    """The texts of the user's messages."""
    returned: frozenset[str]
    """The ids of the calls with a return."""
    begun: str
    """The beginning of the answer; mostly empty."""
    is_summary: bool

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> _Asked:
        messages: Sequence[Json] = body.get("messages") or body["input"]
        texts, returned = [], set()
        for one in messages:
            if one.get("role") == "user":
                texts.append(_text(one["content"]))
            if "call_id" in one and one.get("type") == "function_call_output":
                returned.add(one["call_id"])
            if one.get("role") == "tool":
                returned.add(one["tool_call_id"])
            content = one.get("content")
            for part in content if isinstance(content, list) else ():
                if part.get("type") == "tool_result":
                    returned.add(part["tool_use_id"])
        last = messages[-1]
        begun = _text(last["content"]) if last.get("role") == "assistant" else ""
        system = [_text(m["content"]) for m in messages if m.get("role") in {"system", "developer"}]
        system += [_text(body.get("system") or ""), _text(body.get("instructions") or "")]
        return cls(texts, frozenset(returned), begun, any(PROMPT in one for one in system))

    @property
    def key(self) -> str:
        """Return the last message of the user that may name a story."""
        return next(one for one in reversed(self.texts) if one.startswith("Tell "))


def _text(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(part.get("text", "") for part in content)


def step_after(story: Story, returned: Collection[str]) -> int:
    """Return the number of the step that comes after the calls that have returned."""
    number = 0
    for index, step in enumerate(story):
        if any(isinstance(one, Call) and one.id in returned for one in step):
            number = index + 1
    return number


def rest_of_step(step: Step, begun: str) -> Step:
    """Return the step after the text that has begun."""
    if not begun:
        return step
    rest: list[Piece] = []
    for piece in step:
        if isinstance(piece, Say):
            left = []
            for text in piece.texts:
                known = min(len(begun), len(text))
                assert text[:known] == begun[:known]
                begun = begun[known:]
                left += [text[known:]] if text[known:] else []
            rest.append(Say(tuple(left)))
        elif isinstance(piece, Call):
            rest.append(piece)
    return tuple(rest)


# Answers.


def events_of_step(model: str, step: Step) -> Sequence[bytes]:
    """Return the events of an answer in the dialect of the model's provider."""
    if model.startswith("openai-responses/"):
        return _responses(step, "resp_1")
    return [*(_messages if model.startswith("anthropic/") else _chat)(step)]


def _said(step: Step, sent: bytes) -> str:
    """Return the text of the step that the events have."""
    texts = [text for piece in step if isinstance(piece, Say) for text in piece.texts]
    return "".join(text for text in texts if json.dumps(text)[1:-1].encode() in sent)


def _responses(step: Step, kept_id: str) -> list[bytes]:
    events = answer_events(kept_id, _items(step), {"status": "completed"})
    numbered = [{**one, "sequence_number": n} for n, one in enumerate(events)]
    return [f"data: {json.dumps(event)}\n\n".encode() for event in numbered]


def _chat(step: Step) -> Iterator[bytes]:
    yield openai.START
    calls = 0
    for piece in step:
        match piece:
            case Think(texts):
                yield from (openai.chunk({"reasoning_content": text}) for text in texts)
            case Say(texts):
                yield from openai.says(*texts)
            case Call(call_id, name, fragments):
                yield openai.call(calls, call_id, name, "")
                yield from (openai.call(calls, None, None, one) for one in fragments)
                calls += 1
    yield openai.stops("tool_calls" if calls else "stop")
    yield openai.DONE


def _messages(step: Step) -> Iterator[bytes]:
    yield anthropic.begins()
    for index, piece in enumerate(step):
        match piece:
            case Think(texts):
                deltas = [{"type": "thinking_delta", "thinking": text} for text in texts]
                signed = {"type": "signature_delta", "signature": "s"}
                thinking = {"type": "thinking", "thinking": "", "signature": ""}
                yield from anthropic.block(index, thinking, *deltas, signed)
            case Say(texts):
                yield from anthropic.says(*texts, index=index)
            case Call(call_id, name, fragments):
                yield from anthropic.calls(index, call_id, name, *fragments)
    yield from anthropic.CALLED if any(isinstance(one, Call) for one in step) else anthropic.END


def _items(step: Step) -> list[Json]:
    items = []
    for piece in step:
        match piece:
            case Think(texts):
                items.append(reasoning_item(texts))
            case Say(texts):
                items.append(message_item(*texts))
            case Call(call_id, name, fragments):
                items.append(call_item(call_id, name, *fragments))
    return items
