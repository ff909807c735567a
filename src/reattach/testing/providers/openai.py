"""Chat completions as OpenAI and the many servers of its dialect stream them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from reattach.testing.providers.forms import Form, Json, Run, data, joined

DONE: Final = data("[DONE]")


def chunk(delta: Json | None, reason: str | None = None, **more: Any) -> bytes:
    """One chunk with one choice, or with none."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
    return data(_event(choices, **more))


def _event(choices: Sequence[Json] | None, **more: Any) -> Json:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "small",
        "choices": choices,
        **more,
    }


def says(*texts: str) -> list[bytes]:
    return [chunk({"content": text}) for text in texts]


def stops(reason: str = "stop", **more: Any) -> bytes:
    return chunk({}, reason, **more)


def counts(prompt: float, completion: float, **more: Any) -> Mapping[str, Any]:
    """A member ``usage``."""
    total = prompt + completion
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": completion,
                      "total_tokens": total, **more}}  # fmt: skip


def call(index: int | None, call_id: str | None, name: str | None, arguments: str | None) -> bytes:
    """A chunk with a piece of one call; what is None is left out."""
    function = {"name": name, "arguments": arguments}
    piece = {
        "index": index,
        "id": call_id,
        "type": "function",
        "function": {key: value for key, value in function.items() if value is not None},
    }
    return chunk({"tool_calls": [{k: v for k, v in piece.items() if v is not None}]})


def form(name: str, *body: Sequence[bytes] | bytes, run: Run, **more: Any) -> Form:
    return Form(name, joined(*body), run, **more)


CLOSING: Final = form("closing", says("Done."), stops(), DONE, run=Run("Done."))

ONE: Final = '{"n": 1}'
TWO: Final = '{"n": 2}'
START: Final = chunk({"role": "assistant", "content": ""})
END: Final = (stops("tool_calls"), DONE)
BOTH: Final = Run("Done.", ran=(1, 2))
HELLO: Final = Run("Hello.")

TEXT: Final = (
    form("text", START, says("Hel", "lo."), stops(), DONE, run=HELLO),
    form("text-no-role", says("Hello."), stops(), DONE, run=HELLO),
    form("text-with-reason", START, chunk({"content": "Hello."}, "stop"), DONE, run=HELLO),
    form("text-after-reason", says("Hel"), stops(), says("lo."), DONE, run=HELLO),
    form("text-null-pieces", chunk({"content": None}), says("Hello."), chunk({"content": None}),
         stops(), DONE, run=HELLO),
    form("text-list", chunk({"content": [{"type": "text", "text": "Hello."}]}), stops(), DONE,
         run=HELLO),
    form("text-comments", b": keepalive\n\n", says("Hel"), b": keepalive\n\n", says("lo."), stops(),
         b":\n\n", DONE, run=HELLO),
    form("text-no-space", b"data:" + says("Hello.")[0][6:], stops(), b"data:[DONE]\n\n", run=HELLO),
    form("text-crlf", says("Hello.")[0].replace(b"\n", b"\r\n"),
         stops().replace(b"\n", b"\r\n"), DONE.replace(b"\n", b"\r\n"), run=HELLO),
    form("text-split-bytes", *(bytes([byte]) for byte in joined(says("Hé."), stops(), DONE)[0]),
         stops(), DONE, run=Run("Hé.")),
    form("text-one-write", b"".join(joined(START, says("Hel", "lo."), stops(), DONE)), run=HELLO),
    form("text-no-choices", chunk(None), says("Hello."), data(_event(None)), stops(), DONE,
         run=HELLO),
    form("text-null-delta", says("Hello."),
         data(_event([{"index": 0, "delta": None, "finish_reason": "stop"}])), run=HELLO),
    form("text-mark-within", says("data: [DONE]", " and on."), stops(), DONE,
         run=Run("data: [DONE] and on.")),
    form("text-event-names", b"event: message\n" + says("Hello.")[0], stops(), DONE, run=HELLO),
    form("text-ids", b"id: 7\nretry: 10\n" + says("Hello.")[0], stops(), DONE, run=HELLO),
    form("text-strange-members", chunk({"content": "Hello.", "annotations": [], "audio": None},
         service_tier="on_demand", provider="x"), stops(), DONE, run=HELLO),
    form("text-halves-joined", b'data: {"choices": [{"index": 0, "delta": {"content": '
         b'"\\ud83d\\ude00"}}]}\n\n', stops(), DONE, run=Run("\U0001f600")),
    form("reasoning-content", chunk({"reasoning_content": "Hm."}), says("Hello."), stops(), DONE,
         run=Run("Hello.", reasoning="Hm.")),
    form("reasoning", chunk({"reasoning": "Hm."}), says("Hello."), stops(), DONE,
         run=Run("Hello.", reasoning="Hm.")),
    form("reasoning-tags", says("<think>", "Hm.", "</think>", "Hello."), stops(), DONE,
         run=Run("Hello.", reasoning="Hm.")),
)  # fmt: skip

CALLS: Final = (
    form("call", START, call(0, "c", "add", ""), call(0, None, None, '{"n"'),
         call(0, None, None, ": 1}"), END, run=Run("Done.", ran=(1,))),
    form("call-whole", call(0, "c", "add", ONE), END, run=Run("Done.", ran=(1,))),
    form("call-reason-stop", call(0, "c", "add", ONE), stops(), DONE, run=Run("Done.", ran=(1,))),
    form("call-after-text", says("Well. "), call(0, "c", "add", ONE), END,
         run=Run("Well. Done.", ran=(1,))),
    form("calls", call(0, "a", "add", ONE), call(1, "b", "add", TWO), END, run=BOTH),
    form("calls-in-one-chunk", chunk({"tool_calls": [
        {"index": n, "id": f"c{n}", "type": "function",
         "function": {"name": "add", "arguments": text}} for n, text in enumerate((ONE, TWO))
    ]}), END, run=BOTH),
    form("calls-interleaved", call(0, "a", "add", ""), call(1, "b", "add", ""),
         call(0, None, None, '{"n":'), call(1, None, None, '{"n":'), call(0, None, None, "1}"),
         call(1, None, None, "2}"), END, run=BOTH),
    form("calls-same-id", call(0, "c", "add", ONE), call(1, "c", "add", TWO), END, run=BOTH),
    form("calls-same-id-in-pieces", call(0, "c", "add", ""), call(0, None, None, ONE),
         call(1, "c", "add", ""), call(1, None, None, TWO), END, run=BOTH),
    form("calls-same-index", call(0, "a", "add", ONE), call(0, "b", "add", TWO), END, run=BOTH),
    form("calls-same-index-and-id", call(0, "c", "add", ONE), call(0, "c", "add", TWO), END,
         run=BOTH),
    form("calls-no-index", call(None, "a", "add", ONE), call(None, "b", "add", TWO), END, run=BOTH),
    form("calls-no-id", call(0, None, "add", ONE), call(1, None, "add", TWO), END, run=BOTH),
    form("calls-empty-id", call(0, "", "add", ONE), call(1, "", "add", TWO), END, run=BOTH),
    form("call-id-late", call(0, None, "add", ""), call(0, "c", None, ONE), END,
         run=Run("Done.", ran=(1,))),
    form("call-id-repeated", call(0, "c", "add", ""), call(0, "c", None, '{"n":'),
         call(0, "c", None, "1}"), END, run=Run("Done.", ran=(1,))),
    form("call-id-changes", call(0, "c1", "add", ""), call(0, "c2", None, '{"n":'),
         call(0, "c3", None, "1}"), END, run=Run("Done.", ran=(1,))),
    form("call-id-long", call(0, "c" * 4500, "add", ONE), END, run=Run("Done.", ran=(1,))),
    form("call-name-split", call(0, "c", "a", None), call(0, None, "dd", None),
         call(0, None, None, ONE), END, run=Run("Done.", ran=(1,))),
    form("call-name-repeated", call(0, "c", "add", ""), call(0, "c", "add", '{"n":'),
         call(0, "c", "add", "1}"), call(0, "c", "add", ""), END, run=Run("Done.", ran=(1,))),
    form("call-name-late", call(0, "c", None, '{"n"'), call(0, None, "add", None),
         call(0, None, None, ":1}"), END, run=Run("Done.", ran=(1,))),
    form("call-unknown", call(0, "a", "serch", ONE), call(1, "b", "add", ONE), END,
         run=Run("Done.", ran=(1,), refused=1)),
    form("call-prefixed", call(0, "a", "functions.add", ONE), END, run=Run("Done.", refused=1)),
    form("call-padded", call(0, "a", " add ", ONE), END, run=Run("Done.", refused=1)),
    form("call-nameless", call(0, "a", "", ONE), END, run=Run("Done.", refused=1)),
    form("call-arguments-no-json", call(0, "c", "add", '{"n": '), END, run=Run("Done.", refused=1)),
    form("call-arguments-list", call(0, "c", "add", "[1]"), END, run=Run("Done.", refused=1)),
    form("call-arguments-none", call(0, "c", "add", None), END, run=Run("Done.", refused=1)),
    form("call-client", call(0, "a", "look", "{}"), END, offers_client_tools=True,
         run=Run(stop_reason="requires_approval", waiting=("look",))),
    form("calls-client-same-id", call(0, "c", "look", "{}"), call(1, "c", "look", "{}"), END,
         offers_client_tools=True,
         run=Run(stop_reason="requires_approval", waiting=("look", "look"))),
    form("call-unknown-and-client", call(0, "a", "serch", "{}"), call(1, "b", "look", "{}"), END,
         offers_client_tools=True,
         run=Run(stop_reason="requires_approval", waiting=("look",), refused=1)),
)  # fmt: skip
