"""The agents and conversations to which messages are sent."""

from typing import TypeVar

import msgspec

from reattach.domain.ids import AgentId, ConversationId, TenantId
from reattach.domain.limits import KNOWN_ADDRESSEE_BYTES, KNOWN_ADDRESSEES
from reattach.records.agents import Agents
from reattach.records.base import Agent, Conversation
from reattach.records.conversations import Conversations
from reattach.records.database.database import Database

_K = TypeVar("_K")
_V = TypeVar("_V", Agent, Conversation)


class Addressees:
    """Finds agents and conversations, on SQLite without a query while they cannot have changed.

    They are forgotten when any program has committed anything to the file, except for the short
    writes of this process. Those change nothing here but the times of the last message and run, and
    how the last run ended, which are therefore not to be relied on.
    """

    def __init__(self, database: Database, agents: Agents, conversations: Conversations) -> None:
        self._database = database
        self._all_agents = agents
        self._all_conversations = conversations
        self._agents: dict[tuple[TenantId, AgentId], Agent] = {}
        self._conversations: dict[tuple[TenantId, ConversationId], Conversation] = {}
        self._other_commits: int | None = None
        """The state of the file that they are from."""

    async def agent(self, tenant: TenantId, agent_id: AgentId) -> Agent:
        """Return the agent. Raises NotFoundError."""
        state = self._state()
        if state is not None and (known := self._agents.get((tenant, agent_id))) is not None:
            return known
        agent = await self._all_agents.get(tenant, agent_id)
        if state is not None and state == self._other_commits:
            _keep(self._agents, (tenant, agent_id), agent)
        return agent

    async def conversation(
        self, tenant: TenantId, conversation_id: ConversationId
    ) -> tuple[Conversation, Agent]:
        """Return the conversation and its agent. Raises NotFoundError."""
        state = self._state()
        known = None if state is None else self._known_conversation(tenant, conversation_id)
        if known is not None:
            return known
        conversation, agent = await self._all_conversations.with_agent(tenant, conversation_id)
        if state is not None and state == self._other_commits:
            _keep(self._conversations, (tenant, conversation_id), conversation)
            _keep(self._agents, (tenant, agent.id), agent)
        return conversation, agent

    def _known_conversation(
        self, tenant: TenantId, conversation_id: ConversationId
    ) -> tuple[Conversation, Agent] | None:
        conversation = self._conversations.get((tenant, conversation_id))
        if conversation is None:
            return None
        agent = self._agents.get((tenant, conversation.agent_id))
        return None if agent is None else (conversation, agent)

    def _state(self) -> int | None:
        """Return the state of the file if that is known; what is from another one is forgotten."""
        state = self._database.other_commits()
        if state is not None and state != self._other_commits:
            self._agents.clear()
            self._conversations.clear()
            self._other_commits = state
        return state


def _keep(known: dict[_K, _V], key: _K, value: _V) -> None:
    """Keep the value unless it is large; when there are too many, all others are dropped."""
    if len(msgspec.json.encode(value)) <= KNOWN_ADDRESSEE_BYTES:
        if len(known) >= KNOWN_ADDRESSEES:
            known.clear()
        known[key] = value
