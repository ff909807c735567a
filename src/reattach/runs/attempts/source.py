"""The engine and the turn of a run, made again for each attempt at it."""

from collections.abc import Collection
from dataclasses import dataclass

from reattach.agent.engine_factory import EngineFactory
from reattach.agent.turns import TurnPlan, make_turn
from reattach.engine.base import Engine, Turn
from reattach.records.base import Agent, Conversation, Run
from reattach.records.contexts.contexts import ThreadContext
from reattach.records.messages import Messages


@dataclass(frozen=True, slots=True)
class TurnSource:
    """Makes the engine and the turn of one run, the same in every process.

    The agent and the conversation may have changed since the send; the plan decides over them.
    """

    factory: EngineFactory
    messages: Messages
    plan: TurnPlan
    agent: Agent
    conversation: Conversation | None

    @property
    def tools(self) -> Collection[str]:
        """The names of the tools that the server runs for the engine."""
        theirs = {tool.name for tool in self.plan.client_tools}
        return self.plan.tools.keys() - theirs

    def engine(self, run: Run) -> Engine:
        """Return a new engine for an attempt at the run.

        Raises:
            NotFoundError: The model is not offered.
        """
        agent = self.agent.with_tools(self.plan.tools)
        return self.factory.engine(run.model or "", run.tenant, agent, self.conversation)

    async def turn(self, run: Run, context: ThreadContext | None = None) -> Turn:
        """Return the turn without earlier attempts; reads the conversation without ``context``.

        Raises:
            StoreUnavailableError: The records do not answer.
        """
        if context is None:
            context = await self.messages.context(run.tenant, run.thread, also_deleted=True)
        return make_turn(run, context, self.plan)
