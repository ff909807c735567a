"""Schemas of agents."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field

from reattach.domain.ids import (
    AGENT_NAME_PATTERN,
    BLOCK_PATTERN,
    TOOL_PATTERN,
    BlockId,
    new_agent_id,
)
from reattach.domain.limits import MAX_AGENT_TOOLS
from reattach.domain.limits.requests import MAX_AGENT_BLOCKS, MAX_NAME_CHARS
from reattach.domain.prompt import DEFAULT_SYSTEM
from reattach.engine.base import Model
from reattach.http.schemas.block import BlockCreate, BlockState
from reattach.http.schemas.fields import (
    Answer,
    Body,
    ContextTokens,
    Count,
    Description,
    Handle,
    KeptList,
    KeptObject,
    StopReasonName,
    SystemText,
    Tags,
    UtcTime,
    Word,
    given,
    members_of,
)
from reattach.http.schemas.model import ModelConfig
from reattach.http.schemas.settings import (
    CompactionSettings,
    LegacyModelConfig,
    ModelSettings,
    ResponseFormat,
    Tokens,
)
from reattach.http.schemas.tool import ToolBody
from reattach.records.base import DEFAULT_AGENT_TYPE, Agent, AgentType
from reattach.tools.base import Toolbox

Include = Literal[
    "agent.blocks",
    "agent.identities",
    "agent.managed_group",
    "agent.pending_approval",
    "agent.secrets",
    "agent.sources",
    "agent.tags",
    "agent.tools",
]
AgentName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_NAME_CHARS,
        pattern=AGENT_NAME_PATTERN,
        description="Letters, digits, spaces and `_'-`.",
    ),
]
BlockIds = Annotated[
    list[Annotated[BlockId, Field(pattern=BLOCK_PATTERN)]], Field(max_length=MAX_AGENT_BLOCKS)
]

ToolIds = Annotated[
    list[Annotated[str, Field(pattern=TOOL_PATTERN)]], Field(max_length=MAX_AGENT_TOOLS)
]


class Memory(Answer):
    agent_type: str
    git_enabled: bool = False
    blocks: list[BlockState]
    file_blocks: list[dict[str, Any]] = Field(default_factory=list)
    prompt_template: str = ""


@dataclass(frozen=True, slots=True)
class AgentView:
    """Data beside the agent itself that its representation needs."""

    default_model: str | None
    models: Mapping[str, Model]
    toolbox: Toolbox
    include: Collection[Include] | None = None
    """The relations to include; None: all."""

    def shows(self, relation: Include) -> bool:
        return self.include is None or relation in self.include


class AgentState(Answer):
    """An agent: a system prompt, memory, and a model that answers."""

    id: str
    name: str
    description: str | None
    agent_type: AgentType
    system: str
    model: str | None = Field(description="Handle of its model, `provider/name`.")
    model_settings: dict[str, Any] | None
    llm_config: ModelConfig
    embedding: str | None = Field(
        description="Stored and returned unchanged; embeddings are not supported."
    )
    embedding_config: dict[str, Any] | None = None
    memory: Memory
    blocks: list[BlockState]
    tags: list[str]
    tools: list[ToolBody] = Field(default_factory=list)
    sources: list[dict[str, Any]] = Field(default_factory=list)
    message_ids: list[str] | None = Field(
        description="Messages of its default conversation, oldest first; null in lists."
    )
    metadata: dict[str, Any] | None
    timezone: str
    hidden: bool | None
    created_at: UtcTime
    updated_at: UtcTime
    last_run_completion: UtcTime | None
    last_run_duration_ms: int | None
    last_stop_reason: StopReasonName | None
    tool_rules: list[dict[str, Any]] = Field(default_factory=list)
    compaction_settings: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    message_buffer_autoclear: bool = False
    enable_sleeptime: bool | None = None
    max_files_open: int | None = None
    per_file_view_window_char_limit: int | None = None
    project_id: str | None = None
    template_id: str | None = None
    base_template_id: str | None = None
    deployment_id: str | None = None
    entity_id: str | None = None
    identity_ids: list[str] = Field(default_factory=list)
    identities: list[dict[str, Any]] = Field(default_factory=list)
    secrets: list[dict[str, Any]] = Field(default_factory=list)
    tool_exec_environment_variables: list[dict[str, Any]] = Field(default_factory=list)
    pending_approval: dict[str, Any] | None = None
    multi_agent_group: dict[str, Any] | None = None
    managed_group: dict[str, Any] | None = None
    created_by_id: str | None = None
    last_updated_by_id: str | None = None

    @classmethod
    def of(cls, agent: Agent, view: AgentView, message_ids: Sequence[str] | None = None) -> Self:
        handle = agent.model or view.default_model
        config = ModelConfig.of(handle, view.models.get(handle or ""))
        if agent.context_window_limit is not None:
            config.context_window = agent.context_window_limit
        config.apply(agent.model_settings or {})
        blocks = (
            [BlockState.of(block) for block in agent.blocks] if view.shows("agent.blocks") else []
        )
        kept = {name: value for name, value in agent.settings.items() if name in KEPT_MEMBERS}
        attached = view.toolbox.attached_tools(agent.tools) if view.shows("agent.tools") else ()
        shown = {
            "model": handle,
            "llm_config": config,
            "memory": Memory(agent_type=agent.agent_type, blocks=blocks),
            "blocks": blocks,
            "tools": [ToolBody.attached(one) for one in attached],
            "tags": agent.tags if view.shows("agent.tags") else (),
            "message_ids": message_ids,
            "timezone": agent.timezone or "UTC",
        }
        return cls(**members_of(agent, cls) | shown | kept)


class _KeptMembers(Body):
    """Members of an agent that are only stored and returned."""

    tool_rules: KeptList | None = None
    compaction_settings: CompactionSettings | None = None
    response_format: ResponseFormat | None = None
    message_buffer_autoclear: bool | None = None
    enable_sleeptime: bool | None = None
    max_files_open: Count | None = None
    per_file_view_window_char_limit: Count | None = None
    project_id: Word | None = None


class _AgentMembers(_KeptMembers):
    """Members that can be set when an agent is created and changed later."""

    name: AgentName | None = None
    system: SystemText | None = None
    description: Description | None = None
    tags: Tags | None = None
    block_ids: BlockIds | None = None
    model: Handle | None = None
    model_settings: ModelSettings | None = None
    embedding: Word | None = None
    context_window_limit: ContextTokens | None = None
    timezone: Word | None = None
    hidden: bool | None = None
    metadata: KeptObject | None = None
    llm_config: LegacyModelConfig | None = Field(None, json_schema_extra={"deprecated": True})
    max_tokens: Tokens | None = Field(None, json_schema_extra={"deprecated": True})
    parallel_tool_calls: bool | None = Field(None, json_schema_extra={"deprecated": True})

    tools: Annotated[list[Word], Field(max_length=MAX_AGENT_TOOLS)] | None = Field(
        None, description="Names of tools of the server; see `GET /v1/tools/`."
    )
    tool_ids: ToolIds | None = Field(None, description="Ids of tools of the server.")
    secrets: dict[str, Any] | None = Field(None, description="Not supported yet.")
    tool_exec_environment_variables: dict[str, Any] | None = Field(
        None, description="Not supported yet."
    )
    folder_ids: list[Any] | None = Field(None, description="Not supported.")
    source_ids: list[Any] | None = Field(None, description="Not supported.")
    identity_ids: list[Any] | None = Field(None, description="Not supported.")

    def apply(self, agent: Agent) -> Agent:
        """Return the agent after the changes, except those of its blocks and tools."""
        changes = {name: value for name, value in given(self).items() if name in _FIELDS}
        for name in ("name", "system"):
            if name in changes and changes[name] is None:
                del changes[name]
        if "tags" in changes:
            changes["tags"] = tuple(dict.fromkeys(changes["tags"] or ()))
        legacy = self._legacy_changes()
        if "model_settings" in legacy and "model_settings" not in self.model_fields_set:
            legacy["model_settings"] = {**(agent.model_settings or {}), **legacy["model_settings"]}
        elif isinstance(changes.get("model_settings"), ModelSettings):
            changes["model_settings"] = {}
        changes |= legacy
        if kept := self.model_dump(mode="json", include=KEPT_MEMBERS, exclude_unset=True):
            settings = {**agent.settings, **kept}
            changes["settings"] = {n: value for n, value in settings.items() if value is not None}
        return replace(agent, **changes)

    def _legacy_changes(self) -> dict[str, Any]:
        """Return the values of deprecated members whose replacements are absent."""
        changes: dict[str, Any] = {}
        settings = {} if self.model_settings is None else self.model_settings.kept()
        if self.max_tokens is not None:
            settings.setdefault("max_output_tokens", self.max_tokens)
        if self.parallel_tool_calls is not None:
            settings.setdefault("parallel_tool_calls", self.parallel_tool_calls)
        if self.llm_config is not None:
            settings = self.llm_config.settings() | settings
        if settings:
            changes["model_settings"] = settings
        if self.llm_config is not None and self.model is None:
            changes["model"] = self.llm_config.model_handle
            if self.context_window_limit is None:
                changes["context_window_limit"] = self.llm_config.context_window
        return changes


KEPT_MEMBERS: Final = set(_KeptMembers.model_fields)

NOT_OFFERED_MEMBERS: Final[Mapping[str, str]] = {
    "secrets": "Set environment variables of the server for its tools.",
    "tool_exec_environment_variables": "Set environment variables of the server for its tools.",
    "folder_ids": "Put the content into memory blocks or messages.",
    "source_ids": "Put the content into memory blocks or messages.",
    "identity_ids": "Distinguish agents by tags.",
    "initial_message_sequence": "Send the messages after creating the agent.",
    "from_template": "Set the members of the agent directly.",
    "template": "Set the members of the agent directly.",
}
"""Unsupported members of an agent, with alternatives. Empty values are accepted."""


class AgentCreate(_AgentMembers):
    agent_type: AgentType = DEFAULT_AGENT_TYPE
    memory_blocks: Annotated[list[BlockCreate], Field(max_length=MAX_AGENT_BLOCKS)] | None = None
    include_base_tools: bool | None = Field(None, description="Has no effect.")
    initial_message_sequence: list[Any] | None = Field(None, description="Not supported.")
    from_template: str | None = Field(None, description="Not supported.")
    template: bool | None = Field(None, description="Not supported.")

    def agent(self, now: datetime) -> Agent:
        agent_id = new_agent_id()
        name = f"Agent {agent_id.removeprefix('agent-')[:8]}"
        agent = self.apply(Agent(agent_id, name, DEFAULT_SYSTEM, now, now))
        return replace(
            agent,
            model_settings=agent.model_settings or None,
            blocks=tuple(block.block(now) for block in self.memory_blocks or ()),
        )


class AgentUpdate(_AgentMembers):
    """Changes of an agent: an absent member stays, and null clears one that may be empty."""


_FIELDS: Final = frozenset(field.name for field in fields(Agent))


class ResetBody(Body):
    """Options of a reset."""

    add_default_initial_messages: bool | None = Field(
        False, description="Has no effect: nothing but a system message is ever added."
    )
