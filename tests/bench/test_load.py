"""The load client counts correct answers and reports wrong ones."""

import time
from collections.abc import Sequence

import pytest

from bench.measuring.load import (
    IN_JSON,
    IN_URL,
    Group,
    GroupReport,
    Load,
    Reader,
    Request,
    SpoiledError,
    program,
)
from bench.measuring.machine import Cores
from tests.bench.scripted_server import (
    DONE,
    END,
    HEAD,
    STOP,
    answering,
    chunk,
    event,
    ping,
    run,
    whole,
)

GET = Request.of("GET", "/stream")
AFTER = Request.of("GET", f"/stream?after{IN_URL}")
LIMIT_SECONDS = 20.0


def read(
    *answers: Sequence[bytes],
    reader: Reader | None = None,
    mode: str = "once",
    flags: Sequence[str] = ("terminal",),
) -> GroupReport:
    with (
        answering(*answers) as server,
        Load(server.port, [Group("g", mode, [reader or Reader(GET)], frozenset(flags))],
             Cores.available().load) as load,
    ):  # fmt: skip
        return load.done(LIMIT_SECONDS).groups["g"]


def test_a_whole_run_is_counted() -> None:
    totals = read([whole(run(5))], reader=Reader(GET, last=5))
    assert (totals.requests, totals.responses, totals.events, totals.errors) == (1, 1, 5, 0)
    assert totals.bytes == len(run(5))
    assert totals.first_byte.count == totals.whole.count == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_a_run_may_arrive_in_chunks_of_any_boundaries(size: int) -> None:
    body = run(4)
    answer = HEAD + b"".join(chunk(body[at : at + 33]) for at in range(0, len(body), 33)) + END
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    assert read(pieces, reader=Reader(GET, last=4)).events == 4


def test_a_response_may_have_a_length_instead_of_chunks() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(run(3))
    assert read([head, run(3)]).events == 3


def test_a_keepalive_is_not_counted_as_an_event() -> None:
    body = event(1) + ping(1) + STOP % 2 + DONE
    totals = read([whole(body)])
    assert (totals.events, totals.pings, totals.ping_gap.count) == (2, 1, 1)


def test_a_loop_repeats_the_request_on_one_connection_the_given_number_of_times() -> None:
    totals = read([whole(run(2))], mode="loop", flags=["terminal", "count=7"])
    assert (totals.requests, totals.responses, totals.events, totals.reconnects) == (7, 7, 14, 0)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (AFTER, b"/stream?after=000000000003 "),
        (
            Request.of("POST", "/s", {"starting_after": IN_JSON}),
            b'{"starting_after":            3}',
        ),
    ],
    ids=["in the URL", "in the body"],
)
def test_the_cursor_replaces_its_placeholder_in_the_request(request_: Request, said: bytes) -> None:
    with answering([whole(run(5, after=3))]) as server:
        readers = [Reader(request_, after=3, last=5)]
        group = Group("g", "once", readers, frozenset({"terminal"}))
        with Load(server.port, [group], Cores.available().load) as load:
            assert load.done(LIMIT_SECONDS).groups["g"].events == 2
        assert said in server.requests[0]


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (whole(event(1) + event(3) + DONE), "seq_id 3 after 1"),
        (whole(event(1) + event(1) + DONE), "seq_id 1 after 1"),
        (whole(event(2) + DONE), "seq_id 2 after 0"),
        (whole(event(1) + DONE), r"\[DONE\] without a stop_reason"),
        (whole(event(1) + STOP % 2), r"the body ended without \[DONE\] at 2"),
        (whole(run(3)), r"\[DONE\] at 3 of 5"),
        (whole(run(5) + DONE), r"a second \[DONE\]"),
        (whole(run(5) + event(6)), r"an event after \[DONE\]"),
        (whole(run(5)) + b"x", "bytes behind the response"),
        (whole(run(5)[:-1]), "in the middle of an event|without"),
        (whole(b'data: {"message_type":"error_message","seq_id":1}\n\n'), "the run failed"),
        (whole(b"data: {}\n\n"), "a frame without seq_id"),
        (HEAD + b"z\r\n", "a broken chunk size"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}", "status 404"),
        (b"nonsense that is long enough\r\n\r\n", "this is no HTTP"),
    ],
)
def test_a_wrong_answer_gives_no_figure(answer: bytes, wrong: str) -> None:
    with pytest.raises(SpoiledError, match=wrong):
        read([answer], reader=Reader(GET, last=5))


def test_a_stream_that_the_server_cuts_gives_no_figure() -> None:
    with pytest.raises(SpoiledError, match="cut by the server at 1"):
        read([HEAD + chunk(event(1)), b""])


def test_a_stream_without_an_end_gives_no_figure() -> None:
    with (
        answering([HEAD + chunk(event(1))]) as server,
        Load(server.port, [Group("g", "once", [Reader(GET)])], Cores.available().load) as load,
    ):
        load.opened()
        with pytest.raises(SpoiledError, match="had not ended when time was up, at 1"):
            load.done(0.2)


def test_a_cut_reader_resumes_from_its_cursor_and_misses_nothing() -> None:
    late = str(time.monotonic_ns())
    rest = event(3, f"{late} {late} ") + STOP % 4 + DONE
    with answering([HEAD + chunk(event(1) + event(2))], [whole(rest)]) as server:
        readers = [Reader(GET, AFTER, last=4)]
        group = Group("g", "once", readers, frozenset({"terminal", "stamped"}))
        with Load(server.port, [group], Cores.available().load) as load:
            load.opened()
            load.cut("g", time.monotonic_ns() + 50_000_000)
            assert load.caught_up(LIMIT_SECONDS) >= 0
            totals = load.done(LIMIT_SECONDS).groups["g"]
        assert b"after=000000000002 " in server.requests[1]
    assert (totals.events, totals.reconnects, totals.not_caught_up) == (4, 1, 0)
    assert totals.caught_up.count == 1


def test_lag_counts_from_the_stamp_and_only_within_the_measured_time() -> None:
    now = time.monotonic_ns()
    stamps = [now - 10_000_000_000, now - 2_000_000_000, now - 1_000_000_000]
    texts = b"".join(event(seq, f"{at} {at + 5} ") for seq, at in enumerate(stamps, 1))
    body = HEAD, chunk(texts + STOP % 4 + DONE) + END
    with answering(body) as server:
        readers = [Reader(GET, start_seconds=0.3)]
        group = Group("g", "once", readers, frozenset({"terminal", "stamped"}))
        with Load(server.port, [group], Cores.available().load) as load:
            load.measure(now - 3_000_000_000, now)
            totals = load.done(LIMIT_SECONDS).groups["g"]
    assert totals.events == 4
    assert totals.lag.count == 2
    assert 1_000_000_000 < totals.lag.p50 < totals.lag.max
    assert totals.lag.max > 2_000_000_000
    assert totals.lag_of_yield.max <= totals.lag.max


def test_quantiles_are_exact_to_two_per_cent() -> None:
    now = time.monotonic_ns()
    texts = b"".join(event(n, f"{now - n * 1_000_000_000} 0 ") for n in range(1, 101))
    answer = whole(texts + STOP % 101 + DONE)
    totals = read([answer], flags=["terminal", "stamped"])
    waited = totals.lag.max - 100_000_000_000
    assert 0 < waited < LIMIT_SECONDS * 1e9
    assert totals.lag.count == 100
    for quantile, seconds in ((totals.lag.p50, 50), (totals.lag.p90, 90), (totals.lag.p99, 99)):
        exact = seconds * 1_000_000_000 + waited
        assert exact * 0.999 <= quantile <= exact * 1.02


def test_bytes_between_events_of_other_servers_are_ignored() -> None:
    body = b"event: control\ndata: {}\n\nevent: data\ndata: " + b"".join(
        b'{"seq_id":%d,"content":"x"}' % seq for seq in (1, 2, 3)
    )
    totals = read(
        [HEAD + chunk(body + b"\n\n")],
        reader=Reader(GET, last=3),
        flags=["foreign", "until_last"],
    )
    assert (totals.events, totals.responses) == (3, 1)


def test_a_hundred_readers_are_reported_as_open_and_released_on_exit() -> None:
    with answering([HEAD + chunk(event(1))]) as server:
        group = Group("g", "hold", [Reader(GET)] * 100)
        with Load(server.port, [group], Cores.available().load) as load:
            load.opened()
            load.stop(time.monotonic_ns())
            totals = load.done(LIMIT_SECONDS).groups["g"]
    assert (totals.readers, totals.responses, totals.errors) == (100, 100, 0)


def test_without_a_compiler_the_error_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr("bench.measuring.load.FLAGS", ("-O0",))
    with pytest.raises(SystemExit, match="there is no compiler"):
        program()
