"""The engine of a turn: its model's, with the agent's tools and compaction around it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from reattach.agent.compaction.engine import CompactingEngine
from reattach.agent.compaction.summary import Compactor, Plan, Summarizer
from reattach.agent.turns import settings_of
from reattach.domain.clock import Clock
from reattach.domain.errors import InvalidArgumentError, NotFoundError
from reattach.domain.ids import TenantId
from reattach.engine.base import Engine, Model
from reattach.engine.catalog import Catalog
from reattach.records.base import Agent, Conversation
from reattach.tools.base import Toolbox, ToolContext
from reattach.tools.loop import ToolLoop


@dataclass(frozen=True, slots=True)
class EngineFactory:
    """Chooses the model and builds the engine. Raises NotFoundError for an unknown model."""

    catalog: Catalog
    toolbox: Toolbox
    clock: Clock
    default_model: str | None
    tool_seconds: float

    def model(self, agent: Agent, conversation: Conversation | None, override: str | None) -> str:
        """Return the model's handle: of the send, else of the conversation, else of the agent.

        Raises:
            InvalidArgumentError: None of them names one, and there is no default.
        """
        own = None if conversation is None else conversation.model
        model = override or own or agent.model or self.default_model
        model = model or self.catalog.first()
        if model is None:
            raise InvalidArgumentError(
                "No model: this request, the conversation and the agent name none, and "
                "the server offers none.",
                remedy="`reattach doctor` on the server shows what it lacks.",
            )
        return model

    def engine(
        self, model: str, tenant: TenantId, agent: Agent, conversation: Conversation | None
    ) -> Engine:
        """Return the engine for one run of the tenant's agent with that model."""
        engine = CompactingEngine(
            self.catalog.engine(model),
            self.compactor(model, agent, conversation),
            self.clock,
        )
        tools = self.toolbox.for_tenant(tenant).attached_tools(agent.tools)
        context = ToolContext(tenant, agent.id, None if conversation is None else conversation.id)
        return ToolLoop(engine, tools, self.clock, call_seconds=self.tool_seconds, context=context)

    async def cancel_upstream(self, model: str, upstream_id: str) -> None:
        """Stop an answer that the model's provider keeps and that nobody will follow any more."""
        try:
            engine = self.catalog.engine(model)
        except NotFoundError:
            return  # No engine has the key to its provider any more.
        await engine.cancel_upstream(model, upstream_id)

    def compactor(
        self,
        model: str,
        agent: Agent,
        conversation: Conversation | None,
        asked: Mapping[str, Any] | None = None,
    ) -> Compactor | None:
        """Return the conversation's compactor, or None if the model cannot make summaries.

        ``asked`` takes precedence over the agent's settings.
        """
        offered = self.catalog.model(model)
        own = agent.settings.get("compaction_settings") or {}
        plan = Plan.of({**own, **(asked or {})})
        summarizer = self._summarizer(plan, offered, agent, conversation)
        if summarizer is None:
            return None
        limit = None if conversation is None else conversation.context_window_limit
        window = offered.context_window_tokens
        window = min(window, limit or agent.context_window_limit or window)
        asked_tokens = settings_of(agent, conversation).max_output_tokens
        return Compactor(
            plan,
            summarizer,
            self.clock,
            window_tokens=window,
            answer_tokens=asked_tokens or offered.max_output_tokens or 0,
        )

    def _summarizer(
        self, plan: Plan, offered: Model, agent: Agent, conversation: Conversation | None
    ) -> Summarizer | None:
        """Return the plan's model, by default ``offered``; None if it cannot make summaries."""
        is_other = False
        if plan.model is not None and not plan.is_by_agent:
            with suppress(NotFoundError):  # No longer on offer: use the agent's own model.
                offered, is_other = self.catalog.model(plan.model), True
        if not offered.can_summarize:
            return None
        settings = plan.settings
        if not is_other:
            settings = settings.over(settings_of(agent, conversation))
        engine = self.catalog.engine(offered.handle)
        return Summarizer(engine, offered.handle, offered.context_window_tokens, settings)
