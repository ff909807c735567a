"""The tails of one process whose log is on Redis, and how they follow it."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from reattach.domain.errors import LogNotFoundError, ReattachError, StoreUnavailableError
from reattach.domain.errors.stores import LogDamagedError
from reattach.domain.ids import Seq, Token
from reattach.log.base import CLOSING, UNREADABLE, not_found_error
from reattach.log.closed_runs import LOAD_BYTES, ClosedRuns
from reattach.log.notifier import Notifier
from reattach.log.redis.batcher import Batcher
from reattach.log.redis.client import RedisClient
from reattach.log.redis.pages import Page, page_of
from reattach.log.redis.run_state import LocalRun, StoredState
from reattach.log.redis.scripts import (
    READ,
    STATE_MANY,
    Keys,
    NotificationKind,
    unpack_notification,
)
from reattach.log.redis.subscriber import Subscriber, retry_backoff, run_all
from reattach.log.tail import Tail
from reattach.single_flight import SingleFlight

_LOAD_SLICE_BYTES: Final = 256 * 1024
"""The most bytes per read, which blocks Redis for under two milliseconds."""
_LOAD_SLICE_EVENTS: Final = 10_000
_CLOSED_RUNS_BYTES: Final = 64 * 1024 * 1024
"""Closed runs kept in memory. Most clients that come back do so soon after the end."""


class Follower:
    """The tails of all runs that this process follows or owns, and of recently closed ones.

    The tails of owned runs grow with each append of this process, others with each notification. A
    gap in the notifications, a new connection, or a poll of all live runs every ``poll_seconds``
    shows that something was missed, which is then read from Redis. If Redis does not answer such a
    read, the next poll comes early.
    """

    def __init__(self, client: RedisClient, keys: Keys, poll_seconds: float) -> None:
        self._client = client
        self._keys = keys
        self._poll_seconds = poll_seconds
        self._notifier = Notifier()
        self._runs: dict[str, LocalRun] = {}
        self._closed_runs: ClosedRuns[LocalRun] = ClosedRuns(_CLOSED_RUNS_BYTES)
        self._state_batcher = Batcher(client, STATE_MANY, writes=False)
        self._subscriber = Subscriber(client, self._on_resumed)
        self._poll_task: asyncio.Task[None] | None = None
        self._loads = SingleFlight[str, None]("log load")
        self._check_failed = asyncio.Event()
        """Set when a check failed that the next poll repeats."""
        self._tasks: set[asyncio.Task[None]] = set()

    def local_run(self, run_id: str) -> LocalRun | None:
        """Return the run if its tail here represents its log."""
        run = self._runs.get(run_id)
        return run if run is not None and run.is_joined else None

    def is_known(self, run_id: str) -> bool:
        """Whether the run has a tail here, or is about to have one."""
        return run_id in self._runs

    @property
    def queued_listeners(self) -> int:
        return len(self._notifier)

    def shown_seq(self, run_id: str) -> Seq:
        """Return the last seq in the tail here, which the log had for certain; 0 without a tail."""
        run = self.local_run(run_id)
        return Seq(0) if run is None else run.tail.last_seq

    @asynccontextmanager
    async def follow(self, run_id: str) -> AsyncIterator[Tail]:
        run = self._runs.get(run_id)
        if run is None:
            run = self._add(run_id)
            run.join_task = self._start_task(self._join(run))
        run.followers += 1
        try:
            if not run.is_joined and run.join_task is not None:
                await self._wait_for(run.join_task)
            self._closed_runs.touch(run)
            self._ensure_polling()
            yield run.tail
        finally:
            run.followers -= 1
            self._release_unneeded(run)

    def join_closed(self, run_id: str, state: StoredState) -> LocalRun | None:
        """Add a run with the closed tail of ``state``, unless it is open or is known by now."""
        if not state.closed or self.is_known(run_id):
            return None
        run = self._add(run_id)
        run.join_closed(state, is_small=state.size_bytes <= LOAD_BYTES)
        self._release_unneeded(run)
        return self.local_run(run_id)

    async def state(self, run_id: str) -> StoredState:
        """Read the run's state from Redis, and update the tail here.

        Raises:
            LogNotFoundError: Redis has no such log.
        """
        run = self.local_run(run_id)
        shown_seq = self.shown_seq(run_id)
        raw = await self._state_batcher.ask(self._keys.run(run_id))
        if raw is None:
            if run is not None:
                run.mark_lost()
                self._remove(run)
            raise not_found_error(run_id)
        state = StoredState.parse(raw)
        if run is not None:
            self._apply_state(run, state, shown_seq)
        return state

    async def closed_by_run(self, run_ids: Sequence[str]) -> dict[str, bool]:
        """Return for each of these runs that Redis has whether its log is closed."""
        answers = [self._state_batcher.ask(self._keys.run(run_id)) for run_id in run_ids]
        raw = await asyncio.gather(*answers)
        return {
            run_id: StoredState.parse(one).closed
            for run_id, one in zip(run_ids, raw, strict=True)
            if one is not None
        }

    def note_opened(
        self, run_id: str, token: Token, state: StoredState, *, restarted: bool, shown_seq: Seq
    ) -> None:
        """Note that this process has opened the run, and what the run's state then was.

        ``restarted``: the log began empty, because it is new or had lost frames. ``shown_seq`` is
        the tail's last seq before that.
        """
        run = self.local_run(run_id)
        if run is not None:
            run.owner_token = token
            if restarted:
                self.lose(run)
            else:
                self._apply_state(run, state, shown_seq)
        run = self._runs.get(run_id)
        if state.closed:
            return
        if run is None:
            run = self._add(run_id)
            run.join(state.last_seq + 1, token)
        run.owner_token = token
        run.confirmed_at = time.monotonic()
        run.own_restart_seq = state.first_seq if restarted else None
        self._ensure_polling()

    def note_appended(
        self, run: LocalRun, first_seq: Seq, frames: Sequence[bytes], *, close: bool
    ) -> None:
        """Add frames that Redis has stored to the tail."""
        if not run.merge(first_seq, frames, close=close):
            self.start_catch_up(run)
        elif run.tail.ended:
            self._release_unneeded(run)

    def disown(self, run: LocalRun) -> None:
        """Note that another process may append to the run."""
        run.owner_token = None
        self._release_unneeded(run)
        if run.is_live:
            self._start_task(self._ensure_subscribed(run))

    def lose(self, run: LocalRun) -> None:
        """Fail the tail, because Redis has lost frames of the run."""
        run.mark_lost()
        self._release_unneeded(run)

    def note_deleted(self, run_id: str) -> None:
        run = self._runs.get(run_id)
        if run is not None:
            run.mark_deleted()
            self._remove(run)

    def start_catch_up(self, run: LocalRun) -> None:
        """Start reading what the tail is missing; a running read is repeated."""
        if not run.is_joined or run.tail.ended:
            return
        run.is_behind = True
        if run.catch_up_task is None:
            run.catch_up_task = self._start_task(self._run_catch_up(run))

    async def catch_up_to(self, run: LocalRun, seq: Seq) -> None:
        """Return when the tail has the event or has ended.

        Raises:
            StoreUnavailableError: The event could not be read into the tail.
        """
        has_failed = False
        while not run.tail.ended and run.tail.last_seq < seq:
            if has_failed:
                raise StoreUnavailableError(UNREADABLE)
            self.start_catch_up(run)
            catch_up = run.catch_up_task
            if catch_up is None:
                return  # The tail no longer represents the log.
            await self._wait_for(catch_up)
            # If a newer read has begun meanwhile, this one has not failed.
            has_failed = run.is_behind and run.catch_up_task in {None, catch_up}

    async def read(
        self,
        run_id: str,
        after_seq: Seq,
        *,
        max_bytes: int,
        max_events: int,
        only_closed: bool = False,
    ) -> tuple[StoredState, Page]:
        """Read from Redis the state, and the frames after ``after_seq``.

        All frames that came are returned: one append may have been larger than the bounds. With
        ``only_closed``, an open log has none.
        """
        bounds = [after_seq, max_bytes, max(max_events, 1), int(only_closed)]
        answer = await self._client.run(READ, self._keys.run(run_id), bounds)
        if answer[0] != b"ok":
            raise not_found_error(run_id)
        _, raw, first_seq, *bodies = answer
        try:
            page = page_of(Seq(int(first_seq)), bodies, after_seq=after_seq)
        except (struct.error, ValueError) as error:
            raise LogDamagedError(
                f"The log of {run_id} is damaged after event {after_seq}."
            ) from error
        return StoredState.parse(raw), page

    async def _read_to_load(self, run: LocalRun, after_seq: Seq) -> tuple[StoredState, Page]:
        return await self.read(
            run.run_id, after_seq, max_bytes=_LOAD_SLICE_BYTES, max_events=_LOAD_SLICE_EVENTS
        )

    async def load(self, run: LocalRun) -> None:
        """Put the frames of a small closed run into its tail, unless that was tried before."""
        if run.is_load_due:
            await self._loads.do(run.run_id, partial(self._load, run))

    async def _load(self, run: LocalRun) -> None:
        run.is_load_due = run.may_be_loaded = False
        try:
            state = await self.state(run.run_id)
            tail = Tail(state.first_seq)
            while state.closed and tail.last_seq < run.tail.first_seq - 1:
                state, page = await self._read_to_load(run, tail.last_seq)
                if not page:
                    return
                tail.extend_joined(page.frames, page.ends)
        except ReattachError:
            return  # The reader reads its own slices, and reports what is wrong.
        for evicted in self._closed_runs.evict(tail.size_bytes):
            self._remove(evicted)
        is_same = state.last_seq == run.tail.last_seq and tail.last_seq + 1 == run.tail.first_seq
        if is_same and run in self._closed_runs and self._closed_runs.has_room(tail.size_bytes):
            run.tail.prepend(tail)
            run.tail.trim(state.first_seq)
            self._closed_runs.add(run)

    async def aclose(self, failure: ReattachError) -> None:
        """Stop following, and fail all tails with ``failure``."""
        if self._poll_task is not None:
            self._poll_task.cancel()
            await asyncio.wait([self._poll_task])
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        await self._state_batcher.aclose()
        await self._subscriber.aclose()
        for run in list(self._runs.values()):
            run.tail.fail(failure)
        self._runs.clear()

    # Runs are added and removed.

    def _add(self, run_id: str) -> LocalRun:
        run = LocalRun(run_id, self._keys.head(run_id), Tail(notifier=self._notifier))
        self._runs[run_id] = run
        return run

    @staticmethod
    async def _wait_for(task: asyncio.Task[None]) -> None:
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # By ``aclose``, which cancels tasks but not their waiters.
                raise StoreUnavailableError(CLOSING) from None
            raise

    async def _join(self, run: LocalRun) -> None:
        """Fill the tail from the log for the first time."""
        try:
            state = await self.state(run.run_id)
            if not state.closed and not run.is_owned:
                await self._subscribe(run)
                state = await self.state(run.run_id)
            is_small = state.size_bytes <= LOAD_BYTES
            if state.closed:
                run.join_closed(state, is_small=is_small)
            else:
                run.join(state.first_seq if is_small else state.last_seq + 1, state.token)
                await self._catch_up(run)
        except BaseException:
            self._remove(run)
            raise
        self._release_unneeded(run)

    def _release_unneeded(self, run: LocalRun) -> None:
        """Release whatever a changed run no longer needs."""
        if not run.is_joined or self._runs.get(run.run_id) is not run:
            return
        if run.tail.failure is not None:
            self._remove(run)
        elif run.tail.closed:
            run.owner_token = None
            self._unsubscribe(run)
            self._closed_runs.add(run)
            for evicted in self._closed_runs.evict():
                self._remove(evicted)
        elif run.followers == 0 and not run.is_owned:
            self._remove(run)

    def _remove(self, run: LocalRun) -> None:
        self._unsubscribe(run)
        self._closed_runs.discard(run)
        if self._runs.get(run.run_id) is run:
            del self._runs[run.run_id]

    async def _subscribe(self, run: LocalRun) -> None:
        run.is_subscribed = True
        try:
            await self._subscriber.subscribe(run.channel, partial(self._on_notification, run))
        except BaseException:
            run.is_subscribed = False
            raise

    def _unsubscribe(self, run: LocalRun) -> None:
        if run.is_subscribed:
            run.is_subscribed = False
            self._subscriber.unsubscribe(run.channel)

    async def _ensure_subscribed(self, run: LocalRun) -> None:
        if run.is_subscribed:
            return
        try:
            await self._subscribe(run)
        except StoreUnavailableError:
            self._check_failed.set()
            return
        if not run.is_live:
            self._unsubscribe(run)
        self.start_catch_up(run)

    # Tails are kept up to date.

    def _on_notification(self, run: LocalRun, packed: bytes) -> None:
        try:
            notification = unpack_notification(packed)
        except ValueError:  # A later version published it. The log itself has the same format.
            self.start_catch_up(run)
            return
        if not run.is_joined:
            run.announced_seq = max(run.announced_seq, notification.last_seq)
            return
        match notification.kind:
            case NotificationKind.APPENDED | NotificationKind.CLOSED:
                close = notification.kind is NotificationKind.CLOSED
                self.note_appended(run, notification.seq, notification.split(), close=close)
                return
            case NotificationKind.CREATED:
                if run.own_restart_seq == notification.seq:
                    run.own_restart_seq = None
                else:
                    run.mark_lost()
            case NotificationKind.TRIMMED:
                run.tail.trim(notification.seq)
            case NotificationKind.DELETED:
                run.mark_deleted()
        self._release_unneeded(run)

    def _on_resumed(self, channel: bytes) -> None:
        """Check a run whose notifications may have been lost."""
        run = self.local_run(self._keys.run_of(channel) or "")
        if run is not None:
            run.own_restart_seq = None
            self._start_task(self._check_run(run))

    async def _check_run(self, run: LocalRun) -> None:
        """Compare the tail with Redis."""
        try:
            await self.state(run.run_id)
        except LogNotFoundError:
            pass  # ``state`` has failed the tail.
        except StoreUnavailableError:
            self._check_failed.set()

    def _apply_state(self, run: LocalRun, state: StoredState, shown_seq: Seq) -> None:
        """Update the tail by ``state``, which was read when its last seq was ``shown_seq``."""
        if run.tail.closed:
            run.tail.trim(state.first_seq)
            if not state.closed or state.last_seq != run.tail.last_seq:
                self._remove(run)  # It is another log with the same id.
        if run.tail.ended:
            return
        is_taken_over = state.token > run.token
        if not run.reconcile(state, shown_seq):
            self._release_unneeded(run)
            return
        if run.owner_token is not None and state.token > run.owner_token:
            self.disown(run)
        is_behind = run.is_behind or state.last_seq > run.tail.last_seq or state.closed
        if is_behind or is_taken_over:
            self.start_catch_up(run)

    async def _run_catch_up(self, run: LocalRun) -> None:
        try:
            await self._catch_up(run)
        except LogNotFoundError:
            run.mark_lost()
        except StoreUnavailableError:
            run.is_behind = True
            self._check_failed.set()
        finally:
            run.catch_up_task = None
        self._release_unneeded(run)

    async def _catch_up(self, run: LocalRun) -> None:
        """Read what the tail is missing, and its last frame to check that it is unchanged."""
        is_checked = False
        while not run.tail.ended:
            shown_seq = run.tail.last_seq
            after_seq = shown_seq if is_checked else max(shown_seq, run.tail.first_seq) - 1
            run.is_behind = False
            state, page = await self._read_to_load(run, after_seq)
            if not run.reconcile(state, shown_seq):
                return
            is_checked = True
            if after_seq + 1 < state.first_seq:
                continue  # The log was trimmed, and ``reconcile`` has trimmed the tail.
            close = state.closed and after_seq + len(page) >= state.last_seq
            run.merge_joined(after_seq + 1, page.frames, page.ends, close)
            if run.tail.last_seq >= max(state.last_seq, run.announced_seq):
                if run.is_behind:
                    continue
                return
            if not page and not state.last_seq > run.tail.last_seq:
                run.announced_seq = 0  # The announced frames are gone again.

    def _ensure_polling(self) -> None:
        if self._poll_task is None or self._poll_task.done():
            self._poll_task = asyncio.create_task(self._poll(), name="log poll")

    async def _poll(self) -> None:
        """Check all live runs regularly, while there are any."""
        backoff = retry_backoff()
        while any(run.is_live for run in self._runs.values()):
            try:
                async with asyncio.timeout(self._poll_seconds):
                    await self._check_failed.wait()
                    await backoff.wait()
            except TimeoutError:
                backoff.reset()
            self._check_failed.clear()
            self._subscriber.check()
            runs = [run for run in self._runs.values() if run.is_live]
            await run_all(map(self._check_run, runs))
            followed = [run for run in runs if run.is_live and not run.is_owned]
            await run_all(map(self._ensure_subscribed, followed))

    def _start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="log follower")
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Marked as retrieved; waiters get it too.
