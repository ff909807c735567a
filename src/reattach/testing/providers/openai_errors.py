"""How servers of chat completions fail: refusals in all shapes, and errors within a stream."""

from typing import Final

from reattach.testing.providers.forms import Form, data, failed, joined
from reattach.testing.providers.openai import ONE, call, says

_DETAIL: Final = "this model does not support tools"
_HTML: Final = b"<html><head><title>404 Not Found</title></head><body>nginx</body></html>"


def _refusal(
    name: str, status: int, body: bytes, error: str, kind: str = "application/json"
) -> Form:
    return Form(name, (body,), failed(error), status, kind)


def _error(message: str, **more: object) -> bytes:
    return data({"error": {"message": message, **more}})[6:-2]


ERRORS: Final = (
    _refusal("error-400", 400, _error(_DETAIL, type="invalid_request_error"), _DETAIL),
    _refusal("error-400-text", 400, _DETAIL.encode(), _DETAIL, "text/plain"),
    _refusal("error-400-string", 400, data({"error": _DETAIL})[6:-2], _DETAIL),
    _refusal("error-400-detail", 400, data({"detail": _DETAIL})[6:-2], _DETAIL),
    _refusal("error-400-message", 400, data({"object": "error", "message": _DETAIL})[6:-2],
             _DETAIL),
    _refusal("error-400-empty", 400, b"", "status 400"),
    _refusal("error-400-list", 400, data({"detail": [{"loc": ["body"], "msg": _DETAIL}]})[6:-2],
             _DETAIL),
    _refusal("error-401", 401, _error("Incorrect API key provided: sk-proj-abcdefgh12345678."),
             "Incorrect API key provided: ***"),
    _refusal("error-403", 403, _error("Not in your region"), "Not in your region"),
    _refusal("error-404-model", 404, _error("model 'x' not found"), "model 'x' not found"),
    _refusal("error-429", 429, _error("Rate limit reached for org-abcdefgh12345678"),
             "Rate limit reached for ***"),
    _refusal("error-500", 500, _error("out of memory"), "out of memory"),
    _refusal("error-502", 502, b"<html><body><h1>502 Bad Gateway</h1></body></html>",
             "502 Bad Gateway", "text/html"),
    _refusal("error-503", 503, _error("Loading model"), "Loading model"),
    _refusal("error-secret", 400, _error(
        "cannot reach https://user:hunter2@internal.example/x?api_key=abcdef with Bearer abcdef123"
        " and token=s3cr3tvalue"), "cannot reach https://***@internal.example/"),
    _refusal("error-long", 400, _error("x" * 100_000), "xxxxxxxx"),
    Form("error-in-stream", joined(says("Hello."), data({"error": {"message": _DETAIL}})),
         failed(_DETAIL, text="Hello.")),
    Form("error-in-stream-string", joined(says("Hello."), data({"error": _DETAIL})),
         failed("", text="Hello.")),
    Form("error-at-once-in-stream", joined(data({"error": {"message": _DETAIL, "code": 500}})),
         failed(_DETAIL)),
    Form("error-after-call", joined(call(0, "c", "add", ONE),
         data({"error": {"message": _DETAIL}})), failed(_DETAIL, refused=1)),
    Form("error-garbage", joined(says("Hello."), b"data: {not json\n\n"),
         failed("", text="Hello.")),
    Form("error-html-for-stream", (_HTML,), failed("text/html"), 200, "text/html"),
    Form("error-json-for-stream", (data({"choices": []})[6:-2],), failed("application/json"), 200,
         "application/json"),
)  # fmt: skip
