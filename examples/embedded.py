"""An application whose answers can be resumed after a lost connection.

Run it with `uvicorn examples.embedded:app`, then
`curl -N -X POST localhost:8000/ask -H 'content-type: application/json' -d '{"text": "hello"}'`.
"""

import asyncio
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI
from pydantic import BaseModel

from reattach.embed import Reattach, ReattachError, RunStream, Turn


async def answer(turn: Turn) -> AsyncIterator[str]:
    """Answer a question. Your agent goes here: any async generator of text."""
    for word in turn.input[-1].text.split():
        yield f"{word.upper()} "
        await asyncio.sleep(0)


streams = Reattach(answer, data_dir=os.environ.get("EXAMPLE_DATA_DIR", "example-data"))
app = FastAPI(lifespan=streams.lifespan)
app.add_exception_handler(ReattachError, streams.on_error)
app.mount("/letta", streams.app)


class Question(BaseModel):
    text: str
    otid: str | None = None
    conversation_id: str | None = None


@app.post("/ask", response_model=None)
async def ask(question: Question) -> RunStream:
    run = await streams.ask(
        question.text, otid=question.otid, conversation_id=question.conversation_id
    )
    return streams.stream(run)


@app.get("/runs/{run_id}", response_model=None)
async def resume(run_id: str, starting_after: int = 0) -> RunStream:
    return streams.stream(await streams.run(run_id), starting_after=starting_after)
