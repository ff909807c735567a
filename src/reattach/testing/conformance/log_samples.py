"""Sample frames for the tests of logs."""

from collections.abc import Sequence

from reattach.domain.ids import Seq, Token
from reattach.log.base import Head, Log

FRAMES = [b"id: %d\ndata: %s\n\n" % (seq, bytes(range(256)) * (seq % 3)) for seq in range(1, 41)]
"""Frames of several sizes, which contain every byte."""


async def write(log: Log, run_id: str, frames: Sequence[bytes], *, close: bool = False) -> None:
    """Open a new log and append all frames at once."""
    writer = await log.open(run_id, Token(1))
    await writer.append(Seq(1), frames, close=close)


async def append(
    log: Log,
    run_id: str,
    token: Token,
    first_seq: int,
    frames: Sequence[bytes],
    *,
    close: bool = False,
) -> None:
    """Append anywhere as any owner, whether or not it has opened the log."""
    writer = log.writer(run_id, token, Head(Seq(1), Seq(0), closed=False))
    await writer.append(Seq(first_seq), frames, close=close)


async def append_singly(log: Log, run_id: str, frames: Sequence[bytes]) -> None:
    """Append to an empty log, one frame per append."""
    for seq, frame in enumerate(frames, 1):
        await append(log, run_id, Token(1), seq, [frame])
