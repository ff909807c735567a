"""Sessions of OpenAI's Agents SDK, which runs tools and follows approvals by itself."""

import asyncio
from typing import Any

import openai
from agents import Agent, HostedMCPTool, OpenAIResponsesModel, Runner, set_tracing_disabled
from agents.exceptions import AgentsException

from bench.dialects.programs.shown import Shown, added, tool

set_tracing_disabled(True)

_APPROVING = HostedMCPTool(
    tool_config={
        "type": "mcp",
        "server_label": "reattach",
        "server_url": "http://localhost/unused",
        "require_approval": "always",
    },
    on_approval_request=lambda _: {"approve": True},
)


class _Agents:
    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.kept: dict[str, Any] = {}
        self.shown: Shown = []

    def send(self, text: str) -> str:
        return asyncio.run(self._send(text))

    async def _send(self, text: str) -> str:
        url = f"{self.options['url']}/openai/v1"
        async with openai.AsyncOpenAI(api_key="none", base_url=url, timeout=20.0) as client:
            model = OpenAIResponsesModel(model=self.options["agent"], openai_client=client)
            agent = Agent(name="guide", model=model, tools=[_APPROVING])
            try:
                result = Runner.run_streamed(agent, text, auto_previous_response_id=True)
                async for event in result.stream_events():
                    if event.type == "raw_response_event":
                        self._take(event.data)
            except openai.APIConnectionError as error:
                return f"broke: {error}"
            except (AgentsException, openai.APIError) as error:
                return f"failed: {error}"
            return "completed" if result.final_output else "hangs"

    def _take(self, event: Any) -> None:
        if event.type == "response.output_text.delta":
            self.shown = added(self.shown, "text", event.delta)
        elif event.type == "response.reasoning_text.delta":
            self.shown = added(self.shown, "reasoning", event.delta)
        elif event.type == "response.output_item.done" and event.item.type == "mcp_call":
            self.shown = [*self.shown, tool(event.item.name, event.item.output)]


CLIENTS = {"agents": _Agents}
