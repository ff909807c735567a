"""The event log on Redis or Valkey, shared by any number of processes and machines."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from typing_extensions import override

from reattach.domain.errors import (
    LogNotFoundError,
    ReattachError,
    SeqMismatchError,
    StoreUnavailableError,
    TrimmedError,
)
from reattach.domain.errors.stores import LogDamagedError
from reattach.domain.ids import FIRST_SEQ, Seq, Token
from reattach.futures import settle
from reattach.log.base import (
    CLOSING,
    UNWRITABLE,
    Capabilities,
    ClosedRead,
    Done,
    Head,
    Inventory,
    Log,
    LogEntry,
    Pieces,
    RunWriter,
    Slice,
    Tail,
    closed_error,
    fenced_error,
    not_found_error,
)
from reattach.log.redis.batcher import Batcher
from reattach.log.redis.client import ANSWER_SECONDS, RedisClient, WaitPolicy, client_for
from reattach.log.redis.follower import Follower
from reattach.log.redis.pages import Page
from reattach.log.redis.read_ahead import PAGE_BYTES, PAGE_EVENTS, ReadAhead
from reattach.log.redis.run_state import LocalRun, StoredState
from reattach.log.redis.scripts import (
    APPEND_MANY,
    DELETE,
    FIND,
    FORGET_ALIAS,
    OPEN,
    TRIM,
    Keys,
    pack_append,
)

__all__ = ["RedisLog"]

_MARGIN_SECONDS: Final = 3600
"""Redis keeps closed logs this much longer than the retention; the sweep deletes them first."""
_CONFIRMED_SECONDS: Final = 1.0
"""How long the last answer of Redis is relied on, such as that about a run of this process."""
_ALIAS_SECONDS: Final = 7 * 24 * 3600
"""Redis keeps aliases this much longer still after the opening: longer than any run takes."""


class RedisLog(Log):
    """The logs of all runs on one Redis or Valkey (7.0 or newer), one stream per run.

    Which failures an acknowledged append survives depends on the persistence of Redis:

    - The death of Reattach processes: always.
    - The death of Redis, with ``appendonly yes``: ``appendfsync always`` keeps every append.
      ``everysec`` (the default) keeps them if only the Redis process died, and may lose the last
      two seconds if its machine did. Without persistence everything is lost.
    - A failover to a replica: the appends that the replica had. Replication is asynchronous, so
      the most recent appends may be lost. With ``wait_replicas=n`` an append is acknowledged only
      when ``n`` replicas have it too (WAIT; in memory, their fsync is their own setting). That
      makes a loss unlikely, not impossible: Sentinel may promote another replica. Followers in
      other processes may see an append before it is acknowledged.

    Lost frames are never replaced by others: see "Loss" in ``Log``.

    Redis must not evict keys (``maxmemory-policy noeviction``), because an evicted log is lost. An
    open log does not expire. A closed one expires an hour after the retention.

    A process uses at most five connections for commands and one for notifications, whatever the
    number of runs and readers. Between events, readers cost one script call per process every
    ``poll_seconds``, which finds notifications that Redis or the network lost. While Redis does not
    answer, operations raise StoreUnavailableError within seconds and tails do not change; they
    continue when Redis is back.

    In a cluster, aliases are written after the log was opened.
    """

    def __init__(
        self, client: RedisClient, *, prefix: str, retention_seconds: float, poll_seconds: float
    ) -> None:
        self.capabilities = Capabilities(
            survives_process_kill=True,
            survives_power_loss=False,
            shared_between_processes=True,
            finds_aliases=True,
        )
        self._client = client
        self.keys = Keys(prefix)
        self._closed_seconds = int(retention_seconds) + _MARGIN_SECONDS
        self.follower = Follower(client, self.keys, poll_seconds)
        self.append_batcher = Batcher(client, APPEND_MANY, [self._closed_seconds], writes=True)
        self.read_ahead = ReadAhead()
        self._closing = False

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        prefix: str = "reattach",
        retention_seconds: float = 24 * 3600.0,
        wait_replicas: int = 0,
        answer_seconds: float = ANSWER_SECONDS,
        poll_seconds: float = 3.0,
    ) -> "RedisLog":
        """Connect to the Redis that ``url`` names, and return the log on it.

        Forms of the URL:

        - ``redis://user:password@host:6379/0``, ``rediss://`` for TLS,
        - ``unix://user:password@/run/redis.sock?db=0``,
        - ``redis+sentinel://user:password@host:26379,host:26379/service?sentinel_password=…``,
        - ``redis+cluster://user:password@host:6379,host:6379``; both with ``rediss+`` for TLS.

        Options after ``?`` are those of redis-py, such as ``ssl_ca_certs``. The names of all keys
        and channels begin with ``prefix``. Closed logs are kept for ``retention_seconds``.

        Raises:
            StartupError: The URL is not valid, or Redis does not answer or is too old.
        """
        client = client_for(url, WaitPolicy(answer_seconds, wait_replicas))
        try:
            await client.check()
        except BaseException:
            await client.aclose()
            raise
        return cls(
            client, prefix=prefix, retention_seconds=retention_seconds, poll_seconds=poll_seconds
        )

    async def open(
        self, run_id: str, token: Token, *, first_seq: Seq = FIRST_SEQ, aliases: Sequence[str] = ()
    ) -> RunWriter:
        self.check_open()
        shown_seq = self.follower.shown_seq(run_id)
        named = [self.keys.alias(alias) for alias in aliases]
        alias_seconds = self._closed_seconds + _ALIAS_SECONDS
        keys = self.keys.run(run_id)
        answer = await self._client.write(
            OPEN,
            keys if self._client.is_cluster else [*keys, *named],
            [token, first_seq, run_id, alias_seconds, *named],
        )
        if answer[0] == b"fenced":
            raise fenced_error(run_id, token)
        if self._client.is_cluster:
            for alias in named:
                await self._client.set(alias, run_id, alias_seconds)
        state = StoredState.parse(answer[1])
        restarted = answer[0] == b"begun"
        self.follower.note_opened(run_id, token, state, restarted=restarted, shown_seq=shown_seq)
        return self.writer(run_id, token, state.head)

    def writer(self, run_id: str, token: Token, head: Head) -> RunWriter:
        return _RedisRunWriter(self, run_id, token, head)

    async def head(self, run_id: str) -> Head:
        self.check_open()
        return (await self.follower.state(run_id)).head

    @override
    def has_just_answered(self) -> bool:
        return time.monotonic() - self._client.answered_at < _CONFIRMED_SECONDS

    @override
    def goes_on_after(self, run_id: str, seq: Seq) -> bool:
        run = self.follower.local_run(run_id)
        if run is None or not run.is_owned or run.tail.ended:
            return False
        is_known = run.tail.first_seq <= seq + 1 <= run.tail.last_seq + 1
        return is_known and time.monotonic() - run.confirmed_at < _CONFIRMED_SECONDS

    async def read(self, run_id: str, after_seq: Seq, *, max_bytes: int, max_events: int) -> Slice:
        self.check_open()
        run = self.follower.local_run(run_id)
        if run is not None:
            if after_seq + 1 < run.tail.first_seq:
                await self.follower.load(run)
            if run.tail.first_seq <= after_seq + 1 <= run.tail.last_seq:
                return run.tail.slice(after_seq, max_bytes=max_bytes, max_events=max_events)
        goes_on = run is not None and run.tail.closed and run.read_until_seq == after_seq
        if run is not None and goes_on:
            piece = self.read_ahead.slice(
                run, after_seq, max_bytes=max_bytes, max_events=max_events
            )
            if piece is not None:
                run.read_until_seq = piece.last_seq
                return piece
        state, page = await self.follower.read(
            run_id,
            after_seq,
            max_bytes=max(max_bytes, PAGE_BYTES) if goes_on else max_bytes,
            max_events=max(max_events, PAGE_EVENTS) if goes_on else max_events,
        )
        if after_seq + 1 < state.first_seq:
            raise TrimmedError(run_id, state.first_seq)
        piece = page.slice(after_seq, max_bytes=max_bytes, max_events=max_events)
        if piece is None:
            return Slice(after_seq + 1, after_seq, b"")
        run = self.follower.local_run(run_id)
        if run is not None:
            if run.tail.closed:
                self._note_read(run, after_seq, piece, page)
            elif piece.last_seq > run.tail.last_seq:
                # Followers must learn of the end from the tail, whose notifications may be late.
                await self.follower.catch_up_to(run, piece.last_seq)
        return piece

    @override
    async def read_closed(
        self, run_id: str, after_seq: Seq, *, max_bytes: int, max_events: int
    ) -> ClosedRead | None:
        self.check_open()
        if self.follower.is_known(run_id):
            return None  # Another reader may have its frames in memory, or is about to.
        try:
            state, page = await self.follower.read(
                run_id, after_seq, max_bytes=max_bytes, max_events=max_events, only_closed=True
            )
        except (LogNotFoundError, LogDamagedError):
            return None  # ``follow`` and ``read`` say so.
        run = self.follower.join_closed(run_id, state)
        if run is None:
            return None
        piece = page.slice(after_seq, max_bytes=max_bytes, max_events=max_events)
        if piece is None:
            return ClosedRead(state.head, Slice(after_seq + 1, after_seq, b""))
        self._note_read(run, after_seq, piece, page)
        return ClosedRead(state.head, piece)

    @override
    def pieces(
        self, run_id: str, after_seq: Seq, *, max_bytes: int, max_events: int
    ) -> Pieces | None:
        run = self._run_ahead(run_id, after_seq)
        if run is None:
            return None
        found = self.read_ahead.pieces(run, after_seq, max_bytes=max_bytes, max_events=max_events)
        if found is not None:
            run.read_until_seq = found.last_seq
        return found

    @override
    def has_pieces(self, run_id: str, after_seq: Seq) -> bool:
        run = self._run_ahead(run_id, after_seq)
        return run is not None and self.read_ahead.has(run, after_seq)

    def _run_ahead(self, run_id: str, after_seq: Seq) -> LocalRun | None:
        """Return the run if the last slice of it ended at ``after_seq``."""
        run = self.follower.local_run(run_id)
        return run if run is not None and run.read_until_seq == after_seq else None

    def _note_read(self, run: LocalRun, after_seq: Seq, piece: Slice, page: Page) -> None:
        """Keep the rest of the page for a reader that goes on; two readers load the run."""
        run.is_load_due = run.may_be_loaded and run.read_until_seq not in {None, after_seq}
        run.read_until_seq = piece.last_seq
        if piece.last_seq < page.last_seq:
            self.read_ahead.put(run, page)

    @asynccontextmanager
    async def follow(self, run_id: str) -> AsyncIterator[Tail]:
        self.check_open()
        try:
            async with self.follower.follow(run_id) as tail:
                yield tail
        finally:
            run = self.follower.local_run(run_id)
            if run is not None and not run.followers:
                self.read_ahead.drop(run)

    @property
    @override
    def queued_listeners(self) -> int:
        return self.follower.queued_listeners

    async def trim(self, run_id: str, first_seq: Seq) -> None:
        self.check_open()
        answer = await self._client.write(TRIM, self.keys.run(run_id), [first_seq])
        if answer[0] != b"ok":
            raise not_found_error(run_id)
        run = self.follower.local_run(run_id)
        if run is not None:
            run.tail.trim(Seq(int(answer[1])))
            self.read_ahead.drop(run)

    async def delete(self, run_id: str) -> None:
        self.check_open()
        aliases = await self._client.run(DELETE, self.keys.run(run_id), [])
        self.follower.note_deleted(run_id)
        for alias in aliases:
            await self._client.run(FORGET_ALIAS, [alias], [run_id])

    @override
    async def inventory(self, cursor: str | None, *, limit: int) -> Inventory:
        self.check_open()
        heads, following = await self._client.scan(cursor, self.keys.any_head, limit)
        run_ids = [run_id for head in heads if (run_id := self.keys.run_of(head)) is not None]
        closed = await self.follower.closed_by_run(run_ids)
        entries = [LogEntry(run_id, closed[run_id]) for run_id in run_ids if run_id in closed]
        return Inventory(entries, following)

    async def find(self, alias: str) -> str | None:
        self.check_open()
        found = await self._client.get(self.keys.alias(alias))
        if found is None:
            return None
        run_id = found.decode()
        try:
            await self.follower.state(run_id)
        except LogNotFoundError:
            return None
        return run_id

    @override
    async def find_open(self, alias: str) -> str | None:
        if self._client.is_cluster:
            return await super().find_open(alias)
        self.check_open()
        found = await self._client.run(FIND, [self.keys.alias(alias)], self.keys.around_run)
        if found is None:
            return None
        run_id, raw = found
        return None if StoredState.parse(raw).closed else run_id.decode()

    async def aclose(self) -> None:
        if self._closing:
            return
        self._closing = True
        await self.append_batcher.aclose()
        await self.follower.aclose(StoreUnavailableError(CLOSING))
        await self._client.aclose()

    def check_open(self) -> None:
        """Raise StoreUnavailableError once the log is being closed."""
        if self._closing:
            raise StoreUnavailableError(CLOSING)


class _RedisRunWriter(RunWriter):
    def __init__(self, log: RedisLog, run_id: str, token: Token, head: Head) -> None:
        super().__init__(run_id, token, head)
        self._log = log
        self._keys = log.keys.run(run_id)

    async def append(self, first_seq: Seq, frames: Sequence[bytes], *, close: bool = False) -> None:
        appended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done = partial(settle, appended, None)
        self.submit(first_seq, tuple(frames), close=close, done=done)
        await appended

    @override
    def submit(
        self, first_seq: Seq, frames: Sequence[bytes], *, close: bool = False, done: Done
    ) -> "asyncio.Task[None] | None":
        if not frames and not close:
            raise ValueError("An append without frames must close the log.")
        self._log.check_open()
        shown_seq = self._log.follower.shown_seq(self.run_id)

        def answered(answer: bytes, failure: StoreUnavailableError | None) -> None:
            if failure is not None:
                done(failure)
                return
            self._update_tail(
                answer, first_seq=first_seq, frames=frames, close=close, shown_seq=shown_seq
            )
            done(self._error(answer, first_seq))

        packed = pack_append(self.token, first_seq, frames, close)
        self._log.append_batcher.submit(self._keys, packed, answered)
        return None

    def _update_tail(
        self, answer: bytes, *, first_seq: Seq, frames: Sequence[bytes], close: bool, shown_seq: Seq
    ) -> None:
        """Update the tail here by the answer of Redis to an append."""
        follower = self._log.follower
        run = follower.local_run(self.run_id)
        if run is None:
            return
        if answer == b"ok":
            run.confirmed_at = time.monotonic()
            follower.note_appended(run, first_seq, frames, close=close)
            return
        kind, _, detail = answer.partition(b":")
        if kind == b"missing" or (kind == b"mismatch" and int(detail) < shown_seq):
            follower.lose(run)
        elif kind == b"fenced":
            follower.disown(run)
        elif kind in {b"closed", b"mismatch"}:
            follower.start_catch_up(run)

    def _error(self, answer: bytes, first_seq: Seq) -> ReattachError | None:
        """Return the error for the answer to an append; None if it succeeded."""
        if answer == b"ok":
            return None
        kind, _, detail = answer.partition(b":")
        match kind:
            case b"fenced":
                return fenced_error(self.run_id, self.token)
            case b"missing":
                return not_found_error(self.run_id)
            case b"closed":
                return closed_error(self.run_id)
            case b"mismatch":
                return SeqMismatchError(self.run_id, first_seq, Seq(int(detail)))
            case _:
                damage = StoreUnavailableError(UNWRITABLE)
                damage.__cause__ = RuntimeError(detail.decode())
                return damage
