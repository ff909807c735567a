"""Runs the cases of OpenAI's Agents SDK in its own environment, and prints the outcomes as JSON.

Arguments: the base URL, and the cases as JSON: an object with the model and the input of each.
"""

import asyncio
import json
import sys
from typing import Any

from agents import (
    Agent,
    HostedMCPTool,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

set_tracing_disabled(True)


@function_tool
def look(n: int) -> str:
    """Look somewhere."""
    return f"Marstal {n}"


APPROVING = HostedMCPTool(
    tool_config={
        "type": "mcp",
        "server_label": "reattach",
        "server_url": "http://localhost/unused",
        "require_approval": "always",
    },
    on_approval_request=lambda request: {"approve": request.data.name == "deploy"},
)
TOOLS: dict[str, list[Any]] = {
    "plain": [],
    "approved": [APPROVING],
    "approved without the server": [APPROVING],
}


async def run(url: str, case: str, model: str, text: str) -> dict[str, Any]:
    client = AsyncOpenAI(api_key="none", base_url=url, max_retries=0)
    agent = Agent(
        name="guide",
        instructions="Be brief.",
        model=OpenAIResponsesModel(model=model, openai_client=client),
        tools=TOOLS.get(case, [look]),
    )
    options: dict[str, Any] = {}
    if case in {"continued", "approved"}:
        options["auto_previous_response_id"] = True
    result = Runner.run_streamed(agent, text, **options)
    kinds = [event.type async for event in result.stream_events()]
    return {
        "output": str(result.final_output),
        "items": [type(item).__name__ for item in result.new_items],
        "streamed": "raw_response_event" in kinds,
    }


async def main(url: str, cases: str) -> dict[str, Any]:
    asked: dict[str, tuple[str, str]] = json.loads(cases)
    return {case: await run(url, case, *sent) for case, sent in asked.items()}


sys.stdout.write(json.dumps(asyncio.run(main(*sys.argv[1:]))))
