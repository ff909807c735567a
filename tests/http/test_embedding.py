"""Reattach inside an application of somebody's own."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from reattach.domain.errors import ConversationBusyError, OtidConflictError, StartupError
from reattach.domain.events import RunStatus
from reattach.domain.ids import DEFAULT_TENANT
from reattach.embed import InvalidArgumentError, Reattach, ReattachError, Turn
from reattach.testing.recording import whole_frames

BOUND_SECONDS = 20


async def shout(turn: Turn) -> AsyncIterator[str]:
    for word in turn.input[-1].text.split():
        yield f"{word.upper()} "


async def recall(turn: Turn) -> AsyncIterator[str]:
    yield " | ".join(message.text.strip() for message in turn.history) or "nothing"


class Held:
    """A generator that waits to be released, and shows that it was closed."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.closed = asyncio.Event()

    async def answer(self, _turn: Turn) -> AsyncIterator[str]:
        try:
            yield "begun "
            await self.go_on.wait()
            yield "done"
        finally:
            self.closed.set()


async def read_to_end(streams: Reattach, run_id: str, starting_after: int = 0) -> bytes:
    """The body of the run's stream, from an application that has nothing but that route."""
    app = FastAPI()

    @app.get("/{run_id}", response_model=None)
    async def resume(run_id: str, starting_after: int) -> object:
        return streams.stream(await streams.run(run_id), starting_after=starting_after)

    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        async with asyncio.timeout(BOUND_SECONDS):
            answer = await http.get(f"/{run_id}", params={"starting_after": starting_after})
    return answer.content


def text_of(body: bytes) -> str:
    frames = [frame.removeprefix(b"data: ") for frame in whole_frames(body)]
    events = [json.loads(frame) for frame in frames if frame.startswith(b"{")]
    return "".join(event.get("content", "") for event in events)


@pytest.mark.promise("P4")
async def test_a_generator_becomes_a_stream_that_can_be_resumed(tmp_path: Path) -> None:
    async with Reattach(shout, data_dir=tmp_path) as streams:
        run = await streams.ask("hello wide world")
        whole = await read_to_end(streams, run.id)
        rest = await read_to_end(streams, run.id, starting_after=1)

    assert text_of(whole) == "HELLO WIDE WORLD "
    assert rest == b"".join(whole_frames(whole)[1:])
    assert whole.endswith(b"data: [DONE]\n\n")


@pytest.mark.promise("P9")
async def test_a_question_asked_again_with_its_otid_is_the_same_run(tmp_path: Path) -> None:
    async with Reattach(shout, data_dir=tmp_path) as streams:
        runs = await asyncio.gather(*(streams.ask("hello", otid="k") for _ in range(10)))
        with pytest.raises(OtidConflictError):
            await streams.ask("something else", otid="k")
        found = await streams.run_of("k")

    assert {run.id for run in runs} == {found.id}


async def test_a_conversation_continues_with_its_history(tmp_path: Path) -> None:
    async with Reattach({"shout": shout, "recall": recall}, data_dir=tmp_path) as streams:
        first = await streams.ask("hello", model="function/shout")
        await read_to_end(streams, first.id)
        conversation_id = first.thread.conversation_id
        second = await streams.ask(
            "what was said?", conversation_id=conversation_id, model="function/recall"
        )
        continued = text_of(await read_to_end(streams, second.id))
        apart = await streams.ask("what was said?", model="function/recall")
        fresh = text_of(await read_to_end(streams, apart.id))

    assert continued == "hello | HELLO"
    assert fresh == "nothing"


@pytest.mark.promise("P10")
async def test_a_conversation_answers_one_question_at_a_time(tmp_path: Path) -> None:
    held = Held()
    async with Reattach(held.answer, data_dir=tmp_path) as streams:
        run = await streams.ask("first")
        with pytest.raises(ConversationBusyError):
            await streams.ask("second", conversation_id=run.thread.conversation_id)
        held.go_on.set()
        assert text_of(await read_to_end(streams, run.id)) == "begun done"


@pytest.mark.promise("P6")
async def test_cancelling_closes_the_generator_and_keeps_its_output(tmp_path: Path) -> None:
    held = Held()
    async with Reattach(held.answer, data_dir=tmp_path) as streams, asyncio.timeout(BOUND_SECONDS):
        run = await streams.ask("first")
        state = await streams.cancel(run)
        ended = await streams.run(run.id)

    assert state == "cancelled"
    assert ended.status is RunStatus.CANCELLED


@pytest.mark.promise("P15")
async def test_leaving_ends_an_open_run_that_cannot_be_continued(tmp_path: Path) -> None:
    held = Held()
    async with Reattach(held.answer, data_dir=tmp_path) as streams:
        run = await streams.ask("first")
        events = streams.events(run)
        while (await anext(events))["message_type"] != "assistant_message":
            pass  # Another process could begin an answer without text anew.
    async with Reattach(shout, data_dir=tmp_path) as streams:
        ended = await streams.run(run.id)

    assert ended.status is RunStatus.FAILED


async def test_the_whole_api_can_be_mounted_beside_routes_of_ones_own(tmp_path: Path) -> None:
    streams = Reattach(shout, data_dir=tmp_path)
    app = FastAPI(lifespan=streams.lifespan)
    app.add_exception_handler(ReattachError, streams.on_error)
    app.mount("/letta", streams.app)

    @app.get("/{run_id}")
    async def show(run_id: str) -> str:
        return (await streams.run(run_id)).status

    transport = httpx2.ASGITransport(app=app)
    async with (
        streams.lifespan(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http,
    ):
        models = await http.get("/letta/v1/models/")
        wrong = await http.get("/not-a-run")

    assert [model["handle"] for model in models.json()] == ["function/shout"]
    assert wrong.status_code == 400
    assert wrong.json()["code"] == "invalid_argument"


@pytest.mark.promise("S11")
@pytest.mark.parametrize(
    ("client", "url", "headers"),
    [
        ("192.0.2.7", "http://localhost", {}),
        ("192.0.2.7", "http://192.0.2.1", {"Host": "localhost"}),
        ("127.0.0.1", "http://192.0.2.1", {"Host": "localhost"}),
        ("127.0.0.1", "http://localhost", {"X-Forwarded-For": "192.0.2.7"}),
    ],
)
async def test_a_mounted_application_without_a_key_is_closed_unless_open_is_true(
    tmp_path: Path, client: str, url: str, headers: dict[str, str]
) -> None:
    """D1: a mounted API is open to this machine only."""
    for is_open, path in (False, tmp_path / "closed"), (True, tmp_path / "open"):
        streams = Reattach(shout, data_dir=path, open=is_open)
        app = FastAPI(lifespan=streams.lifespan)
        app.mount("/letta", streams.app)
        far = httpx2.ASGITransport(app=app, client=(client, 50_000))
        near = httpx2.ASGITransport(app=app)
        async with (
            streams.lifespan(app),
            httpx2.AsyncClient(transport=far, base_url=url, headers=headers) as stranger,
            httpx2.AsyncClient(transport=near, base_url="http://127.0.0.1:8000") as neighbour,
        ):
            answer = await stranger.get("/letta/v1/models/")
            assert answer.status_code == (200 if is_open else 401)
            assert (await neighbour.get("/letta/v1/models/")).status_code == 200
        if not is_open:
            assert answer.json()["code"] == "key_required"
            assert "reattach keys create NAME" in answer.json()["detail"]


async def test_a_mounted_application_that_is_open_closes_with_its_first_key(tmp_path: Path) -> None:
    """D1: open=True holds as long as there is no key."""
    streams = Reattach(shout, data_dir=tmp_path, open=True)
    async with streams:
        assert streams._context is not None
        await streams._context.records.keys.create(DEFAULT_TENANT, "first")
        transport = httpx2.ASGITransport(app=streams.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            assert (await http.get("/v1/models/")).status_code == 401


async def test_an_instance_that_is_not_open_raises_an_error_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="lifespan"):
        await Reattach(shout, data_dir=tmp_path).ask("hello")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": 5}, "text must be a str; got int"),
        ({"text": "a\0b"}, "text contains NUL"),
        ({"text": "hello", "otid": ""}, "otid has 0 characters. Use 1 to 256"),
        ({"text": "hello", "otid": "z" * 300}, "otid has 300 characters"),
        ({"text": "hello", "otid": "a\0"}, "otid contains NUL"),
        ({"text": "hello", "tenant": ""}, "tenant has 0 characters. Use 1 to"),
        ({"text": "hello", "tenant": "\ud800"}, "tenant contains .* half of a surrogate pair"),
    ],
)
async def test_a_question_that_http_would_refuse_is_refused(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    async with Reattach(shout, data_dir=tmp_path) as streams:
        with pytest.raises(InvalidArgumentError, match=message):
            await streams.ask(**arguments)


async def test_a_value_that_is_no_run_is_refused_with_the_call_that_finds_one(
    tmp_path: Path,
) -> None:
    no_run: Any = "run-1"
    async with Reattach(shout, data_dir=tmp_path) as streams:
        calls: list[Any] = [streams.stream, streams.cancel, lambda run: anext(streams.events(run))]
        for call in calls:
            with pytest.raises(
                TypeError, match=r"run must be a Run; got str.*streams\.run\(run_id"
            ):
                await call(no_run)


def test_settings_of_another_type_and_an_answer_without_functions_are_refused() -> None:
    no_settings: Any = {}
    with pytest.raises(TypeError, match="settings must be Settings; got dict"):
        Reattach(shout, settings=no_settings)
    with pytest.raises(ValueError, match="answer is an empty mapping"):
        Reattach({})


async def test_a_directory_that_this_process_has_opened_is_refused_as_such(tmp_path: Path) -> None:
    async with Reattach(shout, data_dir=tmp_path) as streams:
        for again in (streams, Reattach(shout, data_dir=tmp_path)):
            with pytest.raises(StartupError, match=r"This process has already opened.*data_dir"):
                await again.__aenter__()
        assert (await streams.ask("hello")).id
    async with streams:
        assert (await streams.ask("hello")).id


async def test_an_application_that_is_open_to_all_shows_nobody_the_figures_of_other_tenants(
    tmp_path: Path,
) -> None:
    async with Reattach(shout, data_dir=tmp_path, open=True) as streams:
        await streams.ask("one", tenant="somebody else")
        transport = httpx2.ASGITransport(app=streams.app, client=("192.0.2.1", 4000))
        async with httpx2.AsyncClient(transport=transport, base_url="http://app.example") as http:
            refused = await http.get("/metrics")
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
            assert (await http.get("/v1/runs/")).json() == []
            assert (await http.get("/v1/admin/runs")).json()["items"] == []
