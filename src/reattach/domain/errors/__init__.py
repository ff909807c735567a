"""Every error that Reattach raises deliberately, as one tree.

An error has a ``fact`` (what failed, with the value) and, where there is a next step, a ``remedy``
(a command, a setting or a request). ``detail`` is both together and is shown to clients as it is,
so an error that can reach a client contains no path, secret, SQL, or id of another tenant. ``code``
is stable and meant for programs. ``http/errors.py`` maps classes to statuses. ``connection`` and
``stores`` continue the tree.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar

from reattach.domain.clock import utc_text
from reattach.domain.ids import DEFAULT_TENANT, ConversationId, Seq, TenantId
from reattach.domain.limits import MAX_ERROR_CHARS, MAX_VALIDATION_ERRORS


class ReattachError(Exception):
    """The root of the tree. ``extra`` holds further members of the error's JSON body."""

    code = "internal_error"
    status = 0
    """The status with which a server refused ``reattach.client``; 0 for every other error."""
    prefix: ClassVar[str] = ""  # of ``detail``, as clients of the Letta API expect it

    def __init__(self, fact: str, *, remedy: str = "", **extra: object) -> None:
        self.fact = fact
        self.remedy = remedy
        self.detail = f"{self.prefix}{fact} {remedy}" if remedy else f"{self.prefix}{fact}"
        self.extra: Mapping[str, object] = extra
        super().__init__(self.detail)


# The request is wrong, or conflicts with the present state.


class InvalidArgumentError(ReattachError):
    """A value has the right type but is not acceptable."""

    code = "invalid_argument"
    prefix = "INVALID_ARGUMENT: "


class NoActiveRunError(InvalidArgumentError):
    """Nothing is active in the conversation, which may not exist."""

    code = "no_active_run"

    def __init__(self) -> None:
        super().__init__("No active runs found for this conversation.")


class EventIdWithoutRunError(InvalidArgumentError):
    """A page's position is a number only, where the request does not say of which run."""

    code = "event_id_without_run"

    def __init__(self, event_id: str) -> None:
        super().__init__(
            f"The Last-Event-ID '{event_id}' does not name its run, and neither does the request: "
            "another run may be active by now.",
            remedy="Send the id as it came on this route, '<run_id>:<seq>', or name the run with "
            "'run_id', or begin without an id.",
        )


class ValidationFailedError(ReattachError):
    """A request does not match its schema."""

    code = "validation_error"


class UnsupportedBodyError(ReattachError):
    """The body is compressed, or its text is not UTF-8."""

    code = "unsupported_media_type"


class UnauthorizedError(ReattachError):
    """The key is missing, unknown or revoked; the text deliberately does not say which."""

    code = "unauthorized"

    def __init__(self) -> None:
        super().__init__("Unauthorized")


class TokenExpiredError(UnauthorizedError):
    """A stream token of this server has expired. Its text is that of every other refusal."""


class ForbiddenError(ReattachError):
    """The key is valid but lacks the scope that the request needs."""

    code = "forbidden"

    def __init__(self, scope: str, scopes: Sequence[str], tenant: TenantId) -> None:
        options = [] if tenant == DEFAULT_TENANT else [f"--tenant {tenant}"]
        options += [f"--scope {one}" for one in (*scopes, scope)]
        super().__init__(
            f"This request needs the scope '{scope}', and the API key has only: "
            f"{', '.join(scopes) or 'none'}.",
            remedy="Use another key, or create one with `reattach keys create NAME "
            f"{' '.join(options)}`.",
            missing_scope=scope,
        )


class TokenForbiddenError(ForbiddenError):
    """A stream token is valid, but not for this request."""

    def __init__(self, fact: str, *, remedy: str = "", **extra: object) -> None:
        ReattachError.__init__(self, fact, remedy=remedy, **extra)


class KeyRequiredError(UnauthorizedError):
    """The server has no API keys yet and refuses this client without one."""

    code = "key_required"

    def __init__(self, reason: str) -> None:
        ReattachError.__init__(
            self,
            f"This server has no API keys yet, and {reason}.",
            remedy="Create a key with `reattach keys create NAME`, and send it as "
            "'Authorization: Bearer <key>'.",
        )


class NotOnThisMachineError(KeyRequiredError):
    """A server without keys got a request that may come from another machine."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"accepts only direct connections from its own machine, but {reason}")


class ForeignPageError(KeyRequiredError):
    """A server without keys got a request of a web page that is not of its own machine."""

    def __init__(self, page: str) -> None:
        super().__init__(
            "accepts only web pages of its own machine that REATTACH_CORS_ORIGINS allows, but this "
            f"request comes from a page {page}"
        )


class MisdirectedError(ReattachError):
    """A server without keys was addressed by a host name that is not a loopback name."""

    code = "misdirected"

    def __init__(self, host: str) -> None:
        super().__init__(
            "This server has no API keys yet, so it accepts only loopback host names and not "
            f"'{host[:100]}': a web page could otherwise send requests through your browser.",
            remedy="Use http://localhost, or create a key with `reattach keys create NAME`.",
        )


class NotFoundError(ReattachError):
    """The object does not exist for this tenant."""

    code = "not_found"


class ExpiredError(ReattachError):
    """The log was deleted, or the part of it before ``earliest_seq``."""

    code = "expired"
    prefix = "EXPIRED: "

    def __init__(
        self,
        fact: str,
        *,
        remedy: str = "",
        expired_at: datetime | None = None,
        earliest_seq: Seq | None = None,
    ) -> None:
        at = None if expired_at is None else utc_text(expired_at)
        known = {"expired_at": at, "earliest_seq": earliest_seq}
        extra = {name: value for name, value in known.items() if value is not None}
        super().__init__(fact, remedy=remedy, **extra)


class TrimmedError(ExpiredError):
    """The log still exists, but its events before ``earliest_seq`` were deleted on purpose."""

    def __init__(self, run_id: str, earliest_seq: Seq) -> None:
        super().__init__(
            f"The events of {run_id} before {earliest_seq} have been deleted.",
            remedy=f"Resume with starting_after={earliest_seq - 1} or higher.",
            earliest_seq=earliest_seq,
        )


class ConflictError(ReattachError):
    """The request conflicts with the present state; it may succeed later or in another form."""

    code = "conflict"
    prefix = "CONFLICT: "


class ConversationBusyError(ConflictError):
    """Another run of the conversation has not ended."""

    code = "conversation_busy"

    def __init__(self, run_id: str, conversation_id: str) -> None:
        super().__init__(
            f"Cannot send a new message: Another request (run_id={run_id}) is currently being "
            "processed for this conversation.",
            remedy="Please wait for it to complete.",
            run_id=run_id,
            conversation_id=conversation_id,
        )


class OtidConflictError(ConflictError):
    """An idempotency key was used before with another payload or in another conversation."""

    code = "otid_conflict"

    def __init__(self, run_id: str | None) -> None:
        """``run_id`` is the run of the earlier request, or None if the sender may not know it."""
        if run_id is None:
            super().__init__(
                "The otid of this request was already used for another message.",
                remedy="Use a new otid.",
            )
            return
        super().__init__(
            f"The otid of this request was already used by another request (run_id={run_id}).",
            remedy="To get that run, send the same messages to the same conversation. To send a "
            "new message, use a new otid.",
            run_id=run_id,
        )


class CursorAheadError(ConflictError):
    """A client's cursor, which it calls ``name``, is past the ``last`` event of an open log."""

    code = "cursor_ahead"

    def __init__(self, run_id: str, cursor: object, last: object, name: str) -> None:
        super().__init__(
            f"{name}={cursor} is past the last event ({last}) of run {run_id}: the "
            "cursor belongs to another run, or the log lost events.",
            remedy=f"Resume with {name}={last} or lower.",
            run_id=run_id,
            last_seq=last,
        )


class PendingApprovalError(ConflictError):
    """The conversation is waiting for an approval, and this message does not answer it."""

    code = "pending_approval"

    def __init__(self, request_id: str, tool_call_ids: Sequence[str], run_id: str | None) -> None:
        super().__init__(
            "Cannot send a new message: The agent is waiting for approval on a tool call.",
            remedy="Please approve or deny the pending request before continuing.",
            pending_request_id=request_id,
            tool_call_ids=list(tool_call_ids),
            run_id=run_id,
        )


class AnswerRefusedError(ReattachError):
    """An approval response does not match the pending request."""

    code = "answer_refused"


class ConversationKeyTakenError(ConflictError):
    """Another request has just created a conversation under the same key."""

    code = "conversation_busy"

    def __init__(self, conversation_id: ConversationId) -> None:
        super().__init__(
            "Another request has just begun this conversation.", remedy="Send the request again."
        )
        self.conversation_id = conversation_id


class NoPendingApprovalError(AnswerRefusedError):
    code = "no_pending_approval"

    def __init__(self) -> None:
        super().__init__(
            "Cannot process approval response: No tool call is currently awaiting approval.",
            remedy="Please send a regular message to interact with the agent.",
        )


class ToolCallIdsError(AnswerRefusedError):
    """An approval response omits a pending call, repeats one, or names one that is not pending."""

    code = "invalid_tool_call_ids"

    def __init__(self, expected: Sequence[str], received: Sequence[str], request_id: str) -> None:
        shown = [one[:MAX_ERROR_CHARS] for one in received[:MAX_VALIDATION_ERRORS]]
        super().__init__(
            f"Invalid tool call IDs. Expected '{list(expected)}', but received '{shown}'.",
            expected=list(expected),
            received=shown,
            pending_request_id=request_id,
        )


class NoActiveRunsToCancelError(ConflictError):
    code = "no_active_runs"


class UrlRefusedError(ReattachError):
    """The server does not connect to a URL that a client sent; ``detail`` says why."""

    code = "url_refused"


class UrlUnreachableError(ReattachError):
    """A URL that a client sent did not answer; ``detail`` says why, for the operator only."""

    code = "url_unreachable"


class LimitExceededError(ReattachError):
    """A value is larger than ``limits`` allows."""

    code = "limit_exceeded"


class QuotaError(ReattachError):
    """A tenant has reached its quota for now; a retry may succeed."""

    code = "quota_exceeded"

    def __init__(self, fact: str, *, remedy: str = "", retry_after_seconds: int = 1) -> None:
        super().__init__(fact, remedy=remedy)
        self.retry_after_seconds = retry_after_seconds


class NotImplementedHereError(ReattachError):
    """A part of the API that this server does not support."""

    code = "not_implemented"


# The server cannot do it at present.


class UnavailableError(ReattachError):
    """The server is draining, or a store does not answer; a retry may succeed."""

    code = "unavailable"

    def __init__(self, fact: str, *, remedy: str = "", retry_after_seconds: int = 1) -> None:
        super().__init__(fact, remedy=remedy)
        self.retry_after_seconds = retry_after_seconds


class StoreUnavailableError(UnavailableError):
    """The log or the records cannot be read or written."""

    code = "store_unavailable"


# Refusals of a log. Clients see them only as one of the classes above.


class LogError(ReattachError):
    """A log refused an operation; nothing was changed."""

    code = "log_error"


class LogNotFoundError(LogError):
    """The log was never opened, or was deleted."""


class LogClosedError(LogError):
    """The log is closed; nothing can be appended."""


class LogLostError(LogError):
    """The store lost events that this process has already sent to readers."""

    code = "log_lost"

    def __init__(self, run_id: str, last_seq: Seq) -> None:
        super().__init__(
            f"The store lost the event log of run {run_id} after event {last_seq} was sent.",
            remedy="Read the messages that were saved from the conversation.",
            run_id=run_id,
            last_seq=last_seq,
        )
        self.last_seq = last_seq


class FencedError(LogError):
    """A newer owner has the run; the caller must stop at once."""


class SeqMismatchError(LogError):
    """An append neither continues the log nor repeats its last append."""

    def __init__(self, run_id: str, first_seq: Seq, last_seq: Seq) -> None:
        super().__init__(
            f"An append to {run_id} starts at seq {first_seq}, but the log ends at {last_seq}."
        )
        self.last_seq = last_seq


# Failures that an engine reports. They become the error_message event of a run.


class EngineError(ReattachError):
    """A turn failed. ``detail`` is safe to show; the cause is only logged."""

    code = "internal_error"
    stop_reason = "error"
    may_pass = False
    """Whether the answer may be continued: the provider's stream broke, or it refused for now."""
    retry_after_seconds: float | None = None
    """The time after which the provider accepts the request, if it said so."""


class ModelError(EngineError):
    """The model's provider refused the request or failed."""

    code = "llm_error"
    stop_reason = "llm_api_error"


class ModelTimeoutError(ModelError):
    code = "llm_timeout"


class ModelRateLimitError(ModelError):
    code = "llm_rate_limit"


class ModelAuthenticationError(ModelError):
    code = "llm_authentication"


class ModelEmptyResponseError(ModelError):
    code = "llm_empty_response"
    stop_reason = "invalid_llm_response"


class ContextWindowError(ModelError):
    """The turn does not fit into the model's context window."""

    code = "context_window_exceeded"


class SystemPromptTooLongError(ContextWindowError):
    """The system prompt alone fills the context window, so compaction cannot help."""

    code = "context_window_overflow_in_system_prompt"
    stop_reason = "context_window_overflow_in_system_prompt"


def engine_error(code: str, detail: str) -> EngineError:
    """Rebuild the error that ended a run from the code and text in its record."""
    kinds: list[type[ModelError]] = [ModelError, *ModelError.__subclasses__()]
    for kind in (*kinds, *ContextWindowError.__subclasses__()):
        if kind.code == code:
            return kind(detail)
    error = EngineError(detail)
    error.code = code
    return error


class ToolError(ReattachError):
    """A tool call failed; the text is meant for the model and safe to show."""

    code = "tool_error"


class McpUnreachableError(ToolError):
    """An MCP server cannot be reached, or closed the connection."""

    code = "mcp_unreachable"


class McpLostError(ToolError):
    """The connection broke during a call, so it is unknown whether the tool ran."""

    code = "mcp_lost"


class StartupError(ReattachError):
    """The server cannot start; ``remedy`` says what to change."""

    code = "startup_error"
