"""How late the frames of a stream were, from a recording of it."""

from __future__ import annotations

import gzip
import zlib

import pytest

from reattach.path.findings import Fault
from reattach.path.pace import judge_frames
from reattach.path.recording import Recording, delays_seconds
from reattach.path.timing import Timing

TIMING = Timing(frames=4, interval_seconds=1.0)


def frame(number: int, at_seconds: float) -> bytes:
    return b'data: {"number":%d,"at_seconds":%f,"padding":"x"}\n\n' % (number, at_seconds)


def recorded(*arrivals: float, headers: dict[str, str] | None = None) -> Recording:
    """A recording of frames that were sent once a second and arrived at these times."""
    recording = Recording(asked_frames=len(arrivals))
    recording.begin(200, headers or {}, 0.0)
    for number, arrived_at in enumerate(arrivals, 1):
        recording.take(frame(number, float(number)), arrived_at)
    recording.end = "whole"
    return recording


def test_only_the_spacing_counts_and_not_how_far_the_clocks_are_apart() -> None:
    assert delays_seconds([recorded(1001.0, 1002.0, 1003.5, 1004.0)]) == [0, 0, 0.5, 0]


def test_frames_that_come_together_at_the_end_are_late_by_the_time_that_they_waited() -> None:
    recording = recorded(4.0, 4.001, 4.002, 4.003)
    assert delays_seconds([recording]) == pytest.approx([2.997, 1.998, 0.999, 0])
    assert recording.frames_per_read == 4
    finding = judge_frames([recording], TIMING)
    assert (finding.level, finding.fault) == ("wrong", Fault.BUFFERED)
    assert "median 1.50 s, worst 3.00 s, 4.0 frames a read" in finding.detail


def test_a_delay_that_does_not_repeat_is_the_network_s() -> None:
    busy = [recorded(1.0, 2.9, 3.0, 4.0), recorded(1.0, 2.0, 3.0, 4.9)]
    assert judge_frames(busy, TIMING).level == "ok"
    twice = [recorded(1.3, 2.2, 3.0, 4.0), recorded(1.2, 2.3, 3.0, 4.0)]
    finding = judge_frames(twice, TIMING)
    assert (finding.level, finding.fault) == ("warning", Fault.LATE)
    assert finding.figures["worst_seconds"] == 0.2


def test_missing_frames_and_missing_streams_are_faults() -> None:
    finding = judge_frames([recorded(1.0, 2.0)], TIMING)
    assert (finding.level, finding.fault) == ("wrong", Fault.TOTAL_CUT)
    assert "only 2 of 4 frames came" in finding.detail
    nothing = judge_frames([Recording(asked_frames=4)], TIMING)
    assert (nothing.level, nothing.fault) == ("wrong", Fault.BUFFERED)
    refused = Recording(asked_frames=4, end="error", cause="CONFLICT: Another probe")
    refused.begin(409, {}, 0.0)
    assert (
        "status 409 after 0.0 s: CONFLICT: Another probe" in judge_frames([refused], TIMING).detail
    )


def test_frames_are_read_across_pieces_and_other_lines_are_passed_over() -> None:
    recording = Recording(asked_frames=2)
    recording.begin(200, {}, 0.0)
    data = b": a proxy\n\n" + frame(1, 0.5) + b'data: {"other":1}\n\n' + frame(2, 0.6)
    for start in range(0, len(data), 7):
        recording.take(data[start : start + 7], start / 100)
    assert [one.number for one in recording.frames] == [1, 2]
    assert recording.is_complete


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_frames_are_read_as_they_come(coding: str) -> None:
    recording = Recording(asked_frames=2)
    recording.begin(200, {"content-encoding": coding}, 0.0)
    compressor = zlib.compressobj(wbits=31 if coding == "gzip" else 15)
    for number in (1, 2):
        data = compressor.compress(frame(number, number)) + compressor.flush(zlib.Z_SYNC_FLUSH)
        recording.take(data, float(number))
    assert [one.arrived_at_seconds for one in recording.frames] == [1, 2]
    assert recording.encoding == coding


def test_what_cannot_be_read_is_counted_by_its_reads() -> None:
    recording = Recording(asked_frames=2)
    recording.begin(200, {"content-encoding": "br"}, 0.0)
    recording.take(gzip.compress(b"x"), 1.0)
    recording.take(b"y", 1.001)
    recording.take(b"z", 2.0)
    assert not recording.has_readable_frames
    assert (recording.frames, recording.reads) == ([], [1.0, 2.0])
    broken = Recording(asked_frames=2)
    broken.begin(200, {"content-encoding": "gzip"}, 0.0)
    broken.take(b"not gzip", 1.0)
    assert broken.frames == []


def test_bytes_that_were_withheld_until_a_cut_are_no_sign_of_life_before_it() -> None:
    live = recorded(0.1, 1.0)
    live.ended_at_seconds = 61.0
    assert live.silence_seconds == 60
    withheld = recorded(60.99, 61.0)
    withheld.head_seconds = 60.98
    withheld.ended_at_seconds = 61.0
    assert withheld.silence_seconds == 61
