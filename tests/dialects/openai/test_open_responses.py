"""The seven cases of the compliance tests of Open Responses, which is the same API by consensus.

They are not published as a package, so their checks are written out here. Each is a response that
has every member of the specification.
"""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from tests.support.live_server import LiveServer

PATH: Final = "/openai/v1/responses"
PIXEL: Final = "data:image/png;base64,iVBORw0KGgo="
WEATHER: Final = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a place.",
    "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
}

Json = dict[str, Any]
Optional = type(None)

MEMBERS: Final[dict[str, tuple[type, ...]]] = {
    "id": (str,),
    "object": (str,),
    "created_at": (int,),
    "completed_at": (int, Optional),
    "status": (str,),
    "incomplete_details": (dict, Optional),
    "model": (str,),
    "previous_response_id": (str, Optional),
    "instructions": (str, Optional),
    "output": (list,),
    "error": (dict, Optional),
    "tools": (list,),
    "tool_choice": (str, dict),
    "truncation": (str,),
    "parallel_tool_calls": (bool,),
    "text": (dict,),
    "top_p": (int, float),
    "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
    "top_logprobs": (int,),
    "temperature": (int, float),
    "reasoning": (dict, Optional),
    "usage": (dict, Optional),
    "max_output_tokens": (int, Optional),
    "max_tool_calls": (int, Optional),
    "store": (bool,),
    "background": (bool,),
    "service_tier": (str,),
    "metadata": (dict,),
    "safety_identifier": (str, Optional),
    "prompt_cache_key": (str, Optional),
}
ITEMS: Final[dict[str, set[str]]] = {
    "message": {"type", "id", "status", "role", "content"},
    "function_call": {"type", "id", "call_id", "name", "arguments", "status"},
    "reasoning": {"type", "id", "summary"},
}


def check(response: Json) -> None:
    """Check a whole response strictly."""
    for name, types in MEMBERS.items():
        assert name in response, name
        assert isinstance(response[name], types), (name, response[name])
    assert response["object"] == "response"
    assert response["status"] == "completed"
    assert response["completed_at"] >= response["created_at"]
    assert response["output"]
    for item in response["output"]:
        assert ITEMS[item["type"]] <= item.keys(), item
        for part in item.get("content") or () if item["type"] == "message" else ():
            assert part.keys() == {"type", "text", "annotations", "logprobs"}
    for tool in response["tools"]:
        assert {"type", "name", "description", "parameters", "strict"} <= tool.keys()
    usage = response["usage"]
    assert usage["input_tokens_details"].keys() >= {"cached_tokens"}
    assert usage["output_tokens_details"].keys() >= {"reasoning_tokens"}
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


async def answered(live: LiveServer, agent: str, sent: Any, **more: Any) -> Json:
    response: Json = await live.made(PATH, {"model": agent, "input": sent, **more})
    check(response)
    return response


async def streamed(live: LiveServer, agent: str, sent: Any, **more: Any) -> list[Json]:
    body = {"model": agent, "input": sent, "stream": True, **more}
    response = await live.client.post(PATH, json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = [one for one in response.text.split("\n\n") if one.startswith("event: ")]
    events: list[Json] = [json.loads(frame.partition("\ndata: ")[2]) for frame in frames]
    names = [frame.partition("\n")[0].removeprefix("event: ") for frame in frames]
    assert names == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    check(events[-1]["response"])
    return events


def message(text: str, role: str = "user") -> Json:
    return {"type": "message", "role": role, "content": text}


async def test_basic_response(live: LiveServer, agent: str) -> None:
    response = await answered(live, agent, [message("Say hello in exactly 3 words.")])
    assert [item["type"] for item in response["output"]][-1] == "message"


async def test_streaming_response(live: LiveServer, agent: str) -> None:
    events = await streamed(live, agent, [message("Count from 1 to 5.")])
    types = [event["type"] for event in events]
    assert types[0] == "response.created"
    assert types[-1] == "response.completed"
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    [done] = [event["text"] for event in events if event["type"] == "response.output_text.done"]
    assert "".join(deltas) == done


@pytest.mark.parametrize("role", ["system", "developer"])
async def test_system_prompt(live: LiveServer, agent: str, role: str) -> None:
    await answered(live, agent, [message("You are a pirate.", role), message("Say hello.")])


async def test_instructions_follow_the_system_prompt(live: LiveServer, agent: str) -> None:
    response = await answered(live, agent, "[system] Hello", instructions="Speak like a pirate.")
    assert response["instructions"] == "Speak like a pirate."
    text = response["output"][-1]["content"][0]["text"]
    assert text.rstrip().endswith("Speak like a pirate.")


async def test_tool_calling(live: LiveServer, agent: str) -> None:
    response = await answered(
        live, agent, [message("[client_tool=get_weather] Weather?")], tools=[WEATHER]
    )
    [call] = [item for item in response["output"] if item["type"] == "function_call"]
    assert call["name"] == "get_weather"
    assert json.loads(call["arguments"]) == {"n": 1}


async def test_tool_calling_streaming(live: LiveServer, agent: str) -> None:
    sent = [message("[client_tool=get_weather][chunks=0] Weather?")]
    events = await streamed(live, agent, sent, tools=[WEATHER])
    of_call = [event for event in events if event.get("output_index") == 0]
    types = [event["type"].removeprefix("response.") for event in of_call]
    assert types == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    deltas = "".join(event["delta"] for event in of_call if "delta" in event)
    assert deltas == of_call[3]["arguments"] == of_call[4]["item"]["arguments"]


async def test_image_input(live: LiveServer, agent: str) -> None:
    content = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": PIXEL},
    ]
    await answered(live, agent, [{"type": "message", "role": "user", "content": content}])


async def test_multi_turn(live: LiveServer, agent: str) -> None:
    turns = [
        message("My name is Alice."),
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hello Alice!"}],
        },
        message("[history] What is my name?"),
    ]
    response = await answered(live, agent, turns)
    assert "My name is Alice." in response["output"][-1]["content"][0]["text"]
