"""One answer of the Responses API: its events as deltas, its usage and its end."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseCreatedEvent,
    ResponseErrorEvent,
    ResponseFailedEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseFunctionToolCall,
    ResponseIncompleteEvent,
    ResponseInProgressEvent,
    ResponseOutputItem,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputRefusal,
    ResponseQueuedEvent,
    ResponseReasoningItem,
    ResponseReasoningSummaryTextDeltaEvent,
    ResponseReasoningSummaryTextDoneEvent,
    ResponseReasoningTextDeltaEvent,
    ResponseReasoningTextDoneEvent,
    ResponseRefusalDeltaEvent,
    ResponseRefusalDoneEvent,
    ResponseStreamEvent,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
    ResponseUsage,
)

from reattach.domain.errors import EngineError
from reattach.domain.events import StopReason, Usage
from reattach.domain.messages import HiddenReasoningPart, ReasoningPart, TextPart, ToolCallDelta
from reattach.engine.base import AnswerKept, Delta, Finished, StepFinished
from reattach.engine.calls import CallIds
from reattach.engine.openai_responses.failures import Failures

_Kind = Literal["text", "refusal", "summary", "reasoning"]

_BETWEEN_SUMMARIES: Final = "\n\n"
"""Separates the parts of a summary, which are paragraphs with a title each."""

UNFINISHED: Final = frozenset({"queued", "in_progress"})
"""The statuses of an answer that the provider still produces."""


@dataclass(slots=True)
class _Call:
    id: str
    arguments: str = ""


class Answer:
    """Turns one answer into deltas: event by event, or as a whole.

    A whole text at the end of a part completes its fragments, so it does not matter whether they
    all came.
    """

    def __init__(self, failures: Failures, taken_call_ids: Iterable[str] = ()) -> None:
        """``taken_call_ids`` are not given to other calls of this answer."""
        self.is_over = False
        """Whether the end came; ``end`` then says how."""
        self._failures = failures
        self._call_ids = CallIds(frozenset(taken_call_ids).__contains__)
        self._is_announced = False
        self._texts: dict[tuple[_Kind, int, int], str] = {}
        """The texts so far, by their kind, the index of their item and their own."""
        self._calls: dict[int, _Call] = {}
        """By the index of their item."""
        self._hidden: set[int] = set()
        """The indexes of the items of reasoning without a text."""
        self._response: Response | None = None
        self._status: str | None = None
        self._error: ResponseErrorEvent | None = None

    @property
    def has_failed_for_now(self) -> bool:
        """Whether it ended with an error that may pass, before any output."""
        return self._status == "failed" and self._failed().may_pass

    def take(self, event: ResponseStreamEvent) -> Iterator[Delta]:
        """Yield the deltas of the next event."""
        match event:
            case ResponseTextDeltaEvent(output_index=item, content_index=index, delta=text):
                yield from self._add("text", item, index, text)
            case ResponseTextDoneEvent(output_index=item, content_index=index, text=text):
                yield from self._complete("text", item, index, text)
            case ResponseFunctionCallArgumentsDeltaEvent(output_index=item, delta=text) if (
                item in self._calls
            ):
                yield from self._add_arguments(self._calls[item], text)
            case ResponseFunctionCallArgumentsDoneEvent(output_index=item, arguments=text) if (
                item in self._calls
            ):
                yield from self._complete_arguments(self._calls[item], text)
            case ResponseOutputItemAddedEvent(
                output_index=item, item=ResponseFunctionToolCall() as call
            ):
                yield from self._take_call(item, call)
            case ResponseOutputItemDoneEvent(output_index=item, item=whole):
                yield from self._take_item(item, whole)
            case ResponseCreatedEvent() | ResponseQueuedEvent() | ResponseInProgressEvent():
                if not self._is_announced:
                    self._is_announced = True
                    yield AnswerKept(event.response.id)
            case ResponseCompletedEvent() | ResponseIncompleteEvent() | ResponseFailedEvent():
                yield from self._close(event.response, event.type.removeprefix("response."))
            case ResponseErrorEvent():
                self._error, self.is_over = event, True
            case _:
                yield from self._take_aside(event)

    def take_whole(self, response: Response) -> Iterator[Delta]:
        """Yield the deltas of an answer that has ended, as far as they did not come as events."""
        for index, item in enumerate(response.output or ()):
            yield from self._take_item(index, item)
        self._response, self._status, self.is_over = response, response.status, True

    def end(self) -> Iterator[Delta]:
        """Yield the last deltas of an answer whose end came.

        Raises EngineError unless the answer is complete, or cut for its length.
        """
        usage = None if self._response is None else self._response.usage
        failure = self._failure()
        if failure is not None:
            if usage is not None and usage.total_tokens and not failure.may_pass:
                yield StepFinished(_usage(usage))
            raise failure
        yield StepFinished(_usage(usage))
        if self._status == "incomplete":
            yield Finished(StopReason.MAX_TOKENS)
        elif self._calls:
            yield Finished(StopReason.REQUIRES_APPROVAL)
        else:
            yield Finished(StopReason.END_TURN)

    # Texts.

    def _take_aside(self, event: ResponseStreamEvent) -> Iterator[Delta]:
        """Yield the deltas of events about reasoning, and note refusals."""
        match event:
            case ResponseReasoningSummaryTextDeltaEvent(output_index=item, summary_index=index):
                yield from self._add("summary", item, index, event.delta)
            case ResponseReasoningSummaryTextDoneEvent(output_index=item, summary_index=index):
                yield from self._complete("summary", item, index, event.text)
            case ResponseReasoningTextDeltaEvent(output_index=item, content_index=index):
                yield from self._add("reasoning", item, index, event.delta)
            case ResponseReasoningTextDoneEvent(output_index=item, content_index=index):
                yield from self._complete("reasoning", item, index, event.text)
            case ResponseRefusalDeltaEvent(output_index=item, content_index=index):
                yield from self._add("refusal", item, index, event.delta)
            case ResponseRefusalDoneEvent(output_index=item, content_index=index):
                yield from self._complete("refusal", item, index, event.refusal)
            case _:
                return

    def _add(self, kind: _Kind, item: int, index: int, text: str | None) -> Iterator[Delta]:
        if not text:
            return
        place = (kind, item, index)
        before = self._texts.get(place)
        self._texts[place] = (before or "") + text
        match kind:
            case "text":
                yield TextPart(text)
            case "refusal":
                return  # It is reported with the end.
            case "summary" | "reasoning":
                begins_paragraph = kind == "summary" and before is None and index > 0
                yield ReasoningPart((_BETWEEN_SUMMARIES if begins_paragraph else "") + text)

    def _complete(self, kind: _Kind, item: int, index: int, whole: str | None) -> Iterator[Delta]:
        before = self._texts.get((kind, item, index), "")
        if whole and whole.startswith(before):
            yield from self._add(kind, item, index, whole[len(before) :])

    # Items.

    def _take_item(self, index: int, item: ResponseOutputItem) -> Iterator[Delta]:
        """Yield everything of a complete item that did not come as fragments."""
        match item:
            case ResponseOutputMessage():
                for number, content in enumerate(item.content or ()):
                    if isinstance(content, ResponseOutputRefusal):
                        yield from self._complete("refusal", index, number, content.refusal)
                    else:
                        yield from self._complete("text", index, number, content.text)
            case ResponseReasoningItem():
                for number, summary in enumerate(_summaries(item)):
                    yield from self._complete("summary", index, number, summary)
                for number, raw in enumerate(item.content or ()):
                    yield from self._complete("reasoning", index, number, raw.text)
                shown = any(
                    kind in {"summary", "reasoning"} and at == index for kind, at, _ in self._texts
                )
                if not shown and index not in self._hidden:
                    self._hidden.add(index)
                    yield HiddenReasoningPart("omitted")
            case ResponseFunctionToolCall():
                yield from self._take_call(index, item)
            case _:
                return

    def _take_call(self, index: int, item: ResponseFunctionToolCall) -> Iterator[Delta]:
        call = self._calls.get(index)
        if call is None:
            call = self._calls[index] = _Call(self._call_ids.unused(item.call_id or ""))
            yield ToolCallDelta(call.id, name=item.name or "", needs_approval=True)
        yield from self._complete_arguments(call, item.arguments)

    def _add_arguments(self, call: _Call, text: str | None) -> Iterator[Delta]:
        if text:
            call.arguments += text
            yield ToolCallDelta(call.id, arguments=text, needs_approval=True)

    def _complete_arguments(self, call: _Call, whole: str | None) -> Iterator[Delta]:
        if whole and whole.startswith(call.arguments):
            yield from self._add_arguments(call, whole[len(call.arguments) :])

    # The end.

    def _close(self, response: Response, status: str) -> Iterator[Delta]:
        if not self._texts and not self._calls:  # Some servers send nothing but the end.
            yield from self.take_whole(response)
        self._response, self._status, self.is_over = response, status, True

    def _failure(self) -> EngineError | None:
        if self._error is not None:
            return self._failures.within_answer(self._error.code, self._error.message)
        if self._status == "failed":
            return self._failed()
        if self._status == "incomplete":
            details = self._response.incomplete_details if self._response else None
            reason = (details and details.reason) or "incomplete"
            if reason == "max_output_tokens":
                return None
            if reason == "content_filter":
                return self._failures.withheld(reason, has_text=self._has("text"))
            return self._failures.ended_early(reason)
        if self._status != "completed":
            return self._failures.ended_early(self._status or "unknown")
        if self._has("refusal"):
            words = "".join(text for place, text in self._texts.items() if place[0] == "refusal")
            return self._failures.withheld("refusal", words, has_text=self._has("text"))
        if not self._has("text") and not self._calls:
            return self._failures.empty()
        return None

    def _failed(self) -> EngineError:
        """Return the error of an answer that failed for good at the provider.

        Following it again would bring the same end. It may pass only while there is no output, so
        that another call of the model can replace it.
        """
        error = None if self._response is None else self._response.error
        failure = self._failures.within_answer(
            error.code if error else None, error.message if error else None
        )
        has_output = self._texts or self._calls or self._hidden
        failure.may_pass = failure.may_pass and not has_output
        return failure

    def _has(self, kind: _Kind) -> bool:
        return any(place[0] == kind for place in self._texts)


def _summaries(item: ResponseReasoningItem) -> list[str]:
    """Return the parts of the summary; none if it repeats the reasoning, as some servers do."""
    summaries = [one.text for one in item.summary or ()]
    return [] if summaries == [one.text for one in item.content or ()] else summaries


def _usage(usage: ResponseUsage | None) -> Usage:
    if usage is None:
        return Usage(step_count=1)
    prompt, completion = usage.input_tokens or 0, usage.output_tokens or 0
    # Compatible servers leave out the details.
    inputs, outputs = usage.input_tokens_details, usage.output_tokens_details
    return Usage(
        completion_tokens=completion,
        prompt_tokens=prompt,
        total_tokens=prompt + completion,
        step_count=1,
        cached_input_tokens=getattr(inputs, "cached_tokens", None) or None,
        cache_write_tokens=getattr(inputs, "cache_write_tokens", None) or None,
        reasoning_tokens=getattr(outputs, "reasoning_tokens", None) or None,
        context_tokens=prompt + completion,
    )
