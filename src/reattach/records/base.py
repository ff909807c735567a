"""The rows of the records as plain values.

The records are agents, conversations, messages, runs and their owners, idempotency keys and API
keys: everything that is stored beside the event log.
"""

import getpass
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

import msgspec

from reattach.domain.events import RunStatus, StopReason, Usage
from reattach.domain.ids import (
    AgentId,
    BlockId,
    ConversationId,
    MessageId,
    RunId,
    Seq,
    StepId,
    TenantId,
    Token,
)
from reattach.domain.messages import Message

JsonObject = Mapping[str, Any]
"""A JSON object that is stored and returned unchanged."""

_TOOLS: Final = "server_tools"


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list.

    ``after`` and ``before`` are ids of rows and follow the order of the list: the page after a row
    is what a reader who has seen that row sees next. An unknown id raises NotFoundError.
    """

    limit: int
    ascending: bool
    after: str | None = None
    before: str | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A range of a list of messages: ``before`` means older and ``after`` newer, in either order.

    With one cursor the messages are the ones next to it; otherwise they are the first ones in the
    order.
    """

    limit: int
    ascending: bool
    before: MessageId | None = None
    after: MessageId | None = None

    @property
    def goes_to_newer(self) -> bool:
        """Whether the messages after the first ``limit`` are newer than those."""
        only_one = (self.before is None) is not (self.after is None)
        return self.after is not None if only_one else self.ascending


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of an agent's memory that is part of its system prompt."""

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


AgentType = Literal[
    "memgpt_agent",
    "memgpt_v2_agent",
    "letta_v1_agent",
    "react_agent",
    "workflow_agent",
    "split_thread_agent",
    "sleeptime_agent",
    "voice_convo_agent",
    "voice_sleeptime_agent",
]

DEFAULT_AGENT_TYPE: Final = "letta_v1_agent"


@dataclass(frozen=True, slots=True)
class Agent:
    id: AgentId
    name: str
    system: str
    created_at: datetime
    updated_at: datetime
    agent_type: AgentType = DEFAULT_AGENT_TYPE
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
    """Further fields of the API's agent that are stored and returned, such as tool_rules."""
    last_run_completion: datetime | None = None
    last_run_duration_ms: int | None = None
    last_stop_reason: StopReason | None = None

    @property
    def tools(self) -> Mapping[str, bool | None]:
        """The names of its tools, each with whether its calls require approval.

        None stands for the tool's own rule.
        """
        return self.settings.get(_TOOLS) or {}

    def with_tools(self, tools: Mapping[str, bool | None]) -> Self:
        """Return the agent with these tools instead of its own."""
        if [*tools.items()] == [*self.tools.items()]:  # Also in the same order.
            return self
        return replace(self, settings={**self.settings, _TOOLS: tools})


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
    """Its own blocks. Each replaces the agent's block with the same label."""


@dataclass(frozen=True, slots=True)
class Thread:
    """A sequence of messages and runs: a named conversation, or an agent's default one."""

    agent_id: AgentId
    conversation_id: ConversationId | None

    @property
    def key(self) -> str:
        """The id of the thread, in rows and for clients."""
        return self.conversation_id or self.agent_id


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
    """The part of a run that a reader of its events needs."""

    run_id: RunId
    tenant: TenantId
    status: RunStatus
    """The status at the time of the query."""
    background: bool
    traceparent: str | None = None
    """See ``Run.traceparent``. None also if the log found the run without its record."""
    log_deleted: bool = False
    """Whether the record says that the log was deleted; without the record it is False."""

    @classmethod
    def of(cls, run: "Run") -> Self:
        deleted = run.log_deleted_at is not None
        return cls(run.id, run.tenant, run.status, run.background, run.traceparent, deleted)


class RequestConfig(msgspec.Struct, frozen=True):
    """The options of a send that the API's run returns, and whether compactions are shown."""

    use_assistant_message: bool | None = True
    assistant_message_tool_name: str | None = "send_message"
    assistant_message_tool_kwarg: str | None = "message"
    include_return_message_types: tuple[str, ...] | None = None
    include_compaction_messages: bool = False


class RequestExtras(msgspec.Struct, frozen=True):
    """Parts of a send that clients of other dialects see again in its answer."""

    client_tools: tuple[str, ...] = ()
    """The names of the tools that the client runs."""
    given: str = "{}"
    """Members of the request that the answer repeats, as a JSON object."""


class RunError(msgspec.Struct, frozen=True, tag_field="message_type", tag="error_message"):
    """The error of a run that failed, as the API's run returns it."""

    run_id: RunId
    error_type: str = "internal_error"
    message: str = ""
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step of a run as far as it got. ``usage`` is zero for an unfinished step."""

    id: StepId
    started_at: datetime
    usage: Usage
    model: str | None = None
    """The handle of the model, if it was not the run's."""


class RunNotes(msgspec.Struct, frozen=True):
    """Facts about an active run that its events do not carry, for the owner that continues it."""

    steps: tuple[StepRecord, ...] = ()
    """The finished steps, except perhaps the last one."""
    repeatable_calls: tuple[str, ...] = ()
    """Calls that began and whose tools may run again."""
    upstream_step: StepId | None = None
    """The step whose answer the provider keeps."""
    upstream_id: str | None = None
    """The provider's id of that answer."""
    handed_over: bool = False
    """Whether the last owner gave the run up to be continued, because it was being stopped."""

    @property
    def unfinished_upstream_id(self) -> str | None:
        """The provider's id of an answer that may not be whole; None if there is none."""
        is_whole = any(step.id == self.upstream_step for step in self.steps)
        return None if is_whole else self.upstream_id


class Attempt(msgspec.Struct, frozen=True):
    """The work of one owner on a run, after an earlier attempt was interrupted."""

    began_at: datetime
    after_seq: Seq
    """The newest event when the attempt before was interrupted."""
    first_seq: Seq
    """The seq of the first event that the engine adds."""
    finished_steps: int
    """The number of finished steps then."""
    way: str
    """How it continues: ``upstream``, ``prefix``, ``step`` or ``ask``."""
    interruption: str
    """Why the attempt before ended: ``crash``, ``handover`` or ``provider``."""
    owner: str = ""
    """The id of the process."""
    token: Token | None = None
    """The fencing token of that owner; None if an earlier version noted it."""


class Run(msgspec.Struct, frozen=True):
    id: RunId
    tenant: TenantId
    thread: Thread
    status: RunStatus
    background: bool
    created_at: datetime
    model: str | None
    run_type: str
    """The route that created it, such as ``send_conversation_message``."""
    input: tuple[Message, ...]
    """The messages that were sent, whether the conversation keeps them or not."""
    owner: str
    """The id of the process that owns it."""
    token: Token
    """The fencing token of that owner; each new owner has a higher one."""
    request_config: RequestConfig = RequestConfig()
    request_extras: RequestExtras | None = None
    completed_at: datetime | None = None
    stop_reason: StopReason | None = None
    error: RunError | None = None
    usage: Usage | None = None
    duration_ns: int | None = None
    cancel_requested_at: datetime | None = None
    log_deleted_at: datetime | None = None
    """The time when the log was deleted, after its retention."""
    callback_url: str | None = None
    """The URL that is called when the run has ended."""
    callback_sent_at: datetime | None = None
    """The time of the last attempt of the callback."""
    callback_status_code: int | None = None
    """The receiver's status code; None if it did not answer."""
    callback_error: str | None = None
    """The reason why the attempt failed; None if it did not."""
    begun_calls: tuple[str, ...] | None = None
    """The ids of the tool calls that may have begun; None if any may have."""
    turn_plan: str | None = None
    """The data with which another process can continue the run, written by ``runs``; None once
    it has ended."""
    notes: RunNotes = RunNotes()
    attempts: tuple[Attempt, ...] = ()
    """Every attempt after the first."""
    interrupted_at: datetime | None = None
    """When the last attempt ended, if it ended before the run; about then if the owner died."""
    traceparent: str | None = None
    """The W3C trace context of its send, if runs are traced."""
    first_owner: str = ""
    """The owner of the first attempt; empty if it was created by an earlier version."""
    first_event_at: datetime | None = None
    """When the first event was in the log, if the run has ended or changed its owner since."""
    event_count: int | None = None
    """The number of events in the log of an ended run."""
    log_bytes: int | None = None
    """Their size."""

    @property
    def conversation_id(self) -> str | None:
        """The conversation that it belongs to; None for the default one of its agent."""
        return self.thread.conversation_id

    @property
    def callback_host(self) -> str | None:
        """The host of ``callback_url``, normalised for comparisons."""
        if self.callback_url is None:
            return None
        try:
            return (urlsplit(self.callback_url).hostname or "").rstrip(".")
        except ValueError:
            return ""


@dataclass(frozen=True, slots=True)
class RequestKey:
    """The idempotency key of a send: two sends with the same key are one request."""

    otids: tuple[str, ...]
    """The OTIDs of its messages, in order; () if some message has none."""
    payload_sha256: str
    """A digest of the messages and the thread."""


@dataclass(frozen=True, slots=True)
class RunKnown:
    """An earlier request with the same key created this run."""

    run: Run


@dataclass(frozen=True, slots=True)
class LogSummary:
    """Facts about the log of a run, as its owner knows them."""

    event_count: int
    size_bytes: int
    first_event_at: datetime | None = None
    """When the first event was in the log, if this owner wrote it."""
    commits: str | None = None
    """When the events of this owner were in the log, encoded by ``runs``."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of a run, derived from its closed log and written in one transaction."""

    stop_reason: StopReason
    completed_at: datetime
    usage: Usage
    messages: tuple[Message, ...]
    """The messages that the conversation keeps, in order: the input, then the output."""
    steps: tuple[Step, ...]
    error: RunError | None = None
    duration_ns: int | None = None
    log: LogSummary | None = None

    @property
    def status(self) -> RunStatus:
        return self.stop_reason.run_status


@dataclass(frozen=True, slots=True)
class Beat:
    """The result of an owner's beat."""

    alive: bool
    """Whether the owner still owns its runs."""
    held: tuple[RunId, ...] = ()
    """The owner's active runs."""
    cancelled: tuple[RunId, ...] = ()
    """The active runs with a requested cancel."""
    silent_seconds: float = field(default=0.0, compare=False)
    """The time since the last beat by the clock of the database, if it has one."""


@dataclass(frozen=True, slots=True)
class OwnerReport:
    """The report that a process wrote for the others when it was last asked."""

    owner: str
    has_lease: bool
    """Whether its lease has not run out."""
    reported_at: datetime | None
    """By the clock of the database; None if it never wrote one."""
    report: str | None


class KeyScope(StrEnum):
    """A permission of an API key."""

    READ = "read"
    """Read everything of the tenant, and follow its runs."""
    SEND = "send"
    """Send, answer, cancel, and create conversations."""
    ADMIN = "admin"
    """Create, change and delete agents, blocks and everything else; look at the tenant's use."""
    OPERATOR = "operator"
    """Look at the processes, runs, readers and use of all tenants, and manage their keys."""


ALL_SCOPES: Final = frozenset({KeyScope.READ, KeyScope.SEND, KeyScope.ADMIN})
"""Every scope within a tenant. A key reaches beyond its tenant only if it is asked for."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored API key. The key itself is shown once, when it is created."""

    id: str
    tenant: TenantId
    name: str
    prefix: str
    """The first characters of the key, to recognise it by."""
    created_at: datetime
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    """Accurate to the minute."""
    expires_at: datetime | None = None
    scope_names: tuple[str, ...] | None = None
    """None for all scopes within its tenant, including future ones."""

    @property
    def scopes(self) -> frozenset[str]:
        return ALL_SCOPES if self.scope_names is None else frozenset(self.scope_names)


@dataclass(frozen=True, slots=True)
class Actor:
    """The author of an act."""

    kind: Literal["key", "token", "cli", "open"]
    """An API key, a stream token, the command line, or a client of a server without keys."""
    id: str | None = None
    """The id of the key or token."""
    name: str | None = None
    """The name of the key, or the operating system's user of the command line."""

    @classmethod
    def of_command_line(cls) -> Self:
        """Return the user of the operating system that runs this process."""
        try:
            return cls("cli", name=getpass.getuser())
        except (KeyError, OSError):  # The user id of a container may have no name.
            return cls("cli")
