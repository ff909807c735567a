"""An empty answer of a raw ASGI application under uvicorn: the fixed cost of a request."""

from starlette.types import Receive, Scope, Send

from bench.yardsticks.asgi import serve


async def application(_scope: Scope, _receive: Receive, send: Send) -> None:
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    serve(application)
