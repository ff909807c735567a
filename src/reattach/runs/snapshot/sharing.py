"""Snapshots as JSON that all their readers share, and the bound on those that are being sent."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Final

import msgspec

from reattach.domain.errors import UnavailableError
from reattach.domain.events import RunStatus, StopReason
from reattach.domain.ids import RunId, Seq, TenantId
from reattach.domain.limits import REPLAY_SLICE_BYTES, SENT_SNAPSHOTS_BYTES
from reattach.records.base import Run

_SYSTEM_MESSAGE: Final = "system_message"
_RETRY_SECONDS: Final = 5
_MIB: Final = 1024 * 1024


class _Shape(msgspec.Struct):
    run_id: RunId
    conversation_id: str | None
    status: RunStatus
    stop_reason: StopReason | None
    seq: Seq
    messages: msgspec.Raw


class _Typed(msgspec.Struct):
    """The member of an item that says what it is."""

    message_type: str


class Snapshot:
    """The messages of a run as of event ``seq``, as a JSON object without a line break.

    ``pieces`` are the object cut into writes. A connection that waits for room holds only the
    pieces that it has taken, not the whole.
    """

    __slots__ = ("_has_system_messages", "_shown", "hides_system_messages", "is_past", "pieces",
                 "run_id", "seq", "size_bytes", "status", "tenant")  # fmt: skip

    def __init__(
        self,
        run: Run,
        status: RunStatus,
        stop_reason: StopReason | None,
        seq: Seq,
        messages: bytes,
        *,
        is_past: bool = False,
    ) -> None:
        shape = _Shape(run.id, run.conversation_id, status, stop_reason, seq, msgspec.Raw(messages))
        self.run_id = run.id
        self.tenant = run.tenant
        self.status = status
        self.seq = seq
        """The cursor from which following gives all other events."""
        self.is_past = is_past
        """Whether it is of an event before the newest one, as somebody asked."""
        self.hides_system_messages = False
        """It may have had system messages, and was made without them."""
        self._has_system_messages = _SYSTEM_MESSAGE.encode() in messages
        """At least the words are there, maybe in a text."""
        self._shown: Snapshot | None = None
        """The same without them, once somebody asked for it."""
        self._encode(shape)

    def _encode(self, shape: _Shape) -> None:
        encoded = msgspec.json.encode(shape)
        self.size_bytes = len(encoded)
        self.pieces: Sequence[bytes] = [
            encoded[start : start + REPLAY_SLICE_BYTES]
            for start in range(0, len(encoded), REPLAY_SLICE_BYTES)
        ]

    def encode(self) -> bytes:
        """Return the JSON object."""
        return b"".join(self.pieces)

    def without_system_messages(self) -> "Snapshot":
        """Return it as the holders of stream tokens may see it, which is made once."""
        if not self._has_system_messages:
            return self
        if self._shown is None:
            self._shown = copy(self)
            self._shown._hide_system_messages()
        return self._shown

    def _hide_system_messages(self) -> None:
        shape = msgspec.json.decode(self.encode(), type=_Shape)
        shown = [
            item
            for item in msgspec.json.decode(shape.messages, type=list[msgspec.Raw])
            if msgspec.json.decode(item, type=_Typed).message_type != _SYSTEM_MESSAGE
        ]
        shape.messages = msgspec.Raw(msgspec.json.encode(shown))
        self._has_system_messages, self.hides_system_messages = False, True
        self._encode(shape)


@dataclass(frozen=True, slots=True)
class SentLimits:
    """The bounds of the snapshots that a process is sending; each counts once."""

    size_bytes: int = SENT_SNAPSHOTS_BYTES
    tenant_size_bytes: int = SENT_SNAPSHOTS_BYTES // 2


class SentSnapshots:
    """The snapshots that are being sent to at least one reader."""

    def __init__(self, limits: SentLimits | None = None) -> None:
        self._limits = limits or SentLimits()
        self._readers: dict[Snapshot, int] = {}
        self._of_run: dict[RunId, dict[Snapshot, None]] = {}
        """The newest last."""
        self._bytes_of_tenant: dict[TenantId, int] = {}
        self.size_bytes = 0
        """The bytes of all of them."""

    def newest(
        self, run_id: RunId, *, is_active: bool, hides_system_messages: bool = False
    ) -> Snapshot | None:
        """Return the newest such snapshot of the run that is being sent, or None."""
        wanted = (is_active, hides_system_messages)
        for snapshot in reversed(self._of_run.get(run_id, {})):
            found = (snapshot.status.is_active, snapshot.hides_system_messages)
            if found == wanted and not snapshot.is_past:
                return snapshot
        return None

    def begin(self, snapshot: Snapshot) -> "SnapshotReader":
        """Return a reader of the snapshot, to be closed by the caller.

        Beyond the limits the reader gets the newest snapshot of the run that is being sent anyway:
        following from its seq gives all later events too.

        Raises:
            UnavailableError: The limits are reached, and no snapshot of the run is being sent.
        """
        if snapshot not in self._readers:
            if self._has_room(snapshot):
                self._add(snapshot)
            else:
                sent = self._replacement(snapshot)
                if sent is None:
                    raise UnavailableError(
                        "The server is sending as many snapshots as fit into its memory "
                        f"({self._limits.size_bytes // _MIB} MiB, and half of it for one tenant).",
                        remedy="Try again in a few seconds, or follow the run from its start.",
                        retry_after_seconds=_RETRY_SECONDS,
                    )
                snapshot = sent
        self._readers[snapshot] += 1
        return SnapshotReader(self, snapshot)

    def _replacement(self, snapshot: Snapshot) -> Snapshot | None:
        """Return a snapshot that is being sent and does as well, or None."""
        if snapshot.is_past:
            return None
        return self.newest(
            snapshot.run_id,
            is_active=snapshot.status.is_active,
            hides_system_messages=snapshot.hides_system_messages,
        )

    def _has_room(self, snapshot: Snapshot) -> bool:
        """A tenant may always send one, because a run may be larger than the limit."""
        held = self._bytes_of_tenant.get(snapshot.tenant, 0)
        return not held or (
            held + snapshot.size_bytes <= self._limits.tenant_size_bytes
            and self.size_bytes + snapshot.size_bytes <= self._limits.size_bytes
        )

    def _add(self, snapshot: Snapshot) -> None:
        self._readers[snapshot] = 0
        self._of_run.setdefault(snapshot.run_id, {})[snapshot] = None
        self._count(snapshot, snapshot.size_bytes)

    def _count(self, snapshot: Snapshot, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        held = self._bytes_of_tenant.get(snapshot.tenant, 0) + size_bytes
        self._bytes_of_tenant[snapshot.tenant] = held
        if not held:
            del self._bytes_of_tenant[snapshot.tenant]

    def end(self, snapshot: Snapshot) -> None:
        """Note that one reader of the snapshot has ended."""
        self._readers[snapshot] -= 1
        if not self._readers[snapshot]:
            del self._readers[snapshot]
            of_run = self._of_run[snapshot.run_id]
            del of_run[snapshot]
            if not of_run:
                del self._of_run[snapshot.run_id]
            self._count(snapshot, -snapshot.size_bytes)


class SnapshotReader:
    """One reader's way through the pieces of a snapshot."""

    def __init__(self, sent: SentSnapshots, snapshot: Snapshot) -> None:
        self._sent = sent
        self._snapshot: Snapshot | None = snapshot
        self._pieces: Iterator[bytes] = iter(snapshot.pieces)
        self.seq = snapshot.seq
        self.size_bytes = snapshot.size_bytes

    def take(self) -> bytes:
        """Return the next piece; the last one closes the reader, and after it there is b""."""
        piece = next(self._pieces, b"")
        if not piece:
            self.close()
        return piece

    def close(self) -> None:
        """Let go of the snapshot; no-op if that was done before."""
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            self._pieces = iter(())
            self._sent.end(snapshot)
