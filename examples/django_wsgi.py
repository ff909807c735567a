"""Django with ordinary views that stream answers of a Reattach server beside it, and resume them.

    reattach serve
    python examples/django_wsgi.py runserver --noreload

The routes are those of examples/flask_app.py. Each stream occupies a thread of the WSGI server
while it lasts. If there may be many, take examples/django_asgi.py, or let the page follow by
itself, with a stream token of examples/sign_in.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import chain, islice

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.management.utils import get_random_secret_key
from django.core.wsgi import get_wsgi_application
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    JsonResponse,
    StreamingHttpResponse,
)
from django.urls import path
from django.views.decorators.http import require_GET, require_POST
from letta_client import Letta

from reattach.client import ReattachError, SyncClient, SyncStream

SERVER = os.environ.get("SERVER", "http://localhost:8283")
API_KEY = os.environ.get("API_KEY", "any")  # A server without keys takes any.

sdk = Letta(base_url=SERVER, api_key=API_KEY)
client = SyncClient(SERVER, api_key=API_KEY)  # All threads use it; each request has its own stream.


def with_conversation(
    view: Callable[[HttpRequest, str], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Pass the conversation of the person who has signed in, and answer with refusals as JSON."""

    @wraps(view)
    def checked(request: HttpRequest) -> HttpResponseBase:
        user = request.session.get("user")
        if user is None:
            return HttpResponse("Sign in first.", status=401)
        try:
            return view(request, conversation_of(user))
        except ReattachError as error:
            refusal = {"detail": error.detail, "code": error.code}
            return JsonResponse(refusal, status=error.status or 502)

    return checked


def conversation_of(user: str) -> str:
    """Return the conversation of a person, found by the name of its agent."""
    name = f"guide of {user}"
    agents = sdk.agents.list(name=name, limit=1).items
    agent = agents[0] if agents else sdk.agents.create(name=name)
    known = sdk.conversations.list(agent_id=agent.id, limit=1)
    return known[0].id if known else sdk.conversations.create(agent_id=agent.id).id


def own(otid: str, conversation: str) -> str:
    """Return an OTID that nobody else can name, since all people share the key and its OTIDs."""
    return f"{conversation}:{otid}"


def streamed(stream: SyncStream) -> StreamingHttpResponse:
    """Stream events to an ``EventSource``. A page that leaves ends the stream, but not the run."""
    first = list(islice(stream, 1))  # A refusal comes before the first event, with its own status.

    def frames() -> Iterator[str]:
        with stream:
            for event in chain(first, stream):
                yield f"id: {event['seq_id']}\ndata: {json.dumps(event)}\n\n"
        yield "event: done\ndata: [DONE]\n\n"

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingHttpResponse(frames(), content_type="text/event-stream", headers=headers)


@require_POST
def sign_in(request: HttpRequest) -> HttpResponse:
    """Your application knows its users already. Here anybody may take a name."""
    request.session["user"] = request.POST["name"]
    return HttpResponse(status=204)


@require_POST
@with_conversation
def ask(request: HttpRequest, conversation: str) -> StreamingHttpResponse:
    """Ask a question, and stream its answer. The same OTID gives the same run."""
    otid = own(request.POST["otid"], conversation)
    return streamed(client.send(conversation, request.POST["text"], otid=otid))


@require_GET
@with_conversation
def answer(request: HttpRequest, conversation: str) -> StreamingHttpResponse:
    """Stream the answer to a question after ``Last-Event-ID``."""
    last_id = request.headers.get("Last-Event-ID", "0")
    after = int(last_id) if last_id.isdecimal() else 0
    otid = own(request.GET["otid"], conversation)
    return streamed(client.follow(conversation, otid=otid, starting_after=after))


@require_POST
@with_conversation
def stop(_request: HttpRequest, conversation: str) -> JsonResponse:
    return JsonResponse(client.cancel(conversation))


settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    ROOT_URLCONF=(
        path("sign-in", sign_in),
        path("ask", ask),
        path("answer", answer),
        path("stop", stop),
    ),
    SECRET_KEY=os.environ.get("SECRET_KEY") or get_random_secret_key(),
    SESSION_COOKIE_SAMESITE="Strict",  # No other site can use the session.
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
)
app = get_wsgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
