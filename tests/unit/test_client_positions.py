"""Tokens, storages and many runs of the Python clients, step by step and without I/O."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reattach.client.errors import ClosedError
from reattach.client.steps import (
    Answer,
    Emit,
    Open,
    Read,
    Wait,
)
from reattach.client.tokens import Tokens
from reattach.domain.errors import (
    NotFoundError,
    ReattachError,
    UnauthorizedError,
)
from tests.support.client_script import OTHER, RUN, STREAM, Script, done, frame, frames, noon
from tests.support.clocks import LeapClock

# Tokens.


def test_a_refused_token_is_renewed_once_and_a_refused_fresh_one_is_final() -> None:
    asked: list[bool] = []

    def token(fresh: bool) -> str:
        asked.append(fresh)
        return f"t{len(asked)}"

    script = Script(token=token).follow(run_id=RUN)
    assert script.request.token == "t1"
    script.refuse_token()
    assert script.request.token == "t2"
    script.answer(frame(1) + done(1))
    assert script.names == ["connecting", "renewing", "live", "ended"]
    script.states.clear()
    script.follow(run_id=RUN)
    script.refuse_token()
    assert script.request.token == "t3"
    with pytest.raises(UnauthorizedError, match="401"):
        script.refuse(401, {"detail": "Unauthorized"})
    assert asked == [False, True, True]


def test_a_token_is_renewed_at_80_percent_of_its_life_on_one_more_connection() -> None:
    asked: list[bool] = []

    def token(fresh: bool) -> dict[str, str]:
        asked.append(fresh)
        end = noon(script.clock.passed_seconds + 60)
        return {"token": f"t{len(asked)}", "expires_at": end}

    script = Script(token=token)
    script.follow(run_id=RUN)
    assert script.step == Open(script.request, 45.0)
    script.answer(frame(1))
    script.clock.leap(47)
    script.write(": keepalive\n")
    assert isinstance(script.step, Read)
    script.clock.leap(1)
    script.write(": keepalive\n")
    assert (script.request.token, script.request.path[-17:]) == ("t2", "?starting_after=1")
    script.answer(frame(2) + done(2))
    assert script.seqs == [1, 2]
    assert asked == [False, True]
    assert "waiting" not in script.names


def test_a_silent_stream_is_left_when_its_token_is_to_be_renewed() -> None:
    lives = [20.0, 100.0]

    def token(fresh: bool) -> dict[str, str]:
        end = noon(script.clock.passed_seconds + lives.pop(0))
        return {"token": f"t{len(lives)}", "expires_at": end}

    script = Script(token=token)
    script.follow(run_id=RUN)
    assert isinstance(script.step, Open)
    assert script.step.silence_seconds == pytest.approx(16.0)
    script.answer()
    script.clock.leap(16.0)
    script.fail("the connection fell silent")
    assert script.request.token == "t0"
    assert "waiting" not in script.names


def test_a_token_function_that_fails_is_asked_again_and_a_valid_token_is_used_meanwhile() -> None:
    answers: list[Any] = [OSError("offline"), {"token": "good", "expires_at": noon(100)}]
    answers += [OSError("offline")]

    def token(fresh: bool) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    script = Script(token=token).follow(run_id=RUN)
    assert script.states[-1].cause == "the token function failed: offline"
    script.wait()
    assert script.request.token == "good"
    script.answer(frame(1))
    script.clock.leap(80)
    script.write(": keepalive\n")
    assert script.request.token == "good"
    script.answer(frame(2) + done(2))
    assert script.seqs == [1, 2]


def test_a_clock_that_is_ahead_renews_no_token_before_the_server_says_that_it_is_due() -> None:
    script = Script(token=lambda fresh: {"token": "t", "expires_at": noon(-1)})
    script.follow(run_id=RUN)
    assert script.core.tokens.renew_seconds is None


def test_a_key_and_a_token_together_are_refused() -> None:
    with pytest.raises(ReattachError, match="an API key or a token, not both"):
        Tokens("key", "token", LeapClock())


# Sends and storages.


def test_a_send_is_repeated_with_its_otid_until_the_run_is_known() -> None:
    script, otid = Script().send("hello")
    first = script.request
    assert (first.method, first.path) == ("POST", "/v1/conversations/conv-1/messages")
    assert first.body == {
        "messages": [{"role": "user", "content": "hello", "otid": otid}],
        "background": True,
        "stream_tokens": True,
        "streaming": True,
    }
    script.fail()
    script.wait()
    assert script.request == first
    script.answer()
    script.fail()
    script.wait()
    assert (script.request.method, script.request.path) == (
        "GET",
        f"/v1/runs/{RUN}/stream?starting_after=0",
    )


def test_each_message_of_a_list_has_an_otid_and_those_of_the_application_stay() -> None:
    messages: list[dict[str, Any]] = [
        {"type": "approval", "approvals": []},
        {"role": "user", "content": "b"},
        {"role": "user", "content": "c", "otid": "mine"},
    ]
    plan = Script().calls.send(
        "default",
        messages,
        otid="o",
        agent_id="agent-1",
        client_tools=[{"name": "t"}],
        body={"override_model": "m", "messages": []},
    )
    body = plan.request().body
    assert body is not None
    assert [one["otid"] for one in body["messages"]] == ["o", "o-1", "mine"]
    assert (body["agent_id"], body["client_tools"]) == ("agent-1", [{"name": "t"}])
    assert body["override_model"] == "m"


def test_a_process_that_starts_again_goes_on_after_the_last_event_that_it_had_processed() -> None:
    storage: dict[str, str] = {}
    before, _ = Script(storage=storage).send("hello")
    steps = before._steps
    steps.send(Answer(200, STREAM))
    step = steps.send(frames(1, 5).encode())
    for _ in range(2):
        step = next(steps)
    assert isinstance(step, Emit)
    assert step.event["seq_id"] == 3
    again = Script(storage=storage).follow(conversation_id="conv-1")
    assert again.request.path == f"/v1/runs/{RUN}/stream?starting_after=2"
    again.answer(frames(3, 5) + done(5))
    assert again.seqs == [3, 4, 5]
    # The run has ended, and is shown again unless another one is active.
    shown = Script(storage=storage).follow(conversation_id="conv-1", snapshot=True)
    assert "/v1/conversations/conv-1/stream" in shown.request.path
    shown.refuse(400, {"detail": "No active runs"})
    assert shown.request.path == f"/v1/runs/{RUN}/stream?starting_after=0&from=snapshot"
    shown.answer(f'event: snapshot\nid: 5\ndata: {{"run_id": "{RUN}", "seq": 5}}\n\n{done(5)}')
    assert shown.names[-1] == "ended"
    rest = Script(storage=storage).follow(conversation_id="conv-1")
    rest.refuse(400, {"detail": "No active runs"})
    assert rest.request.path == f"/v1/runs/{RUN}/stream?starting_after=5"


def test_a_run_that_was_followed_by_its_id_is_forgotten_at_its_end() -> None:
    storage: dict[str, str] = {}
    script = Script(storage=storage).follow(run_id=RUN)
    script.answer(frame(1) + done(1))
    assert script.seqs == [1]
    assert storage == {}


def test_a_message_whose_run_was_not_known_keeps_its_otid() -> None:
    storage: dict[str, str] = {}
    before, otid = Script(storage=storage).send("hello")
    before.leave()
    follower = Script(storage=storage).follow(conversation_id="conv-1")
    assert f"?otid={otid}&" in follower.request.path
    follower.leave()
    assert Script(storage=storage).send("hello")[1] == otid
    assert Script(storage=storage).send("something else")[1] != otid


def test_a_run_that_is_gone_is_forgotten_so_that_the_next_follow_asks_the_conversation() -> None:
    storage: dict[str, str] = {}
    before, _ = Script(storage=storage).send("hello")
    before.answer()
    before.leave()
    lost = Script(storage=storage).follow(conversation_id="conv-1")
    with pytest.raises(NotFoundError):
        lost.refuse(404, {"detail": "gone"})
    assert "/v1/conversations/conv-1/" in (
        Script(storage=storage).follow(conversation_id="conv-1").request.path
    )


class Broken(dict[str, str]):
    """A storage that raises exceptions, as one on a full disk does."""

    def get(self, *_: object) -> Any:
        raise OSError("no space left")

    def __setitem__(self, *_: object) -> None:
        raise OSError("no space left")

    pop = get


class Nonsense(dict[str, str]):
    """A storage with something else in it."""

    def get(self, *_: object) -> Any:
        return "{"


def test_a_value_that_is_no_position_is_replaced() -> None:
    storage: dict[str, str] = {}
    Script(storage=storage).send("hello")[0].leave()
    [key] = storage
    for nonsense in ["{", "7", ""]:
        storage[key] = nonsense
        script, _ = Script(storage=storage).send("hello")
        assert list(json.loads(storage[key])["sent"].values()) == ['"hello"']
        script.leave()


@pytest.mark.parametrize("storage", [Broken(), Nonsense()])
def test_a_storage_that_fails_changes_nothing_else(storage: dict[str, str]) -> None:
    script, _ = Script(storage=storage).send("hello")
    script.answer(frame(1) + done(1))
    assert script.seqs == [1]


# Many runs.


def many(script: Script, runs: dict[str, int], *, until_closed: bool = False) -> Any:
    return script.calls.many(runs, script.life, until_closed=until_closed)


def of(run_id: str, seq: int, **more: Any) -> str:
    return frame(seq, run_id, **more).replace("id: ", f"id: {run_id}:", 1)


@pytest.mark.promise("P21")
def test_runs_leave_when_they_end_and_a_reconnect_asks_for_the_others_after_their_cursors() -> None:
    script = Script()
    script.begin(many(script, {RUN: 1, OTHER: 0}))
    assert script.request.body == {
        "runs": [
            {"run_id": RUN, "starting_after": 1},
            {"run_id": OTHER, "starting_after": 0},
        ]
    }
    script.answer(of(OTHER, 1) + of(RUN, 2) + done(2, RUN))
    script.fail()
    script.wait()
    assert script.request.body == {"runs": [{"run_id": OTHER, "starting_after": 1}]}
    script.answer(of(OTHER, 2) + done(2, OTHER))
    assert script.seqs == [1, 2, 2]
    assert script.step is None
    assert script.names[-1] == "ended"


def test_a_run_that_cannot_be_followed_is_an_item_and_one_that_can_later_is_asked_for_again() -> (
    None
):
    script = Script()
    script.begin(many(script, {RUN: 3, OTHER: 0}))
    later = {"run_id": RUN, "status": 503, "code": "unavailable", "detail": "stopping"}
    never = {"run_id": OTHER, "status": 404, "code": "not_found", "detail": "unknown"}
    script.answer(
        f"event: run_error\ndata: {json.dumps(never)}\n\n"
        f"event: run_error\ndata: {json.dumps({**later, 'retry_after_seconds': 2})}\n\n"
    )
    assert script.seqs == [{**never, "message_type": "run_error"}]
    assert script.wait() == 2
    assert script.request.body == {"runs": [{"run_id": RUN, "starting_after": 3}]}


@pytest.mark.parametrize("text", ["{", "7", "{}"])
def test_a_run_error_that_cannot_be_read_is_asked_for_again(text: str) -> None:
    script = Script()
    script.begin(many(script, {RUN: 0}))
    script.answer(f"event: run_error\ndata: {text}\n\n")
    script.wait()
    script.answer(of(RUN, 1) + done(1, RUN))
    assert script.seqs == [1]


def test_a_run_that_is_added_again_keeps_its_cursor() -> None:
    script = Script()
    plan = many(script, {RUN: 3})
    plan.add(RUN, 0)
    script.begin(plan)
    assert script.request.body == {"runs": [{"run_id": RUN, "starting_after": 3}]}


def test_a_change_of_the_runs_connects_anew_at_once() -> None:
    script = Script()
    plan = many(script, {}, until_closed=True)
    script.begin(plan)
    assert script.step == Wait(None)
    assert script.names == ["idle"]
    plan.add(RUN, 4)
    script.give()
    script.answer()
    plan.add(OTHER, 0)
    script.write(of(RUN, 5))
    assert len((script.request.body or {})["runs"]) == 2
    assert "waiting" not in script.names
    script.answer()
    plan.drop(RUN)
    plan.drop(OTHER)
    script.write(": keepalive\n")
    assert script.step == Wait(None)
    script.life.close()
    with pytest.raises(ClosedError):
        script.give()
    assert script.names[-1] == "closed"


def test_more_than_100_runs_are_refused() -> None:
    script = Script()
    plan = many(script, {f"run-{number}": 0 for number in range(100)})
    plan.add("run-0", 5)
    with pytest.raises(ReattachError, match="at most 100 runs"):
        plan.add("run-100", 0)
