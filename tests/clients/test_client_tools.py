"""Client tools as applications use them: with the official Python SDK, over sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from letta_client import BadRequestError, ConflictError

from reattach.testing.programs.server import ServerProcess
from tests.support.python_sdk import Reader
from tests.support.threads import Thread, assert_one_whole_run

TOOLS: Any = [
    {"name": "read_file", "description": "Reads a file.", "parameters": {"type": "object"}}
]


def calls_of(chunks: list[Any]) -> dict[str, tuple[str, str]]:
    """The calls that wait, joined from their chunks: name and arguments by id."""
    calls: dict[str, tuple[str, str]] = {}
    for chunk in chunks:
        if chunk.message_type == "approval_request_message":
            call = chunk.tool_call
            name, arguments = calls.get(call.tool_call_id, ("", ""))
            calls[call.tool_call_id] = (
                name + (call.name or ""),
                arguments + (call.arguments or ""),
            )
    return calls


def answered(thread: Thread, *decisions: Any, reader: Reader, **options: Any) -> Any:
    message: Any = {"type": "approval", "approvals": decisions, **options}
    return reader.sdk.conversations.messages.create(
        thread.path_id,
        agent_id=thread.agent_id,
        messages=[message],
        client_tools=TOOLS,
        background=True,
        stream_tokens=True,
    )


@pytest.mark.promise("P1", "P3")
def test_a_turn_with_client_tools_is_two_whole_runs(
    reader: Reader, server: ServerProcess, conversation: Thread
) -> None:
    text = '[client_tool=read_file,read_file][arguments={"path": "islands.txt"}][chunks=0]'
    reader.read(lambda: reader.send(conversation, text, client_tools=TOOLS))
    assert_one_whole_run(reader.joined)
    calls = calls_of(reader.chunks)
    assert [(name, json.loads(arguments)) for name, arguments in calls.values()] == [
        ("read_file", {"path": "islands.txt"})
    ] * 2
    with pytest.raises(ConflictError, match="waiting for approval"):
        reader.sdk.conversations.messages.create(conversation.path_id, input="hello?")
    first, second = calls
    with pytest.raises(BadRequestError, match="Invalid tool call IDs"):
        answered(conversation, {"tool_call_id": first, "approve": True}, reader=reader)
    decisions = (
        {"type": "tool", "tool_call_id": first, "tool_return": "Skye", "status": "success"},
        {"type": "approval", "tool_call_id": second, "approve": False, "reason": "private"},
    )
    with Reader(server.url) as other:
        other.read(lambda: answered(conversation, *decisions, reader=other), stop=lambda c: True)
        other.read(lambda: other.resume(conversation))
        assert_one_whole_run(other.joined)
        assert other.text == (
            "read_file success: Skye\nread_file error: The user denied this call. Reason: private\n"
        )
        items = other.sdk.conversations.messages.list(conversation.path_id, order="asc").items
        assert [item.message_type for item in items][-3:] == [
            "approval_response_message",
            "tool_return_message",
            "assistant_message",
        ]
