"""The scope that a key or a stream token needs for each operation.

Reading needs ``read`` (every GET, and following a run), talking to an agent needs ``send``, and
changing agents and blocks or deleting anything needs ``admin``, as does every operation that is not
listed here. Every valid key or token may ask who it is. The operations of operators need ``admin``
for the objects of one's own tenant, and ``operator`` for those of all. A stream token opens the
operations of ``OF_TOKENS``, and of the others only those of every key.
"""

from collections.abc import Collection
from typing import Final

from reattach.domain.stream_tokens import TokenScope
from reattach.records.base import KeyScope

FOLLOWING: Final = frozenset(
    {
        "copilotkit_connect",
        "create_token",
        "follow_runs",
        "retrieve_conversation_stream",
        "retrieve_run_stream",
    }
)
"""Operations that only read although they are POSTs. A token gets no rights that its key lacks."""

SENDING: Final = frozenset(
    {
        "ag_ui_run",
        "ai_sdk_cancel_stream",
        "ai_sdk_send",
        "ai_sdk_stop",
        "cancel_conversation",
        "cancel_message",
        "cancel_run",
        "compact_conversation",
        "copilotkit_run",
        "copilotkit_stop",
        "create_agent_message_stream",
        "create_conversation",
        "fork_conversation",
        "openai_cancel_response",
        "openai_create_chat_completion",
        "openai_create_conversation",
        "openai_create_conversation_items",
        "openai_create_response",
        "recompile_agent",
        "recompile_conversation",
        "send_conversation_message",
        "send_message",
        "send_message_async",
        "summarize_messages",
        "update_conversation",
    }
)
"""Operations of a client that talks to agents and manages its conversations."""

OF_TOKENS: Final = {
    "ai_sdk_cancel_stream": TokenScope.CANCEL,
    "ai_sdk_list_messages": TokenScope.READ,
    "ai_sdk_resume": TokenScope.READ,
    "ai_sdk_send": TokenScope.SEND,
    "ai_sdk_stop": TokenScope.CANCEL,
    "cancel_conversation": TokenScope.CANCEL,
    "cancel_message": TokenScope.CANCEL,
    "cancel_run": TokenScope.CANCEL,
    "durable_streams_describe_log": TokenScope.READ,
    "durable_streams_read_log": TokenScope.READ,
    "follow_conversation_stream": TokenScope.READ,
    "follow_run_stream": TokenScope.READ,
    "follow_runs": TokenScope.READ,
    "list_conversation_messages": TokenScope.READ,
    "list_frames_for_run": TokenScope.READ,
    "list_messages_for_run": TokenScope.READ,
    "retrieve_conversation_snapshot": TokenScope.READ,
    "retrieve_conversation_stream": TokenScope.READ,
    "retrieve_run": TokenScope.READ,
    "retrieve_run_snapshot": TokenScope.READ,
    "retrieve_run_stream": TokenScope.READ,
    "retrieve_timeline_for_run": TokenScope.READ,
    "send_conversation_message": TokenScope.SEND,
}
"""Operations that a stream token opens for its own run or conversation.

The path names one of them, or neither. Operations check the runs that a query or a body names.
"""

OF_EVERY_KEY: Final = frozenset({"retrieve_server"})
"""Operations of every valid key and stream token, whatever its scopes are."""

OF_OPERATORS: Final = frozenset({"admin_list_findings"})
"""Operations under ``/v1/admin`` that show what all tenants share, such as the stores."""

_OPERATING: Final = "admin_"
"""The beginning of the ids of operations under ``/v1/admin``."""

_READING_METHODS: Final = frozenset({"GET", "HEAD"})


def is_operating(operation_id: str | None) -> bool:
    """Return whether it is an operation of operators, who may look beyond their own tenant."""
    return (operation_id or "").startswith(_OPERATING)


def scope_of(methods: Collection[str], operation_id: str | None) -> KeyScope | None:
    """Return the scope that a key needs for an operation with these methods; None: any."""
    if operation_id in OF_EVERY_KEY:
        return None
    if is_operating(operation_id):
        return KeyScope.OPERATOR if operation_id in OF_OPERATORS else KeyScope.ADMIN
    if _READING_METHODS.issuperset(methods) or operation_id in FOLLOWING:
        return KeyScope.READ
    return KeyScope.SEND if operation_id in SENDING else KeyScope.ADMIN
