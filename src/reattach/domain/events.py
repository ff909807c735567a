"""The events of a run: the content of its log, independent of any wire format.

``wire`` encodes them as the frames that the log keeps and decodes them, so a log can always be read
as these events.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import msgspec

from reattach.domain.ids import MessageId, StepId
from reattach.domain.messages import Fragment


class StopReason(StrEnum):
    """Why a run ended."""

    END_TURN = "end_turn"
    ERROR = "error"
    MODEL_API_ERROR = "llm_api_error"
    INVALID_MODEL_RESPONSE = "invalid_llm_response"
    INVALID_TOOL_CALL = "invalid_tool_call"
    MAX_STEPS = "max_steps"
    MAX_TOKENS = "max_tokens_exceeded"
    NO_TOOL_CALL = "no_tool_call"
    TOOL_RULE = "tool_rule"
    CANCELLED = "cancelled"
    INSUFFICIENT_CREDITS = "insufficient_credits"
    REQUIRES_APPROVAL = "requires_approval"
    CONTEXT_WINDOW_OVERFLOW = "context_window_overflow_in_system_prompt"

    @property
    def run_status(self) -> "RunStatus":
        """The status of a run that ended for this reason."""
        if self is StopReason.CANCELLED:
            return RunStatus.CANCELLED
        completed = {self.END_TURN, self.MAX_STEPS, self.TOOL_RULE, self.REQUIRES_APPROVAL}
        return RunStatus.COMPLETED if self in completed else RunStatus.FAILED


class RunStatus(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_active(self) -> bool:
        return self in {RunStatus.CREATED, RunStatus.RUNNING}


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a piece of output: part ``index`` of message ``message_id`` of a step."""

    message_id: MessageId
    step_id: StepId
    index: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Ping:
    """The first event of a run whose sender asked for pings."""

    id: str
    at: datetime


class Output(msgspec.Struct, frozen=True):
    """Output that becomes a message of the conversation, or a part of one.

    It is a struct, because most events are of this kind and structs are made faster.
    """

    place: Place
    parts: tuple[Fragment, ...]
    """One, except that whole calls at one place share an event."""


@dataclass(frozen=True, slots=True)
class CompactionBegan:
    """The context is too large, and a summary of its older part is being made."""

    id: str
    step_id: StepId
    at: datetime
    trigger: str
    context_tokens: int
    """An estimate."""
    context_window_tokens: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """The first event of the terminal group."""

    reason: StopReason


@dataclass(frozen=True, slots=True)
class Failed:
    """The second event of the terminal group of a run that failed."""

    error_type: str
    message: str
    detail: str | None


@dataclass(frozen=True, slots=True)
class Usage:
    """The last event of every log; also the usage of a step."""

    completion_tokens: int = 0
    prompt_tokens: int = 0
    total_tokens: int = 0
    step_count: int = 0
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    context_tokens: int | None = None


Event = Ping | CompactionBegan | Output | Stopped | Failed | Usage
