"""The body of a provider's answer, inspected while the provider's client reads it.

Pydantic AI and the clients below it hide some facts: whether the end mark came (``[DONE]``,
``message_stop``, ``finishReason``), a finish reason without content, and each of several token
counts. They are read here from the lines of the body. Anthropic's client also hides its pings, so
silence is measured here.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import Any, Final

import httpx2
from pydantic_ai.models import Model as ProviderModel

from reattach.domain.errors import ModelError
from reattach.domain.limits import (
    MAX_SHOWN_NAME_CHARS,
    MAX_WATCHED_LINE_BYTES,
    MODEL_SILENCE_SECONDS,
)
from reattach.outbound.bodies import end_reading_on_close

_RELEVANT: Final = re.compile(
    rb'"usage"\s*:\s*\{|"finish_reason"\s*:\s*"|"message_stop"|"finishReason"\s*:\s*"'
)

_watched: ContextVar["Body | None"] = ContextVar("watched body", default=None)


class Body:
    """The body of the newest response to one request; close it when the answer ends."""

    def __init__(self, *, silence_seconds: float = MODEL_SILENCE_SECONDS) -> None:
        self.has_begun = False
        """Whether output has come, so that ``silence_seconds`` without a byte break the answer.
        Until then only the client's read timeout holds, because a model may reason in silence."""
        self.silence_seconds = silence_seconds
        self.content_type: str | None = None
        """None: no response was seen."""
        self.has_end_mark = False
        """Whether the end mark of the provider's dialect came."""
        self.finish_reason: str | None = None
        """The finish reason, as OpenAI's dialect names it."""
        self.usage_reports = 0
        self.usage: dict[str, Any] = {}
        """The highest of all reports, member by member, in OpenAI's dialect."""
        self._lines = Lines()
        self._response: httpx2.Response | None = None

    @property
    def is_known(self) -> bool:
        """Whether a response was seen."""
        return self.content_type is not None

    @property
    def is_stream(self) -> bool:
        """Whether the response says that it is a stream of events."""
        return self.kind == "text/event-stream"

    @property
    def kind(self) -> str:
        """The media type of the response."""
        return (self.content_type or "").partition(";")[0].strip()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the responses to requests that this task sends meanwhile."""
        token = _watched.set(self)
        try:
            yield
        finally:
            _watched.reset(token)

    def attach(self, response: httpx2.Response) -> None:
        """Watch ``response`` from its start; an earlier one was a failed attempt."""
        self.content_type = response.headers.get("content-type", "")
        self.has_end_mark, self.finish_reason = False, None
        self.usage_reports, self.usage = 0, {}
        self._lines = Lines()
        self._response = response
        read = response.aiter_bytes

        async def aiter_bytes(chunk_size: int | None = None) -> AsyncIterator[bytes]:
            async with aclosing(read(chunk_size)) as chunks:
                while (chunk := await self._next(chunks)) is not None:
                    self.feed(chunk)
                    yield chunk
            self.feed(b"\n")  # The last line may lack its line end.

        response.aiter_bytes = aiter_bytes  # type: ignore[method-assign,assignment]

    async def aclose(self) -> None:
        """Close the response: not every client does so after a stream that reports an error."""
        response, self._response = self._response, None
        if response is not None:
            await response.aclose()

    async def _next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        """Return the next chunk, or None at the end.

        Raises httpx2.ReadTimeout after ``silence_seconds`` without a byte.
        """
        if not self.has_begun:  # The client's read timeout, which is longer, always holds.
            return await anext(chunks, None)
        try:
            async with asyncio.timeout(self.silence_seconds):
                return await anext(chunks, None)
        except TimeoutError as error:
            raise httpx2.ReadTimeout(f"No byte for {self.silence_seconds} s.") from error

    def feed(self, chunk: bytes) -> None:
        """Inspect the next chunk."""
        for line in self._lines.feed(chunk):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].lstrip()
            if data.startswith(b"[DONE]"):
                self.has_end_mark = True
            elif _RELEVANT.search(data):  # Few lines match, so few are decoded twice.
                self._read(_object(data))

    def _read(self, event: Mapping[str, Any]) -> None:
        if event.get("type") == "message_stop":
            self.has_end_mark = True
        usage = event.get("usage")
        if isinstance(usage, dict) and "prompt_tokens" in usage:
            self.usage_reports += 1
            _raise_to(self.usage, usage)
        candidates = event.get("candidates")
        if isinstance(candidates, list) and candidates and isinstance(candidates[0], dict):
            self.has_end_mark = self.has_end_mark or bool(candidates[0].get("finishReason"))
        choices = event.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            reason = choices[0].get("finish_reason")
            if isinstance(reason, str) and reason:
                self.finish_reason = reason


class Lines:
    """Splits a body into the lines of server-sent events."""

    def __init__(self) -> None:
        self._rest = b""
        self._skips = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        lines = (self._rest + chunk).splitlines(keepends=True)
        self._rest = b""
        if lines and not lines[-1].endswith((b"\n", b"\r")):
            self._rest = lines.pop()
        for line in lines:
            if not self._skips:
                yield line
            self._skips = False
        if len(self._rest) > MAX_WATCHED_LINE_BYTES:
            self._rest, self._skips = b"", True


def watch(model: ProviderModel) -> None:
    """Install the watcher of response bodies on the model's HTTP client.

    The SDKs of OpenAI, Anthropic and Google do not expose their HTTP client, so this reads private
    attributes; pyproject bounds their versions. A model without one works as before, unwatched.
    """
    sdk = getattr(model, "client", None)
    google = getattr(sdk, "_api_client", None)
    client = getattr(sdk, "_client", None) or getattr(google, "_async_httpx_client", None)
    if isinstance(client, httpx2.AsyncClient):
        hooks = client.event_hooks
        if _attach not in hooks["response"]:
            added = [end_reading_on_close, _attach]
            client.event_hooks = {**hooks, "response": [*hooks["response"], *added]}


async def _attach(response: httpx2.Response) -> None:
    body = _watched.get()
    if body is not None:
        body.attach(response)


def broken_off(body: Body, handle: str) -> ModelError:
    """Return the error for a body that ended without an end mark.

    The answer may be continued, unless the body was no stream of events.
    """
    if body.is_known and not body.is_stream:
        return ModelError(
            f"The provider of {handle} did not answer with an event stream, but with "
            f"'{body.kind[:MAX_SHOWN_NAME_CHARS]}'. Check the base URL in the server's settings."
        )
    broken = ModelError(
        f"The answer of {handle} broke off: the provider closed the stream without an end "
        "mark. The part that arrived is kept; send the message again, with a new OTID, to continue."
    )
    broken.may_pass = True
    return broken


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _raise_to(highest: dict[str, Any], reported: Mapping[str, Any]) -> None:
    """Raise each count in ``highest`` to the reported one."""
    for name, value in reported.items():
        if isinstance(value, dict):
            inner = highest.setdefault(name, {})
            if isinstance(inner, dict):
                _raise_to(inner, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            before = highest.get(name, 0)
            if isinstance(before, int | float):
                highest[name] = max(before, value)
