"""Identifiers: a prefix for the kind, and a UUIDv4 in lower case; and fencing tokens.

The formats are the Letta API's, so that its SDKs and applications can distinguish them.
"""

import hashlib
import os
import re
import time
import uuid
from typing import TYPE_CHECKING, Final, NewType

TenantId = NewType("TenantId", str)
AgentId = NewType("AgentId", str)
BlockId = NewType("BlockId", str)
ConversationId = NewType("ConversationId", str)
MessageId = NewType("MessageId", str)
RunId = NewType("RunId", str)
StepId = NewType("StepId", str)
ToolId = NewType("ToolId", str)

if TYPE_CHECKING:

    class Seq(int):
        """The position of an event in its log, from 1. A cursor is the last seq that was read."""

        def __add__(self, other: int, /) -> "Seq": ...
        def __sub__(self, other: int, /) -> "Seq": ...

else:
    Seq = NewType("Seq", int)  # Checkers see the class, so that arithmetic needs no call.

FIRST_SEQ: Final = Seq(1)

Token = NewType("Token", int)
"""A fencing token: each owner of a run has a higher one than its predecessor."""

FIRST_TOKEN: Final = Token(1)

UUID4: Final = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
"""The text of a version 4, variant 1 UUID (RFC 9562), as a regular expression."""

AGENT_NAME_PATTERN: Final = r"^[\w '\-]+$"
AGENT_PATTERN: Final = f"^agent-{UUID4}$"
BLOCK_PATTERN: Final = f"^block-{UUID4}$"
CONVERSATION_PATTERN: Final = f"^conv-{UUID4}$"
MESSAGE_PATTERN: Final = f"^message-{UUID4}$"
TOOL_PATTERN: Final = f"^tool-{UUID4}$"
MCP_SERVER_PATTERN: Final = f"^mcp_server-{UUID4}$"
RUN_PATTERN: Final = f"^run-{UUID4}$"
KEY_PATTERN: Final = f"^key-{UUID4}$"
TENANT_PATTERN: Final = "^[!-~]+$"
"""A tenant's id: printable ASCII without spaces."""
STREAM_TOKEN_PATTERN: Final = f"^token-{UUID4}$"
PROBE_PATTERN: Final = f"^probe-{UUID4}$"
CONVERSATION_OR_DEFAULT_PATTERN: Final = f"^default$|{CONVERSATION_PATTERN}"
CONVERSATION_PATH_PATTERN: Final = f"^(default|conv-{UUID4}|agent-{UUID4})$"
"""The values of the conversation in paths."""

DEFAULT_TENANT: Final = TenantId("org-00000000-0000-4000-8000-000000000000")
"""The tenant of a server that has no API keys."""

_RUN = re.compile(RUN_PATTERN)
_AGENT = re.compile(AGENT_PATTERN)
_CONVERSATION = re.compile(CONVERSATION_PATTERN)


def new_uuid() -> str:
    return str(uuid.uuid4())


def new_rising_uuid() -> str:
    """Return a UUID that begins with the time, for the ids of rows that are written all the time.

    Ids that are made together are neighbours in an index, so its new entries share pages. The
    layout is that of UUIDv7 (RFC 9562), 48 bits of Unix milliseconds and 74 random bits, but the
    version is 4, which clients and servers of earlier versions require. If the clock is set back,
    new ids are between older ones, and as unique as ever.
    """
    time_bits = f"{time.time_ns() // 1_000_000 & 0xFFFF_FFFF_FFFF:012x}"
    drawn = os.urandom(10).hex()
    variant = "89ab"[int(drawn[3], 16) & 3]
    return f"{time_bits[:8]}-{time_bits[8:]}-4{drawn[:3]}-{variant}{drawn[4:7]}-{drawn[7:19]}"


def derived_uuid(text: str) -> str:
    """Return a UUID that is the same for the same text, in every process."""
    return str(uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=4))


def new_tenant_id() -> TenantId:
    return TenantId(f"org-{new_uuid()}")


def new_agent_id() -> AgentId:
    return AgentId(f"agent-{new_rising_uuid()}")


def new_block_id() -> BlockId:
    return BlockId(f"block-{new_rising_uuid()}")


def new_conversation_id() -> ConversationId:
    return ConversationId(f"conv-{new_rising_uuid()}")


def new_message_id() -> MessageId:
    return MessageId(f"message-{new_rising_uuid()}")


def new_run_id() -> RunId:
    return RunId(f"run-{new_rising_uuid()}")


def new_step_id() -> StepId:
    return StepId(f"step-{new_rising_uuid()}")


def is_run_id(text: str) -> bool:
    return _RUN.fullmatch(text) is not None


def is_agent_id(text: str) -> bool:
    return _AGENT.fullmatch(text) is not None


def is_conversation_id(text: str) -> bool:
    return _CONVERSATION.fullmatch(text) is not None


DIALECT_OTID: Final = "dialect:"
"""The beginning of OTIDs of requests in other dialects. No client sends under such an OTID, because
a client that guesses one would answer the request of another one."""

MAX_PART_INDEX: Final = 127
"""The last part of a message that an OTID can identify."""


def part_otid(message_id: str, index: int) -> str:
    """Return the idempotency key of part ``index`` (0 to 127) of a message.

    It is the message's UUID with the low seven bits replaced by the index, so that clients can join
    the chunks of a part and distinguish the parts of a message.
    """
    text = message_id.removeprefix("message-")
    last_byte = (int(text[-2:], 16) & 0x80) | (index & 0x7F)
    return f"{text[:-2]}{last_byte:02x}"


def part_index(otid: str) -> int:
    """Return the index that ``part_otid`` put into the key."""
    return int(otid[-2:], 16) & 0x7F
