"""One answer of a provider: its deltas, its usage and its end."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pydantic_ai.messages as pm
from pydantic_ai.models import StreamedResponse
from pydantic_ai.usage import RequestUsage

from reattach.domain.errors import ModelError
from reattach.domain.events import StopReason, Usage
from reattach.domain.limits import MAX_ERROR_CHARS, MAX_SHOWN_NAME_CHARS
from reattach.domain.messages import HiddenReasoningPart, ReasoningPart, TextPart, ToolCallDelta
from reattach.engine.base import Delta, Finished, StepFinished
from reattach.engine.calls import CallIds, is_json
from reattach.engine.pydantic_ai.body import Body, broken_off
from reattach.engine.pydantic_ai.meanings import ended_early, ended_empty

_WHOLE: Final = frozenset(
    {
        "complete", "completed", "done", "end", "end_turn", "eos", "eos_token", "finish",
        "finished", "function_call", "stop", "stop_sequence", "tool_call", "tool_calls", "tool_use",
    }
)  # fmt: skip
"""The lower-case reasons with which providers end a complete answer."""

_TOO_LONG: Final = frozenset(
    {"length", "max_length", "max_output_tokens", "max_tokens", "model_length"}
)
_WITHHELD: Final = frozenset(
    {
        "blocked", "content_filter", "content_filtered", "guardrail_intervened", "refusal",
        "safety", "sensitive",
    }
)  # fmt: skip

_INTERRUPTED: Final = frozenset({"abort", "error", "insufficient_system_resource", "network_error"})
"""Reasons of a provider that could not finish its answer, as an error within the stream."""


class Answer:
    """Turns the stream of one model call into deltas."""

    def __init__(self, *, has_text: bool = False) -> None:
        """``has_text`` says that the answer had text before this call."""
        self._call_ids = CallIds()
        self._calls: dict[int, _Call] = {}
        """The newest call of each part of the stream."""
        self._shown_reasoning: set[int] = set()
        self._has_text = has_text

    def deltas(self, event: pm.ModelResponseStreamEvent) -> Iterator[Delta]:
        match event:
            case pm.PartStartEvent(index=index, part=pm.TextPart(content=text)):
                yield from self._text(text)
            case pm.PartDeltaEvent(delta=pm.TextPartDelta(content_delta=text)):
                yield from self._text(text)
            case pm.PartStartEvent(index=index, part=pm.ThinkingPart() as thinking):
                yield from self._reasoning(index, thinking.content, thinking.signature)
            case pm.PartDeltaEvent(index=index, delta=pm.ThinkingPartDelta() as more):
                yield from self._reasoning(index, more.content_delta or "", more.signature_delta)
            case pm.PartEndEvent(index=index, part=pm.ThinkingPart() as thinking):
                if index not in self._shown_reasoning and (thinking.signature or thinking.id):
                    is_redacted = thinking.id == "redacted_thinking"
                    yield HiddenReasoningPart("redacted" if is_redacted else "omitted")
            case pm.PartStartEvent(index=index, part=pm.ToolCallPart() as call):
                yield from self._whole_call(index, call)
            case pm.PartDeltaEvent(index=index, delta=pm.ToolCallPartDelta() as more_call):
                yield from self._more_call(index, more_call)
            case _:
                return

    def end(self, stream: StreamedResponse, body: Body, handle: str) -> Iterator[Delta]:
        """Yield the last deltas of a stream that was read to its end.

        Raises ModelError unless the provider reports a complete answer.
        """
        response = stream.get()
        failure = self._failure(stream, response, body, handle)
        if failure is not None:
            yield from counted_usage(stream, body, broke_off=failure.may_pass)
            raise failure
        yield StepFinished(_usage(response.usage, body))
        if _is_cut_for_length(response, body):
            yield Finished(StopReason.MAX_TOKENS)
        elif self._calls:
            yield Finished(StopReason.REQUIRES_APPROVAL)
        else:
            yield Finished(StopReason.END_TURN)

    def _failure(
        self, stream: StreamedResponse, response: pm.ModelResponse, body: Body, handle: str
    ) -> ModelError | None:
        reason = _reason(response, body)
        named = reason[:MAX_SHOWN_NAME_CHARS]
        if not _has_end(stream, response, body):
            return broken_off(body, handle)
        if response.finish_reason == "content_filter" or reason.lower() in _WITHHELD:
            words = str((response.provider_details or {}).get("refusal") or "")[:MAX_ERROR_CHARS]
            withheld = (
                f"stopped the answer of {handle} and withheld the rest"
                if self._has_text
                else f"withheld the answer of {handle}"
            )
            return ModelError(
                f"The provider's filter {withheld}: {named or 'content_filter'}."
                + (f" It says: {words}" if words else "")
            )
        if _is_cut_for_length(response, body):
            return None
        is_known = response.finish_reason in {"stop", "tool_call"} or reason.lower() in _WHOLE
        if reason and not is_known:
            unfinished = ended_early(handle, reason)
            unfinished.may_pass = reason.lower() in _INTERRUPTED
            return unfinished
        if not self._has_text and not self._calls:
            return ended_empty(handle)
        return None

    def _text(self, text: str) -> Iterator[Delta]:
        if text:
            self._has_text = True
            yield TextPart(text)

    def _reasoning(self, index: int, text: str, signature: str | None) -> Iterator[Delta]:
        if text:
            self._shown_reasoning.add(index)
        # A signature without text belongs to hidden reasoning.
        if text or (signature and index in self._shown_reasoning):
            yield ReasoningPart(text, signature)

    def _whole_call(self, index: int, part: pm.ToolCallPart) -> Iterator[Delta]:
        """Yield a new call, or the new arguments of a call that is repeated as a whole."""
        arguments = _json(part.args)
        call = self._calls.get(index)
        if call is not None and call.provider_id == part.tool_call_id:
            yield from self._arguments(call, arguments.removeprefix(call.arguments))
            return
        yield from self._begin(index, part.tool_call_id, part.tool_name, arguments)

    def _more_call(self, index: int, delta: pm.ToolCallPartDelta) -> Iterator[Delta]:
        call = self._calls[index]
        name, arguments = delta.tool_name_delta, _json(delta.args_delta)
        if name and call.is_followed_by(delta.tool_call_id, name, arguments):
            # Some providers give all calls of an answer the same index.
            yield from self._begin(index, delta.tool_call_id or "", name, arguments)
            return
        if name and not call.arguments and name != call.name:
            call.name += name
            yield ToolCallDelta(call.id, name=name, needs_approval=True)
        yield from self._arguments(call, arguments)

    def _begin(self, index: int, provider_id: str, name: str, arguments: str) -> Iterator[Delta]:
        call = _Call(self._call_ids.unused(provider_id), provider_id, name)
        self._calls[index] = call
        yield ToolCallDelta(call.id, name=name, needs_approval=True)
        yield from self._arguments(call, arguments)

    def _arguments(self, call: "_Call", arguments: str) -> Iterator[Delta]:
        if arguments:
            call.arguments += arguments
            yield ToolCallDelta(call.id, arguments=arguments, needs_approval=True)


@dataclass(slots=True)
class _Call:
    id: str
    provider_id: str
    name: str
    arguments: str = ""

    def is_followed_by(self, provider_id: str | None, name: str, arguments: str) -> bool:
        """Whether a name at the same index begins another call."""
        if provider_id is not None and provider_id != self.provider_id:
            return True
        if not self.arguments:
            return False
        return name != self.name or (arguments != "" and is_json(self.arguments))


def counted_usage(
    stream: StreamedResponse, body: Body, *, broke_off: bool
) -> Iterator[StepFinished]:
    """Yield the usage of a failed answer, if its provider counted any."""
    usage = _usage(stream.usage, body)
    if usage.total_tokens:
        yield StepFinished(usage, broke_off=broke_off)


def _usage(usage: RequestUsage, body: Body) -> Usage:
    prompt, completion = usage.input_tokens, usage.output_tokens
    cached, reasoning = usage.cache_read_tokens, usage.details.get("reasoning_tokens")
    if body.usage_reports > 1:  # Reports are cumulative, and Pydantic AI adds them up.
        prompt = _count(body.usage, "prompt_tokens")
        completion = _count(body.usage, "completion_tokens")
        cached = _count(body.usage, "prompt_tokens_details", "cached_tokens")
        reasoning = _count(body.usage, "completion_tokens_details", "reasoning_tokens") or None
    return Usage(
        completion_tokens=completion,
        prompt_tokens=prompt,
        total_tokens=prompt + completion,
        step_count=1,
        cached_input_tokens=cached or None,
        cache_write_tokens=usage.cache_write_tokens or None,
        reasoning_tokens=reasoning,
        context_tokens=prompt + completion,
    )


def _count(usage: Any, *path: str) -> int:
    for name in path:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return usage if isinstance(usage, int) else 0


def _json(arguments: str | dict[str, object] | None) -> str:
    if not arguments:
        return ""
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


# The end of an answer.


def _reason(response: pm.ModelResponse, body: Body) -> str:
    """Return the reason in the provider's own term; empty if it gave none."""
    given = (response.provider_details or {}).get("finish_reason") or body.finish_reason
    return given if isinstance(given, str) else ""


def _is_cut_for_length(response: pm.ModelResponse, body: Body) -> bool:
    return response.finish_reason == "length" or _reason(response, body).lower() in _TOO_LONG


def _has_end(stream: StreamedResponse, response: pm.ModelResponse, body: Body) -> bool:
    """Whether the provider marked the end of the answer with a reason or an end mark."""
    if response.state == "incomplete":
        return False
    if stream.provider_url is None or _reason(response, body) or body.has_end_mark:
        return True
    return response.finish_reason is not None and not _makes_up_reasons(stream, response)


def _makes_up_reasons(stream: StreamedResponse, response: pm.ModelResponse) -> bool:
    """Whether Pydantic AI may have invented the reason, for chat completions that gave none."""
    chat = sys.modules.get("pydantic_ai.models.openai")
    is_chat = chat is not None and isinstance(stream, chat.OpenAIStreamedResponse)
    return is_chat and response.finish_reason == "stop"
