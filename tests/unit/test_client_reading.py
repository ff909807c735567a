"""The protocol of the Python clients, step by step, with a clock of its own and without I/O.

Both twins run these steps; ``tests/clients/test_client_abilities.py`` has them over real sockets.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reattach.client.errors import GaveUpError
from reattach.client.sse import Parser
from reattach.client.states import State
from reattach.client.steps import (
    Answer,
    Emit,
    Open,
    Read,
)
from reattach.domain.errors import (
    ConflictError,
    ExpiredError,
    NotFoundError,
    ReattachError,
    UnauthorizedError,
)
from tests.support.client_script import OTHER, RUN, STREAM, Script, done, frame, frames

# The stream.


@pytest.mark.parametrize(("line_end", "stride"), [("\r\n", 1), ("\n", 7), ("\r", 7)])
def test_lines_end_with_lf_crlf_or_cr_and_pieces_end_anywhere(line_end: str, stride: int) -> None:
    said = frame(1, content="ä😀\u2028")
    text = f"\ufeff: a comment\nretry: 1000\n{said}: keepalive\n{done(1)}"
    data = text.replace("\n", line_end).encode()
    whole = Parser().feed(data)
    assert [one.event for one in whole] == ["", "ping", "done"]
    assert json.loads(whole[0].data or "")["content"] == "ä😀\u2028"
    for at in range(0, len(data) + 1, stride):
        parser = Parser()
        assert parser.feed(data[:at]) + parser.feed(data[at:]) == whole
    one_by_one = Parser()
    assert [one for byte in data for one in one_by_one.feed(bytes([byte]))] == whole


def test_data_of_several_lines_is_one_event_and_unknown_events_and_fields_are_skipped() -> None:
    script = Script().follow(run_id=RUN)
    script.answer(
        f'data: {{"message_type":"ping","run_id":"{RUN}",\ndata: "seq_id":1}}\n\n'
        "event: news\ndata: {}\n\nid: 7\n\nevent: ping\ndata: {}\n\nnonsense\nfield: x\n\n"
        + frame(2)
        + done(2)
    )
    assert script.seqs == [1, 2]
    assert script.step is None


def test_a_frame_without_its_blank_line_is_asked_for_again() -> None:
    script = Script().follow(run_id=RUN)
    assert script.request.path == f"/v1/runs/{RUN}/stream?starting_after=0"
    script.answer(frame(1) + frame(2)[:-1])
    script.write("")
    script.wait()
    assert script.request.path == f"/v1/runs/{RUN}/stream?starting_after=1"
    script.answer(frames(2, 3) + done(3))
    assert script.seqs == [1, 2, 3]


def test_events_that_were_read_before_are_dropped() -> None:
    script = Script().follow(run_id=RUN, starting_after=2)
    script.answer(frames(1, 4) + frame(3) + done(4))
    assert script.seqs == [3, 4]


FAULTS = {
    "a gap": frame(3),
    "an event of another run": frame(2, OTHER),
    "an end after missing events": done(2),
    "an event that is not JSON": "data: {\n\n",
    "an event that is no object": "data: 7\n\n",
    "a snapshot without its seq": 'event: snapshot\ndata: {"messages": []}\n\n',
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_after_a_fault_the_stream_is_read_again_from_the_last_good_event(fault: str) -> None:
    script = Script().follow(run_id=RUN)
    script.answer(frame(1) + fault + frame(2))
    script.wait()
    assert script.request.path.endswith("starting_after=1")
    script.answer(frames(2, 3) + done(3))
    assert script.seqs == [1, 2, 3]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_two_faults_in_a_row_fail_the_stream(fault: str) -> None:
    script = Script().follow(run_id=RUN)
    script.answer(frame(1) + fault)
    script.wait()
    with pytest.raises(ReattachError, match="is broken"):
        script.answer(fault)
    assert script.names[-1] == "failed"


def test_a_conversation_is_resolved_once_and_a_reconnect_names_the_run() -> None:
    script = Script().follow(agent_id="agent-1&x")
    assert script.request.path == (
        "/v1/conversations/default/stream?agent_id=agent-1%26x&starting_after=0"
    )
    script.answer(frame(1))
    script.fail()
    script.wait()
    assert script.request.path == f"/v1/runs/{RUN}/stream?starting_after=1"


def test_an_id_from_elsewhere_cannot_lead_to_another_path() -> None:
    script = Script().follow(run_id="run/../../agents?x=1&")
    assert script.request.path.startswith("/v1/runs/run%2F..%2F..%2Fagents%3Fx%3D1%26/stream?")


def test_bytes_after_the_end_are_ignored() -> None:
    script = Script().follow(run_id=RUN)
    end = frame(1, message_type="stop_reason", stop_reason="end_turn")
    script.answer(end + done(1) + frame(2))
    assert script.seqs == [1]
    assert script.states[-1] == State("ended", stop_reason="end_turn")


@pytest.mark.promise("P20")
def test_a_snapshot_comes_first_and_the_events_after_it_next_over_a_cut_within_it() -> None:
    snapshot = {"run_id": RUN, "status": "running", "seq": 7, "messages": []}
    text = f"event: snapshot\nid: {RUN}:7\ndata: {json.dumps(snapshot)}\n\n"
    script = Script().follow(conversation_id="conv-1", snapshot=True)
    assert script.request.path.endswith("&from=snapshot")
    script.answer(text[:40])
    script.fail()
    script.wait()
    assert script.request.path.endswith("&from=snapshot")
    script.answer(text + frame(8))
    script.fail()
    script.wait()
    assert script.request.path == f"/v1/runs/{RUN}/stream?starting_after=8"
    script.answer(frame(9) + done(9))
    assert script.seqs == [{**snapshot, "message_type": "snapshot"}, 8, 9]


@pytest.mark.promise("P4")
@settings(max_examples=60)
@given(st.data())
def test_each_event_comes_once_wherever_the_stream_is_cut(data: st.DataObject) -> None:
    last = data.draw(st.integers(1, 8))
    script = Script().follow(run_id=RUN, starting_after=data.draw(st.integers(0, last)))
    first = int(script.request.path.rpartition("=")[2]) + 1
    cuts = 0
    while script.step is not None:
        if not isinstance(script.step, Open):
            script.wait()
        cursor = int(script.request.path.rpartition("=")[2])
        # A server may repeat events that were read before.
        begin = data.draw(st.integers(1, cursor + 1))
        body = (frames(begin, last) + done(last)).encode()
        if cuts < 4:
            body = body[: data.draw(st.integers(0, len(body)))]
            cuts += 1
        script.give(Answer(200, STREAM))
        at = data.draw(st.integers(0, len(body)))
        for piece in (body[:at], body[at:]):
            if piece and isinstance(script.step, Read):
                script.give(piece)
        if isinstance(script.step, Read):
            script.fail()
    assert script.seqs == list(range(first, last + 1))
    assert script.states[-1].name == "ended"


# Retries.


def test_the_first_retry_is_immediate_and_then_the_bound_doubles_up_to_the_last_one() -> None:
    script = Script().follow(run_id=RUN)
    waits = []
    for _ in range(9):
        script.fail()
        waits.append(script.wait())
    assert waits == [0, 0.25, 0.5, 1, 2, 4, 8, 15, 15]
    waiting = [state for state in script.states if state.name == "waiting"]
    assert [state.attempt for state in waiting] == list(range(1, 10))
    assert waiting[1] == State("waiting", attempt=2, delay_seconds=0.25, cause="cut")


def test_an_event_or_a_keepalive_resets_the_waits_and_a_200_that_ends_at_once_does_not() -> None:
    script = Script().follow(run_id=RUN)
    waits = []
    texts = ["", "", "", frame(1), "", ": keepalive\n", ": anything else\n"]
    ping = f'data: {{"message_type":"ping","seq_id":1,"run_id":"{RUN}"}}\n\n'
    for text in [*texts, ping]:
        script.answer(text)
        script.write("")
        waits.append(script.wait())
    assert waits == [0, 0.25, 0.5, 0, 0.25, 0, 0.25, 0]


def test_retry_after_and_the_retry_of_a_body_without_events_are_least_waits() -> None:
    script = Script().follow(run_id=RUN)
    script.refuse(503, {"detail": "draining"}, **{"retry-after": "7"})
    assert script.wait() == 7
    script.refuse(503, b"", **{"retry-after": "Sun, 22 Nov 2026 12:00:18 GMT"})
    assert script.wait() == 11
    for nonsense in ("soon", "-5", "Sun, 22 Nov 2026 11:00:00 GMT", "Sun, 99 Nov 2026 11:00:00"):
        script.answer(": keepalive\n")
        script.write("")
        script.wait()
        script.refuse(503, b"", **{"retry-after": nonsense})
        assert script.wait() == 0.25
    script.answer(': {"detail":"draining"}\nretry: 3000\n\n')
    script.write("")
    assert script.wait() == 3
    script.answer(f"retry: 1000\n{frame(1)}")
    script.fail()
    assert script.wait() == 0


def test_a_read_lasts_no_longer_than_three_keepalives() -> None:
    script = Script().follow(run_id=RUN)
    assert script.step == Open(script.request, 45.0)


def test_it_gives_up_after_the_time_without_a_sign_of_life_and_names_the_last_cause() -> None:
    script = Script(give_up_seconds=60).follow(run_id=RUN, starting_after=3)
    script.answer(frame(4))
    started = script.clock.now()
    script.fail()

    def retry() -> None:
        for number in range(100):
            script.wait()
            script.fail(f"cut {number}")

    with pytest.raises(GaveUpError, match=r"for 60 s; last cause: cut 8\. .*after=4") as gave_up:
        retry()
    assert (gave_up.value.since, gave_up.value.cause) == (started, "cut 8")
    assert gave_up.value.cursor == 4
    assert isinstance(gave_up.value, TimeoutError)
    assert script.states[-1] == State("failed", error=gave_up.value)


def test_a_server_that_asks_for_a_longer_wait_than_is_left_is_given_up_at_once() -> None:
    script = Script().follow(run_id=RUN)
    with pytest.raises(GaveUpError, match=r"asks to wait 3600 s, .* gives up in 600 s; last cause"):
        script.refuse(503, {"detail": "moving"}, **{"retry-after": "3600"})


def test_a_computer_that_slept_has_not_waited_all_that_time() -> None:
    script = Script().follow(run_id=RUN)
    script.answer(frame(1))
    script.clock.leap(8 * 3600)
    script.fail()
    assert script.wait() == 0


def test_the_time_that_the_consumer_took_is_no_silence() -> None:
    script = Script(give_up_seconds=30).follow(run_id=RUN)
    steps = script._steps
    step = steps.send(Answer(200, STREAM))
    step = steps.send(frame(1).encode())
    assert isinstance(step, Emit)
    script.clock.leap(40)
    assert next(steps) == Read()
    script.fail()
    assert script.wait() == 0


# Refusals.


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, {"detail": "Run not found", "code": "not_found"}, NotFoundError),
        (409, {"detail": "ahead", "code": "cursor_ahead", "last_seq": 3}, ConflictError),
        (410, {"detail": "gone", "code": "expired", "expired_at": "…"}, ExpiredError),
        (410, {"detail": "lost", "code": "events_lost", "earliest_seq": 5}, ExpiredError),
        (400, {"detail": "No active runs found"}, ReattachError),
        (422, {"detail": "bad", "fact": "a member of another name"}, ReattachError),
        (501, {"detail": "not offered"}, ReattachError),
        (401, {"detail": "key"}, UnauthorizedError),
    ],
)
def test_a_refusal_is_final_and_has_the_members_of_the_servers_error(
    status: int, body: dict[str, Any], kind: type[ReattachError]
) -> None:
    script = Script().follow(run_id=RUN)
    with pytest.raises(kind, match=body["detail"]) as refused:
        script.refuse(status, body)
    error = refused.value
    assert type(error) is kind
    assert error.status == status
    assert error.code == body.get("code", kind.code)
    assert error.extra == {name: one for name, one in body.items() if name != "detail"}
    assert script.states[-1] == State("failed", error=error)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_a_busy_server_is_asked_again(status: int) -> None:
    script = Script().follow(run_id=RUN)
    script.refuse(status, b"<h1>Sorry</h1>")
    script.wait()
    assert isinstance(script.step, Open)


@pytest.mark.parametrize("status", [302, 403, 404, 410])
def test_a_page_of_a_proxy_is_final_only_until_the_server_itself_has_answered(status: int) -> None:
    with pytest.raises(ReattachError, match="<h1> Sorry </h1>") as refused:
        Script().follow(run_id=RUN).refuse(status, b"<h1>\nSorry\n</h1>")
    assert refused.value.status == status
    script = Script(was_attached=True).follow(run_id=RUN)
    script.refuse(status, b"<h1>Sorry</h1>")
    assert script.states[-1].cause == f"the server answered {status}"
    with pytest.raises(ReattachError):
        Script(was_attached=True).follow(run_id=RUN).refuse(404, {"detail": "Run not found"})


def test_a_captive_portal_is_final_only_until_the_server_itself_has_answered() -> None:
    page = {"content-type": "text/html"}
    with pytest.raises(ReattachError, match="answered with text/html instead of an event stream"):
        Script().follow(run_id=RUN).answer(**page)
    script = Script().follow(run_id=RUN)
    script.answer(frame(1))
    script.fail()
    script.wait()
    script.give(Answer(200, page))
    assert script.states[-1].cause == "the answer was text/html instead of an event stream"
    script.wait()
    script.answer(frame(2) + done(2))
    assert script.seqs == [1, 2]
