"""An empty reply of a raw ASGI application under uvicorn: what a request costs before any work."""

from starlette.types import Receive, Scope, Send

from bench.yardsticks.asgi import serve


async def application(_scope: Scope, _receive: Receive, send: Send) -> None:
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    serve(application)
