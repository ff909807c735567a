"""An application with users of its own whose answers come over a WebSocket, and can be resumed.

The page sends one message over each connection: a question, or the run and the last event that it
has. It gets the events after that, and may send ``{"stop": true}`` at any time. The end of the
answer closes the connection with 1000. Each user is a tenant, and sees nothing of the others.

    uvicorn examples.websocket.app:app

Then open http://localhost:8000.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

from fastapi import FastAPI, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field, ValidationError, model_validator

from reattach.embed import (
    ConflictError,
    ExpiredError,
    InvalidArgumentError,
    NotFoundError,
    Reattach,
    ReattachError,
    Run,
    Turn,
    UnavailableError,
)

FIRST_MESSAGE_SECONDS: Final = 10
MAX_REASON_BYTES: Final = 123  # of a close frame

UNAUTHORIZED: Final = 4401
TIMEOUT: Final = 4408
CODES: Final = {
    InvalidArgumentError: 4400,
    NotFoundError: 4404,
    ConflictError: 4409,
    ExpiredError: 4410,
    UnavailableError: 1013,  # Try again later, after the last event.
}
"""The codes with which a connection is closed. After one of 4000 or more, the page gives up."""


async def answer(turn: Turn) -> AsyncIterator[str]:
    """Answer a question. Your agent goes here: any async generator of text."""
    for word in turn.input[-1].text.split():
        yield f"{word.upper()} "
        await asyncio.sleep(0.02)


streams = Reattach(answer, data_dir=os.environ.get("EXAMPLE_DATA_DIR", "example-data"))
app = FastAPI(lifespan=streams.lifespan)


# Your application knows its users already. Here anybody may take a name, until the restart.

sessions: dict[str, str] = {}


class Person(BaseModel):
    name: str = Field(min_length=1, max_length=50)


@app.post("/sign-in", status_code=204)
async def sign_in(person: Person, response: Response) -> None:
    session = secrets.token_urlsafe(32)
    sessions[session] = person.name
    response.set_cookie("session", session, httponly=True, samesite="strict")


def user_of(socket: WebSocket) -> str | None:
    """Return who has signed in. Browsers let any site open a WebSocket, so its origin counts."""
    origin = socket.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != socket.headers.get("host"):
        return None
    return sessions.get(socket.cookies.get("session", ""))


class Wanted(BaseModel):
    """The first message of a connection."""

    text: str | None = None
    otid: str | None = None
    """Names the question, so that it is asked once, however often it is sent."""
    conversation_id: str | None = None
    run_id: str | None = None
    after: int = 0
    """The seq of the last event that the page has."""

    @model_validator(mode="after")
    def names_an_answer(self) -> Self:
        if (self.text is None) is (self.run_id is None):
            raise ValueError("Send text or run_id.")
        return self

    async def run(self, user: str) -> Run:
        if self.run_id is not None:
            return await streams.run(self.run_id, tenant=user)
        assert self.text is not None
        return await streams.ask(
            self.text, otid=self.otid, conversation_id=self.conversation_id, tenant=user
        )


class Order(BaseModel):
    """A later message."""

    stop: bool


@app.websocket("/answers")
async def answers(socket: WebSocket) -> None:
    await socket.accept()  # A page sees the code of a refusal only on a connection that was open.
    user = user_of(socket)
    if user is None:
        await socket.close(UNAUTHORIZED, "Sign in first.")
        return
    try:
        async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
            first = await socket.receive_text()
        wanted = Wanted.model_validate_json(first)
        await serve(socket, await wanted.run(user), wanted.after, user)
    except WebSocketDisconnect:
        return  # The run goes on.
    except TimeoutError:
        await socket.close(TIMEOUT, "No message came.")
    except ValidationError as error:
        await close(socket, CODES[InvalidArgumentError], error.errors()[0]["msg"])
    except KeyError:
        await close(socket, CODES[InvalidArgumentError], "Send text, not bytes.")
    except ReattachError as error:
        codes = [code for kind, code in CODES.items() if isinstance(error, kind)]
        await close(socket, codes[0] if codes else 1011, str(error))
    else:
        await socket.close()


async def serve(socket: WebSocket, run: Run, after: int, user: str) -> None:
    """Send the events, and return after the last one. Raises WebSocketDisconnect."""

    async def send() -> None:
        async for event in streams.events(run, after, tenant=user):
            await socket.send_json(event)

    async def listen() -> None:
        while True:
            if Order.model_validate_json(await socket.receive_text()).stop:
                await streams.cancel(run, tenant=user)

    # A page that leaves is noticed at once, also while the answer is silent.
    tasks = {asyncio.create_task(send()), asyncio.create_task(listen())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def close(socket: WebSocket, code: int, reason: str) -> None:
    await socket.close(code, reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore"))


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(Path(__file__).with_name("index.html").read_text())
