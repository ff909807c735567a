"""Which scope a key needs for each operation.

Reading needs ``read`` (every GET, and following a run), talking to an agent ``send``, and changing
what agents and blocks are, or deleting anything, ``admin``. An operation that stands in no list
needs ``admin``.
"""

from collections.abc import Collection
from typing import Final

from reattach.records.base import KeyScope

FOLLOWING: Final = frozenset({"retrieve_conversation_stream", "retrieve_run_stream"})
"""Operations that read, although they are POSTs."""

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
"""Operations of a client that talks to agents and keeps its conversations in order."""


_READING_METHODS: Final = frozenset({"GET", "HEAD"})


def scope_of(methods: Collection[str], operation_id: str | None) -> KeyScope:
    """The scope that a key needs for the operation, which answers to these methods."""
    if _READING_METHODS.issuperset(methods) or operation_id in FOLLOWING:
        return KeyScope.READ
    return KeyScope.SEND if operation_id in SENDING else KeyScope.ADMIN
