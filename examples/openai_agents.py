"""Run an agent of a server from OpenAI's Agents SDK, with a tool of your own.

Install openai-agents, and set REATTACH_AGENT to the id or the name of an agent.
"""

import asyncio
import os

from agents import Agent, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

set_tracing_disabled(True)  # It would send traces to OpenAI.
client = AsyncOpenAI(
    base_url=os.environ.get("REATTACH_URL", "http://localhost:8283") + "/openai/v1",
    api_key=os.environ.get("REATTACH_API_KEY", "none"),
)


@function_tool
def look(n: int) -> str:
    """Look at an island."""
    return f"Island {n} is green."


guide = Agent(
    name="guide",
    model=OpenAIResponsesModel(os.environ["REATTACH_AGENT"], client),
    tools=[look],  # The tools of the agent itself run on the server.
)


async def main() -> None:
    asked = os.environ.get("REATTACH_ASK", "Tell me about an island.")
    result = Runner.run_streamed(guide, asked, auto_previous_response_id=True)
    async for event in result.stream_events():
        if event.type == "run_item_stream_event":
            print(event.item.type)
    print(result.final_output)


asyncio.run(main())
