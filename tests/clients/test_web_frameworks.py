"""The recipes for Flask and Django: their streams are resumed, and survive cuts of their own."""

from __future__ import annotations

import json
import runpy
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import django.conf
import httpx
import pytest
from werkzeug.serving import make_server

from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.support.application_server import EXAMPLES, program_served
from tests.support.threads import WAIT_SECONDS

Event = dict[str, Any]


@pytest.fixture(autouse=True)
def unconfigured() -> None:
    """Each program of Django configures it, as it would in a process of its own."""
    django.conf.settings._wrapped = django.conf.empty


@contextmanager
def wsgi_served(name: str, server: str, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the ``app`` of a program, whose Reattach server has this URL."""
    patch.setenv("SERVER", server)
    program = runpy.run_path(str(EXAMPLES / name))
    served = make_server("127.0.0.1", 0, program["app"], threaded=True)
    thread = threading.Thread(target=served.serve_forever, args=(0.05,), name=name)
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.port}"
    finally:
        program["client"].close()
        program["sdk"].close()
        served.shutdown()
        served.server_close()
        thread.join(WAIT_SECONDS)


@contextmanager
def signed_in(url: str, name: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=WAIT_SECONDS) as client:
        assert client.post("/sign-in", data={"name": name}).status_code == 204
        yield client


def read(answer: httpx.Response, least: int | None = None) -> tuple[list[Event], str]:
    """Read at least this many events, or all, and return them with the last line."""
    assert answer.status_code == 200, answer.read()
    assert answer.headers["content-type"].startswith("text/event-stream")
    events, line = [], ""
    for line in filter(None, answer.iter_lines()):
        name, _, value = line.partition(": ")
        if name == "data" and value != "[DONE]":
            events.append(json.loads(value))
        if least is not None and len(events) >= least:
            break
    return events, line


def after(events: list[Event]) -> dict[str, str]:
    return {"last-event-id": str(events[-1]["seq_id"])}


def assert_whole(events: list[Event]) -> None:
    """Assert that these are all events of a run that was cancelled."""
    assert [event["seq_id"] for event in events] == list(range(1, len(events) + 1))
    reasons = [e["stop_reason"] for e in events if e["message_type"] == "stop_reason"]
    assert reasons == ["cancelled"]


@pytest.mark.promise("P4", "P8")
@pytest.mark.parametrize("name", ["flask_app.py", "django_wsgi.py"])
def test_an_answer_of_a_synchronous_framework_is_resumed_over_cuts_on_both_sides(
    name: str, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    otid, user = f"otid-{uuid.uuid4()}", f"user {uuid.uuid4()}"
    question = {"text": "[chunks=10000][rate=100]", "otid": otid}
    with (
        Relay(server.address) as relay,
        wsgi_served(name, relay.url, monkeypatch) as url,
        signed_in(url, user) as page,
        signed_in(url, "somebody else") as other,
    ):
        assert httpx.post(f"{url}/ask", data=question).status_code == 401
        with page.stream("POST", "/ask", data=question) as answer:
            events, _ = read(answer, 10)
        with page.stream("GET", "/answer", params={"otid": otid}, headers=after(events)) as answer:
            relay.cut()
            events += read(answer, 20)[0]
        assert page.post("/ask", data=question | {"otid": "other"}).status_code == 409
        assert other.get("/answer", params={"otid": otid}).status_code == 404
        with page.stream("GET", "/answer", params={"otid": otid}, headers=after(events)) as answer:
            assert page.post("/stop").status_code == 200
            rest, end = read(answer)
        assert end == "data: [DONE]"
        assert_whole(events + rest)


@pytest.mark.promise("P4", "P8", "P11")
def test_an_answer_of_asynchronous_django_is_resumed_after_the_last_event(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    question = {"text": " ".join(map(str, range(10_000))), "otid": "question"}
    data_dir = str(tmp_path_factory.mktemp("data"))
    with (
        program_served(EXAMPLES / "django_asgi.py", EXAMPLE_DATA_DIR=data_dir) as url,
        signed_in(url, "ada") as page,
        signed_in(url, "grace") as other,
    ):
        assert httpx.post(f"{url}/ask", data=question).status_code == 401
        run = page.post("/ask", data=question).json()
        assert page.post("/ask", data=question).json() == run
        more = question | {"otid": "other", "conversation_id": run["conversation_id"]}
        assert page.post("/ask", data=more).status_code == 409
        path = f"/runs/{run['run_id']}"
        with page.stream("GET", path) as answer:
            events, _ = read(answer, 10)
        with page.stream("GET", path, headers=after(events)) as answer:
            events += read(answer, 10)[0]
            assert other.get(path).status_code == 404
            ahead = page.get(path, headers={"last-event-id": "1000000"}).text
            assert ahead.startswith("event: error\ndata: {")
            assert page.post(f"{path}/cancel").json() == {"status": "cancelled"}
        with page.stream("GET", path, headers=after(events)) as answer:
            rest, end = read(answer)
        assert end == "data: [DONE]"
        assert_whole(events + rest)
