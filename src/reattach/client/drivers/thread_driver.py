"""Takes the steps of readings in the calling thread."""

import inspect
import socket
import threading
from collections.abc import Generator, Iterator
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
from reattach.domain.errors import ReattachError

T = TypeVar("T")


class ThreadDriver:
    """Takes the steps of one reading in the thread of its consumer.

    Other threads end a step through its life: a wait at once, a read by shutting the socket down.
    """

    def __init__(self, http: httpx2.Client, core: Core, asking: threading.Lock, life: Life) -> None:
        self._http = http
        self._core = core
        self._asking = asking
        """Held while the client's token function runs."""
        self._life = life
        self._response: httpx2.Response | None = None
        self._pieces: Iterator[bytes] | None = None
        self._woken = threading.Event()
        life.wake = self._woken.set
        life.interrupt = self._interrupt

    def run(self, steps: Steps[T]) -> T:
        """Take all steps, of which none gives an event, and return their result."""
        course = Course(steps)
        try:
            while course.step is not None:
                self._advance(course, course.step)
        finally:
            self._disconnect()
        return course.result

    def events(self, steps: Steps[None]) -> Generator[Event]:
        """Take the steps as the consumer asks for events."""
        course = Course(steps)
        try:
            while (step := course.step) is not None:
                if isinstance(step, Emit):
                    yield step.event
                    course.take(None)
                else:
                    self._advance(course, step)
        finally:
            try:
                self._disconnect()
            finally:
                steps.close()

    def _advance(self, course: Course[Any], step: Step) -> None:
        try:
            result = self._take(step)
        except FAILURES as error:
            course.fail(error)
        else:
            course.take(result)

    def _interrupt(self) -> None:
        self._woken.set()
        response = self._response
        if response is None:
            return
        stream = response.extensions.get("network_stream")
        one = None if stream is None else stream.get_extra_info("socket")
        if isinstance(one, socket.socket):
            # Closing it would not wake the thread that reads; a TLS socket's own shutdown would
            # take the TLS layer from under that thread.
            with suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    def _take(self, step: Step) -> Any:
        if isinstance(step, Disconnect):
            self._disconnect()
            return None
        if isinstance(step, Wait):
            self._woken.clear()
            if not self._life.is_stopped:
                self._woken.wait(step.seconds)
            return None
        if self._life.is_stopped:
            raise StoppedError
        try:
            return self._perform(step)
        except Exception as error:
            if self._life.is_stopped:  # Another thread has shut the socket down.
                raise StoppedError from error
            if isinstance(error, httpx2.RequestError):
                raise failure_of(error, self._core.url) from error
            raise

    def _perform(self, step: Step) -> Any:
        match step:
            case Read():
                assert self._pieces is not None
                return next(self._pieces, b"")
            case Open():
                return self._open(step)
            case ReadAll():
                assert self._response is not None
                return self._response.read()
            case GetToken():
                return self._token(step.instead_of)
            case Look():
                return self._look(step)
            case _:
                raise AssertionError(step)

    def _open(self, step: Open) -> Answer:
        self._disconnect()
        request = stream_request(self._http, self._core.url, step)
        self._response = self._http.send(request, stream=True)
        self._pieces = self._response.iter_bytes()
        return answer_of(self._response)

    def _disconnect(self) -> None:
        response = self._response
        self._response = self._pieces = None
        if response is not None:
            response.close()

    def _look(self, step: Look) -> tuple[int, dict[str, Any]] | None:
        request = look_request(self._http, self._core.url, step.request, step.seconds)
        with suppress(httpx2.HTTPError):
            return look_of(self._http.send(request))
        return None

    def _token(self, instead_of: str | None) -> str | None:
        tokens = self._core.tokens
        if not tokens.must_ask(instead_of):
            return tokens.kept
        with self._asking:
            if tokens.must_ask(instead_of):
                try:
                    tokens.take(self._answer_of_source(instead_of))
                except ReattachError:
                    raise
                except Exception as error:  # noqa: BLE001  the function is the application's own
                    tokens.fail(instead_of, f"{type(error).__name__}: {error}")
        return tokens.kept

    def _answer_of_source(self, instead_of: str | None) -> object:
        source = self._core.tokens.source
        assert source is not None
        answer = source(instead_of is not None or self._core.tokens.kept is not None)
        if inspect.iscoroutine(answer):
            answer.close()
        if inspect.isawaitable(answer):
            raise TypeError("it is asynchronous; SyncClient takes a plain function")
        return answer
