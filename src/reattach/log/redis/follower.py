"""The tails of a process whose log is on Redis, and how they keep up with it."""

import asyncio
import struct
from array import array
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from reattach.domain.errors import LogNotFoundError, ReattachError, StoreUnavailableError
from reattach.domain.store_errors import LogDamagedError
from reattach.log.closed_runs import ClosedRuns
from reattach.log.notifier import Notifier
from reattach.log.redis.batcher import Batcher
from reattach.log.redis.client import RedisClient, report_defect
from reattach.log.redis.run_state import LocalRun, StoredState
from reattach.log.redis.scripts import (
    READ,
    STATE_MANY,
    Keys,
    Kind,
    cut,
    unpack_notification,
)
from reattach.log.redis.subscriber import Subscriber
from reattach.log.tail import Tail

_LOAD_BYTES: Final = 4 * 1024 * 1024
"""A log up to this size is read into its tail as a whole when it is first followed here: thousands
of events, which all readers then share. What is earlier in a larger one is read by each of them."""
_LOAD_SLICE_BYTES: Final = 256 * 1024
"""What is read at once: under two milliseconds for which Redis does nothing else."""
_LOAD_SLICE_EVENTS: Final = 10_000
_BEHIND: Final = "The event log cannot be read at present. Try again in a moment."
_CLOSED_RUNS_BYTES: Final = 64 * 1024 * 1024
"""Closed runs kept in memory: clients that come back do so soon after the end, if ever."""
_FIRST_RETRY_SECONDS: Final = 0.05
_LONGEST_RETRY_SECONDS: Final = 1.0


class Follower:
    """Has a tail for every run that is followed or owned here, and for closed ones of late.

    Owned runs grow by what is appended here, others by their news. Where something was missed it
    is read: a gap in the news, a new connection, and a look at all live runs every
    ``poll_seconds`` show that. When Redis did not answer one of these, the look comes soon.
    """

    def __init__(
        self, client: RedisClient, keys: Keys, *, answer_seconds: float, poll_seconds: float
    ) -> None:
        self._client = client
        self._keys = keys
        self._poll_seconds = poll_seconds
        self._notifier = Notifier()
        self._runs: dict[str, LocalRun] = {}
        self._by_channel: dict[bytes, LocalRun] = {}
        self._closed_runs: ClosedRuns[LocalRun] = ClosedRuns(_CLOSED_RUNS_BYTES)
        self._state_batcher = Batcher(client, STATE_MANY, writes=False)
        self._subscriber = Subscriber(
            client, answer_seconds=answer_seconds, on_resumed=self._on_resumed
        )
        self._polling: asyncio.Task[None] | None = None
        self._unanswered = asyncio.Event()
        """Something failed that only the next look at the live runs makes good."""
        self._tasks: set[asyncio.Task[None]] = set()

    def local(self, run_id: str) -> LocalRun | None:
        """What is known here of the run, if its tail stands for its log."""
        run = self._runs.get(run_id)
        return run if run is not None and run.joined else None

    def shown_seq(self, run_id: str) -> int:
        """The last seq that the log has had for certain, as far as its tail here tells."""
        run = self.local(run_id)
        return 0 if run is None else run.tail.last_seq

    @asynccontextmanager
    async def follow(self, run_id: str) -> AsyncIterator[Tail]:
        run = self._runs.get(run_id)
        if run is None:
            run = self._add(run_id)
            run.joining = self._start(self._join(run))
        run.followers += 1
        try:
            if not run.joined and run.joining is not None:
                await self._joined(run.joining)
            self._closed_runs.touch(run)
            self._keep_polling()
            yield run.tail
        finally:
            run.followers -= 1
            self._review(run)

    async def state(self, run_id: str) -> StoredState:
        """What Redis says; LogNotFoundError. The tail here learns of it too."""
        run = self.local(run_id)
        shown_seq = self.shown_seq(run_id)
        raw = await self._state_batcher.ask(self._keys.run(run_id))
        if raw is None:
            if run is not None:
                run.lose()
                self._forget(run)
            raise LogNotFoundError(f"There is no log of {run_id}.")
        state = StoredState.of(raw)
        if run is not None:
            self._compare(run, state, shown_seq)
        return state

    async def closed(self, run_ids: Sequence[str]) -> dict[str, bool]:
        """Whether the logs of these runs are closed, of those that Redis has."""
        asked = [self._state_batcher.ask(self._keys.run(run_id)) for run_id in run_ids]
        raw = await asyncio.gather(*asked)
        return {
            run_id: StoredState.of(one).closed
            for run_id, one in zip(run_ids, raw, strict=True)
            if one is not None
        }

    def opened(
        self, run_id: str, token: int, state: StoredState, *, begun: bool, shown_seq: int
    ) -> None:
        """This process owns the run, as ``state`` says, from now on.

        ``shown_seq`` is what the tail here had before.
        """
        run = self.local(run_id)
        if run is not None:
            run.owner_token = token
            if begun:
                self.lose(run)
            else:
                self._compare(run, state, shown_seq)
        run = self._runs.get(run_id)
        if state.closed:
            return
        if run is None:
            run = self._add(run_id)
            run.join(state.last_seq + 1, token)
        run.owner_token = token
        run.begun_at = state.first_seq if begun else None
        self._keep_polling()

    def appended(
        self, run: LocalRun, first_seq: int, frames: Sequence[bytes], *, close: bool
    ) -> None:
        """Redis has these frames of the run."""
        if not run.offer(first_seq, frames, close=close):
            self.mend(run)
        elif run.tail.ended:
            self._review(run)

    def disown(self, run: LocalRun) -> None:
        """Somebody else may append to the run."""
        run.owner_token = None
        self._review(run)
        if run.is_live:
            self._start(self._follow_closely(run))

    def lose(self, run: LocalRun) -> None:
        """Redis does not have any more what it had of the run."""
        run.lose()
        self._review(run)

    def deleted(self, run_id: str) -> None:
        run = self._runs.get(run_id)
        if run is not None:
            run.deleted()
            self._forget(run)

    def mend(self, run: LocalRun) -> None:
        """Bring the tail to where the log is now: what is under way may have read it before."""
        if not run.joined or run.tail.ended:
            return
        run.is_behind = True
        if run.mending is None:
            run.mending = self._start(self._mend(run))

    async def caught_up(self, run: LocalRun, seq: int) -> None:
        """Return when the tail has the event, or has failed.

        Raises:
            StoreUnavailableError: it could not be read into the tail; try again.
        """
        has_failed = False
        while not run.tail.ended and run.tail.last_seq < seq:
            if has_failed:
                raise StoreUnavailableError(_BEHIND)
            self.mend(run)
            mending = run.mending
            if mending is None:
                return  # The tail does not stand for the log any more.
            await self._joined(mending)
            # A newer read may have begun meanwhile, which is no failure of this one.
            has_failed = run.is_behind and run.mending in {None, mending}

    async def read(
        self, run_id: str, after: int, *, max_bytes: int, max_events: int
    ) -> tuple[StoredState, bytes, "array[int]"]:
        """From Redis: the state, joined frames from ``after + 1`` on, and where they end."""
        most = max(max_events, 1)
        answer = await self._client.run(READ, self._keys.run(run_id), [after, max_bytes, most])
        if answer[0] != b"ok":
            raise LogNotFoundError(f"There is no log of {run_id}.")
        _, raw, first_seq, *bodies = answer
        try:
            frames, ends = cut(
                int(first_seq), bodies, after=after, max_bytes=max_bytes, max_events=most
            )
        except (struct.error, ValueError) as error:
            raise LogDamagedError(f"The log of {run_id} is damaged after event {after}.") from error
        return StoredState.of(raw), frames, ends

    async def aclose(self, failure: ReattachError) -> None:
        """End all tails with ``failure``, unclosed, and do nothing any more."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait([self._polling])
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        await self._state_batcher.aclose()
        await self._subscriber.aclose()
        for run in list(self._runs.values()):
            run.tail.fail(failure)
        self._runs.clear()

    # How a run comes and goes.

    def _add(self, run_id: str) -> LocalRun:
        channel = self._keys.head(run_id)
        run = self._runs[run_id] = LocalRun(run_id, channel, self._notifier)
        self._by_channel[channel] = run
        return run

    @staticmethod
    async def _joined(joining: asyncio.Task[None]) -> None:
        try:
            await asyncio.shield(joining)
        except asyncio.CancelledError:
            if joining.cancelled():  # By ``aclose``, which does not cancel those who wait for it.
                raise StoreUnavailableError("The server is closing. Reconnect.") from None
            raise

    async def _join(self, run: LocalRun) -> None:
        """Make the tail stand for the log; what the failure is, if that fails."""
        try:
            state = await self.state(run.run_id)
            if not state.closed and not run.is_owned:
                await self._listen(run)
                state = await self.state(run.run_id)
            is_small = state.size_bytes <= _LOAD_BYTES
            run.join(state.first_seq if is_small else state.last_seq + 1, state.token)
            if state.closed and not is_small:
                run.tail.extend((), close=True)
            else:
                await self._catch_up(run)
        except BaseException:
            self._forget(run)
            raise
        self._review(run)

    def _review(self, run: LocalRun) -> None:
        """Let go of what is not needed of a run that has changed."""
        if not run.joined or self._runs.get(run.run_id) is not run:
            return
        if run.tail.failure is not None:
            self._forget(run)
        elif run.tail.closed:
            run.owner_token = None
            self._stop_listening(run)
            self._closed_runs.add(run)
            for evicted in self._closed_runs.evict():
                self._forget(evicted)
        elif run.followers == 0 and not run.is_owned:
            self._forget(run)

    def _forget(self, run: LocalRun) -> None:
        self._stop_listening(run)
        self._closed_runs.discard(run)
        if self._runs.get(run.run_id) is run:
            del self._runs[run.run_id]
            del self._by_channel[run.channel]

    async def _listen(self, run: LocalRun) -> None:
        run.is_followed_closely = True
        try:
            await self._subscriber.subscribe(run.channel, partial(self._on_notification, run))
        except BaseException:
            run.is_followed_closely = False
            raise

    def _stop_listening(self, run: LocalRun) -> None:
        if run.is_followed_closely:
            run.is_followed_closely = False
            self._subscriber.unsubscribe(run.channel)

    async def _follow_closely(self, run: LocalRun) -> None:
        if run.is_followed_closely:
            return
        try:
            await self._listen(run)
        except StoreUnavailableError:
            self._unanswered.set()
            return
        if not run.is_live:
            self._stop_listening(run)
        self.mend(run)

    # How a tail keeps up.

    def _on_notification(self, run: LocalRun, packed: bytes) -> None:
        try:
            news = unpack_notification(packed)
        except ValueError:  # Somebody of a later version; the log itself is not changed by that.
            self.mend(run)
            return
        if not run.joined:
            run.heard_seq = max(run.heard_seq, news.last_seq)
            return
        match news.kind:
            case Kind.APPENDED | Kind.CLOSED:
                close = news.kind is Kind.CLOSED
                self.appended(run, news.seq, news.split(), close=close)
                return
            case Kind.BEGUN:
                if run.begun_at == news.seq:
                    run.begun_at = None
                else:
                    run.lose()
            case Kind.TRIMMED:
                run.tail.trim(news.seq)
            case Kind.DELETED:
                run.deleted()
        self._review(run)

    def _on_resumed(self, channel: bytes) -> None:
        """Notifications of the run may have been missed."""
        run = self._by_channel.get(channel)
        if run is not None and run.joined:
            run.begun_at = None
            self._start(self._check(run))

    async def _check(self, run: LocalRun) -> None:
        """Compare the tail with what Redis has."""
        try:
            await self.state(run.run_id)
        except LogNotFoundError:
            pass  # The tail has been told.
        except StoreUnavailableError:
            self._unanswered.set()

    def _compare(self, run: LocalRun, state: StoredState, shown_seq: int) -> None:
        """``shown_seq`` is what the tail had when Redis was asked for the state."""
        if run.tail.closed:
            run.tail.trim(state.first_seq)
            if not state.closed or state.last_seq != run.tail.last_seq:
                self._forget(run)  # It is another log of the same name.
        if run.tail.ended:
            return
        is_taken_over = state.token > run.token
        if not run.agrees(state, shown_seq):
            self._review(run)
            return
        if run.owner_token is not None and state.token > run.owner_token:
            self.disown(run)
        is_behind = run.is_behind or state.last_seq > run.tail.last_seq or state.closed
        if is_behind or is_taken_over:
            self.mend(run)

    async def _mend(self, run: LocalRun) -> None:
        try:
            await self._catch_up(run)
        except LogNotFoundError:
            run.lose()
        except StoreUnavailableError:
            run.is_behind = True
            self._unanswered.set()
        finally:
            run.mending = None
        self._review(run)

    async def _catch_up(self, run: LocalRun) -> None:
        """Read what the tail lacks, and its last frame to see that it is still the same."""
        is_checked = False
        while not run.tail.ended:
            shown_seq = run.tail.last_seq
            after = shown_seq if is_checked else max(shown_seq, run.tail.first_seq) - 1
            run.is_behind = False
            state, frames, ends = await self.read(
                run.run_id, after, max_bytes=_LOAD_SLICE_BYTES, max_events=_LOAD_SLICE_EVENTS
            )
            if not run.agrees(state, shown_seq):
                return
            is_checked = True
            if after + 1 < state.first_seq:
                continue  # It was trimmed, and so is the tail now.
            close = state.closed and after + len(ends) >= state.last_seq
            run.offer_joined(after + 1, frames, ends, close)
            if run.tail.last_seq >= max(state.last_seq, run.heard_seq):
                if run.is_behind:
                    continue
                return
            if not ends and not state.last_seq > run.tail.last_seq:
                run.heard_seq = 0  # What was heard of is gone again.

    def _keep_polling(self) -> None:
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll(), name="log poll")

    async def _poll(self) -> None:
        """Look at all live runs now and then, as long as there are some."""
        retry_seconds = _FIRST_RETRY_SECONDS
        while any(run.is_live for run in self._runs.values()):
            try:
                async with asyncio.timeout(self._poll_seconds):
                    await self._unanswered.wait()
                    await asyncio.sleep(retry_seconds)
            except TimeoutError:
                retry_seconds = _FIRST_RETRY_SECONDS
            else:
                retry_seconds = min(2 * retry_seconds, _LONGEST_RETRY_SECONDS)
            self._unanswered.clear()
            self._subscriber.check()
            runs = [run for run in self._runs.values() if run.is_live]
            await _all_of(map(self._check, runs))
            followed = [run for run in runs if run.is_live and not run.is_owned]
            await _all_of(map(self._follow_closely, followed))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="log follower")
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Whoever waits for it gets it.


async def _all_of(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all of them; a defect of one keeps nothing from the others."""
    for failure in await asyncio.gather(*works, return_exceptions=True):
        if failure is not None:
            report_defect(failure)
