"""The figures of a child, for its supervisor, and those of all children, for its scrapes."""

import asyncio
import json
from collections.abc import Callable
from functools import partial

from reattach.daemon_thread import in_daemon_thread
from reattach.domain.errors import UnavailableError
from reattach.domain.limits import FIGURES_WAIT_SECONDS
from reattach.meters.scrape import Scrape, Workers
from reattach.server.supervision import ASK, FIGURES


class ChildFigures:
    """Answers the supervisor's questions for figures, and asks it for those of all children.

    ``report`` writes a message to the supervisor. It may block, so it is called in a thread.
    """

    def __init__(self, report: Callable[[str, object], None]) -> None:
        self._report = report
        self._writing = asyncio.Lock()
        self._scrape: Scrape | None = None
        self._answer: asyncio.Future[Workers] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, scrape: Scrape) -> None:
        """Answer from now on with the figures of ``scrape``, which gets those of all from here."""
        self._scrape = scrape
        scrape.ask_all = self._ask_all

    def receive(self, answer: str) -> None:
        """Take a message of the supervisor: a question if it is empty, else an answer."""
        if answer:
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(json.loads(answer))
            return
        if self._scrape is not None:
            task = asyncio.get_running_loop().create_task(self._send_own(self._scrape))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send_own(self, scrape: Scrape) -> None:
        await self._write(FIGURES, await scrape.own())

    async def _ask_all(self) -> Workers:
        """Return the figures of all children.

        Raises:
            UnavailableError: The supervisor does not answer.
        """
        if self._answer is None or self._answer.done():
            self._answer = asyncio.get_running_loop().create_future()
            await self._write(ASK, None)
        try:
            async with asyncio.timeout(FIGURES_WAIT_SECONDS):
                return await asyncio.shield(self._answer)
        except TimeoutError as error:
            raise UnavailableError(
                "The figures of the other processes are not available: their supervisor does not "
                "answer.",
                remedy="Scrape again later.",
            ) from error

    async def _write(self, kind: str, detail: object) -> None:
        async with self._writing:  # Lines of two threads could mix.
            write = partial(self._report, kind, detail)
            await in_daemon_thread(write, name="reattach-figures")
