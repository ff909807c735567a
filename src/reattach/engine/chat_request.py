"""A request to the model process, and its replies as deltas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from reattach.domain.errors import ModelEmptyResponseError, ModelError
from reattach.domain.events import StopReason, Usage
from reattach.domain.messages import ReasoningPart, TextPart
from reattach.engine.base import Delta, Finished, StepFinished
from reattach.engine.prefix import Seam

ChatMessage = dict[str, str]
"""A message for llama.cpp's chat completions: ``role`` and ``content``."""

Reply = Mapping[str, object]


@dataclass(slots=True)
class ChatRequest:
    """A chat completion, and the beginning of its answer if there is one."""

    model: str
    sampling: Mapping[str, object]
    messages: list[ChatMessage]
    output_tokens: int
    prompt_limit: int
    """The tokens that the prompt may have. With more, history is left out."""
    seam: Seam | None = None
    """Joins the rest to the beginning of the answer; None: there is none."""
    said_tokens: int = 0
    """The tokens of that beginning, which the prompt has in addition to ``prompt_tokens``."""
    prompt_tokens: int = 0
    """The tokens of the prompt without that beginning; counted only if there is one."""

    def body(self) -> Mapping[str, object]:
        body = {
            **self.sampling,
            "messages": self.messages,
            "max_tokens": self.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,
        }
        if self.seam is not None and self.seam.sent:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body

    def usage_so_far(self) -> Usage:
        """Return the usage of an answer that is only its beginning."""
        tokens = self.prompt_tokens + self.said_tokens
        return _usage({"prompt_tokens": tokens, "total_tokens": tokens}, self.said_tokens)

    def deltas(self, reply: Reply) -> Sequence[Delta]:
        if "text" in reply:
            text = cast(str, reply["text"])
            new = text if self.seam is None else self.seam.take(text)
            return [TextPart(new)] if new else []
        if "reasoning" in reply:
            return [ReasoningPart(cast(str, reply["reasoning"]))]
        if "end" in reply:
            usage = cast(Mapping[str, int], reply["usage"] or {})
            if not usage.get("completion_tokens"):
                raise ModelEmptyResponseError("The local model ended without an answer.")
            reason = StopReason.MAX_TOKENS if reply["end"] == "length" else StopReason.END_TURN
            return [StepFinished(_usage(usage, self.said_tokens)), Finished(reason)]
        if "error" in reply:
            error = RuntimeError(reply["error"])
            raise ModelError("The local model failed to answer.") from error
        return []


def _usage(counted: Mapping[str, int], said_tokens: int) -> Usage:
    """Return the usage of a whole answer whose first ``said_tokens`` were part of the prompt."""
    # Cached tokens are not reported: they would reveal other tenants' prompts.
    total = counted.get("total_tokens", 0)
    return Usage(
        completion_tokens=counted.get("completion_tokens", 0) + said_tokens,
        prompt_tokens=counted.get("prompt_tokens", 0) - said_tokens,
        total_tokens=total,
        step_count=1,
        context_tokens=total,
    )
