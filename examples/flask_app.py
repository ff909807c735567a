"""Flask routes that stream answers of a Reattach server beside it, and resume them.

    reattach serve
    flask --app examples/flask_app.py run --port 8000

Ask with a POST, come back with an ``EventSource``, which sends ``Last-Event-ID`` by itself:

    curl -c jar localhost:8000/sign-in -d name=ada
    curl -b jar -N localhost:8000/ask -d text='Tell me about an island.' -d otid=question-1
    curl -b jar -N 'localhost:8000/answer?otid=question-1' -H 'Last-Event-ID: 7'

Each stream occupies a thread of the WSGI server while it lasts. If there may be many, let the page
follow by itself, with a stream token of examples/sign_in.
"""

import json
import os
import secrets
from collections.abc import Iterator
from itertools import chain, islice

from flask import Flask, Response, abort, request, session
from letta_client import Letta

from reattach.client import ReattachError, SyncClient, SyncStream

SERVER = os.environ.get("SERVER", "http://localhost:8283")
API_KEY = os.environ.get("API_KEY", "any")  # A server without keys takes any.

app = Flask(__name__)
app.config.update(
    SECRET_KEY=os.environ.get("SECRET_KEY") or secrets.token_bytes(32),
    SESSION_COOKIE_SAMESITE="Strict",  # No other site can use the session.
)
sdk = Letta(base_url=SERVER, api_key=API_KEY)
client = SyncClient(SERVER, api_key=API_KEY)  # All threads use it; each request has its own stream.


@app.errorhandler(ReattachError)
def refuse(error: ReattachError) -> tuple[dict[str, object], int]:
    """Pass on a refusal of the server: 409 if the conversation is busy, 404 for an unknown OTID."""
    return {"detail": error.detail, "code": error.code}, error.status or 502


def conversation() -> str:
    """Return the conversation of the person who has signed in, found by the name of its agent."""
    if "user" not in session:
        abort(401)
    name = f"guide of {session['user']}"
    agents = sdk.agents.list(name=name, limit=1).items
    agent = agents[0] if agents else sdk.agents.create(name=name)
    known = sdk.conversations.list(agent_id=agent.id, limit=1)
    return known[0].id if known else sdk.conversations.create(agent_id=agent.id).id


def own(otid: str, conversation_id: str) -> str:
    """Return an OTID that nobody else can name, since all people share the key and its OTIDs."""
    return f"{conversation_id}:{otid}"


def streamed(stream: SyncStream) -> Response:
    """Stream events to an ``EventSource``. A page that leaves ends the stream, but not the run."""
    first = list(islice(stream, 1))  # A refusal comes before the first event, with its own status.

    def frames() -> Iterator[str]:
        with stream:
            for event in chain(first, stream):
                yield f"id: {event['seq_id']}\ndata: {json.dumps(event)}\n\n"
        yield "event: done\ndata: [DONE]\n\n"

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Response(frames(), mimetype="text/event-stream", headers=headers)


@app.post("/sign-in")
def sign_in() -> tuple[str, int]:
    """Your application knows its users already. Here anybody may take a name."""
    session["user"] = request.form["name"]
    return "", 204


@app.post("/ask")
def ask() -> Response:
    """Ask a question, and stream its answer. The same OTID gives the same run."""
    conversation_id = conversation()
    otid = own(request.form["otid"], conversation_id)
    return streamed(client.send(conversation_id, request.form["text"], otid=otid))


@app.get("/answer")
def answer() -> Response:
    """Stream the answer to a question after ``Last-Event-ID``."""
    after = request.headers.get("Last-Event-ID", 0, type=int)
    conversation_id = conversation()
    otid = own(request.args["otid"], conversation_id)
    return streamed(client.follow(conversation_id, otid=otid, starting_after=after))


@app.post("/stop")
def stop() -> dict[str, str]:
    return client.cancel(conversation())
