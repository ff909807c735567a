"""When two sends are one request, and how a log is found by its key."""

import hashlib
from collections.abc import Sequence

import msgspec

from reattach.domain.ids import TenantId
from reattach.domain.messages import Message
from reattach.records.base import RequestKey, Thread


def request_key(messages: Sequence[Message], thread: Thread) -> RequestKey | None:
    """The idempotency key of a send, if the client gave each of its messages an OTID.

    The key is the tuple of the OTIDs; the payload is the messages and the thread. How the answer
    is to be shown is no part of either.
    """
    otids = tuple(message.otid for message in messages if message.otid)
    if len(otids) < len(messages):
        return None
    payload = [
        thread.key,
        [[one.role, one.parts, one.name, one.sender_id, one.otid] for one in messages],
    ]
    return RequestKey(otids, hashlib.sha256(msgspec.json.encode(payload)).hexdigest())


def otid_alias(tenant: TenantId, otid: str) -> str:
    """The name under which a log is found by the OTID of a message of its run."""
    return f"{tenant}:{otid}"
