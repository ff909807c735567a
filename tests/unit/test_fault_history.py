"""The history of a run under faults reports every broken promise, and the table counts them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.faults.experiment import Outcome
from bench.faults.history import Finding, History, Kind, Reader
from bench.faults.repeated import table

RUN = "run-00000000-0000-4000-8000-000000000000"
DONE = b"data: [DONE]\n\n"


def frame(seq: int, kind: str = "assistant_message", **more: Any) -> bytes:
    event = {"message_type": kind, "seq_id": seq, "run_id": RUN, **more}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


LOG = [
    frame(1, content="one"),
    frame(2, content="two"),
    frame(3, "stop_reason", stop_reason="end_turn"),
    frame(4, "usage_statistics"),
]


def reader_of(*frames: bytes, may_lose: bool = False) -> Reader:
    reader = Reader(History("a run", may_lose=may_lose, run_id=RUN))
    reader.feed(b"".join(frames))
    return reader


def kinds(reader: Reader) -> list[Kind]:
    return [finding.kind for finding in reader.history.findings]


def test_a_whole_answer_in_any_chunks_over_several_connections_has_no_finding() -> None:
    reader = reader_of()
    for byte in b"".join(LOG[:2]):
        reader.feed(bytes([byte]))
    reader.feed(LOG[2][:10])
    reader.reconnect()
    reader.feed(frame(2, "ping") + LOG[2] + LOG[3] + DONE)
    reader.history.check_log(LOG, 1)
    assert reader.done
    assert reader.history.ended.is_set()
    assert reader.history.events_read == 4
    assert reader.history.end() == "end_turn"
    assert reader.history.findings == []


@pytest.mark.parametrize(
    ("frames", "kind"),
    [
        ((LOG[0], LOG[2]), Kind.LOSS),
        ((LOG[0], LOG[1], LOG[1]), Kind.DOUBLE),
        ((*LOG, DONE, frame(5)), Kind.DOUBLE),
        ((LOG[0].replace(b"run-0", b"run-1"),), Kind.OTHER),
    ],
    ids=["a gap", "a repetition", "something after the end", "another run"],
)
def test_an_event_that_a_reader_must_not_get_is_reported(
    frames: tuple[bytes, ...], kind: Kind
) -> None:
    assert kinds(reader_of(*frames)) == [kind]


def test_two_readers_that_get_other_bytes_under_one_number_are_reported() -> None:
    first = reader_of(LOG[0], may_lose=True)
    Reader(first.history).feed(frame(1, content="another"))
    assert kinds(first) == [Kind.OTHER]


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ([frame(1, content="another"), *LOG[1:]], Kind.OTHER),
        (LOG[:2], Kind.OTHER),
        ([*LOG, frame(5, "stop_reason"), frame(6, "usage_statistics")], Kind.DOUBLE),
        ([LOG[0], LOG[2], LOG[3]], Kind.OTHER),
    ],
    ids=["other bytes", "no terminal group", "two terminal groups", "a gap"],
)
def test_a_log_that_differs_from_the_history_or_has_no_single_end_is_reported(
    log: list[bytes], kind: Kind
) -> None:
    reader = reader_of(LOG[0])
    reader.history.check_log(log, 1)
    assert kind in kinds(reader)


def test_events_that_were_read_and_are_gone_are_a_loss_unless_the_store_may_lose_them() -> None:
    end = [frame(3, "stop_reason"), frame(4, "usage_statistics")]
    for may_lose in (False, True):
        reader = reader_of(*LOG[:2], may_lose=may_lose)
        reader.skip_to(2)
        reader.history.check_log(end, 3)
        assert set(kinds(reader)) == (set() if may_lose else {Kind.LOSS})


def test_a_log_that_ends_before_the_last_read_event_is_a_loss_even_if_the_store_may_lose() -> None:
    reader = reader_of(*LOG[:3], may_lose=True)
    reader.history.check_log([frame(1, "stop_reason"), frame(2, "usage_statistics")], 1)
    assert Kind.LOSS in kinds(reader)


def test_the_table_has_a_line_for_each_fault_with_sums_and_the_slowest_end() -> None:
    first = Outcome("kill", 7.0, runs=4, events_read=10, longest_end_seconds=1.26)
    first.ends = ["end_turn", "stream_incomplete"]
    second = Outcome("kill", 8.0, runs=4, events_read=20, longest_end_seconds=2.5)
    second.ends = ["end_turn", "end_turn"]
    second.findings = [Finding(Kind.LOSS, ""), Finding(Kind.LOSS, ""), Finding(Kind.ORPHAN, "")]
    lines = table([first, Outcome("pause", 9.0), second]).splitlines()
    assert lines[0].startswith("| fault | repetitions | runs | completed | events read | losses |")
    assert lines[2] == "| kill | 2 | 8 | 3 | 30 | 2 | 0 | 1 | 0 | 2.5 | 8.0 |"
    assert lines[3] == "| pause | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 0.0 | 9.0 |"
    assert len(lines) == 4
