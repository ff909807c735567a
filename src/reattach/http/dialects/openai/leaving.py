"""The end of runs whose client has closed its connection, if a setting wants that."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakSet

import structlog
from starlette.requests import Request

from reattach.domain.errors import ReattachError
from reattach.http.context import Context
from reattach.http.middleware.access import Access
from reattach.http.stream.body import CONNECTION_EXTENSION, Connection
from reattach.records.base import Run

logger = structlog.get_logger(__name__)


class Leaving:
    """Cancels the run of a request whose client leaves, if ``chat_disconnect`` says so.

    A client leaves when it closes its connection, or its sending side. The run goes on while
    another client of this process waits for it, and when the server is shutting down.
    """

    def __init__(self, context: Context, access: Access, run: Run, request: Request) -> None:
        self._context = context
        self._access = access
        self.run = run
        self._request = request
        if context.settings.chat_disconnect == "cancel":
            _PRESENT.add(self)
            # Without it, a client that closes in silence is noticed at the next event only.
            extensions = request.scope.get("extensions", {})
            connection: Connection | None = extensions.get(CONNECTION_EXTENSION)
            if connection is not None:
                connection.on_half_close(self.on_leave)

    def on_leave(self) -> None:
        """Take note that the client has left, once or several times."""
        if self not in _PRESENT:
            return
        _PRESENT.discard(self)
        if waiting_clients(self.run.id):
            return
        task = asyncio.create_task(self._cancel(), name=f"cancel {self.run.id}")
        _CANCELLING[self.run.id] = task
        task.add_done_callback(lambda _: _CANCELLING.pop(self.run.id, None))

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Notice that the client leaves while it waits for its whole answer."""
        if self not in _PRESENT:
            yield
            return
        watch = asyncio.create_task(self._watch(), name="watch a client")
        try:
            yield
        finally:
            watch.cancel()
            _PRESENT.discard(self)

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.on_leave()

    async def _cancel(self) -> None:
        runs = self._context.runs
        if runs.draining:  # It is the server that closes the connection.
            return
        try:
            run = await runs.by_id(self.run.tenant, self.run.id)
            if run.status.is_active:  # The calls of an ended run may still wait for an approval.
                await runs.cancel([run], by=self._access.actor)
        except ReattachError as error:
            logger.warning(
                "run not cancelled when its client left", run_id=self.run.id, reason=error.detail
            )


def waiting_clients(run_id: str) -> int:
    """Return how many clients of this process have not left a run that ends with its client."""
    return sum(one.run.id == run_id for one in _PRESENT)


_PRESENT: Final[WeakSet[Leaving]] = WeakSet()
"""The clients that have not left; a finished response forgets its own."""


async def wait_until_cancelled(run_id: str) -> bool:
    """Wait for a run that is being cancelled because its client left; False: it is not."""
    task = _CANCELLING.get(run_id)
    if task is None:
        return False
    await asyncio.wait({task})
    return True


_CANCELLING: Final[dict[str, asyncio.Task[None]]] = {}
"""The cancellations in progress, by run; the event loop itself keeps no task alive."""
