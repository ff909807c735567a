"""The state of a run on Redis, and of its tail in this process."""

import asyncio
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from reattach.domain.errors import LogLostError
from reattach.domain.ids import Seq, Token
from reattach.log.base import Head, deleted_error
from reattach.log.redis.scripts import split_at
from reattach.log.tail import Tail


@dataclass(frozen=True, slots=True)
class StoredState:
    """The state of a run on Redis."""

    token: Token
    first_seq: Seq
    last_seq: Seq
    closed: bool
    size_bytes: int

    @classmethod
    def parse(cls, raw: Sequence[bytes]) -> "StoredState":
        token, first_seq, last_seq, closed, size_bytes = raw
        return cls(
            Token(int(token)),
            Seq(int(first_seq)),
            Seq(int(last_seq)),
            closed == b"1",
            int(size_bytes),
        )

    @property
    def head(self) -> Head:
        return Head(self.first_seq, self.last_seq, self.closed)


@dataclass(slots=True, eq=False)
class LocalRun:
    """A run that this process follows or owns, or a closed one in its cache.

    The tail grows from three sources: appends by an owner in this process, notifications, and reads
    that fill a gap. They overlap, and must agree where they do.
    """

    run_id: str
    channel: bytes
    tail: Tail
    followers: int = 0
    may_be_loaded: bool = False
    """The closed run is small, and no load into its tail has been tried."""
    is_load_due: bool = False
    """Two readers read it from Redis, so the next slice loads all of it."""
    read_until_seq: Seq | None = None
    """Where the last slice of the closed run that was read from Redis ended; None: none was."""
    is_joined: bool = False
    """The tail represents the log."""
    join_task: asyncio.Task[None] | None = None
    """The task that first fills the tail."""
    catch_up_task: asyncio.Task[None] | None = None
    """The task that reads what the tail is missing, if one is running."""
    is_behind: bool = False
    """The log may have frames that the tail lacks, and no later read has been answered."""
    is_subscribed: bool = False
    """The run's channel is subscribed to. Owned runs need no subscription."""
    owner_token: Token | None = None
    """The token of this process, while it knows of no newer one."""
    token: int = 0
    """The highest known token."""
    announced_seq: int = 0
    """The highest seq in any notification."""
    confirmed_at: float = -math.inf
    """When Redis last confirmed that this process owns the run, by the monotonic clock."""
    own_restart_seq: Seq | None = None
    """The seq at which this process restarted the log, until its own notification arrives."""

    @property
    def is_live(self) -> bool:
        """Whether the tail may grow and is needed by followers or the owner here."""
        return self.is_joined and not self.tail.ended and (self.followers > 0 or self.is_owned)

    @property
    def is_owned(self) -> bool:
        return self.owner_token is not None

    def join(self, first_seq: Seq, token: Token) -> None:
        """Let a new tail represent the log from ``first_seq`` on."""
        self.tail = self.tail.replacement(first_seq)
        self.token = token
        self.is_joined = True

    def join_closed(self, state: StoredState, *, is_small: bool) -> None:
        """Let a new tail without frames represent the closed log."""
        self.join(Seq(state.last_seq + 1), state.token)
        self.may_be_loaded = is_small
        self.tail.extend((), close=True)

    def merge(self, first_seq: Seq, frames: Sequence[bytes], *, close: bool) -> bool:
        """Add frames that are in the log, and return False if earlier ones are missing.

        The tail fails if it has shown other frames at the same seqs.
        """
        tail = self.tail
        known = tail.last_seq + 1 - first_seq
        if known:
            if known < 0:
                self.announced_seq = max(self.announced_seq, first_seq + len(frames) - 1)
                return False
            trimmed = max(tail.first_seq - first_seq, 0)
            is_same = tail.holds(first_seq + trimmed, frames[trimmed:known])
            if not is_same or (close and known > len(frames)):
                self.mark_lost()
            frames = frames[known:]
        if not tail.ended and (frames or close):
            tail.extend(frames, close=close)
        return True

    def merge_joined(self, first_seq: Seq, frames: bytes, ends: "array[int]", close: bool) -> None:
        """Like ``merge``, for joined frames as ``read`` returns them."""
        if first_seq == self.tail.last_seq + 1 and not self.tail.ended:
            self.tail.extend_joined(frames, ends)
            self.tail.extend((), close=close)
        else:
            self.merge(first_seq, split_at(frames, ends), close=close)

    def reconcile(self, state: StoredState, shown_seq: Seq) -> bool:
        """Return whether Redis still has every frame that the tail had when the state was read.

        If not, the tail fails. False also if the tail has ended.
        """
        if self.tail.ended:
            return False
        if state.last_seq < shown_seq or state.first_seq > self.tail.last_seq + 1:
            self.mark_lost()
            return False
        self.tail.trim(state.first_seq)
        self.token = max(self.token, state.token)
        return True

    def mark_lost(self) -> None:
        """Fail the tail, because the log no longer has frames that the tail has shown."""
        if self.is_joined:
            self.tail.fail(LogLostError(self.run_id, self.tail.last_seq))

    def mark_deleted(self) -> None:
        self.tail.fail(deleted_error(self.run_id))
