"""Sentences for the faults that Pydantic finds."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from reattach.http.schemas.agent import AgentCreate
from reattach.http.schemas.conversation import ConversationUpdate
from reattach.http.schemas.resuming import ResumeBody
from reattach.http.schemas.sending import ConversationSendBody
from reattach.validation import explain
from tests.support.asgi_server import Server


def sentences(model: type[BaseModel], body: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(model).validate_python(body)
    return [explain(fault) for fault in caught.value.errors()]


@pytest.mark.parametrize(
    ("model", "body", "sentence"),
    [
        (ResumeBody, {"starting_after": True}, "Expected a number; got true."),
        (ResumeBody, {"starting_after": None}, "Expected a whole number; got null."),
        (ResumeBody, {"starting_after": 1.5}, "Expected a whole number; got 1.5."),
        (ResumeBody, {"batch_size": "x"}, "Expected a whole number; got 'x'."),
        (ResumeBody, {"batch_size": 2**53}, f"Expected {2**53 - 1} or less; got {2**53}."),
        (ResumeBody, {"poll_interval": []}, "Expected a number; got an array with 0 items."),
        (ResumeBody, {"include_pings": "often"}, "Expected true or false; got 'often'."),
        (ResumeBody, {"otid": {}}, "Expected a string; got an object."),
        (
            ResumeBody,
            {"otid": "\x1b" * 257},
            f"Expected at most 256 characters; got {chr(27) * 60!r}… (197 more characters).",
        ),
        (ResumeBody, [], "Expected an object; got an array with 0 items."),
        (ConversationSendBody, {"client_tools": [{}]}, "Required, but missing."),
        (ConversationSendBody, {"max_steps": 0}, "Expected 1 or more; got 0."),
        (ConversationSendBody, {"messages": 1}, "Expected an array; got 1."),
        (
            ConversationSendBody,
            {"messages": [{"type": "x"}]},
            (
                "Expected an object whose 'type' is one of 'message', 'approval', 'tool_return'; "
                "got 'x'."
            ),
        ),
        (
            ConversationSendBody,
            {"messages": [{"role": "king", "content": "x"}]},
            "Expected 'user', 'system' or 'assistant'; got 'king'.",
        ),
        (AgentCreate, {"name": "a/b"}, "Expected letters, digits, spaces and _'-; got 'a/b'."),
        (AgentCreate, {"name": ""}, "Expected text that is not empty; got ''."),
        (
            AgentCreate,
            {"block_ids": ["x"]},
            "Expected the id of a block, 'block-' followed by a UUIDv4 in lower case; got 'x'.",
        ),
        (
            ConversationUpdate,
            {"last_message_at": "2026-01-01T00:00:00"},
            (
                "Expected a time in ISO 8601 with its zone, such as 2026-11-28T12:00:00Z; "
                "got '2026-01-01T00:00:00'."
            ),
        ),
        (
            ConversationUpdate,
            {"last_message_at": "0001-01-01T00:00:00+01:00"},
            "The time is outside the years 1 to 9999 in UTC.",
        ),
    ],
)
def test_a_fault_says_which_value_is_expected_and_which_came(
    model: type[BaseModel], body: Any, sentence: str
) -> None:
    assert sentences(model, body) == [sentence]


def test_the_value_can_be_kept_back() -> None:
    with pytest.raises(ValidationError) as caught:
        ResumeBody.model_validate({"batch_size": "sesame"})
    assert explain(caught.value.errors()[0], shows_value=False) == "Expected a whole number."


async def test_a_malformed_id_of_each_kind_is_explained_without_a_pattern(server: Server) -> None:
    served = server.app.openapi()["paths"]
    paths = [
        path for path in served if "_id}" in path and not path.startswith(("/openai/", "/ag-ui/"))
    ]
    kinds = {re.findall(r"{(\w+_id)}", path)[0]: path for path in paths} | {
        "query": "/v1/runs/?agent_id=x&conversation_id=x",
        "messages": "/v1/messages/?conversation_id=x",
    }
    assert len(kinds) >= 9
    for path in kinds.values():
        response = await server.client.get(re.sub(r"{\w+}", "x", path))
        for method in ("POST", "DELETE"):
            if response.status_code == 405:
                response = await server.client.request(method, re.sub(r"{\w+}", "x", path))
        if response.status_code == 400:  # A run's id is checked by its operations.
            continue
        assert response.status_code == 422, path
        for fault in response.json()["errors"]:
            assert re.fullmatch(r"Expected .*the id of an? .*; got 'x'\.", fault["msg"]), fault
