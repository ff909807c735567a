"""Sessions of OpenAI's Python client: Responses and Chat Completions, raw and by the helpers."""

import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import openai

from bench.dialects.programs.shown import Shown, added, tool

Opened = Callable[[], Any]


def _new_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(api_key="none", base_url=f"{url}/openai/v1", timeout=20.0)


def _read(opened: Opened, take: Callable[[Any], None]) -> str | None:
    """Pass on each item of a stream, and return how the request ended if it raised an error."""
    try:
        with opened() as stream:
            for item in stream:
                take(item)
    except openai.APIConnectionError as error:
        return f"broke: {error}"
    except openai.APIError as error:
        return f"failed: {error.message}"
    return None


class _Responses:
    def __init__(self, options: dict[str, Any]) -> None:
        self.sdk = _new_client(options["url"])
        self.agent = options["agent"]
        self.kept: dict[str, Any] = options["kept"] or {"shown": [], "end": None}

    @property
    def shown(self) -> Shown:
        shown: Shown = self.kept["shown"]
        return shown

    def send(self, sent: Any) -> str:
        self.kept |= {"sent": sent, "key": str(uuid.uuid4()), "before": self.shown}
        return self.repeat()

    def repeat(self) -> str:
        """Ask again, under the same key: the answer begins anew."""
        kept = self.kept
        kept |= {"shown": kept["before"], "id": None, "last": -1, "end": None}
        body = {"model": self.agent, "input": kept["sent"]}
        if "previous" in kept:
            body["previous_response_id"] = kept["previous"]
        headers = {"Idempotency-Key": kept["key"]}
        return self._ended(lambda: self._created(extra_headers=headers, **body))

    def resume(self) -> str:
        if self.kept["id"] is None:
            return self.repeat()
        return self._ended(self._retrieved)

    def approve(self) -> str:
        self.kept["previous"] = self.kept["id"]
        request = {"type": "mcp_approval_response", "approval_request_id": self.kept["asked"]}
        return self.send([{**request, "approve": True}])

    def cancel(self) -> None:
        self.sdk.responses.cancel(self.kept["id"])

    def _created(self, **body: Any) -> Any:
        return self.sdk.responses.create(background=True, stream=True, **body)

    def _retrieved(self) -> Any:
        last = self.kept["last"]
        return self.sdk.responses.retrieve(self.kept["id"], stream=True, starting_after=last)

    def _ended(self, opened: Opened) -> str:
        return _read(opened, self._take) or self.kept["end"] or "hangs"

    def _take(self, event: Any) -> None:
        kept = self.kept
        kept["last"] = event.sequence_number
        if event.type == "response.created":
            kept["id"] = event.response.id
        elif event.type == "response.output_text.delta":
            kept["shown"] = added(kept["shown"], "text", event.delta)
        elif event.type == "response.reasoning_text.delta":
            kept["shown"] = added(kept["shown"], "reasoning", event.delta)
        elif event.type == "response.output_item.done":
            self._take_item(event.item)
        status = getattr(getattr(event, "response", None), "status", None)
        if status == "completed":
            kept["end"] = "asked" if "asked" in kept and "previous" not in kept else status
        elif status == "failed":
            kept["end"] = f"failed: {event.response.error.message}"
        elif status in {"cancelled", "incomplete"}:
            kept["end"] = status

    def _take_item(self, item: Any) -> None:
        if item.type == "mcp_call":
            self.kept["shown"] = [*self.shown, tool(item.name, item.output)]
        elif item.type == "mcp_approval_request":
            self.kept["asked"] = item.id


class _ResponsesHelper(_Responses):
    def _created(self, **body: Any) -> Any:
        return self.sdk.responses.stream(**body)

    def _retrieved(self) -> Any:
        return self.sdk.responses.stream(
            response_id=self.kept["id"], starting_after=self.kept["last"]
        )


class _ChatCompletions:
    def __init__(self, options: dict[str, Any]) -> None:
        self.sdk = _new_client(options["url"])
        self.agent = options["agent"]
        self.kept: dict[str, Any] = options["kept"] or {}
        self.shown: Shown = []
        self.end: str | None = None

    def send(self, text: str) -> str:
        self.kept |= {"text": text, "key": str(uuid.uuid4())}
        return self.repeat()

    def repeat(self) -> str:
        """Ask again, under the same key: the answer begins anew."""
        self.shown, self.end = [], None
        key = self.kept["key"]
        headers = {"Idempotency-Key": key, "X-Reattach-Chat-Key": key}
        messages = [{"role": "user", "content": self.kept["text"]}]
        body = {"model": self.agent, "messages": messages, "extra_headers": headers}
        return self._ended(lambda: self._opened(**body))

    def resume(self) -> str:
        return self.repeat()

    def _ended(self, opened: Opened) -> str:
        return _read(opened, self._take) or self.end or "hangs"

    def _opened(self, **body: Any) -> Any:
        return self.sdk.chat.completions.create(stream=True, **body)

    def _take(self, chunk: Any) -> None:
        for choice in chunk.choices:
            reasoning = getattr(choice.delta, "reasoning_content", None)
            self.shown = added(self.shown, "reasoning", reasoning)
            self.shown = added(self.shown, "text", choice.delta.content)
            if choice.finish_reason:
                self.end = "completed"


class _ChatCompletionsHelper(_ChatCompletions):
    @contextmanager
    def _opened(self, **body: Any) -> Iterator[Iterable[Any]]:
        with self.sdk.chat.completions.stream(**body) as stream:
            yield (event.chunk for event in stream if event.type == "chunk")


CLIENTS = {
    "responses": _Responses,
    "responses-helper": _ResponsesHelper,
    "chat": _ChatCompletions,
    "chat-helper": _ChatCompletionsHelper,
}
