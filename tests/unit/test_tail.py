from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.domain.errors import LogNotFoundError, StoreUnavailableError
from reattach.domain.ids import Seq
from reattach.domain.limits import LARGE_WRITE_BYTES
from reattach.log.tail import Slice, Tail

LARGE = 2**40


def tail_of(*frames: bytes, first_seq: int = 1) -> Tail:
    tail = Tail(Seq(first_seq))
    tail.extend(frames)
    return tail


@pytest.mark.promise("P4")
@given(
    frames=st.lists(st.binary(max_size=20), max_size=20),
    trimmed=st.integers(0, 25),
    after=st.integers(0, 25),
    max_bytes=st.integers(1, 100),
    max_events=st.integers(1, 25),
)
def test_a_slice_is_the_longest_that_fits_and_at_least_one_frame(
    frames: list[bytes], trimmed: int, after: int, max_bytes: int, max_events: int
) -> None:
    tail = tail_of(*frames)
    tail.trim(Seq(trimmed + 1))
    after = max(after, tail.first_seq - 1)
    expected = frames[after : after + 1]
    for frame in frames[after + 1 : after + max_events]:
        if len(b"".join([*expected, frame])) > max_bytes:
            break
        expected.append(frame)
    cut = tail.slice(Seq(after), max_bytes=max_bytes, max_events=max_events)
    assert cut == Slice(Seq(after + 1), Seq(after + len(expected)), b"".join(expected))


@given(
    frames=st.lists(st.binary(max_size=3), max_size=8),
    trimmed=st.integers(0, 8),
    first_seq=st.integers(0, 10),
    wanted=st.lists(st.binary(max_size=3), max_size=4),
)
def test_holds_is_true_only_for_equal_frames_at_the_same_seqs(
    frames: list[bytes], trimmed: int, first_seq: int, wanted: list[bytes]
) -> None:
    tail = tail_of(*frames)
    tail.trim(Seq(trimmed + 1))
    kept = dict(list(enumerate(frames, 1))[trimmed:])
    for offered in wanted, frames[max(first_seq - 1, 0) :][:2]:
        places = range(first_seq, first_seq + len(offered))
        if offered:
            expected = [kept.get(seq) for seq in places] == offered
            assert tail.holds(Seq(first_seq), offered) is expected


def test_trimming_drops_at_most_all_frames_and_the_next_seq_stays() -> None:
    tail = tail_of(b"a", b"bb", b"ccc")
    tail.trim(Seq(3))
    assert (tail.first_seq, tail.last_seq, tail.size_bytes) == (3, 3, 3)
    tail.trim(Seq(1))
    tail.trim(Seq(100))
    assert (tail.first_seq, tail.last_seq, tail.size_bytes) == (4, 3, 0)
    tail.extend([b"dddd"])
    assert tail.slice(Seq(3), max_bytes=LARGE, max_events=LARGE) == Slice(Seq(4), Seq(4), b"dddd")


@given(
    frames=st.lists(st.binary(max_size=9), min_size=1, max_size=9),
    trimmed=st.integers(0, 5),
    cut=st.integers(0, 8),
)
def test_a_tail_filled_from_pieces_of_another_one_equals_it(
    frames: list[bytes], trimmed: int, cut: int
) -> None:
    tail = tail_of(*frames, b"last")
    tail.trim(Seq(min(trimmed, len(frames)) + 1))
    copy = Tail(tail.first_seq)
    middle = min(max(tail.first_seq - 1, cut), tail.last_seq - 1)
    for after, last_seq in (tail.first_seq - 1, middle), (middle, tail.last_seq):
        if last_seq > after:
            piece = tail.slice(Seq(after), max_bytes=LARGE, max_events=last_seq - after)
            copy.extend_joined(piece.frames, tail.ends(Seq(after + 1), Seq(last_seq)))
    for after in range(tail.first_seq - 1, tail.last_seq + 1):
        bounds = {"max_bytes": 1, "max_events": 1}
        assert copy.slice(Seq(after), **bounds) == tail.slice(Seq(after), **bounds)


@pytest.mark.promise("P13")
def test_listeners_are_called_once_per_change_until_they_unsubscribe() -> None:
    tail = Tail()
    seen: list[tuple[int, bool, bool]] = []

    def listener() -> None:
        seen.append((tail.last_seq, tail.closed, tail.failure is not None))

    tail.subscribe(listener)
    tail.extend([b"a", b"b"])
    tail.extend([b"c"], close=True)
    tail.fail(LogNotFoundError("gone"))
    tail.unsubscribe(listener)
    tail.unsubscribe(listener)
    tail.trim(Seq(2))
    assert seen == [(2, False, False), (3, True, False)]


@pytest.mark.promise("P3")
def test_a_tail_keeps_its_first_end() -> None:
    closed, failed = Tail(), Tail()
    closed.extend([], close=True)
    closed.fail(StoreUnavailableError("closing"))
    first = StoreUnavailableError("closing")
    failed.fail(first)
    failed.fail(LogNotFoundError("gone"))
    assert (closed.ended, closed.closed, closed.failure) == (True, True, None)
    assert (failed.ended, failed.closed, failed.failure) == (True, False, first)


def test_a_view_equals_the_slice_and_exists_only_for_large_frames_of_a_closed_tail() -> None:
    frames = [bytes([letter]) * LARGE_WRITE_BYTES for letter in b"abcde"]
    tail = Tail()
    tail.extend([*frames, b"small"])
    bounds = {"max_bytes": 2 * LARGE_WRITE_BYTES, "max_events": 9}
    assert tail.view(Seq(0), **bounds) is None, "it may still grow"
    tail.extend((), close=True)
    for after in range(5):
        piece, view = tail.slice(Seq(after), **bounds), tail.view(Seq(after), **bounds)
        assert view is not None
        assert (view.last_seq, bytes(view.frames)) == (piece.last_seq, piece.frames)
    assert tail.view(Seq(5), **bounds) is None
    assert tail.view(Seq(6), **bounds) is None


def test_a_view_keeps_its_frames_when_they_are_trimmed() -> None:
    frames = [bytes([letter]) * LARGE_WRITE_BYTES for letter in b"abc"]
    tail = Tail()
    tail.extend(frames, close=True)
    bounds = {"max_bytes": LARGE_WRITE_BYTES, "max_events": 1}
    first, second = tail.view(Seq(0), **bounds), tail.view(Seq(1), **bounds)
    tail.trim(Seq(3))
    assert first is not None
    assert second is not None
    assert [bytes(first.frames), bytes(second.frames)] == frames[:2]
    assert tail.view(Seq(1), **bounds) is None
    third = tail.view(Seq(2), **bounds)
    assert third is not None
    assert bytes(third.frames) == frames[2] == tail.slice(Seq(2), **bounds).frames


def test_frames_that_are_added_before_a_tail_leave_its_views_and_readers_alone() -> None:
    frames = [b"%d" % number * 9000 for number in range(10)]
    earlier, tail = Tail(), Tail(Seq(6))
    earlier.extend(frames[:5])
    earlier.trim(Seq(3))
    tail.extend(frames[5:], close=True)
    tail.trim(Seq(7))
    tail.prepend(joined_with(earlier, frames[5]))
    view = tail.view(Seq(7), max_bytes=10**6, max_events=2)
    assert view is not None
    assert tail.first_seq == 3
    assert tail.last_seq == 10
    for after in range(2, 10):
        cut = tail.slice(Seq(after), max_bytes=10**6, max_events=100)
        assert (cut.first_seq, cut.frames) == (after + 1, b"".join(frames[after:]))
    tail.trim(Seq(9))
    assert bytes(view.frames) == b"".join(frames[7:9])
    assert tail.slice(Seq(8), max_bytes=1, max_events=9).frames == frames[8]


def joined_with(tail: Tail, frame: bytes) -> Tail:
    tail.extend([frame])
    return tail
