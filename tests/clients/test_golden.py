"""Comparison of Reattach's answers with the retired server's recorded answers.

Same status, same content type, same grammar and order of frames, same members in the same order
with the same values. Ids, dates and token counts differ from call to call and are reduced
to their positions. ``DIFFERENCES`` lists every other difference with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from tests.clients.recorded import EXCHANGES, Frame, Json, Reduction, frames_of
from tests.support.threads import Thread

# The scripted model of the recording had other directives.

DIRECTIVES = {
    "hi": "hi [chunks=3]",
    "hi [think=2]": "hi [think=2][chunks=3]",
    "hi [tool=conversation_search]": "hi [tool=conversation_search][chunks=3]",
    "x [err=401]": "x [fail=0:llm_authentication]",
    "x [n=6][midfail=3]": "x [chunks=6][fail=3]",
    "x [tool=my_tool]": "x [client_tool=my_tool][chunks=0]",
}
CANCELLED_AFTER = "x [chunks=40][hang=19]"
"""The recorded run was cancelled after t0 to t18."""

# Intended differences.


@dataclass(frozen=True)
class Difference:
    """An intended difference, and the change that it makes to a recorded answer."""

    reason: str
    of: frozenset[str]
    frames: Callable[[list[Frame]], list[Frame]] = lambda frames: frames
    json: Callable[[Json], Json] = lambda body: body


SENDS = frozenset(
    {"fg_step", "fg_step_tool", "fg_token", "fg_token_tool", "fg_err", "bg_token", "bg_err"}
    | {"bg_midfail"}
)
REPLAYS = frozenset({"bg_dup_same_otid", "resume_otid", "resume_run_id_after_4", "runs_stream"})
STREAMS = (
    SENDS
    | REPLAYS
    | {"bg_cancelled_stream", "resume_cancelled", "client_tool_request", "client_tool_return"}
)
REFUSED_WHEN_IDLE = frozenset(
    {"resume_no_active", "resume_unknown_run", "resume_bad_run", "resume_unknown_otid"}
    | {"cancel_none"}
)
REFUSALS = REFUSED_WHEN_IDLE | {"resume_bad_conv", "busy_409"}
JSON_MODE = frozenset({"nonstream_json", "nonstream_json_tool"})
ANSWERS = JSON_MODE | {"cancel"}
CLIENT_TOOLS = ("client_tool_request", "pending_conflict_json", "client_tool_return")
"""Requests that are played one after another in one conversation."""

REFUSED_BY_STATUS = "pending_conflict_stream"
"""A refused send, which Reattach answers with a status, as for JSON, and not within a stream."""


def numbered(frames: list[Frame]) -> list[Frame]:
    """Number the frames consecutively from the first recorded number, or from 1."""
    events = [frame.data for frame in frames if isinstance(frame.data, dict)]
    first = next((data["seq_id"] for data in events if data.get("seq_id")), 1)
    run_id = next(data["run_id"] for data in events if "run_id" in data)
    expected = []
    for seq, frame in enumerate(frames, first):
        if isinstance(frame.data, dict):
            numbers = {"seq_id": seq, "run_id": run_id}
            expected.append(replace(frame, data=frame.data | numbers))
        else:
            expected.append(frame)
    return expected


def edited(kind: str, **members: Any) -> Callable[[list[Frame]], list[Frame]]:
    """Return a change that sets members of all frames of a type."""

    def edit(frames: list[Frame]) -> list[Frame]:
        return [
            replace(frame, data=frame.data | members)
            if frame.type == kind and isinstance(frame.data, dict)
            else frame
            for frame in frames
        ]

    return edit


def one_stop(frames: list[Frame]) -> list[Frame]:
    stops = [frame for frame in frames if frame.type == "stop_reason"]
    return [frame for frame in frames if frame not in stops[:-1]]


def with_usage(frames: list[Frame]) -> list[Frame]:
    usage = next(
        frame
        for frame in frames_of(EXCHANGES["fg_token"]["response"])
        if frame.type == "usage_statistics"
    )
    assert isinstance(usage.data, dict)
    steps = 1 if any(frame.type == "assistant_message" for frame in frames) else 0
    end = len(frames) - (frames[-1].type == "[DONE]")
    return [*frames[:end], replace(usage, data=usage.data | {"step_count": steps}), *frames[end:]]


def tool_frames(frames: list[Frame]) -> list[Frame]:
    """Replace the output of the recorded tool, which failed, by that of the scripted one."""
    output: Json = {
        "tool_return": "conversation_search returned 1",
        "status": "success",
        "stderr": None,
    }
    expected: list[Frame] = []
    for frame in frames:
        data = frame.data
        if isinstance(data, dict) and data["message_type"] == "tool_return_message":
            data = data | output
            data["tool_returns"] = [one | output for one in data["tool_returns"]]
        elif isinstance(data, dict) and data["message_type"] in CALLS:
            data = data | {"tool_call": arguments(data["tool_call"])}
            calls = data["tool_calls"]
            data["tool_calls"] = (
                arguments(calls) if isinstance(calls, dict) else [arguments(one) for one in calls]
            )
        expected.append(replace(frame, data=data))
    return expected


CALLS = {"tool_call_message", "approval_request_message"}


def arguments(call: Json) -> Json:
    if call.get("arguments") is None:
        return call
    spoken = {'{"a": 1}': '{"n": 1}', '{"a': '{"n":', '": 1}': " 1}"}
    return call | {"arguments": spoken[call["arguments"]]}


def tool_messages(body: Json) -> Json:
    frames = tool_frames([Frame(None, one) for one in body["messages"]])
    return body | {"messages": [frame.data for frame in frames]}


def with_repeated_returns(frames: list[Frame]) -> list[Frame]:
    """Replace the text by the scripted model's, which repeats its tools' returns."""
    words = {"t0 ": "my_tool ", "t1 ": "success: ", "t2 ": "42\n"}
    return [
        replace(frame, data=frame.data | {"content": words[frame.data["content"]]})
        if frame.type == "assistant_message" and isinstance(frame.data, dict)
        else frame
        for frame in frames
    ]


def text_kept(body: Json) -> Json:
    messages = [
        one | {"content": "t0 t1 t2 "} if one["message_type"] == "assistant_message" else one
        for one in body["messages"]
    ]
    return body | {"messages": messages}


def code_for(detail: str) -> str:
    codes = {
        "INVALID_ARGUMENT: No active runs": "no_active_run",
        "INVALID_ARGUMENT: Invalid": "invalid_argument",
        "No run found": "not_found",
        "CONFLICT: No active runs": "no_active_runs",
    }
    (code,) = (code for beginning, code in codes.items() if detail.startswith(beginning))
    return code


DIFFERENCES = [
    Difference(
        "every event carries its number and its run, in the foreground too; [DONE] has none",
        STREAMS,
        numbered,
    ),
    Difference(
        "a cancelled run's stop_reason was written by hand, with spaces",
        frozenset({"bg_cancelled_stream", "resume_cancelled"}),
        lambda frames: [replace(frame, compact=True) for frame in frames],
    ),
    Difference(
        "a log has one stop_reason, the one that says why",
        frozenset({"bg_midfail"}),
        one_stop,
    ),
    Difference(
        "every terminal group has its usage",
        frozenset({"fg_err", "bg_err", "bg_midfail", "bg_cancelled_stream", "resume_cancelled"}),
        with_usage,
    ),
    Difference(
        "every stream that was sent whole ends with [DONE]",
        frozenset({"bg_err", "bg_midfail"}),
        lambda frames: [*frames, Frame(None, "[DONE]")],
    ),
    Difference(
        "the error holds the redacted message of the provider, and no detail",
        frozenset({"fg_err", "bg_err"}),
        edited(
            "error_message", message="The scripted model failed as the script says: 0.", detail=None
        ),
    ),
    Difference(
        "a failure within a stream has its own error type, not that of an internal error",
        frozenset({"bg_midfail"}),
        edited(
            "error_message",
            error_type="llm_error",
            message="The scripted model failed as the script says: 3.",
            detail=None,
        ),
    ),
    Difference(
        "the scripted tool is another one, which succeeds",
        frozenset({"fg_step_tool", "fg_token_tool", "nonstream_json_tool", "client_tool_request"}),
        tool_frames,
        tool_messages,
    ),
    Difference(
        "a whole text is what its fragments make, its last space included",
        frozenset({"fg_step", "fg_step_tool", "nonstream_json", "nonstream_json_tool"}),
        edited("assistant_message", content="t0 t1 t2 "),
        text_kept,
    ),
    Difference(
        "the scripted model repeats the returns of a client's tools",
        frozenset({"client_tool_return"}),
        with_repeated_returns,
    ),
    Difference(
        "the calls that wait are named as well; every error has a stable code",
        frozenset({"pending_conflict_json"}),
        json=lambda body: {
            "pending_request_id": "message-d7bcb8c0-fecd-4430-981e-f6484e093b02",
            "tool_call_ids": ["call_5fb37c40d71b-my_tool"],
            "run_id": "run-abcacfda-967c-447d-9234-9331967bb50b",
            "detail": body["detail"],
            "code": "pending_approval",
        },
    ),
    Difference(
        "every error has a stable code",
        frozenset({"resume_no_active", "resume_bad_run", "resume_unknown_otid", "cancel_none"}),
        json=lambda body: body | {"code": code_for(body["detail"])},
    ),
    Difference(
        "the busy conversation is named as well; every error has a stable code",
        frozenset({"busy_409"}),
        json=lambda body: {
            "run_id": body["run_id"],
            "conversation_id": EXCHANGES["busy_409"]["path"].split("/")[3],
            "detail": body["detail"],
            "code": "conversation_busy",
        },
    ),
    Difference(
        "a missing resource is reported without the actor that asked for it",
        frozenset({"resume_unknown_run"}),
        json=lambda body: {
            "detail": f"Run not found with id={body['detail'].split(chr(39))[2]}",
            "code": "not_found",
        },
    ),
    Difference(
        "validation errors are a sentence with a code, and a list beside it",
        frozenset({"resume_bad_conv"}),
        json=lambda body: body | {"detail": "", "code": "validation_error", "errors": []},
    ),
]


def expected_answer(name: str) -> list[Frame] | Json:
    """Return the recorded answer with the intended differences."""
    response = EXCHANGES[name]["response"]
    changes = [difference for difference in DIFFERENCES if name in difference.of]
    if name in STREAMS:
        frames = frames_of(response)
        for change in sorted(changes, key=lambda change: change.frames is numbered):
            frames = change.frames(frames)
        return frames
    body: Json = json.loads(response)
    for change in changes:
        body = change.json(body)
    return body


# The recorded requests, played again.


@dataclass
class Play:
    """Plays recorded requests to one conversation."""

    thread: Thread
    run_id: str = ""
    call_id: str = ""

    def ask(self, name: str) -> httpx.Response:
        exchange = EXCHANGES[name]
        path = exchange["path"]
        parts = path.split("/")
        if parts[3].startswith("conv-"):
            parts[3] = self.thread.path_id
        elif parts[3].startswith("run-"):
            parts[3] = self.run_id
        return self.thread.post("/".join(parts), self._body(exchange["body"]))

    def _body(self, body: Json | None) -> Json | None:
        if body is None:
            return None
        body = dict(body)
        if (body.get("run_id") or "").startswith("run-") and "starting_after" in body:
            body["run_id"] = self.run_id
        if body.get("otid", "").startswith("g"):
            body["otid"] = self.thread.otid
        if "messages" in body:
            body["messages"] = [self._message(message) for message in body["messages"]]
        return body

    def _message(self, message: Json) -> Json:
        if "tool_returns" in message:
            returns = [one | {"tool_call_id": self.call_id} for one in message["tool_returns"]]
            return message | {"tool_returns": returns}
        if "content" not in message:
            return message
        message = message | {"content": DIRECTIVES.get(message["content"], message["content"])}
        if message.get("otid", "").startswith("g"):
            message["otid"] = self.thread.otid
        return message


def assert_as_recorded(name: str, answer: httpx.Response) -> None:
    assert answer.status_code == EXCHANGES[name]["status"]
    expected = expected_answer(name)
    if isinstance(expected, list):
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert Reduction().frames(frames_of(answer.text)) == Reduction().frames(expected)
    else:
        assert answer.headers["content-type"] == "application/json"
        assert Reduction().json(answer.json()) == Reduction().json(expected)


@pytest.mark.parametrize("name", sorted(SENDS | JSON_MODE))
def test_a_send_is_answered_as_recorded(name: str, conversation: Thread) -> None:
    assert_as_recorded(name, Play(conversation).ask(name))


@pytest.mark.parametrize("name", sorted(REPLAYS))
def test_an_ended_run_is_streamed_again_as_recorded(name: str, conversation: Thread) -> None:
    play = Play(conversation)
    first = play.ask("bg_token")
    play.run_id = first.headers["x-run-id"]
    again = play.ask(name)
    assert_as_recorded(name, again)
    assert first.content.endswith(again.content)


@pytest.mark.parametrize("name", sorted(REFUSED_WHEN_IDLE))
def test_a_refusal_is_as_recorded(name: str, conversation: Thread) -> None:
    assert_as_recorded(name, Play(conversation).ask(name))


def test_a_malformed_path_is_refused_with_the_recorded_status_and_a_text(
    conversation: Thread,
) -> None:
    answer = Play(conversation).ask("resume_bad_conv")
    assert answer.status_code == EXCHANGES["resume_bad_conv"]["status"] == 422
    body, expected = answer.json(), expected_answer("resume_bad_conv")
    assert isinstance(expected, dict)
    assert sorted(expected) == sorted(body.keys() - {"examples"})
    assert "conversation_id" in body["detail"]
    assert body["code"] == expected["code"]
    assert body["errors"]


@pytest.fixture
def cancelled(conversation: Thread) -> tuple[Play, dict[str, httpx.Response]]:
    """A second message during a run is refused, and a cancel ends the run."""
    play = Play(conversation)
    answers: dict[str, httpx.Response] = {}
    send = {
        "messages": [conversation.message(CANCELLED_AFTER)],
        "stream_tokens": True,
        "background": True,
    }
    with conversation.raw.stream(
        "POST", f"/v1/conversations/{conversation.path_id}/messages", json=send
    ) as stream:
        body = b""
        for piece in stream.iter_bytes():
            body += piece
            if b"t18 " in body and not answers:
                answers["busy_409"] = play.ask("busy_409")
                answers["cancel"] = play.ask("cancel")
        whole = httpx.Response(stream.status_code, headers=stream.headers, content=body)
    answers["bg_cancelled_stream"] = whole
    return play, answers


def test_a_second_message_and_a_cancel_are_answered_as_recorded(
    cancelled: tuple[Play, dict[str, httpx.Response]],
) -> None:
    play, answers = cancelled
    for name, answer in answers.items():
        assert_as_recorded(name, answer)
    assert_as_recorded("resume_cancelled", play.ask("resume_cancelled"))
    assert_as_recorded("cancel_none", play.ask("cancel_none"))


def test_client_tools_are_asked_for_and_answered_as_recorded(conversation: Thread) -> None:
    play = Play(conversation)
    for name in CLIENT_TOOLS:
        answer = play.ask(name)
        assert_as_recorded(name, answer)
        if name == "client_tool_request":
            (call,) = {
                frame.data["tool_call"]["tool_call_id"]
                for frame in frames_of(answer.text)
                if isinstance(frame.data, dict) and frame.type in CALLS
            }
            play.call_id = call
            # The retired server streamed the error that it sent as a status for JSON.
            streamed = play.ask(REFUSED_BY_STATUS)
            assert streamed.status_code == EXCHANGES["pending_conflict_json"]["status"]
            error = frames_of(EXCHANGES[REFUSED_BY_STATUS]["response"])[2].data
            assert isinstance(error, dict)
            assert streamed.json()["detail"] == error["message"]
    recorded = json.loads(EXCHANGES["messages_list_asc"]["response"])
    kept = conversation.items()
    assert [one["message_type"] for one in kept] == [one["message_type"] for one in recorded]
    for ours, theirs in zip(kept[1:], recorded[1:], strict=True):
        assert ours.keys() == theirs.keys()
        assert {k for k in ours if ours[k] is None} - {"otid"} == {
            k for k in theirs if theirs[k] is None
        } - {"otid"}


def test_every_recorded_exchange_of_sending_resuming_and_cancelling_is_played() -> None:
    played = STREAMS | REFUSALS | ANSWERS | {*CLIENT_TOOLS, REFUSED_BY_STATUS}
    recorded = {
        name
        for name, exchange in EXCHANGES.items()
        if exchange.get("method", "POST") == "POST" and name != "fork"
    }
    assert played == recorded
    assert all(difference.of <= played for difference in DIFFERENCES)


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.reason)
def test_every_listed_difference_is_a_real_difference(difference: Difference) -> None:
    for name in difference.of:
        recorded = EXCHANGES[name]["response"]
        if name in STREAMS:
            frames = frames_of(recorded)
            assert difference.frames(frames) != frames
        else:
            body = json.loads(recorded)
            assert difference.json(body) != body
