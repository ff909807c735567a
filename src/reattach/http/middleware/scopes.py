"""The scope that a key needs for each operation.

Reading needs ``read`` (every GET, and following a run), talking to an agent needs ``send``, and
changing agents and blocks or deleting anything needs ``admin``, as does every operation that is not
listed here.
"""

from collections.abc import Collection
from typing import Final

from reattach.records.base import KeyScope

FOLLOWING: Final = frozenset({"follow_runs", "retrieve_conversation_stream", "retrieve_run_stream"})
"""Operations that only read although they are POSTs."""

SENDING: Final = frozenset(
    {
        "cancel_conversation",
        "cancel_message",
        "compact_conversation",
        "create_agent_message_stream",
        "create_conversation",
        "fork_conversation",
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


_READING_METHODS: Final = frozenset({"GET", "HEAD"})


def scope_of(methods: Collection[str], operation_id: str | None) -> KeyScope:
    """Return the scope that a key needs for an operation with these methods."""
    if _READING_METHODS.issuperset(methods) or operation_id in FOLLOWING:
        return KeyScope.READ
    return KeyScope.SEND if operation_id in SENDING else KeyScope.ADMIN
