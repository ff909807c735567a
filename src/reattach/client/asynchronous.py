"""The client and its streams over asyncio."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping, MutableMapping
from typing import Any, Self, TypeVar

import httpx2
from typing_extensions import override

from reattach.client.calls import Calls, Snapshot
from reattach.client.drivers.asyncio_driver import AsyncioDriver
from reattach.client.drivers.transport import HEADERS, LIMITS, checked_url, needs_certificates
from reattach.client.errors import ClosedError
from reattach.client.plans import ManyPlan, Plan, RunPlan
from reattach.client.reading import Core, Reading
from reattach.client.states import Life, Retry
from reattach.client.steps import Event, Steps
from reattach.client.streams import ManyView, RunView, StreamCalls, StreamView
from reattach.client.takeovers import Takeover
from reattach.client.tokens import Tokens, TokenSource
from reattach.domain.clock import SystemClock
from reattach.domain.errors import ReattachError

P = TypeVar("P", bound=Plan)
T = TypeVar("T")


class _EventStream(StreamView[P]):
    """The events of one reading. Iterate over it once, from one task at a time.

    The request is made when the iteration begins. To ask for an event says that the one before was
    processed. To leave the loop keeps the connection until the stream is closed or collected: use
    ``async with`` or ``aclose()`` to close it at once. The run goes on in any case.
    """

    def __init__(self, plan: P, life: Life, events: AsyncGenerator[Event]) -> None:
        super().__init__(plan, life)
        self._events = events
        self._turn = asyncio.Lock()

    async def aclose(self) -> None:
        """Disconnect. A task that iterates gets ClosedError. Idempotent."""
        self._life.close()
        async with self._turn:
            await self._events.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        async with self._turn:
            try:
                return await anext(self._events)
            except StopAsyncIteration:
                if self._life.state.name not in {"ended", "failed"}:
                    raise ClosedError from None
                raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Stream(RunView, _EventStream[RunPlan]):
    """The events of a run, each once and in order."""


class ManyStream(ManyView, _EventStream[ManyPlan]):
    """The events of many runs, each once, and in order within each run."""


class Client(StreamCalls[Stream, ManyStream]):
    """Sends messages and follows runs over asyncio. Use it as an async context manager.

    ``api_key`` or ``token`` authorizes it. A token function gets whether the token must be fresh;
    if it is a plain function it runs in a thread. It may take ``token_seconds``. A token with
    ``expires_at`` is renewed when 80 % of its life is over.

    ``storage`` keeps the OTID, the run and the cursor of each conversation, for a process that
    starts again. Each reader needs a storage of its own, or its own conversations.

    A connection is lost when nothing comes for three times ``keepalive_seconds``, the server's
    interval, and at least 10 s. The first retry is immediate; the waits after it are random, up to
    ``first_wait_seconds``, which doubles up to ``longest_wait_seconds``, and at least as long as
    the server asks for. After ``give_up_seconds`` without a sign of life it raises GaveUpError.

    ``on_retry`` is called before each wait, and ``on_attached`` with the run's id whenever a stream
    is open. ``on_takeover`` is called when the connection was lost and the run goes on in another
    server process, before the first event from there; a lost connection alone is none. For it, the
    client reads the run when it attaches, and up to three times after a lost connection.

    ``http`` is used for all requests and is not closed; by default the client has its own.
    Raises ReattachError if ``base_url`` is not an http or https URL with a host.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        token: TokenSource | None = None,
        storage: MutableMapping[str, str] | None = None,
        give_up_seconds: float = 600.0,
        keepalive_seconds: float = 15.0,
        token_seconds: float = 10.0,
        first_wait_seconds: float = 0.25,
        longest_wait_seconds: float = 15.0,
        on_retry: Callable[[Retry], object] | None = None,
        on_attached: Callable[[str | None], object] | None = None,
        on_takeover: Callable[[Takeover], object] | None = None,
        http: httpx2.AsyncClient | None = None,
    ) -> None:
        core = Core(
            url=checked_url(base_url),
            tokens=Tokens(api_key, token, SystemClock()),
            keepalive_seconds=keepalive_seconds,
            give_up_seconds=give_up_seconds,
            token_seconds=token_seconds,
            first_wait_seconds=first_wait_seconds,
            longest_wait_seconds=longest_wait_seconds,
            on_retry=on_retry,
            on_attached=on_attached,
            on_takeover=on_takeover,
        )
        super().__init__(Calls(core, storage))
        self._given_http = http
        self._http: httpx2.AsyncClient | None = None
        self._asking = asyncio.Lock()
        self._streams: weakref.WeakSet[_EventStream[Any]] = weakref.WeakSet()

    async def __aenter__(self) -> Self:
        self._http = self._given_http or await asyncio.to_thread(_connect, self._calls.core.url)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Disconnect all streams; tasks that iterate get ClosedError. Idempotent."""
        for stream in list(self._streams):
            await stream.aclose()
        http, self._http = self._http, None
        if http is not None and http is not self._given_http:
            await http.aclose()

    async def snapshot(
        self,
        conversation_id: str = "default",
        *,
        run_id: str | None = None,
        agent_id: str | None = None,
    ) -> Snapshot:
        """Return the messages of a run so far. It is not retried.

        Raises:
            UnavailableError: The server cannot be reached, or is busy.
            ReattachError: As ``follow`` does.
        """
        found: Snapshot = await self._call(self._calls.snapshot(conversation_id, run_id, agent_id))
        return found

    async def cancel(
        self,
        conversation_id: str = "default",
        *,
        run_id: str | None = None,
        agent_id: str | None = None,
    ) -> dict[str, str]:
        """Cancel a run, or the active run of a conversation. Return the status of each by its id.

        It is not retried. Raises as ``snapshot`` does; ConflictError if nothing is active.
        """
        states: dict[str, str] = await self._call(
            self._calls.cancel(conversation_id, run_id, agent_id)
        )
        return states

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        timeout_seconds: float | None = None,
    ) -> Any:
        """Send a request to any other route that answers with JSON, and return it decoded.

        ``path`` begins with ``/v1/`` and may have a query. The request has the key or token of the
        client, and is not retried. It fails when nothing comes for ``timeout_seconds``, by default
        as long as for a stream. Raises as ``snapshot`` does.
        """
        return await self._call(self._calls.request(method, path, body, timeout_seconds))

    @override
    def _stream(self, plan: RunPlan, life: Life) -> Stream:
        stream = Stream(plan, life, self._events(plan, life))
        self._streams.add(stream)
        return stream

    @override
    def _many_stream(self, plan: ManyPlan, life: Life) -> ManyStream:
        stream = ManyStream(plan, life, self._events(plan, life))
        self._streams.add(stream)
        return stream

    async def _events(self, plan: Plan, life: Life) -> AsyncGenerator[Event]:
        driver = self._driver(life)
        events = driver.events(Reading(self._calls.core, plan, life).steps())
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    async def _call(self, steps: Steps[T]) -> T:
        return await self._driver(Life(None)).run(steps)

    def _driver(self, life: Life) -> AsyncioDriver:
        if self._http is None:
            raise ReattachError(
                "This Client is not open.",
                remedy="Use it as an async context manager: `async with client:`.",
            )
        return AsyncioDriver(self._http, self._calls.core, self._asking, life)


def _connect(url: str) -> httpx2.AsyncClient:
    """Make the connection pool; this may read certificates, so it must not run on the loop."""
    return httpx2.AsyncClient(headers=HEADERS, limits=LIMITS, verify=needs_certificates(url))
