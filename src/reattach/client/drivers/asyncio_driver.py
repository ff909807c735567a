"""Takes the steps of readings over asyncio."""

import asyncio
import inspect
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, TypeVar

import httpx2

from reattach.client.drivers.transport import (
    answer_of,
    failure_of,
    look_of,
    look_request,
    stream_request,
)
from reattach.client.errors import StoppedError
from reattach.client.reading import Core
from reattach.client.states import Life
from reattach.client.steps import (
    FAILURES,
    Answer,
    Course,
    Disconnect,
    Emit,
    Event,
    GetToken,
    Look,
    Open,
    Read,
    ReadAll,
    Step,
    Steps,
    Wait,
)
from reattach.daemon_thread import in_daemon_thread
from reattach.domain.errors import ReattachError

T = TypeVar("T")


class AsyncioDriver:
    """Takes the steps of one reading in the task of its consumer."""

    def __init__(
        self, http: httpx2.AsyncClient, core: Core, asking: asyncio.Lock, life: Life
    ) -> None:
        self._http = http
        self._core = core
        self._asking = asking
        """Held while the client's token function runs."""
        self._life = life
        self._response: httpx2.Response | None = None
        self._pieces: AsyncGenerator[bytes] | None = None
        self._step: asyncio.Timeout | None = None
        self._is_waiting = False
        life.wake = self._wake
        life.interrupt = self._interrupt

    async def run(self, steps: Steps[T]) -> T:
        """Take all steps, of which none gives an event, and return their result."""
        course = Course(steps)
        try:
            while course.step is not None:
                await self._advance(course, course.step)
        finally:
            await self._disconnect()
        return course.result

    async def events(self, steps: Steps[None]) -> AsyncGenerator[Event]:
        """Take the steps as the consumer asks for events."""
        course = Course(steps)
        try:
            while (step := course.step) is not None:
                if isinstance(step, Emit):
                    yield step.event
                    course.take(None)
                else:
                    await self._advance(course, step)
        finally:
            try:
                await self._disconnect()
            finally:
                steps.close()

    async def _advance(self, course: Course[Any], step: Step) -> None:
        try:
            result = await self._take(step)
        except FAILURES as error:
            course.fail(error)
        else:
            course.take(result)

    def _wake(self) -> None:
        if self._is_waiting:
            self._interrupt()

    def _interrupt(self) -> None:
        if self._step is not None and not self._step.expired():
            self._step.reschedule(asyncio.get_running_loop().time())

    async def _take(self, step: Step) -> Any:
        if isinstance(step, Disconnect):
            await self._disconnect()
            return None
        seconds = step.seconds if isinstance(step, Wait) else None
        if self._life.is_stopped:
            raise StoppedError
        self._is_waiting = isinstance(step, Wait)
        try:
            async with asyncio.timeout(seconds) as self._step:
                return await self._perform(step)
        except TimeoutError:
            if self._is_waiting:
                return None
            raise StoppedError from None
        except httpx2.RequestError as error:
            raise failure_of(error, self._core.url) from error
        finally:
            self._step = None

    async def _perform(self, step: Step) -> Any:
        match step:
            case Read():
                assert self._pieces is not None
                return await anext(self._pieces, b"")
            case Open():
                return await self._open(step)
            case ReadAll():
                assert self._response is not None
                return await self._response.aread()
            case GetToken():
                return await self._token(step.instead_of)
            case Look():
                return await self._look(step)
            case _:
                return await asyncio.Event().wait()

    async def _open(self, step: Open) -> Answer:
        await self._disconnect()
        request = stream_request(self._http, self._core.url, step)
        self._response = await self._http.send(request, stream=True)
        self._pieces = self._response.aiter_bytes()
        return answer_of(self._response)

    async def _disconnect(self) -> None:
        response, pieces = self._response, self._pieces
        self._response = self._pieces = None
        if pieces is not None:
            await pieces.aclose()
        if response is not None:
            await response.aclose()

    async def _look(self, step: Look) -> tuple[int, dict[str, Any]] | None:
        request = look_request(self._http, self._core.url, step.request, step.seconds)
        with suppress(httpx2.HTTPError, TimeoutError):
            async with asyncio.timeout(step.seconds):
                return look_of(await self._http.send(request))
        return None

    async def _token(self, instead_of: str | None) -> str | None:
        tokens = self._core.tokens
        if not tokens.must_ask(instead_of):
            return tokens.kept
        async with self._asking:
            if tokens.must_ask(instead_of):
                try:
                    tokens.take(await self._answer_of_source(instead_of))
                except ReattachError:
                    raise
                except Exception as error:  # noqa: BLE001  the function is the application's own
                    tokens.fail(instead_of, f"{type(error).__name__}: {error}")
        return tokens.kept

    async def _answer_of_source(self, instead_of: str | None) -> object:
        source = self._core.tokens.source
        assert source is not None
        is_fresh = instead_of is not None or self._core.tokens.kept is not None
        seconds = self._core.token_seconds
        try:
            async with asyncio.timeout(seconds):
                if inspect.iscoroutinefunction(source):
                    return await source(is_fresh)
                answer = await in_daemon_thread(lambda: source(is_fresh), name="reattach-token")
                return await answer if inspect.isawaitable(answer) else answer
        except TimeoutError:
            raise TimeoutError(f"no answer within {seconds:g} s") from None
