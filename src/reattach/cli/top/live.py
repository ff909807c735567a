"""The loop of ``reattach top`` on a terminal: samples, keys, and changes of the size."""

import asyncio
import os
import signal
from contextlib import suppress
from typing import Final

from rich.console import Console
from rich.live import Live

from reattach.cli.printable import sentence_of
from reattach.cli.remote.server import explained
from reattach.cli.top.keys import Keyboard
from reattach.cli.top.samples import Sample, Sampler
from reattach.cli.top.screen import picture
from reattach.cli.top.view import View
from reattach.domain.errors import ReattachError

_RETRY_SECONDS: Final = 1.0
_REFUSALS: Final = frozenset({401, 403})
"""Statuses that the next sample would get too."""


class LiveTable:
    """Draws a server until the person quits. The first sample is taken before the screen changes.

    ``key`` is the API key of the sampler, for errors.
    """

    def __init__(
        self, sampler: Sampler, *, url: str, key: str | None, interval_seconds: float
    ) -> None:
        self._sampler = sampler
        self._url = url
        self._key = key
        self._interval_seconds = interval_seconds
        self._view = View()
        self._trouble: str | None = None
        self._done = asyncio.Event()
        self._acts: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Raises ReattachError if the server cannot be reached at first, or refuses."""
        self._sample = await self._take()
        self._console = Console()
        loop = asyncio.get_running_loop()
        with (
            Keyboard() as self._keyboard,
            Live(console=self._console, screen=True, auto_refresh=False) as self._live,
        ):
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._done.set)
            # Before the first picture, so that it follows every later change of the size.
            for number in (signal.SIGWINCH, signal.SIGCONT):
                loop.add_signal_handler(number, self._draw)
            loop.add_signal_handler(signal.SIGTSTP, self._suspend)
            keys = self._keyboard.descriptor
            if keys is not None:
                loop.add_reader(keys, self._press)
            self._draw()
            sampling = asyncio.create_task(self._keep_sampling())
            done = asyncio.create_task(self._done.wait())
            try:
                await asyncio.wait({sampling, done}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if keys is not None:
                    loop.remove_reader(keys)
                for task in (sampling, done, *self._acts):
                    task.cancel()
                with suppress(asyncio.CancelledError):
                    await sampling

    async def _take(self) -> Sample:
        try:
            return await self._sampler.take()
        except ReattachError as error:
            raise explained(error, self._url, self._key) from error.__cause__

    async def _keep_sampling(self) -> None:
        """Sample until it is cancelled. Raises ReattachError if the server refuses."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            wait_seconds = _RETRY_SECONDS if self._trouble else self._interval_seconds
            await asyncio.sleep(max(began + wait_seconds - loop.time(), 0))
            began = loop.time()
            if self._view.is_paused:
                continue
            try:
                self._sample = await self._take()
                self._trouble = None
            except ReattachError as error:
                if error.status in _REFUSALS:
                    raise
                self._trouble = error.fact
            self._draw()

    def _draw(self) -> None:
        width, height = self._console.size
        drawn = picture(
            self._sample,
            self._view,
            url=self._url,
            trouble=self._trouble,
            columns=width,
            lines=height,
        )
        self._live.update(drawn, refresh=True)

    def _suspend(self) -> None:
        """Give the terminal back to the shell, as Ctrl-Z asks, until the shell continues it."""
        self._live.stop()
        self._keyboard.stop()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._keyboard.start()
        self._live.start()
        self._draw()

    def _press(self) -> None:
        for key in self._keyboard.read():
            act = self._view.press(key)
            if act == "quit":
                self._done.set()
                return
            if act == "cancel":
                task = asyncio.ensure_future(self._cancel(self._view.selected or ""))
                self._acts.add(task)
                task.add_done_callback(self._acts.discard)
        self._draw()

    async def _cancel(self, run_id: str) -> None:
        try:
            self._view.note = f"{run_id}: {await self._sampler.cancel(run_id)}"
        except ReattachError as error:
            self._view.note = sentence_of(explained(error, self._url, self._key))
        self._draw()
