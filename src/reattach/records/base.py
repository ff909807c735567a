"""What the records hold: the rows as plain values, and what is asked of them.

The records are agents, conversations, messages, runs and their owners, idempotency keys and API
keys: everything that is not the event log. Every look-up is by tenant,
and another tenant's row is as good as none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

import msgspec

from reattach.domain.events import RunStatus, StopReason, Usage
from reattach.domain.ids import AgentId, BlockId, ConversationId, RunId, StepId, TenantId
from reattach.domain.messages import Message

JsonObject = Mapping[str, Any]
"""A JSON object that is kept and given back as it came."""


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of a list.

    ``after`` and ``before`` name rows and follow the order of the list: what comes after a row
    is what a reader going on from it sees next. An unknown one raises NotFoundError.
    """

    limit: int
    ascending: bool
    after: str | None = None
    before: str | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of an agent's memory that stands in its system prompt."""

    id: BlockId
    label: str | None
    value: str
    created_at: datetime
    updated_at: datetime
    description: str | None = None
    limit: int | None = None
    read_only: bool = False
    hidden: bool | None = None
    metadata: JsonObject = field(default_factory=dict)
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Agent:
    id: AgentId
    name: str
    system: str
    created_at: datetime
    updated_at: datetime
    agent_type: str = "letta_v1_agent"
    description: str | None = None
    model: str | None = None
    """The handle of its model; None for the server's default."""
    model_settings: JsonObject | None = None
    embedding: str | None = None
    context_window_limit: int | None = None
    timezone: str | None = None
    hidden: bool | None = None
    metadata: JsonObject | None = None
    tags: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    settings: JsonObject = field(default_factory=dict)
    """Further members of the API's agent that are kept and given back, such as tool_rules."""
    last_run_completion: datetime | None = None
    last_run_duration_ms: int | None = None
    last_stop_reason: StopReason | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    id: ConversationId
    agent_id: AgentId
    created_at: datetime
    updated_at: datetime
    summary: str | None = None
    description: str | None = None
    model: str | None = None
    model_settings: JsonObject | None = None
    context_window_limit: int | None = None
    hidden: bool | None = None
    archived_at: datetime | None = None
    last_message_at: datetime | None = None
    isolated_blocks: tuple[Block, ...] = ()
    """Its own blocks, each instead of the agent's of that label."""


@dataclass(frozen=True, slots=True)
class Thread:
    """Where messages and runs belong: a named conversation, or an agent's default one."""

    agent_id: AgentId
    conversation_id: ConversationId | None

    @property
    def key(self) -> str:
        """What names the thread, in rows and to clients."""
        return self.conversation_id or self.agent_id


@dataclass(frozen=True, slots=True)
class ThreadContext:
    """What is in context of a thread."""

    messages: list[Message]
    """In the order in which a model is told them: the system message, then the newest summary."""
    counted_tokens: int | None
    """What the provider counted of them up to the last answer, which is not included."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a model within a run."""

    id: StepId
    run_id: RunId
    agent_id: AgentId
    created_at: datetime
    model: str | None
    usage: Usage
    stop_reason: StopReason | None
    status: Literal["success", "failed", "cancelled"]
    error_type: str | None = None


class Target(msgspec.Struct, frozen=True):
    """A run that somebody wants to follow: what is known of it without its whole record."""

    run_id: RunId
    tenant: TenantId
    status: RunStatus
    """As it was when it was found."""
    background: bool

    @classmethod
    def of(cls, run: "Run") -> Self:
        return cls(run.id, run.tenant, run.status, background=run.background)


@dataclass(frozen=True, slots=True)
class Run:
    id: RunId
    tenant: TenantId
    thread: Thread
    status: RunStatus
    background: bool
    created_at: datetime
    model: str | None
    run_type: str
    """Which route made it, such as ``send_conversation_message``."""
    request_config: JsonObject
    input: tuple[Message, ...]
    """What was sent; it stays here even when the conversation does not keep it."""
    owner: str
    """The process that holds the lease."""
    token: int
    """The fencing token of that lease; each new owner has a higher one."""
    completed_at: datetime | None = None
    stop_reason: StopReason | None = None
    error: JsonObject | None = None
    """The error_message of a run that failed."""
    usage: Usage | None = None
    duration_ns: int | None = None
    cancel_requested_at: datetime | None = None
    log_deleted_at: datetime | None = None
    """When the log went, after its retention."""
    callback_url: str | None = None
    """The URL that is called when the run has ended."""
    callback_sent_at: datetime | None = None
    """When that was last tried."""
    callback_status_code: int | None = None
    """What the receiver answered then; None if it did not."""
    callback_error: str | None = None
    """Why that failed; None if it did not."""
    begun_calls: tuple[str, ...] | None = None
    """The ids of the calls whose tools may have begun to run; None: of any that it has."""

    @property
    def conversation_id(self) -> str | None:
        """The conversation that it belongs to; None for the default one of its agent."""
        return self.thread.conversation_id

    @property
    def callback_host(self) -> str | None:
        """The host of ``callback_url`` as it is compared."""
        if self.callback_url is None:
            return None
        try:
            return (urlsplit(self.callback_url).hostname or "").rstrip(".")
        except ValueError:
            return ""


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What makes two sends the same request."""

    otids: tuple[str, ...]
    """The OTIDs of its messages, in order; () if the client gave none for some message."""
    payload_sha256: str
    """A digest of the messages and the thread."""


@dataclass(frozen=True, slots=True)
class RunCreated:
    run: Run


@dataclass(frozen=True, slots=True)
class RunKnown:
    """The request was made before; this is its run."""

    run: Run


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a run ended, derived from its closed log; written in one transaction."""

    stop_reason: StopReason
    completed_at: datetime
    usage: Usage
    messages: tuple[Message, ...]
    """What the conversation keeps of the run, in order: its input, then its output."""
    steps: tuple[Step, ...]
    error: JsonObject | None = None
    duration_ns: int | None = None

    @property
    def status(self) -> RunStatus:
        return self.stop_reason.run_status


@dataclass(frozen=True, slots=True)
class Beat:
    """What an owner learns by a beat."""

    alive: bool
    """Whether it still holds its runs."""
    held: tuple[RunId, ...] = ()
    """Its active runs."""
    cancelled: tuple[RunId, ...] = ()
    """Those of them that somebody asked to end."""
    silent_seconds: float = field(default=0.0, compare=False)
    """The time since its last beat by the clock of the database, where that has one."""


class KeyScope(StrEnum):
    """Something that an API key allows."""

    READ = "read"
    """Look at everything of the tenant, and follow its runs."""
    SEND = "send"
    """Send, answer, cancel, and make conversations."""
    ADMIN = "admin"
    """Make, change and delete agents, blocks and the rest."""


ALL_SCOPES: Final = frozenset(KeyScope)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as it is remembered. The key itself is shown once, when it is made."""

    id: str
    tenant: TenantId
    name: str
    prefix: str
    """The first characters of the key, to tell keys apart."""
    created_at: datetime
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    """To the minute."""
    expires_at: datetime | None = None
    scope_names: tuple[str, ...] | None = None
    """None: all of them, whichever there are."""

    @property
    def scopes(self) -> frozenset[str]:
        return ALL_SCOPES if self.scope_names is None else frozenset(self.scope_names)
