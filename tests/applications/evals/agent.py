"""The factory that letta-evals runs in its own environment to make the agent of each sample."""

from letta_client import AsyncLetta
from letta_evals.decorators import agent_factory
from letta_evals.models import Sample


@agent_factory
async def make(client: AsyncLetta, sample: Sample) -> str:
    agent = await client.agents.create(name="sample", model="scripted/echo")
    return agent.id
