"""Clients of the Python SDK that record the chunks of streams and the bytes on the wire."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from letta_client import APIConnectionError, APIStatusError, AsyncLetta, AsyncStream, Letta, Stream

from reattach.testing.closing import Closing
from reattach.testing.recording import Recording, frames_to
from tests.support.threads import WAIT_SECONDS, Thread

Stop = Callable[[Any], object]
"""Called with each chunk. A true result stops reading, as a program that breaks the loop."""


@dataclass
class Seen:
    """The state that a client keeps over reconnections."""

    recording: Recording = field(default_factory=Recording)
    chunks: list[Any] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    cursor: int = 0
    run_id: str = ""
    complete: bool = False
    error: APIStatusError | None = None
    broken: Exception | None = None
    """The error that broke the last stream, if any."""

    @property
    def joined(self) -> bytes:
        """The frames of all streams in order."""
        return b"".join(self.pieces)

    @property
    def text(self) -> str:
        return "".join(c.content for c in self.chunks if c.message_type == "assistant_message")

    def take(self, chunk: Any) -> None:
        """Record a chunk, which is the next event or a ping of the connection."""
        if chunk.message_type == "ping" and chunk.seq_id == (self.cursor or None):
            assert chunk.id not in {event.id for event in self.chunks if hasattr(event, "id")}
            return
        assert chunk.seq_id == self.cursor + 1, f"{chunk.seq_id} came after {self.cursor}"
        self.cursor = chunk.seq_id
        self.run_id = chunk.run_id
        self.chunks.append(chunk)

    def take_error(self, error: APIStatusError) -> None:
        """Record the error event of a stream, which is an event like others."""
        assert isinstance(error.body, dict)
        assert error.body["seq_id"] == self.cursor + 1
        self.cursor += 1
        self.run_id = error.body["run_id"]
        self.error = error

    def begin(self) -> tuple[int, int]:
        self.broken = None
        self.complete = False
        return self.cursor, len(self.recording.streams)

    def end(self, begun: tuple[int, int]) -> None:
        cursor, streams = begun
        if len(self.recording.streams) > streams:
            body = self.recording.streams[-1]
            self.pieces.append(frames_to(body, self.cursor, after=cursor))


class Reader(Seen, Closing):
    """The synchronous SDK without its retries."""

    def __init__(
        self, url: str, *, max_retries: int = 0, api_key: str | None = "none needed"
    ) -> None:
        super().__init__()
        self.sdk = Letta(
            base_url=url,
            api_key=api_key,
            max_retries=max_retries,
            http_client=httpx.Client(
                transport=self.recording, timeout=WAIT_SECONDS, follow_redirects=True
            ),
        )

    def close(self) -> None:
        self.sdk.close()

    def send(self, thread: Thread, text: str, **options: Any) -> Stream[Any]:
        """Send in the background, with the thread's OTID, by tokens."""
        options = {"background": True, "stream_tokens": True, **options}
        return self.sdk.conversations.messages.create(
            thread.path_id, agent_id=thread.agent_id, messages=[thread.message(text)], **options
        )

    def resume(self, thread: Thread, **options: Any) -> Stream[Any]:
        """Resume by run id after the reader's cursor."""
        options = {"run_id": self.run_id, "starting_after": self.cursor, **options}
        return self.sdk.conversations.messages.stream(thread.path_id, **options)

    def read(
        self, open_stream: Callable[[], Stream[Any]], stop: Stop = lambda chunk: False
    ) -> None:
        """Read until the stream ends, fails or breaks, or ``stop`` returns true."""
        begun = self.begin()
        try:
            # The garbage collector could otherwise close it while the pool's lock is held.
            with open_stream() as stream:
                for chunk in stream:
                    self.take(chunk)
                    if stop(chunk):
                        break
                else:
                    self.complete = True
        except (httpx.TransportError, APIConnectionError) as error:
            self.broken = error
        except APIStatusError as error:
            if error.status_code != 200:
                raise
            self.take_error(error)
        self.end(begun)


class AsyncReader(Seen):
    """The asynchronous counterpart of ``Reader``."""

    def __init__(self, url: str, *, max_retries: int = 0) -> None:
        super().__init__()
        self.sdk = AsyncLetta(
            base_url=url,
            api_key="none needed",
            max_retries=max_retries,
            http_client=httpx.AsyncClient(
                transport=self.recording, timeout=WAIT_SECONDS, follow_redirects=True
            ),
        )

    async def aclose(self) -> None:
        await self.sdk.close()

    async def send(self, thread: Thread, text: str, **options: Any) -> AsyncStream[Any]:
        options = {"background": True, "stream_tokens": True, **options}
        return await self.sdk.conversations.messages.create(
            thread.path_id, agent_id=thread.agent_id, messages=[thread.message(text)], **options
        )

    async def resume(self, thread: Thread, **options: Any) -> AsyncStream[Any]:
        options = {"run_id": self.run_id, "starting_after": self.cursor, **options}
        return await self.sdk.conversations.messages.stream(thread.path_id, **options)

    async def read(
        self, opening: Awaitable[AsyncStream[Any]], stop: Stop = lambda chunk: False
    ) -> None:
        begun = self.begin()
        try:
            async with await opening as stream:
                async for chunk in stream:
                    self.take(chunk)
                    if stop(chunk):
                        break
                else:
                    self.complete = True
        except (httpx.TransportError, APIConnectionError) as error:
            self.broken = error
        except APIStatusError as error:
            if error.status_code != 200:
                raise
            self.take_error(error)
        self.end(begun)


def new_otid() -> str:
    return str(uuid.uuid4())
