"""The idempotency key of a send, the alias of a log, and look-ups by OTID."""

import hashlib
from collections.abc import Sequence

import msgspec

from reattach.domain.errors import NotFoundError
from reattach.domain.ids import TenantId
from reattach.domain.messages import Message
from reattach.records.base import RequestKey, Run, Thread


def request_key(
    messages: Sequence[Message], thread: Thread, place: str | None = None
) -> RequestKey | None:
    """Return the key of a send, or None unless every message has an OTID from the client.

    The key is the tuple of OTIDs; its digest covers the messages and the thread, or ``place``
    where a repeated send cannot know the thread or is more than its messages. Options of
    representation belong to neither.
    """
    otids = tuple(message.otid for message in messages if message.otid)
    if len(otids) < len(messages):
        return None
    payload = [
        place or thread.key,
        [[one.role, one.parts, one.name, one.sender_id, one.otid] for one in messages],
    ]
    return RequestKey(otids, hashlib.sha256(msgspec.json.encode(payload)).hexdigest())


def log_aliases(run: Run) -> list[str]:
    """Return the aliases by which the log of the run is found; only background runs have any."""
    if not run.background:
        return []
    return [otid_alias(run.tenant, one.otid) for one in run.input if one.otid]


def otid_alias(tenant: TenantId, otid: str) -> str:
    """Return the alias by which a log is found for the OTID of an input message."""
    return f"{tenant}:{otid}"


def unknown_otid(otid: str) -> NotFoundError:
    """Return the error for an OTID that created no run."""
    return NotFoundError(
        f"No run found for otid={otid[:200]}. The run may have expired or never existed."
    )
