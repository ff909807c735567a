"""Arguments of tool calls, whatever a model wrote."""

from __future__ import annotations

import json

import pydantic_ai.messages as pm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from reattach.domain.arguments import decoded_arguments, json_object
from reattach.domain.errors import ToolError
from reattach.domain.limits import MAX_ARGUMENTS_DEPTH
from reattach.domain.messages import Role, ToolCallPart, ToolReturnPart
from reattach.engine.pydantic_ai.provider_messages import provider_messages
from reattach.engine.scripted import ScriptedEngine
from reattach.testing.conformance.engine import Subject, message
from reattach.tools.function import FunctionTool
from reattach.tools.threads import Threads

DEEP = 5000
NONE_OF = {
    "cut arrays": '{"x":' + "[" * DEEP,
    "closed arrays": '{"x":' + "[" * DEEP + "]" * DEEP + "}",
    "cut objects": '{"x":' * DEEP,
    "closed objects": '{"x":' * DEEP + "1" + "}" * DEEP,
    "deeper than the limit": '{"x":' + "[" * 150 + "]" * 150 + "}",
    "only arrays": "[" * DEEP,
    "cut": '{"x": 1',
    "NaN": '{"x": NaN}',
    "infinity": '{"x": -Infinity}',
    "too large": '{"x": 1e999}',
    "too many digits": '{"x": ' + "9" * 5000 + "}",
    "array": "[1]",
    "string": '"text"',
    "null": "null",
    "two objects": "{}{}",
}


@pytest.mark.parametrize("name", NONE_OF)
def test_arguments_that_some_decoder_refuses_are_none(name: str) -> None:
    """A6"""
    assert decoded_arguments(NONE_OF[name]) is None
    assert json_object(NONE_OF[name]) == "{}"


def test_arguments_within_bounds_are_kept_as_they_were_written() -> None:
    """A6"""
    deep = "[" * (MAX_ARGUMENTS_DEPTH - 1) + "]" * (MAX_ARGUMENTS_DEPTH - 1)
    for text in ('{ "x" : [1, "\\u0000"] }', f'{{"x": {deep}}}', '{"q": "' + "[" * DEEP + '"}'):
        assert json_object(text) == text
        assert decoded_arguments(text) == json.loads(text)
    assert decoded_arguments("") == {}


def test_half_a_surrogate_pair_within_arguments_is_replaced() -> None:
    """A2, A6: written as an escape, which some decoders refuse."""
    assert decoded_arguments('{"a\\ud83d": ["\\ud83d\\ude00", "\\uD83D"]}') == {
        "a\ufffd": ["\U0001f600", "\ufffd"]
    }
    assert json.loads(json_object('{"a": "\\ud83d"}')) == {"a": "\ufffd"}


@given(st.text(st.sampled_from('{}[]",:\\ud83de01NaI \n'), max_size=60))
def test_whatever_is_written_becomes_an_object_that_every_decoder_takes(text: str) -> None:
    """A6"""
    part = pm.ToolCallPart("tool", json_object(text), "call")
    json.dumps(part.args_as_dict(), allow_nan=False).encode()


@pytest.mark.parametrize("name", NONE_OF)
def test_a_conversation_with_such_arguments_can_be_sent_to_every_provider(name: str) -> None:
    """A6"""
    call = structs.replace(
        message(Role.ASSISTANT, ""), parts=(ToolCallPart("call", "tool", NONE_OF[name]),)
    )
    returned = structs.replace(
        message(Role.TOOL, ""), parts=(ToolReturnPart("call", "tool", "error", "no"),)
    )
    subject = Subject(ScriptedEngine(), "scripted/echo")
    sent = provider_messages(subject.turn("go", history=[call, returned]))
    calls = [part for one in sent for part in one.parts if isinstance(part, pm.ToolCallPart)]
    assert [part.args_as_dict() for part in calls] == [{}]


def anything(x: object = None) -> str:
    """Take anything."""
    return repr(x)


@pytest.mark.parametrize("name", NONE_OF)
async def test_a_function_tool_refuses_such_arguments_with_a_reason(name: str) -> None:
    """A6"""
    tool = FunctionTool(anything, Threads())
    with pytest.raises(ToolError, match="not a JSON object"):
        await tool.call(NONE_OF[name])
