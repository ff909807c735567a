"""Frames that came in the entries of a stream, cut into slices and pieces."""

from __future__ import annotations

import struct
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.domain.ids import Seq
from reattach.domain.limits import LARGE_WRITE_BYTES
from reattach.log.redis.pages import Page, page_of

FRAMES = st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=5)


def body_of(frames: list[bytes]) -> bytes:
    lengths = [len(frame) for frame in frames] if len(frames) > 1 else []
    return struct.pack(f"<{1 + len(lengths)}I", len(frames), *lengths) + b"".join(frames)


def walked(page: Page, *, in_pieces: bool, **bounds: Any) -> list[tuple[Seq, bytes]]:
    """Return the ends of all slices of the page, with their frames."""
    found, after = [], Seq(page.first_seq - 1)
    while after < page.last_seq:
        if in_pieces:
            pieces = page.pieces(after, **bounds)
            assert pieces is not None
            frames, after = b"".join(pieces.frames), pieces.last_seq
        else:
            cut = page.slice(after, **bounds)
            assert cut is not None
            assert cut.first_seq == after + 1
            frames, after = cut.frames, cut.last_seq
        found.append((after, frames))
    return found


@given(
    entries=st.lists(FRAMES, min_size=1, max_size=6),
    first_seq=st.integers(1, 50),
    skipped=st.integers(0, 30),
    bounds=st.fixed_dictionaries(
        {"max_bytes": st.integers(1, 60), "max_events": st.integers(1, 12)}
    ),
    in_pieces=st.booleans(),
)
def test_all_frames_come_once_within_the_bounds(
    entries: list[list[bytes]],
    first_seq: int,
    skipped: int,
    bounds: dict[str, int],
    in_pieces: bool,
) -> None:
    frames = [frame for one in entries for frame in one]
    skipped = min(skipped, len(frames) - 1)
    after = Seq(first_seq + skipped - 1)
    page = page_of(Seq(first_seq), [body_of(one) for one in entries], after_seq=after)
    wanted = frames[skipped:]
    assert (len(page), page.first_seq) == (len(wanted), after + 1)
    found = walked(page, in_pieces=in_pieces, **bounds)
    for last_seq, piece in found:
        count = last_seq - after
        assert piece == b"".join(wanted[:count])
        assert count <= bounds["max_events"]
        assert len(piece) <= bounds["max_bytes"] or count == 1
        wanted, after = wanted[count:], last_seq
    assert not wanted
    assert page.pieces(after, max_bytes=1, max_events=1) is None
    assert page.frames == b"".join(frames[skipped:])
    assert list(page.ends) == list(accumulate(map(len, frames[skipped:])))


def test_large_pieces_are_not_copied_and_small_ones_are_one_piece() -> None:
    large, small = b"x" * LARGE_WRITE_BYTES, [b"y"] * 3
    bodies = [*map(body_of, ([large], [large, large], small, small))]
    page = page_of(Seq(1), bodies, after_seq=Seq(0))
    found = page.pieces(Seq(0), max_bytes=10**6, max_events=3)
    assert found is not None
    assert (found.last_seq, found.frames) == (3, (large, large * 2))
    assert isinstance(found.frames[1], memoryview)
    found = page.pieces(Seq(3), max_bytes=10**6, max_events=100)
    assert found is not None
    assert (found.last_seq, found.frames) == (9, (b"y" * 6,))


@pytest.mark.parametrize("damaged", [b"", b"\2\0\0\0", b"\2\0\0\0\1\0\0\0\1\0\0\0x", b"\0\0"])
def test_the_frames_before_damaged_ones_are_read(damaged: bytes) -> None:
    bodies = [body_of([b"a", b"b"]), damaged, body_of([b"c"])]
    page = page_of(Seq(1), bodies, after_seq=Seq(1))
    assert (page.frames, page.last_seq) == (b"b", 2)
    for broken in (bodies, bodies[1:]):
        with pytest.raises((ValueError, struct.error)):
            page_of(Seq(1), broken, after_seq=Seq(2 if broken is bodies else 0))
