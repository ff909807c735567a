"""The synchronous client and its streams, which work in the calling thread."""

import inspect
import threading
import weakref
from collections.abc import Callable, Generator, Mapping, MutableMapping
from typing import Any, Self, TypeVar

import httpx2
from typing_extensions import override

from reattach.client.calls import Calls, Snapshot
from reattach.client.drivers.thread_driver import ThreadDriver
from reattach.client.drivers.transport import HEADERS, LIMITS, checked_url, needs_certificates
from reattach.client.errors import ClosedError
from reattach.client.plans import ManyPlan, Plan, RunPlan
from reattach.client.reading import Core, Reading
from reattach.client.states import Life, Retry
from reattach.client.steps import Event, Steps
from reattach.client.streams import ManyView, RunView, StreamCalls, StreamView
from reattach.client.takeovers import Takeover
from reattach.client.tokens import Token, Tokens
from reattach.domain.clock import SystemClock
from reattach.domain.errors import ReattachError

P = TypeVar("P", bound=Plan)
T = TypeVar("T")


class _EventStream(StreamView[P]):
    """The events of one reading. Iterate over it once.

    The request is made when the iteration begins. To ask for an event says that the one before was
    processed. The connection is closed when the loop has ended, and when the stream is closed or
    collected; ``with`` closes it at once. The run goes on in any case. Ctrl-C ends the loop and
    closes the connection.
    """

    def __init__(self, client: "SyncClient", plan: P, life: Life, events: Generator[Event]) -> None:
        super().__init__(plan, life)
        self._client = client  # It would close its connections when it is collected.
        self._events = events
        self._turn = threading.Lock()

    def close(self) -> None:
        """Disconnect. Any thread may call it; a thread that iterates gets ClosedError. Idempotent.

        A thread that is connecting gets it when it is connected, or the attempt has failed.
        """
        self._life.close()
        if self._turn.acquire(blocking=False):
            try:
                self._events.close()
            finally:
                self._turn.release()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        with self._turn:
            try:
                return next(self._events)
            except StopIteration:
                if self._life.state.name not in {"ended", "failed"}:
                    raise ClosedError from None
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SyncStream(RunView, _EventStream[RunPlan]):
    """The events of a run, each once and in order."""


class SyncManyStream(ManyView, _EventStream[ManyPlan]):
    """The events of many runs, each once, and in order within each run."""


class SyncClient(StreamCalls[SyncStream, SyncManyStream]):
    """Sends messages and follows runs without an event loop.

    It has the arguments and the methods of ``Client``, and plain iterators. It starts no thread:
    each stream works in the thread that iterates over it. Several threads may use one client, each
    with its own streams.

    A token function runs in the thread of the stream that needs it, and sets its own time limit;
    other streams wait for its answer. Raises ReattachError if ``base_url`` is not an http or https
    URL with a host, or if the token function is asynchronous.

    ``close``, or the end of a ``with`` statement, ends all streams.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        token: str | Callable[[bool], Token] | None = None,
        storage: MutableMapping[str, str] | None = None,
        give_up_seconds: float = 600.0,
        keepalive_seconds: float = 15.0,
        first_wait_seconds: float = 0.25,
        longest_wait_seconds: float = 15.0,
        on_retry: Callable[[Retry], object] | None = None,
        on_attached: Callable[[str | None], object] | None = None,
        on_takeover: Callable[[Takeover], object] | None = None,
        http: httpx2.Client | None = None,
    ) -> None:
        if inspect.iscoroutinefunction(token):
            raise ReattachError("SyncClient cannot await a token function.", remedy="Use Client.")
        core = Core(
            url=checked_url(base_url),
            tokens=Tokens(api_key, token, SystemClock()),
            keepalive_seconds=keepalive_seconds,
            give_up_seconds=give_up_seconds,
            first_wait_seconds=first_wait_seconds,
            longest_wait_seconds=longest_wait_seconds,
            on_retry=on_retry,
            on_attached=on_attached,
            on_takeover=on_takeover,
        )
        super().__init__(Calls(core, storage))
        self._asking = threading.Lock()
        self._streams: weakref.WeakSet[_EventStream[Any]] = weakref.WeakSet()
        self._is_closed = False
        self._change = threading.RLock()
        """Held while streams are added or closed. A signal may close the client meanwhile."""
        verify = needs_certificates(core.url)
        if http is None:
            self._http = httpx2.Client(headers=HEADERS, limits=LIMITS, verify=verify)
        else:
            self._http = http
        self._close_http = None if http is not None else weakref.finalize(self, self._http.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect all streams; threads that iterate get ClosedError. Idempotent.

        Any thread may call it.
        """
        with self._change:
            self._is_closed = True
            streams = list(self._streams)
        for stream in streams:
            stream.close()
        if self._close_http is not None:
            self._close_http()

    def snapshot(
        self,
        conversation_id: str = "default",
        *,
        run_id: str | None = None,
        agent_id: str | None = None,
    ) -> Snapshot:
        """Return the messages of a run so far, as ``Client.snapshot`` does."""
        found: Snapshot = self._call(self._calls.snapshot(conversation_id, run_id, agent_id))
        return found

    def cancel(
        self,
        conversation_id: str = "default",
        *,
        run_id: str | None = None,
        agent_id: str | None = None,
    ) -> dict[str, str]:
        """Cancel a run, or the active run of a conversation, as ``Client.cancel`` does."""
        states: dict[str, str] = self._call(self._calls.cancel(conversation_id, run_id, agent_id))
        return states

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        timeout_seconds: float | None = None,
    ) -> Any:
        """Send a request to any other route that answers with JSON, as ``Client.request`` does."""
        return self._call(self._calls.request(method, path, body, timeout_seconds))

    @override
    def _stream(self, plan: RunPlan, life: Life) -> SyncStream:
        stream = SyncStream(self, plan, life, self._events(plan, life))
        self._add(stream)
        return stream

    @override
    def _many_stream(self, plan: ManyPlan, life: Life) -> SyncManyStream:
        stream = SyncManyStream(self, plan, life, self._events(plan, life))
        self._add(stream)
        return stream

    def _add(self, stream: _EventStream[Any]) -> None:
        with self._change:
            if self._is_closed:
                raise ClosedError("client")
            self._streams.add(stream)

    def _events(self, plan: Plan, life: Life) -> Generator[Event]:
        # The steps hold no reference to the stream, so that it is collected when it is left.
        return self._driver(life).events(Reading(self._calls.core, plan, life).steps())

    def _call(self, steps: Steps[T]) -> T:
        return self._driver(Life(None)).run(steps)

    def _driver(self, life: Life) -> ThreadDriver:
        if self._is_closed:
            raise ClosedError("client")
        return ThreadDriver(self._http, self._calls.core, self._asking, life)
