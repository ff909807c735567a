"""The body of a provider's answer, watched while the provider's client reads it.

Pydantic AI and the clients below it keep some facts to themselves: whether the end mark came
(``[DONE]``, ``message_stop``), a reason that stands beside no content, and each of several counts
of tokens. They are read here from the lines of the body.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, cast

import httpx2
from pydantic_ai.models import Model as ProviderModel

from reattach.domain.errors import ModelError
from reattach.domain.limits import MAX_SHOWN_NAME_CHARS, MAX_WATCHED_LINE_BYTES

_TELLING: Final = re.compile(rb'"usage"\s*:\s*\{|"finish_reason"\s*:\s*"|"message_stop"')

_watched: ContextVar["Body | None"] = ContextVar("watched body", default=None)


class Body:
    """The body of the newest response to one request."""

    def __init__(self) -> None:
        self.content_type: str | None = None
        """None: no response was seen."""
        self.has_end_mark = False
        """Whether the mark came that ends every answer of its dialect."""
        self.finish_reason: str | None = None
        """Why the answer ended, in the words of OpenAI's dialect."""
        self.usage_reports = 0
        self.usage: dict[str, Any] = {}
        """The highest of all reports, member by member, in the words of OpenAI's dialect."""
        self._lines = Lines()

    @property
    def is_known(self) -> bool:
        """Whether a response was seen."""
        return self.content_type is not None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the responses to requests that are sent meanwhile, in this task."""
        token = _watched.set(self)
        try:
            yield
        finally:
            _watched.reset(token)

    def attach(self, response: httpx2.Response) -> None:
        """Watch ``response`` from its start. Any earlier one was an attempt that failed."""
        self.content_type = response.headers.get("content-type", "")
        self.has_end_mark, self.finish_reason = False, None
        self.usage_reports, self.usage = 0, {}
        self._lines = Lines()
        read = response.aiter_bytes

        def aiter_bytes(chunk_size: int | None = None) -> AsyncIterator[bytes]:
            return _Reading(read(chunk_size), self)

        response.aiter_bytes = aiter_bytes  # type: ignore[method-assign,assignment]

    def feed(self, chunk: bytes) -> None:
        """Look at the next chunk."""
        for line in self._lines.feed(chunk):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].lstrip()
            if data.startswith(b"[DONE]"):
                self.has_end_mark = True
            elif _TELLING.search(data):  # Few lines are, so that few are decoded twice.
                self._read(_object(data))

    def end(self) -> None:
        """The body is over, and its last line may lack its end."""
        self.feed(b"\n")

    def _read(self, event: Mapping[str, Any]) -> None:
        if event.get("type") == "message_stop":
            self.has_end_mark = True
        usage = event.get("usage")
        if isinstance(usage, dict) and "prompt_tokens" in usage:
            self.usage_reports += 1
            _raise_to(self.usage, usage)
        choices = event.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            reason = choices[0].get("finish_reason")
            if isinstance(reason, str) and reason:
                self.finish_reason = reason


class Lines:
    """Splits a body into lines, as server-sent events count them."""

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


class _Reading:
    """An iterator over the chunks of a body, each of which is shown to its watcher."""

    def __init__(self, chunks: AsyncIterator[bytes], body: Body) -> None:
        self._chunks = chunks
        self._body = body

    def __aiter__(self) -> "_Reading":
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._body.end()
            raise
        self._body.feed(chunk)
        return chunk

    async def aclose(self) -> None:
        await cast("Any", self._chunks).aclose()


def watch(model: ProviderModel) -> None:
    """Have the bodies of the model's responses watched.

    The clients of OpenAI and Anthropic name no way to their HTTP client, so this reads the private
    attribute of it, which is the same in both; pyproject bounds their versions. A model of which
    nothing is found there is asked as before, and nothing is known of its bodies.
    """
    client = getattr(getattr(model, "client", None), "_client", None)
    if isinstance(client, httpx2.AsyncClient):
        hooks = client.event_hooks
        if _attach not in hooks["response"]:
            client.event_hooks = {**hooks, "response": [*hooks["response"], _attach]}


async def _attach(response: httpx2.Response) -> None:
    body = _watched.get()
    if body is not None:
        body.attach(response)


def broken_off(body: Body, handle: str) -> ModelError:
    """Return the error for a body that ended without saying that its answer had."""
    kind = (body.content_type or "").partition(";")[0].strip()
    if body.is_known and kind != "text/event-stream":
        return ModelError(
            f"The provider of {handle} did not answer with a stream of events, but with "
            f"'{kind[:MAX_SHOWN_NAME_CHARS]}'. Check the base URL in the server's settings."
        )
    return ModelError(
        f"The answer of {handle} broke off: its provider closed the stream without marking its "
        "end. What came of it is kept; send the message again, with a new OTID, to continue."
    )


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _raise_to(highest: dict[str, Any], reported: Mapping[str, Any]) -> None:
    """Raise each count in ``highest`` to what is reported."""
    for name, value in reported.items():
        if isinstance(value, dict):
            inner = highest.setdefault(name, {})
            if isinstance(inner, dict):
                _raise_to(inner, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            before = highest.get(name, 0)
            if isinstance(before, int | float):
                highest[name] = max(before, value)
