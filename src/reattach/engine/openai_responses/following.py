"""The requests for an answer: a new one, a kept one as a stream, and a kept one as a whole."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import structlog
from openai import AsyncOpenAI, AsyncStream, BadRequestError, NotFoundError, OpenAIError
from openai.resources.responses import AsyncResponses
from openai.types.responses import Response, ResponseStreamEvent

from reattach.domain.backoff import Backoff
from reattach.domain.clock import Clock
from reattach.domain.errors import EngineError, ModelTimeoutError
from reattach.engine.base import AnswerKept, Delta, Partial, Turn, closing_deltas
from reattach.engine.openai_responses.answer import UNFINISHED, Answer
from reattach.engine.openai_responses.failures import Failures
from reattach.engine.openai_responses.remainder import Remainder
from reattach.engine.openai_responses.request import Json

logger = structlog.get_logger(__name__)

_Stream = AsyncStream[ResponseStreamEvent]
_Opened = tuple[_Stream, ResponseStreamEvent | None]
"""A stream and its first event; None if it has none."""

_CLIENT_ERRORS: Final = (OpenAIError, json.JSONDecodeError, UnicodeDecodeError)
"""The last two are of events that cannot be read."""

_CANCEL_SECONDS: Final = 10.0
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 10.0
_LONGEST_ANSWER_SECONDS: Final = 3600.0
"""How long an answer may take that is asked for; every run has to end."""

_RETRIES: Final = 2
"""Asking for an answer and stopping it cost nothing, so the client may repeat them by itself."""


class AnswerFailedForNowError(Exception):
    """The kept answer ended with an error that may pass, and it has no output."""


async def stop_answer(client: AsyncOpenAI, model: str, kept_id: str) -> None:
    """Stop an answer that the provider keeps, or log why that failed."""
    try:
        async with asyncio.timeout(_CANCEL_SECONDS):
            await _repeatable(client).cancel(kept_id)
    except (*_CLIENT_ERRORS, TimeoutError) as error:
        logger.warning(
            "answer not stopped at its provider",
            model=model,
            upstream_id=kept_id,
            reason=type(error).__name__,
        )


def _repeatable(client: AsyncOpenAI) -> AsyncResponses:
    """The requests that the client repeats when they fail."""
    return client.with_options(max_retries=_RETRIES).responses


@dataclass(frozen=True, slots=True)
class Following:
    """The requests to the provider for one turn."""

    client: AsyncOpenAI
    turn: Turn
    failures: Failures
    clock: Clock

    async def create(
        self, request: Json, *, in_background: Callable[[Coroutine[Any, Any, None]], object]
    ) -> AsyncIterator[Delta]:
        """Yield the deltas of a new answer, AnswerKept first.

        If it is cancelled before it has the answer's id, nobody can follow the answer, so it is
        stopped ``in_background``. Later, the answer is left to the provider.

        Raises:
            EngineError: The provider refused or failed, or the stream broke.
        """
        opening = asyncio.create_task(self._open(request))
        try:
            await asyncio.wait({opening})
        except asyncio.CancelledError:
            in_background(self._abandon(opening))
            raise
        try:
            stream, first = opening.result()
        except _CLIENT_ERRORS as error:
            raise self.failures.from_client(error) from error
        async with closing_deltas(self._read(stream, Answer(self.failures), first)) as deltas:
            async for delta in deltas:
                yield delta

    async def follow(self, kept_id: str) -> AsyncIterator[Delta]:
        """Yield the deltas of the kept answer that ``turn.partial`` does not have.

        Raises:
            EngineError: The provider refused or failed, the stream broke, or the answer differs
                from the partial output.
            AnswerFailedForNowError: Nothing was yielded, now or before.
        """
        remainder = Remainder(self.turn.partial or Partial(()), self.failures.differs)
        answer = Answer(self.failures, remainder.shown_call_ids)
        try:
            async with closing_deltas(self._repeat(kept_id, answer)) as deltas:
                async for delta in deltas:
                    for rest in remainder.take(delta):
                        yield rest
        except EngineError as error:
            if remainder.is_empty and answer.has_failed_for_now:
                raise AnswerFailedForNowError from error
            raise

    async def _open(self, request: Json) -> _Opened:
        # As its body, because the client would look for values to convert in every message, which
        # holds the event loop for 0.2 ms each.
        stream = await self.client.responses.create(stream=True, extra_body=request)
        try:
            return stream, await anext(stream, None)
        except BaseException:
            await stream.close()
            raise

    async def _abandon(self, opening: asyncio.Task[_Opened]) -> None:
        """Stop an answer as soon as its id is known."""
        try:
            async with asyncio.timeout(_CANCEL_SECONDS):
                stream, first = await opening
        except (*_CLIENT_ERRORS, TimeoutError):
            return  # There is no answer to stop.
        await stream.close()
        if first is not None:
            for delta in Answer(self.failures).take(first):
                if isinstance(delta, AnswerKept):
                    await stop_answer(self.client, self.turn.model, delta.upstream_id)

    async def _repeat(self, kept_id: str, answer: Answer) -> AsyncIterator[Delta]:
        """Yield the deltas of a kept answer from its start."""
        try:
            stream = await self.client.responses.retrieve(kept_id, stream=True)
        except BadRequestError:
            # The provider streams an answer for some minutes only, and keeps it for much longer.
            response = await self._wait_for_end(kept_id)
            for delta in answer.take_whole(response):
                yield delta
            for delta in answer.end():
                yield delta
            return
        except NotFoundError as error:
            raise self.failures.gone() from error
        except OpenAIError as error:
            raise self.failures.from_client(error) from error
        async with closing_deltas(self._read(stream, answer)) as deltas:
            async for delta in deltas:
                yield delta

    async def _read(
        self, stream: _Stream, answer: Answer, first: ResponseStreamEvent | None = None
    ) -> AsyncIterator[Delta]:
        """Yield the deltas of a stream, and close it on every exit."""
        async with stream:
            event = first
            while not answer.is_over:
                try:
                    event = event or await anext(stream, None)
                except _CLIENT_ERRORS as error:
                    raise self.failures.from_client(error) from error
                if event is None:
                    content_type = stream.response.headers.get("content-type")
                    raise self.failures.broken_off(content_type)
                for delta in answer.take(event):
                    yield delta
                event = None
        for delta in answer.end():
            yield delta

    async def _wait_for_end(self, kept_id: str) -> Response:
        """Ask for the answer until it has ended, with growing pauses."""
        pauses = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, clock=self.clock)
        give_up_at = self.clock.monotonic_seconds() + _LONGEST_ANSWER_SECONDS
        while True:
            try:
                response = await _repeatable(self.client).retrieve(kept_id)
            except NotFoundError as error:
                raise self.failures.gone() from error
            except _CLIENT_ERRORS as error:
                raise self.failures.from_client(error) from error
            if response.status not in UNFINISHED:
                return response
            if self.clock.monotonic_seconds() >= give_up_at:
                raise ModelTimeoutError(
                    f"The answer of {self.turn.model} did not end within "
                    f"{_LONGEST_ANSWER_SECONDS / 60:.0f} minutes."
                )
            await pauses.wait()
