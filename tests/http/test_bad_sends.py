"""Sends, resumes and cancels that are wrong in type, range, size or encoding change nothing."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2
import pytest

from reattach.domain.ids import DEFAULT_TENANT, new_uuid
from reattach.domain.limits import MAX_REQUEST_BYTES
from tests.support.asgi_server import OTHER_TENANT
from tests.support.live_server import LiveServer, listening, message_body, posted_directly

INSIDES = re.compile(
    r"Traceback|\.py\b|line \d+|sqlite|sqlalchemy|pydantic|starlette|0x[0-9a-f]{6}|"
    r"\b(?:SELECT|INSERT|UPDATE) |/(?:tmp|usr|home|var|root)/|"
    r"Input should|should have|should match|Value error|kind\(\)|\[0-9a-f\]|valid dictionary",
    re.IGNORECASE,
)
MAX_ERROR_BYTES = 20_000
"""More than twenty faults of a request take, and far less than a client can send."""


class Place:
    """A server with two tenants, one of which sends invalid requests."""

    def __init__(
        self, live: LiveServer, client: httpx2.AsyncClient, paths: Mapping[str, str], secrets: str
    ) -> None:
        self.live = live
        self.client = client
        self.paths = paths
        self.secret = re.compile(secrets)

    async def refused(self, path: str, **request: Any) -> dict[str, Any]:
        """The error of a request; fails unless it is clear and reveals nothing else."""
        response = await self.client.post(path, **request)
        place = path[:200], str(request)[:300], response.text[:1000]
        assert 400 <= response.status_code < 500, place
        error: dict[str, Any] = response.json()
        assert isinstance(error["detail"], str), place
        assert error["detail"], place
        assert re.fullmatch("[a-z_]+", error["code"]), place
        assert not INSIDES.search(response.text), place
        assert not self.secret.search(response.text), place
        assert len(response.content) < MAX_ERROR_BYTES, place
        return {**error, "status": response.status_code}


@pytest.fixture(scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    directory = tmp_path_factory.mktemp("live")
    async with listening(directory) as live:
        client, other = [await live.as_tenant(one) for one in (DEFAULT_TENANT, OTHER_TENANT)]
        async with client, other:
            ids = []
            for one in (client, other):
                agent = (await one.post("/v1/agents/", json={})).json()["id"]
                live.gates.open(agent)
                path = f"/v1/conversations/?agent_id={agent}"
                conversation = (await one.post(path, json={})).json()["id"]
                path = f"/v1/conversations/{conversation}/messages"
                frames = await live.streamed(
                    path, message_body("secret words", otid=new_uuid(), background=True), client=one
                )
                ids.append((agent, conversation, frames[0].event["run_id"]))
            agent, conversation, run = ids[0]
            yield Place(
                live,
                client,
                {
                    "send": f"/v1/conversations/{conversation}/messages",
                    "send to agent": f"/v1/agents/{agent}/messages",
                    "stream to agent": f"/v1/agents/{agent}/messages/stream",
                    "resume": f"/v1/conversations/{conversation}/stream",
                    "resume run": f"/v1/runs/{run}/stream",
                    "cancel agent": f"/v1/agents/{agent}/messages/cancel",
                    "cancel": f"/v1/conversations/{conversation}/cancel",
                },
                "|".join([*ids[1], OTHER_TENANT, str(directory), *live.keys.values(), "secret"]),
            )


SENDS = ("send", "send to agent", "stream to agent")
RESUMES = ("resume", "resume run")
NO_TEXT: list[Any] = [1, 1.5, True, [], {}, ["x"]]
NO_FLAG: list[Any] = ["", "maybe", 2, -1, 0.5, [], {}, [True]]
NO_NUMBER: list[Any] = ["", "x", "1x", [], {}, [1], "٣", "0x1", True, False]


def user(content: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content, **more}]


WRONG_RESUMES: dict[str, list[Any]] = {
    "agent_id": [*NO_TEXT, "x" * 129],
    "run_id": [*NO_TEXT, "", "x" * 129],
    "otid": [*NO_TEXT, "", "x" * 257],
    "starting_after": [None, 1.5, 2**53, -(2**53), "9" * 30, *NO_NUMBER],
    "include_pings": NO_FLAG,
    "poll_interval": [3600.1, -3601, 1e308, "NaN", "Infinity", "-inf", *NO_NUMBER],
    "batch_size": [1.5, 2**53, -(2**53), *NO_NUMBER],
}
NO_ITEM: list[Any] = ["x", 1, {}, [1], ["x"], [None], [[]], [{}]]
NO_CONTENT: list[Any] = [None, 1, True, {}, [1], [None], ["x"], [[]], [{}]]
NO_PART: list[Any] = [
    {"type": "text"}, {"type": "text", "text": 1}, {"type": "video"}, {"text": "x"}, {"type": None},
]  # fmt: skip
NO_ROLE: list[Any] = ["king", "", None, 1, "tool", "USER"]
NO_NAME: list[Any] = [1, [], {}, "x" * 257]
NO_KIND: list[Any] = ["x", "", 1, []]
WRONG_SENDS: dict[str, list[Any]] = {
    "messages": [
        *NO_ITEM,
        [{"role": "user"}],
        [{"content": "x"}],
        *(user(content) for content in NO_CONTENT),
        *(user([part]) for part in NO_PART),
        user([{"type": "text", "text": "x"}] * 1001),
        *([{"role": role, "content": "x"}] for role in NO_ROLE),
        *(user("x", otid=otid) for otid in ["", *NO_NAME]),
        *(user("x", name=name) for name in NO_NAME),
        *(user("x", sender_id=sender) for sender in NO_NAME),
        *(user("x", type=kind) for kind in NO_KIND),
        user("x") * 101,
    ],
    "input": [1, True, {}, [1], [None], [{"type": "reasoning"}], [{"type": "text", "text": None}]],
    "stream_tokens": NO_FLAG,
    "streaming": NO_FLAG,
    "background": NO_FLAG,
    "include_pings": NO_FLAG,
    "max_steps": [0, -1, 1001, 1.5, *NO_NUMBER],
    "include_return_message_types": ["assistant_message", [1], ["x"], {}, [None],
                                     ["assistant_message"] * 21],
    "client_tools": ["x", [1], {}, [[]]],
    "client_skills": ["x", [1], {}, 1, [{"name": "s", "description": "d"}],
                      [{"name": "", "description": "d", "location": "l"}],
                      [{"name": "s", "description": "d", "location": "l"}] * 257],
    "override_model": [*NO_TEXT, "x" * 257],
    "override_system": [*NO_TEXT, "x" * 1_000_001],
    "assistant_message_tool_name": [*NO_TEXT, "x" * 257],
    "use_assistant_message": NO_FLAG,
}  # fmt: skip


@pytest.mark.promise("S10", "P8")
@pytest.mark.parametrize("member", WRONG_RESUMES)
async def test_a_wrong_member_of_a_resume_is_422_and_named(place: Place, member: str) -> None:
    before = place.live.rows()
    for value in WRONG_RESUMES[member]:
        for way in RESUMES:
            error = await place.refused(place.paths[way], json={member: value})
            assert (error["status"], error["code"]) == (422, "validation_error"), value
            assert error["errors"][0]["loc"][:2] == ["body", member]
            assert f"body.{member}" in error["detail"]
    assert place.live.rows() == before


@pytest.mark.promise("P9", "P10")
@pytest.mark.parametrize("member", WRONG_SENDS)
async def test_a_wrong_member_of_a_send_is_422_and_starts_nothing(
    place: Place, member: str
) -> None:
    before = place.live.rows()
    for value in WRONG_SENDS[member]:
        body = {member: value} if member in {"messages", "input"} else {"input": "x", member: value}
        for way in SENDS:
            error = await place.refused(place.paths[way], json=body)
            assert (error["status"], error["code"]) == (422, "validation_error"), value
            assert error["errors"][0]["loc"][:2] == ["body", member]
    for agent_id in (*NO_TEXT, "nobody", "agent-1", "x" * 5000):
        error = await place.refused(place.paths["send"], json={"input": "x", "agent_id": agent_id})
        assert (error["status"], error["code"]) == (422, "validation_error"), agent_id
    assert place.live.rows() == before


@pytest.mark.promise("P6")
async def test_a_wrong_cancel_is_refused_and_cancels_nothing(place: Place) -> None:
    before = place.live.rows()
    path = place.paths["cancel agent"]
    no_list: list[Any] = ["x", 1, {}, [1], [None], [[]], ["x"] * 101]
    for run_ids in no_list:
        error = await place.refused(path, json={"run_ids": run_ids})
        assert (error["status"], error["code"]) == (422, "validation_error"), run_ids
    for run_id in ("", "x", "run-1", "x" * 10_000, "'; DROP TABLE runs; --", "run-%"):
        error = await place.refused(path, json={"run_ids": [run_id]})
        assert (error["status"], error["code"]) == (400, "invalid_argument"), run_id
    for agent_id in ("x" * 129, "%00", "a%00b"):
        error = await place.refused(f"/v1/conversations/default/cancel?agent_id={agent_id}")
        assert error["status"] == 422, agent_id
    for agent_id in ("", "x", "%ff", "agent-%25", "'"):
        error = await place.refused(f"/v1/conversations/default/cancel?agent_id={agent_id}")
        assert error["status"] == 404, agent_id
    assert place.live.rows() == before


NO_BODY = {
    "not UTF-8": b'{"input":"\xff"}',
    "overlong": b'{"input":"\xc0\xaf"}',
    "surrogate in UTF-8": b'{"input":"\xed\xa0\x80"}',
    "surrogate": b'{"input":"\\ud800"}',
    "surrogate in a name": b'{"input":"x","\\udfff":1}',
    "surrogates swapped": b'{"input":"\\udc00\\ud800"}',
    "NUL": b'{"input":"\\u0000"}',
    "NUL deep within": b'{"messages":[{"role":"user","content":[{"type":"text","text":"\\u0000"}]}]}',  # noqa: E501
    "control character": b'{"input":"\n"}',
    "NaN": b'{"input":"x","poll_interval":NaN}',
    "Infinity": b'{"input":"x","poll_interval":-Infinity}',
    "too large a number": b'{"input":"x","poll_interval":1e999}',
    "too large an integer": b'{"input":"x","starting_after":' + b"9" * 5000 + b"}",
    "a name twice": b'{"input":"x","input":"y"}',
    "nested in arrays": b'{"input":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested in objects": b'{"a":' * 100 + b"1" + b"}" * 100,
    "nested in the ignored": b'{"input":"x","ignored":' + b"[" * 65 + b"]" * 65 + b"}",
    "cut short": b'{"input":"x',
    "two": b'{"input":"x"}{"input":"x"}',
    "trailing comma": b'{"input":"x",}',
    "single quotes": b"{'input':'x'}",
    "a comment": b'{"input":"x"}//',
    "a byte order mark": b'\xef\xbb\xbf{"input":"x"}',
    "UTF-16": '{"input":"x"}'.encode("utf-16"),
    "compressed": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "an array": b"[]",
    "a text": b'"x"',
    "a number": b"1",
    "false": b"false",
    "white space": b" \n ",
    "a form": b"input=x",
}
JSON = {"content-type": "application/json"}


@pytest.mark.promise("S10")
@pytest.mark.parametrize("body", NO_BODY.values(), ids=NO_BODY)
async def test_a_body_that_is_not_a_json_object_of_text_is_422(place: Place, body: bytes) -> None:
    before = place.live.rows()
    for way in (*SENDS, *RESUMES, "cancel agent"):
        error = await place.refused(place.paths[way], content=body, headers=JSON)
        assert (error["status"], error["code"]) == (422, "validation_error")
    assert place.live.rows() == before


async def test_a_send_without_a_body_is_422(place: Place) -> None:
    before = place.live.rows()
    for way in SENDS:
        for body in (b"", b"null", b"{}"):
            error = await place.refused(place.paths[way], content=body, headers=JSON)
            assert (error["status"], error["code"]) == (422, "validation_error")
    assert place.live.rows() == before


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "text/json",
        "json",
        "\xff",
    ],
    ids=repr,
)
async def test_a_body_that_is_not_called_json_is_refused(
    place: Place, content_type: str | None
) -> None:
    before = place.live.rows()
    headers = {} if content_type is None else {"content-type": content_type.encode("latin-1")}
    for way in (*SENDS, *RESUMES, "cancel agent"):
        error = await place.refused(
            place.paths[way], content=b'{"input":"x","run_ids":[]}', headers=headers
        )
        assert (error["status"], error["code"]) == (422, "validation_error")
        assert "application/json" in error["detail"]
    assert place.live.rows() == before


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("content-encoding", "gzip", "content coding 'gzip'"),
        ("Content-Encoding", "GZip, identity", "content coding 'GZip, identity'"),
        ("content-type", "application/json; charset=utf-16", "charset 'utf-16'"),
        ("content-type", 'Application/JSON;v=1; Charset="ISO-8859-1"', "charset 'iso-8859-1'"),
    ],
)
async def test_a_compressed_body_or_another_charset_is_415(
    place: Place, name: str, value: str, said: str
) -> None:
    before = place.live.rows()
    headers = {**JSON, name.lower(): value}
    for way in (*SENDS, *RESUMES, "cancel agent", "cancel"):
        error = await place.refused(place.paths[way], content=b"{}", headers=headers)
        assert (error["status"], error["code"]) == (415, "unsupported_media_type")
        assert said in error["detail"]
    assert place.live.rows() == before


@pytest.mark.parametrize(
    "headers",
    [
        {"content-encoding": "identity"},
        {"content-type": "application/json; charset=UTF-8"},
        {"content-type": 'application/json;charset="utf8"; v=1'},
        {"content-type": "application/vnd.api+json; charset=us-ascii"},
    ],
)
async def test_a_plain_body_in_utf_8_is_taken(place: Place, headers: dict[str, str]) -> None:
    response = await place.client.post(
        place.paths["resume run"], content=b"{}", headers={**JSON, **headers}
    )
    assert response.status_code == 200


@pytest.mark.promise("P12")
async def test_a_body_beyond_16_mib_is_413_announced_or_not(place: Place) -> None:
    before = place.live.rows()
    piece = b"x" * (1024 * 1024)

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"input":"'
        for _ in range(17):
            yield piece
        yield b'"}'

    whole = b'{"input":"' + piece * 17 + b'"}'
    assert len(whole) > MAX_REQUEST_BYTES
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(place.live.app),
        base_url="http://server",
        headers=place.client.headers,
    ) as client:
        for way in (*SENDS, *RESUMES, "cancel agent"):
            for content in (whole, pieces()):
                response = await client.post(place.paths[way], content=content, headers=JSON)
                assert response.status_code == 413
                assert response.json()["code"] == "limit_exceeded"
    assert place.live.rows() == before


async def test_text_of_every_script_and_size_up_to_the_bounds_is_taken(place: Place) -> None:
    words = "naïve 日本語 👩‍👩‍👧‍👦 עברית e\u0301 \u2028\u2029\x85 \x1b[0m \ufeff\ufffe\U0010ffff"
    for message in (words, "x" * 300_000):
        for escaped in (True, False):
            body = json.dumps(message_body(message), ensure_ascii=escaped).encode()
            response = await place.client.post(place.paths["send"], content=body, headers=JSON)
            assert response.status_code == 200
            assert b"data: [DONE]\n\n" in response.content


async def test_the_list_of_faults_in_a_422_is_bounded(place: Place) -> None:
    body = {"messages": [{"role": "x" * 10_000, "content": 1, "x": 1} for _ in range(100)]}
    error = await place.refused(place.paths["send"], json=body)
    assert len(error["errors"]) == 20
    assert "more" in error["detail"]


# Ids that nobody has.


@pytest.mark.promise("P8", "P11")
async def test_a_thousand_unknown_ids_are_as_many_refusals_and_leave_no_trace(
    place: Place,
) -> None:
    before = place.live.rows()
    key = place.client.headers["authorization"]
    refused: dict[int, int] = {}

    async def post(path: str, body: bytes) -> None:
        start, content, *_ = await posted_directly(place.live.app, path, body, authorization=key)
        assert json.loads(content["body"])["code"] in {"not_found", "no_active_run"}
        refused[start["status"]] = refused.get(start["status"], 0) + 1

    async def probe(count: int) -> None:
        for _ in range(count):
            one = new_uuid()
            for path, body in (
                (f"/v1/runs/run-{one}/stream", b"{}"),
                (f"/v1/conversations/conv-{one}/stream", b"{}"),
                ("/v1/conversations/default/stream", f'{{"run_id":"run-{one}"}}'.encode()),
                ("/v1/conversations/default/stream", f'{{"otid":"{one}"}}'.encode()),
                (f"/v1/conversations/conv-{one}/messages", b'{"input":"x"}'),
                (f"/v1/agents/agent-{one}/messages", b'{"input":"x"}'),
                (f"/v1/conversations/conv-{one}/cancel", b""),
                (f"/v1/agents/agent-{one}/messages/cancel", b"{}"),
            ):
                await post(path, body)

    await asyncio.gather(*(probe(25) for _ in range(5)))
    assert refused == {404: 7 * 125, 400: 125}
    assert place.live.rows() == before
