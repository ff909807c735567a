"""Django whose asynchronous views stream answers that can be resumed, in one process with Reattach.

    uvicorn examples.django_asgi:app

Ask with a POST, follow with an ``EventSource``; a browser that lost its connection comes back with
the header ``Last-Event-ID`` by itself:

    curl -c jar localhost:8000/sign-in -d name=ada
    curl -b jar localhost:8000/ask -d text='tell me of an island' -d otid=1
    curl -b jar -N localhost:8000/runs/run-…

Each user is a tenant, and sees nothing of the others.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management.utils import get_random_secret_key
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST
from starlette.applications import Starlette
from starlette.routing import Mount

from reattach.embed import Reattach, ReattachError, Turn, UnavailableError

KEEPALIVE_SECONDS = 15


async def answer(turn: Turn) -> AsyncIterator[str]:
    """Answer a question. Your agent goes here: any async generator of text."""
    for word in turn.input[-1].text.split():
        yield f"{word.upper()} "
        await asyncio.sleep(0.02)


streams = Reattach(answer, data_dir=os.environ.get("EXAMPLE_DATA_DIR", "example-data"))

View = Callable[..., Awaitable[HttpResponse]]


def signed_in(view: View) -> View:
    """Pass the user's name to the view, and turn errors of Reattach into responses."""

    @wraps(view)
    async def checked(request: HttpRequest, **arguments: str) -> HttpResponse:
        user = await request.session.aget("user")
        if user is None:
            return JsonResponse({"detail": "Sign in first."}, status=401)
        try:
            return await view(request, user, **arguments)
        except ReattachError as error:
            refused = await streams.on_error(request, error)
            return HttpResponse(
                refused.body, status=refused.status_code, content_type="application/json"
            )

    return checked


@require_POST
async def sign_in(request: HttpRequest) -> HttpResponse:
    """Your application knows its users already. Here anybody may take a name."""
    await request.session.acycle_key()
    await request.session.aset("user", request.POST["name"])
    return HttpResponse(status=204)


@require_POST
@signed_in
async def ask(request: HttpRequest, user: str) -> HttpResponse:
    """Start the run that answers a question; the same OTID gives the same run."""
    run = await streams.ask(
        request.POST["text"],
        otid=request.POST.get("otid"),
        conversation_id=request.POST.get("conversation_id"),
        tenant=user,
    )
    return JsonResponse({"run_id": run.id, "conversation_id": run.conversation_id})


@require_GET
@signed_in
async def follow(request: HttpRequest, user: str, run_id: str) -> HttpResponse:
    """Stream the events after ``Last-Event-ID``."""
    run = await streams.run(run_id, tenant=user)
    last_id = request.headers.get("Last-Event-ID", "0")
    after = int(last_id) if last_id.isdecimal() else 0
    return StreamingHttpResponse(
        frames(streams.events(run, after, tenant=user)),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@require_POST
@signed_in
async def cancel(_request: HttpRequest, user: str, run_id: str) -> HttpResponse:
    status = await streams.cancel(await streams.run(run_id, tenant=user), tenant=user)
    return JsonResponse({"status": status})


async def frames(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Format events for an ``EventSource``, with a comment after each 15 seconds of silence.

    If the events cannot be followed at present, the stream breaks off, and the browser comes back.
    """
    waiting: asyncio.Task[dict[str, Any] | None] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(events, None))
            await asyncio.wait({waiting}, timeout=KEEPALIVE_SECONDS)
            if not waiting.done():
                yield ": keepalive\n\n"
                continue
            event, waiting = waiting.result(), None
            if event is None:
                break
            yield f"id: {event['seq_id']}\ndata: {json.dumps(event)}\n\n"
    except UnavailableError:
        return
    except ReattachError as error:
        yield f"event: error\ndata: {json.dumps({'detail': error.detail})}\n\n"
    finally:
        if waiting is not None:  # The browser has left. The run goes on.
            waiting.cancel()
    yield "event: done\ndata: [DONE]\n\n"


urlpatterns = [
    path("sign-in", sign_in),
    path("ask", ask),
    path("runs/<run_id>", follow),
    path("runs/<run_id>/cancel", cancel),
]

settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    ROOT_URLCONF=tuple(urlpatterns),
    SECRET_KEY=os.environ.get("SECRET_KEY") or get_random_secret_key(),
    SESSION_COOKIE_SAMESITE="Strict",  # No other site can use the session.
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
)

# Django does not handle the lifespan of ASGI, in which Reattach opens and closes its files.
app = Starlette(lifespan=streams.lifespan, routes=[Mount("/", get_asgi_application())])
