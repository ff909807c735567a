"""Messages as Anthropic's API streams them."""

import json
from collections.abc import Sequence
from typing import Any, Final

from reattach.testing.providers.forms import CUT, Form, Json, Run, data, failed, joined


def event(kind: str, **members: Any) -> bytes:
    """One event under its name."""
    return data({"type": kind, **members}, name=kind)


def begins(input_tokens: int = 100, output_tokens: int = 1) -> bytes:
    usage = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    return event(
        "message_start",
        message={
            "id": "msg_1", "type": "message", "role": "assistant", "model": "claude",
            "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage,
        },
    )  # fmt: skip


def block(index: int, content: Json, *deltas: Json, stops: bool = True) -> list[bytes]:
    """A whole block of content, or one that is never stopped."""
    pieces = [
        event("content_block_start", index=index, content_block=content),
        *(event("content_block_delta", index=index, delta=delta) for delta in deltas),
    ]
    return [*pieces, event("content_block_stop", index=index)] if stops else pieces


def says(*texts: str, index: int = 0, stops: bool = True) -> list[bytes]:
    deltas = [{"type": "text_delta", "text": text} for text in texts]
    return block(index, {"type": "text", "text": ""}, *deltas, stops=stops)


def calls(index: int, call_id: str, name: str, *arguments: str) -> list[bytes]:
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in arguments]
    content = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
    return block(index, content, *deltas)


def reasons(reason: str | None, output_tokens: int = 7, **more: Any) -> bytes:
    delta = {"stop_reason": reason, "stop_sequence": None, **more}
    return event("message_delta", delta=delta, usage={"output_tokens": output_tokens})


def form(name: str, *body: Sequence[bytes] | bytes, run: Run, **more: Any) -> Form:
    return Form(name, joined(*body), run, **more)


STOP: Final = event("message_stop")
PING: Final = event("ping")
END: Final = (reasons("end_turn"), STOP)
CALLED: Final = (reasons("tool_use"), STOP)
CLOSING: Final = form("closing", begins(), says("Done."), END, run=Run("Done."))
ONE: Final = '{"n": 1}'
TWO: Final = '{"n": 2}'
HELLO: Final = Run("Hello.", prompt_tokens=100, completion_tokens=7)
BOTH: Final = Run("Done.", ran=(1, 2))
_CUT: Final = CUT.encode()
_THINKING: Final = {"type": "thinking", "thinking": "", "signature": ""}


def _error(name: str, status: int, kind: str, message: str, words: str) -> Form:
    body = json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
    return Form(name, (body,), failed(words), status, "application/json")


FORMS: Final = (
    form("text", begins(), says("Hel", "lo."), END, run=HELLO),
    form("text-pings", begins(), PING, says("Hel", "lo."), PING, END, run=HELLO),
    form("text-two-blocks", begins(), says("Hel"), says("lo.", index=1), END, run=HELLO),
    form("text-at-start", begins(), block(0, {"type": "text", "text": "Hello."}), END, run=HELLO),
    form("text-empty-pieces", begins(), says("", "Hello.", ""), END, run=HELLO),
    form("text-crlf", *(piece.replace(b"\n", b"\r\n") for piece in joined(
         begins(), says("Hello."), END)), run=HELLO),
    form("text-unknown-event", begins(), event("weather", sky="blue"), says("Hello."), END,
         run=HELLO),
    form("text-mark-within", begins(), says('"message_stop"'), END, run=Run('"message_stop"')),
    form("thinking", begins(), block(0, _THINKING, {"type": "thinking_delta", "thinking": "Hm."},
         {"type": "signature_delta", "signature": "s"}), says("Hello.", index=1), END,
         run=Run("Hello.", reasoning="Hm.")),
    form("thinking-redacted", begins(), block(0, {"type": "redacted_thinking", "data": "x"}),
         says("Hello.", index=1), END, run=HELLO),
    form("call", begins(), calls(0, "c", "add", '{"n"', ": 1}"), CALLED,
         run=Run("Done.", ran=(1,))),
    form("call-after-text", begins(), says("Well. "), calls(1, "c", "add", ONE), CALLED,
         run=Run("Well. Done.", ran=(1,))),
    form("call-input-at-start", begins(), block(0, {"type": "tool_use", "id": "c", "name": "add",
         "input": {"n": 1}}), CALLED, run=Run("Done.", ran=(1,))),
    form("call-reason-end-turn", begins(), calls(0, "c", "add", ONE), END,
         run=Run("Done.", ran=(1,))),
    form("calls", begins(), calls(0, "a", "add", ONE), calls(1, "b", "add", TWO), CALLED, run=BOTH),
    form("calls-same-id", begins(), calls(0, "c", "add", ONE), calls(1, "c", "add", TWO), CALLED,
         run=BOTH),
    form("calls-empty-id", begins(), calls(0, "", "add", ONE), calls(1, "", "add", TWO), CALLED,
         run=BOTH),
    form("calls-client-same-id", begins(), calls(0, "c", "look", "{}"), calls(1, "c", "look", "{}"),
         CALLED, offers_client_tools=True,
         run=Run(stop_reason="requires_approval", waiting=("look", "look"))),
    form("call-unknown", begins(), calls(0, "a", "serch", ONE), calls(1, "b", "add", ONE), CALLED,
         run=Run("Done.", ran=(1,), refused=1)),
    form("call-nameless", begins(), calls(0, "a", "", ONE), CALLED, run=Run("Done.", refused=1)),
    form("call-unknown-and-client", begins(), calls(0, "a", "serch", "{}"),
         calls(1, "b", "look", "{}"), CALLED, offers_client_tools=True,
         run=Run(stop_reason="requires_approval", waiting=("look",), refused=1)),
    form("call-arguments-none", begins(), calls(0, "c", "add"), CALLED,
         run=Run("Done.", refused=1)),
    form("call-arguments-no-json", begins(), calls(0, "c", "add", '{"n": '), CALLED,
         run=Run("Done.", refused=1)),
    form("usage-in-steps", begins(), says("Hello."), reasons(None, 3), reasons("end_turn", 7), STOP,
         run=HELLO),
    form("usage-start-only", begins(100, 7), says("Hello."), event("message_delta",
         delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7}), STOP, run=HELLO),
    form("usage-then-cut", begins(), says("Hello.", stops=False), _CUT,
         run=failed("", text="Hello.", prompt_tokens=100)),
    form("usage-refusal", begins(), reasons("refusal"), STOP,
         run=failed("refusal", prompt_tokens=100, completion_tokens=7)),
    form("usage-thinking-only", begins(), block(0, _THINKING,
         {"type": "thinking_delta", "thinking": "Hm."}), END,
         run=failed("without an answer", stop_reason="invalid_llm_response", reasoning="Hm.",
                    prompt_tokens=100, completion_tokens=7)),
    form("end-no-message-stop", begins(), says("Hello."), reasons("end_turn"), run=HELLO),
    form("end-no-message-delta", begins(), says("Hello."), STOP, run=Run("Hello.")),
    form("end-null-reason", begins(), says("Hello."), reasons(None), STOP, run=HELLO),
    form("end-none", begins(), says("Hello."), run=failed("broke off", text="Hello.")),
    form("end-null-reason-only", begins(), says("Hello."), reasons(None),
         run=failed("broke off", text="Hello.")),
    form("end-within-text", begins(), says("Hello.", stops=False),
         run=failed("broke off", text="Hello.")),
    form("end-stop-sequence", begins(), says("Hello."), reasons("stop_sequence"), STOP, run=HELLO),
    form("end-call-without-end", begins(), calls(0, "c", "add", ONE),
         run=failed("broke off", refused=1)),
    form("end-client-call-without-end", begins(), calls(0, "c", "look", "{}"),
         offers_client_tools=True, run=failed("broke off", refused=1)),
    form("end-cut", begins(), says("Hello."), _CUT, run=failed("", text="Hello.")),
    form("end-start-only", begins(), run=failed("broke off")),
    form("end-nothing", run=failed("")),
    form("end-pings-only", PING, PING, run=failed("")),
    form("end-max-tokens", begins(), says("Hello."), reasons("max_tokens"), STOP,
         run=Run("Hello.", "failed", "max_tokens_exceeded")),
    form("end-window-full", begins(), says("Hello."), reasons("model_context_window_exceeded"),
         STOP, run=Run("Hello.", "failed", "max_tokens_exceeded")),
    form("end-refusal", begins(), says("Hello."), reasons("refusal"), STOP,
         run=failed("withheld the rest", text="Hello.")),
    form("end-refusal-of-call", begins(), calls(0, "c", "add", ONE), reasons("refusal"), STOP,
         run=failed("withheld", refused=1)),
    form("end-pause", begins(), says("Hello."), reasons("pause_turn"), STOP,
         run=failed("pause_turn", text="Hello.")),
    form("end-pause-in-call", begins(), calls(0, "c", "add", ONE), reasons("pause_turn"), STOP,
         run=failed("pause_turn", refused=1)),
    form("end-unknown", begins(), says("Hello."), reasons("weather"), STOP,
         run=failed("'weather'", text="Hello.")),
    form("end-twice", begins(), says("Hello."), END, STOP, run=HELLO),
    form("error-in-stream", begins(), says("Hello."), event("error", error={
         "type": "overloaded_error", "message": "Overloaded today"}),
         run=failed("Overloaded today", text="Hello.")),
    form("error-after-call", begins(), calls(0, "c", "add", ONE), event("error", error={
         "type": "api_error", "message": "broken"}), run=failed("broken", refused=1)),
    form("error-garbage", begins(), says("Hello."), b"event: message_delta\ndata: {no\n\n",
         run=failed("", text="Hello.")),
    _error("error-400", 400, "invalid_request_error", "tools: too many", "tools: too many"),
    _error("error-401", 401, "authentication_error", "invalid x-api-key", "invalid x-api-key"),
    _error("error-404", 404, "not_found_error", "model: claude", "model: claude"),
    _error("error-429", 429, "rate_limit_error", "Slow down", "Slow down"),
    _error("error-500", 500, "api_error", "Internal server error", "Internal server error"),
    _error("error-529", 529, "overloaded_error", "Overloaded", "Overloaded"),
    Form("error-html", (b"<html><h1>502 Bad Gateway</h1></html>",), failed("502 Bad Gateway"), 502,
         "text/html"),
)  # fmt: skip
