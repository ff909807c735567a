"""What a process knows of a run whose log is on Redis: its tail, and how that is kept up."""

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from reattach.domain.errors import LogLostError, LogNotFoundError
from reattach.log.base import Head
from reattach.log.notifier import Notifier
from reattach.log.redis.scripts import split
from reattach.log.tail import Tail

_RUN_BYTES: Final = 1024
"""What a run costs in memory beside its frames, roughly."""


@dataclass(frozen=True, slots=True)
class StoredState:
    """A run as Redis has it."""

    token: int
    first_seq: int
    last_seq: int
    closed: bool
    size_bytes: int

    @classmethod
    def of(cls, raw: Sequence[bytes]) -> "StoredState":
        token, first_seq, last_seq, closed, size_bytes = raw
        return cls(int(token), int(first_seq), int(last_seq), closed == b"1", int(size_bytes))

    @property
    def head(self) -> Head:
        return Head(self.first_seq, self.last_seq, self.closed)


class LocalRun:
    """A run that is followed here, or owned, or closed and kept.

    The tail is extended from three sides: by what the owner appended here, by the news, and by
    what is read to fill a gap. They overlap, and where they do they must say the same.
    """

    __slots__ = (
        "_joined",
        "begun_at",
        "channel",
        "followers",
        "heard_seq",
        "is_behind",
        "is_followed_closely",
        "joining",
        "mending",
        "owner_token",
        "run_id",
        "tail",
        "token",
    )

    def __init__(self, run_id: str, channel: bytes, notifier: Notifier) -> None:
        self.run_id = run_id
        self.channel = channel
        self.tail = Tail(notifier=notifier)
        self.followers = 0
        self._joined = False
        self.joining: asyncio.Task[None] | None = None
        """What makes the tail follow the log, until it does."""
        self.mending: asyncio.Task[None] | None = None
        """What brings the tail to where the log is, at present."""
        self.is_behind = False
        """The log may have what the tail lacks, and no read that began since has been answered."""
        self.is_followed_closely = False
        """Its news are listened to. Not those of a run that is owned here: we make them."""
        self.owner_token: int | None = None
        """With which this process opened it, as long as it knows of no newer one."""
        self.token = 0
        """The newest one known."""
        self.heard_seq = 0
        """The last seq that there is, as far as was heard."""
        self.begun_at: int | None = None
        """Where this process began the log anew, until the news of that came back."""

    @property
    def joined(self) -> bool:
        """The tail stands for the log."""
        return self._joined

    @property
    def cost_bytes(self) -> int:
        return self.tail.size_bytes + _RUN_BYTES

    @property
    def is_live(self) -> bool:
        """Somebody here depends on the tail, and more may come."""
        return self._joined and not self.tail.ended and (self.followers > 0 or self.is_owned)

    @property
    def is_owned(self) -> bool:
        return self.owner_token is not None

    def join(self, first_seq: int, token: int) -> None:
        """From now on the tail stands for the log, from ``first_seq`` on."""
        self.tail = self.tail.replacement(first_seq)
        self.token = token
        self._joined = True

    def offer(self, first_seq: int, frames: Sequence[bytes], *, close: bool) -> bool:
        """Take in frames that the log has; False if some before them are missing.

        Fails the tail if the log has others where the tail has shown some.
        """
        tail = self.tail
        known = tail.last_seq + 1 - first_seq
        if known:
            if known < 0:
                self.heard_seq = max(self.heard_seq, first_seq + len(frames) - 1)
                return False
            trimmed = max(tail.first_seq - first_seq, 0)
            is_same = tail.holds(first_seq + trimmed, frames[trimmed:known])
            if not is_same or (close and known > len(frames)):
                self.lose()
            frames = frames[known:]
        if not tail.ended and (frames or close):
            tail.extend(frames, close=close)
        return True

    def offer_joined(self, first_seq: int, frames: bytes, ends: "array[int]", close: bool) -> None:
        """Like ``offer``, with frames as they were read after all that the tail has."""
        if first_seq == self.tail.last_seq + 1 and not self.tail.ended:
            self.tail.extend_joined(frames, ends)
            self.tail.extend((), close=close)
        else:
            self.offer(first_seq, split(frames, ends), close=close)

    def agrees(self, state: StoredState, shown_seq: int) -> bool:
        """Whether Redis still has what the tail had when Redis was asked; else the tail fails.

        False also if it has ended.
        """
        if self.tail.ended:
            return False
        if state.last_seq < shown_seq or state.first_seq > self.tail.last_seq + 1:
            self.lose()
            return False
        self.tail.trim(state.first_seq)
        self.token = max(self.token, state.token)
        return True

    def lose(self) -> None:
        """What the tail has shown is not in the log any more."""
        if self._joined:
            self.tail.fail(LogLostError(self.run_id, self.tail.last_seq))

    def deleted(self) -> None:
        self.tail.fail(LogNotFoundError(f"The log of {self.run_id} was deleted."))
