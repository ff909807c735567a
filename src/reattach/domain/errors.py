"""Every error that Reattach raises on purpose, as one tree.

The text of an error says what failed, with which value, and what to do next. It is shown to
clients as it stands, so it never holds a path, a secret, SQL, or an id of another tenant.
``code`` is stable and meant for programs. ``http/errors.py`` maps the classes to statuses.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from reattach.domain.limits import (
    MAX_ERROR_CHARS,
    MAX_VALIDATION_ERRORS,
)


class ReattachError(Exception):
    """The root. ``extra`` holds further members of the error's JSON body."""

    code = "internal_error"

    def __init__(self, detail: str, **extra: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra: Mapping[str, object] = extra


# What the caller asked for is wrong, or not so at present.


class InvalidArgumentError(ReattachError):
    """A value has the right type but makes no sense."""

    code = "invalid_argument"

    def __init__(self, detail: str, **extra: object) -> None:
        super().__init__(f"INVALID_ARGUMENT: {detail}", **extra)


class ValidationFailedError(ReattachError):
    """A request does not fit its schema."""

    code = "validation_error"


class UnauthorizedError(ReattachError):
    """No key, an unknown key, or a revoked one: which of them is not told."""

    code = "unauthorized"

    def __init__(self) -> None:
        super().__init__("Unauthorized")


class ForbiddenError(ReattachError):
    """The key is valid and does not allow this."""

    code = "forbidden"

    def __init__(self, scope: str, scopes: Sequence[str]) -> None:
        super().__init__(
            f"This API key has no scope '{scope}', which this request needs; it has: "
            f"{', '.join(scopes) or 'none'}. Use another key, or make one with "
            f"`reattach keys create NAME --scope {scope}`.",
            missing_scope=scope,
        )


class KeyRequiredError(UnauthorizedError):
    """The server has no keys yet, and does not answer to this client without one."""

    code = "key_required"

    def __init__(self, reason: str) -> None:
        ReattachError.__init__(
            self,
            f"This server has no API keys, and {reason}. Make a key with "
            "`reattach keys create NAME`, and send it as 'Authorization: Bearer <key>'.",
        )


class NotOnThisMachineError(KeyRequiredError):
    """An open server was asked by a client that may be on another machine."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"answers only to programs of its own machine that connect to it directly, but {reason}"
        )


class MisdirectedError(ReattachError):
    """A server without keys was addressed by a name that is not this machine's own."""

    code = "misdirected"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"This server has no API keys, so it answers only to this machine's own names, not to "
            f"'{host[:100]}': a web page could have made your browser ask. Use http://localhost, "
            "or make a key with `reattach keys create NAME`."
        )


class NotFoundError(ReattachError):
    """There is no such thing for this tenant."""

    code = "not_found"


class ExpiredError(ReattachError):
    """The log is gone, or the part of it before ``earliest_seq`` is."""

    code = "expired"

    def __init__(
        self,
        detail: str,
        *,
        expired_at: datetime | None = None,
        earliest_seq: int | None = None,
    ) -> None:
        extra: dict[str, object] = {}
        if expired_at is not None:
            extra["expired_at"] = expired_at.isoformat().replace("+00:00", "Z")
        if earliest_seq is not None:
            extra["earliest_seq"] = earliest_seq
        super().__init__(f"EXPIRED: {detail}", **extra)


class TrimmedError(ExpiredError):
    """The events before ``earliest_seq`` of a log that is still there were deleted on purpose."""

    def __init__(self, run_id: str, earliest_seq: int) -> None:
        super().__init__(
            f"Events before {earliest_seq} of {run_id} are no longer kept; "
            f"resume with starting_after={earliest_seq - 1} or more.",
            earliest_seq=earliest_seq,
        )


class ConflictError(ReattachError):
    """The request contradicts the present state; it may succeed later or in another form."""

    code = "conflict"

    def __init__(self, detail: str, **extra: object) -> None:
        super().__init__(f"CONFLICT: {detail}", **extra)


class ConversationBusyError(ConflictError):
    """Another run of the conversation has not ended."""

    code = "conversation_busy"

    def __init__(self, run_id: str, conversation_id: str) -> None:
        super().__init__(
            f"Cannot send a new message: Another request (run_id={run_id}) is currently being "
            "processed for this conversation. Please wait for it to complete.",
            run_id=run_id,
            conversation_id=conversation_id,
        )


class OtidConflictError(ConflictError):
    """An idempotency key was used before with another payload or in another conversation."""

    code = "otid_conflict"

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"The otid of this request belongs to another request (run_id={run_id}). "
            "Send the same messages to the same conversation to get that run, "
            "or use a new otid for a new message.",
            run_id=run_id,
        )


class CursorAheadError(ConflictError):
    """A reader claims events that the open log does not have: its log was lost."""

    code = "cursor_ahead"

    def __init__(self, run_id: str, cursor: int, last_seq: int) -> None:
        super().__init__(
            f"starting_after={cursor} is past the end of run {run_id}, whose last event is "
            f"{last_seq}. The cursor belongs to another run, or the log lost events; "
            f"resume with starting_after={last_seq} or less.",
            run_id=run_id,
            last_seq=last_seq,
        )


class PendingApprovalError(ConflictError):
    """The conversation waits for the answer to an approval request, and this is none."""

    code = "pending_approval"

    def __init__(self, request_id: str, tool_call_ids: Sequence[str], run_id: str | None) -> None:
        super().__init__(
            "Cannot send a new message: The agent is waiting for approval on a tool call. "
            "Please approve or deny the pending request before continuing.",
            pending_request_id=request_id,
            tool_call_ids=list(tool_call_ids),
            run_id=run_id,
        )


class AnswerRefusedError(ReattachError):
    """An answer to an approval request that is not the one which is asked for."""

    code = "answer_refused"


class NoPendingApprovalError(AnswerRefusedError):
    code = "no_pending_approval"

    def __init__(self) -> None:
        super().__init__(
            "Cannot process approval response: No tool call is currently awaiting approval. "
            "Please send a regular message to interact with the agent."
        )


class ToolCallIdsError(AnswerRefusedError):
    """An answer leaves out calls that wait, or names others, or one twice."""

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
    """A URL of a client that is not connected to; ``detail`` says why."""

    code = "url_refused"


class UrlUnreachableError(ReattachError):
    """A URL of a client that gave no answer; ``detail`` says why, for the operator alone."""

    code = "url_unreachable"


class LimitExceededError(ReattachError):
    """Something is larger than ``limits.py`` allows."""

    code = "limit_exceeded"


class QuotaError(ReattachError):
    """A tenant uses more at present than its quota allows. Worth trying again later."""

    code = "quota_exceeded"

    def __init__(self, detail: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class InvalidHttpError(ReattachError):
    """A request that is not HTTP/1.1, or that two readers could take differently."""

    code = "invalid_http"

    def __init__(self, fault: str = "is not HTTP/1.1 that can be read") -> None:
        super().__init__(f"The request {fault}. Nothing was done.")


class HttpVersionError(ReattachError):
    """A request in a version of HTTP that is not spoken here."""

    code = "http_version_not_supported"

    def __init__(self) -> None:
        super().__init__("This version of HTTP is not supported. Send the request as HTTP/1.1.")


class TunnelRefusedError(ReattachError):
    """A CONNECT: this server is no proxy."""

    code = "method_not_allowed"

    def __init__(self) -> None:
        super().__init__("CONNECT is not offered: this server is no proxy.")


class ExpectationFailedError(ReattachError):
    """An ``Expect`` that nobody here can meet."""

    code = "expectation_failed"

    def __init__(self) -> None:
        super().__init__("The only expectation that is met is `Expect: 100-continue`.")


class HeadTooLargeError(LimitExceededError):
    """A request line with headers, trailers, or chunk extensions above their bounds."""

    def __init__(self, bound: str) -> None:
        super().__init__(f"A request may have {bound}. Nothing was done.")


class RequestTimeoutError(ReattachError):
    """A request whose rest did not come in time."""

    code = "request_timeout"

    def __init__(self) -> None:
        super().__init__("The rest of the request did not come in time. Send the request again.")


class NotImplementedHereError(ReattachError):
    """Part of the API that this server does not offer."""

    code = "not_implemented"


# What the server can not do at present.


class UnavailableError(ReattachError):
    """Not now: draining, or a store that does not answer. Worth trying again."""

    code = "unavailable"

    def __init__(self, detail: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class TooManyConnectionsError(UnavailableError):
    """The server, or the client's address, has as many connections as it may have."""

    code = "too_many_connections"

    def __init__(self, whose: str, most: int) -> None:
        super().__init__(
            f"{whose} has {most} connections open, which is the limit. Close connections that are "
            "not used, or try again later."
        )


class StoreUnavailableError(UnavailableError):
    """The log or the records can not be read or written."""

    code = "store_unavailable"


# What a log refuses. These reach a client only through the classes above.


class LogError(ReattachError):
    """A log refused an operation; nothing was changed."""

    code = "log_error"


class LogNotFoundError(LogError):
    """The log was never opened, or was deleted."""


class LogClosedError(LogError):
    """The log has its end; nothing can be appended to it."""


class LogLostError(LogError):
    """The store has lost events of the log that were shown to readers here."""

    code = "log_lost"

    def __init__(self, run_id: str, last_seq: int) -> None:
        super().__init__(
            f"The event log of run {run_id} was lost by its store after event {last_seq} was sent. "
            "Read the conversation's messages for what is kept of it.",
            run_id=run_id,
            last_seq=last_seq,
        )
        self.last_seq = last_seq


class FencedError(LogError):
    """A newer owner holds the run; this one must stop at once."""


class SeqMismatchError(LogError):
    """The append does not continue the log, and is no repetition of what is there."""

    def __init__(self, run_id: str, first_seq: int, last_seq: int) -> None:
        super().__init__(
            f"An append to {run_id} starts at seq {first_seq}, but the log ends at {last_seq}."
        )
        self.last_seq = last_seq


# What an engine reports. They become the error_message event of a run.


class EngineError(ReattachError):
    """A turn failed. ``detail`` is safe to show; the cause is only logged."""

    code = "internal_error"
    stop_reason = "error"


class ModelError(EngineError):
    """The model's provider refused or failed."""

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
    """The turn is longer than the model can take."""

    code = "context_window_exceeded"


class SystemPromptTooLongError(ContextWindowError):
    """The system prompt alone fills the context window, so that no compaction can help."""

    code = "context_window_overflow_in_system_prompt"
    stop_reason = "context_window_overflow_in_system_prompt"


def engine_error(code: str, detail: str) -> EngineError:
    """The error that a run failed with, from what its record tells of it."""
    for kind in (
        ModelTimeoutError,
        ModelRateLimitError,
        ModelAuthenticationError,
        ModelEmptyResponseError,
        ContextWindowError,
        SystemPromptTooLongError,
        ModelError,
    ):
        if kind.code == code:
            return kind(detail)
    error = EngineError(detail)
    error.code = code
    return error


class ToolError(ReattachError):
    """A tool did not do what it was called for; the text is for the model and may be shown."""

    code = "tool_error"


class McpUnreachableError(ToolError):
    """An MCP server can not be reached, or ended the connection."""

    code = "mcp_unreachable"


class McpLostError(ToolError):
    """The connection ended within a call: whether the tool did its work is not known."""

    code = "mcp_lost"


# What keeps the server from starting.


class StartupError(ReattachError):
    """The server can not start; the text says what to change."""

    code = "startup_error"
