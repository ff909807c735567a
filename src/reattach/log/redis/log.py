"""The log on Redis or Valkey: shared by any number of processes on any number of machines."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, cast

from typing_extensions import override

from reattach.domain.errors import (
    FencedError,
    LogClosedError,
    LogNotFoundError,
    ReattachError,
    SeqMismatchError,
    StoreUnavailableError,
    TrimmedError,
)
from reattach.log.base import (
    Capabilities,
    Done,
    Head,
    Inventory,
    Log,
    LogEntry,
    Slice,
    Tail,
)
from reattach.log.redis.batcher import Batcher
from reattach.log.redis.client import ANSWER_SECONDS, RedisClient, WaitPolicy, client_for
from reattach.log.redis.follower import Follower
from reattach.log.redis.run_state import StoredState
from reattach.log.redis.scripts import (
    APPEND_MANY,
    DELETE,
    FORGET_ALIAS,
    OPEN,
    TRIM,
    Keys,
    pack_append,
)

__all__ = ["RedisLog"]

_CLOSING: Final = "The server is closing. Reconnect to resume."
_DAMAGED: Final = "The event log can not be written at present. Try again in a moment."
_MARGIN_SECONDS: Final = 3600
"""How much longer than the retention Redis keeps a closed log, so that the sweep deletes it."""
_ALIAS_SECONDS: Final = 7 * 24 * 3600
"""How much longer still an alias is kept from the opening of its log: longer than runs take."""


class RedisLog(Log):
    """All runs' logs on one Redis or Valkey (7.0 or newer), one stream for each.

    What an acknowledged append survives is what Redis' own persistence gives it:

    - The death of any number of processes of ours: always.
    - The death of Redis, with ``appendonly yes``: ``appendfsync always`` keeps all of them;
      ``everysec`` (its default) keeps them when only the process died, and may lose the last two
      seconds when its machine did. Without persistence everything is lost.
    - A failover to a replica: what the replica had; replication is asynchronous, so appends of
      the last moments may be lost. With ``wait_replicas=n`` an append is acknowledged only after
      ``n`` replicas have it too (WAIT; they have it in memory, fsync is their own setting). That
      makes a loss unlikely, not impossible: Sentinel may promote a replica that was not among
      them. Followers in other processes may see it before it is acknowledged.

    What is lost in spite of all this is never replaced: see "Loss" in ``Log``.

    Redis must not evict keys (``maxmemory-policy noeviction``): a log that was evicted is gone.
    An open log has no expiry. A closed one lives for the retention and an hour.

    A process has at most five connections for commands and one for news, whatever the number of
    runs and readers. Between events readers cost nothing but one script call of the process every
    ``poll_seconds``, which finds out what was missed if Redis or the network lost a message.
    While Redis does not answer, operations raise StoreUnavailableError within seconds, and tails
    stand still; they go on where they were when it is back.

    In a cluster, aliases are written after the log was opened.
    """

    def __init__(
        self,
        client: RedisClient,
        *,
        prefix: str = "reattach",
        retention_seconds: float = 24 * 3600.0,
        answer_seconds: float = ANSWER_SECONDS,
        poll_seconds: float = 3.0,
    ) -> None:
        self.capabilities = Capabilities(
            survives_process_kill=True,
            survives_power_loss=False,
            shared_between_processes=True,
            finds_aliases=True,
        )
        self._client = client
        self._keys = Keys(prefix)
        self._closed_seconds = int(retention_seconds) + _MARGIN_SECONDS
        self._follower = Follower(
            client, self._keys, answer_seconds=answer_seconds, poll_seconds=poll_seconds
        )
        self._append_batcher = Batcher(client, APPEND_MANY, [self._closed_seconds], writes=True)
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
        """The log on the Redis that ``url`` names.

        - ``redis://user:password@host:6379/0``, ``rediss://`` for TLS,
        - ``unix://user:password@/run/redis.sock?db=0``,
        - ``redis+sentinel://user:password@host:26379,host:26379/service?sentinel_password=…``,
        - ``redis+cluster://user:password@host:6379,host:6379``; both with ``rediss+`` for TLS.

        Options after ``?`` are those of redis-py, such as ``ssl_ca_certs``. ``prefix`` begins the
        names of all keys and channels. ``retention_seconds`` is how long closed logs are wanted.

        Raises StartupError if the URL makes no sense, or Redis does not answer or is too old.
        """
        client = client_for(url, WaitPolicy(answer_seconds, wait_replicas))
        try:
            await client.check()
        except BaseException:
            await client.aclose()
            raise
        return cls(
            client,
            prefix=prefix,
            retention_seconds=retention_seconds,
            answer_seconds=answer_seconds,
            poll_seconds=poll_seconds,
        )

    async def open(
        self, run_id: str, token: int, *, first_seq: int = 1, aliases: Sequence[str] = ()
    ) -> Head:
        self._check_open()
        shown_seq = self._follower.shown_seq(run_id)
        named = [self._keys.alias(alias) for alias in aliases]
        alias_seconds = self._closed_seconds + _ALIAS_SECONDS
        keys = self._keys.run(run_id)
        answer = await self._client.write(
            OPEN,
            keys if self._client.is_cluster else [*keys, *named],
            [token, first_seq, run_id, alias_seconds, *named],
        )
        if answer[0] == b"fenced":
            raise _fenced(run_id, token)
        if self._client.is_cluster:
            for alias in named:
                await self._client.set(alias, run_id, alias_seconds)
        state = StoredState.of(answer[1])
        begun = answer[0] == b"begun"
        self._follower.opened(run_id, token, state, begun=begun, shown_seq=shown_seq)
        return state.head

    async def append(
        self,
        run_id: str,
        token: int,
        first_seq: int,
        frames: Sequence[bytes],
        *,
        close: bool = False,
    ) -> None:
        answer = await self._asked(run_id, token, first_seq, tuple(frames), close=close)
        refusal = _refusal(answer, run_id, token, first_seq)
        if refusal is not None:
            raise refusal

    @override
    def submit(
        self,
        run_id: str,
        token: int,
        first_seq: int,
        frames: Sequence[bytes],
        *,
        close: bool = False,
        done: Done,
    ) -> "asyncio.Task[None] | None":
        def tell(asked: "asyncio.Future[bytes]") -> None:
            failure = cast("Exception | None", asked.exception())
            done(failure or _refusal(asked.result(), run_id, token, first_seq))

        self._asked(run_id, token, first_seq, frames, close=close).add_done_callback(tell)
        return None

    def _asked(
        self, run_id: str, token: int, first_seq: int, frames: Sequence[bytes], *, close: bool
    ) -> "asyncio.Future[bytes]":
        """What Redis answers to an append."""
        if not frames and not close:
            raise ValueError("An append without frames must close the log.")
        self._check_open()
        return self._append_batcher.submit(
            self._keys.run(run_id),
            pack_append(token, first_seq, frames, close),
            partial(
                self._settle,
                run_id,
                first_seq=first_seq,
                frames=frames,
                close=close,
                shown_seq=self._follower.shown_seq(run_id),
            ),
        )

    def _settle(
        self,
        run_id: str,
        answer: bytes,
        *,
        first_seq: int,
        frames: Sequence[bytes],
        close: bool,
        shown_seq: int,
    ) -> None:
        """Let the tail here learn from what Redis said of an append."""
        run = self._follower.local(run_id)
        if run is None:
            return
        kind, _, detail = answer.partition(b":")
        if kind == b"ok":
            self._follower.appended(run, first_seq, frames, close=close)
        elif kind == b"missing" or (kind == b"mismatch" and int(detail) < shown_seq):
            self._follower.lose(run)
        elif kind == b"fenced":
            self._follower.disown(run)
        elif kind in {b"closed", b"mismatch"}:
            self._follower.mend(run)

    async def head(self, run_id: str) -> Head:
        self._check_open()
        return (await self._follower.state(run_id)).head

    async def read(self, run_id: str, after: int, *, max_bytes: int, max_events: int) -> Slice:
        self._check_open()
        run = self._follower.local(run_id)
        if run is not None and run.tail.first_seq <= after + 1 <= run.tail.last_seq:
            return run.tail.slice(after, max_bytes=max_bytes, max_events=max_events)
        state, frames, ends = await self._follower.read(
            run_id, after, max_bytes=max_bytes, max_events=max_events
        )
        if after + 1 < state.first_seq:
            raise TrimmedError(run_id, state.first_seq)
        last_seq = after + len(ends)
        run = self._follower.local(run_id)
        if run is not None and ends and last_seq > run.tail.last_seq:
            # Followers must learn of the end from the tail, whose notifications may be late.
            await self._follower.caught_up(run, last_seq)
        return Slice(after + 1, last_seq, frames)

    @asynccontextmanager
    async def follow(self, run_id: str) -> AsyncIterator[Tail]:
        self._check_open()
        async with self._follower.follow(run_id) as tail:
            yield tail

    async def trim(self, run_id: str, first_seq: int) -> None:
        self._check_open()
        answer = await self._client.write(TRIM, self._keys.run(run_id), [first_seq])
        if answer[0] != b"ok":
            raise _not_found(run_id)
        run = self._follower.local(run_id)
        if run is not None:
            run.tail.trim(int(answer[1]))

    async def delete(self, run_id: str) -> None:
        self._check_open()
        aliases = await self._client.run(DELETE, self._keys.run(run_id), [])
        self._follower.deleted(run_id)
        for alias in aliases:
            await self._client.run(FORGET_ALIAS, [alias], [run_id])

    @override
    async def inventory(self, cursor: str | None, *, limit: int) -> Inventory:
        self._check_open()
        heads, following = await self._client.scan(cursor, self._keys.any_head, limit)
        run_ids = [run_id for head in heads if (run_id := self._keys.run_of(head)) is not None]
        closed = await self._follower.closed(run_ids)
        entries = [LogEntry(run_id, closed[run_id]) for run_id in run_ids if run_id in closed]
        return Inventory(entries, following)

    async def find(self, alias: str) -> str | None:
        self._check_open()
        found = await self._client.get(self._keys.alias(alias))
        if found is None:
            return None
        run_id = found.decode()
        try:
            await self._follower.state(run_id)
        except LogNotFoundError:
            return None
        return run_id

    async def aclose(self) -> None:
        if self._closing:
            return
        self._closing = True
        await self._append_batcher.aclose()
        await self._follower.aclose(StoreUnavailableError(_CLOSING))
        await self._client.aclose()

    def _check_open(self) -> None:
        if self._closing:
            raise StoreUnavailableError(_CLOSING)


def _refusal(answer: bytes, run_id: str, token: int, first_seq: int) -> ReattachError | None:
    """Why Redis did not do an append, if so."""
    kind, _, detail = answer.partition(b":")
    match kind:
        case b"ok":
            return None
        case b"fenced":
            return _fenced(run_id, token)
        case b"missing":
            return _not_found(run_id)
        case b"closed":
            return LogClosedError(f"{run_id} is closed.")
        case b"mismatch":
            return SeqMismatchError(run_id, first_seq, int(detail))
        case _:
            damage = StoreUnavailableError(_DAMAGED)
            damage.__cause__ = RuntimeError(detail.decode())
            return damage


def _not_found(run_id: str) -> LogNotFoundError:
    return LogNotFoundError(f"There is no log of {run_id}.")


def _fenced(run_id: str, token: int) -> FencedError:
    return FencedError(f"{run_id} has an owner with a newer token than {token}.")
