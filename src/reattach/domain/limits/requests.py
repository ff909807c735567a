"""Limits of what a request may contain, and of what one tenant may ask for."""

from typing import Final

# Sending.

MAX_SEND_MESSAGES: Final = 100
"""Messages of one send; a turn starts with a few."""

MAX_CHAT_MESSAGES: Final = 2000
"""Messages of one request for a chat completion: a whole conversation, which its client repeats."""

MAX_CHAT_KEY_CHARS: Final = 256
"""A client's own name of a conversation; clients use UUIDs."""

MAX_MESSAGE_PARTS: Final = 1000
"""Parts of one message's content."""

MAX_SEND_IMAGES: Final = 100
"""Images of one send; providers accept no more per request."""

MAX_IMAGE_URL_CHARS: Final = 4096
"""The URL of an image, except data URLs; signed URLs are long."""

MAX_CLIENT_TOOLS: Final = 256
"""Client tools of one send; models choose worse long before."""

MAX_CLIENT_TOOL_BYTES: Final = 256 * 1024
"""The parameter schema of a client tool, as JSON; providers accept less."""

MAX_CLIENT_TOOL_DESCRIPTION_CHARS: Final = 100_000
"""The description of a client tool; letta-code's have 10,500 characters and more."""

MAX_CLIENT_SKILLS: Final = 256
"""Client skills of one send; each takes a line or more of the system prompt."""

MAX_SKILL_LOCATION_CHARS: Final = 4096
"""The path of a skill: the longest path that common systems allow."""

MAX_ANSWERED_CALLS: Final = 1000
"""Tool calls that one approval response decides on; models make a few at a time."""

ANSWERS_LOOKED_AT: Final = 50
"""Newest approval responses of a conversation that are searched for a repeated one."""

MAX_OTID_CHARS: Final = 256
"""An OTID; clients use UUIDs, some with a prefix."""

MAX_EVENT_ID_CHARS: Final = 100
"""A ``Last-Event-ID``; those of this server have at most 62."""

MAX_TOKEN_MODELS: Final = 20
"""Models that the sends with one stream token may choose."""

MAX_TOKEN_CLIENT_TOOLS: Final = 50
"""Tools of the client that they may offer."""

MAX_STEPS: Final = 1000
"""Steps that one send may request."""

MAX_POLL_SECONDS: Final = 3600.0
"""The largest ``poll_interval``; it is only a hint."""

# Requests.

MAX_JSON_DEPTH: Final = 64
"""Nesting of objects and arrays; far below the stack limits of decoders."""

MAX_JSON_VALUES: Final = 100_000
"""Values of a body: each costs a microsecond and 100 bytes. 256 tools of 300 values each fit."""

INLINE_BODY_BYTES: Final = 64 * 1024
"""A body up to this size, with few values, is parsed on the event loop; larger ones in a thread."""

INLINE_BODY_VALUES: Final = 2_000
"""Values of such a body, which take a few milliseconds."""

MAX_QUERY_PARAMETERS: Final = 1_000
"""Parameters of one query string; each is decoded on the event loop."""

TENANT_BODY_BYTES: Final = 128 * 1024 * 1024
"""Request bodies of one tenant held by a process: eight of the largest."""

TENANT_BODY_BYTES_PER_MINUTE: Final = 2048 * 1024 * 1024
"""Request bodies of one tenant per minute and process; messages and images are stored."""

TENANT_RUNS: Final = 1_000
"""Open runs of one tenant per process: more than a process handles well."""

TENANT_STREAMS: Final = 10_000
"""Open streams of one tenant per process; each is a connection and a file descriptor."""

TENANT_REQUESTS_PER_SECOND: Final = 2_000
"""Sustained requests of one tenant per process: about half of its capacity."""

QUOTA_BURST_SECONDS: Final = 10
"""Seconds' worth of requests that may arrive at once, because readers reconnect in crowds."""

PROCESS_BODY_BYTES: Final = 256 * 1024 * 1024
"""Request bodies of all tenants held by a process; one tenant can fill half of it."""

MAX_PROBE_SECONDS: Final = 180.0
"""A probe of the path to the server: long enough for limits of two minutes and more."""

MAX_PROBE_STREAMS: Final = 64
"""Streams of one probe; the doctor opens about forty."""

MAX_PROBE_FRAMES: Final = 2_000
"""Frames of one stream of a probe."""

MAX_PROBE_BURST_BYTES: Final = 256 * 1024
"""A frame that is larger than the buffers of proxies."""

MAX_FOLLOWED_RUNS: Final = 100
"""Runs that one request follows: more than a page shows."""

MAX_PAGE_ITEMS: Final = 1000
"""Rows of one response."""

MAX_FRAMES: Final = 500
"""Events of one response that lists them."""

MAX_BUCKETS: Final = 2000
"""Moments of one response that shows when events came."""

PAGE_BYTES: Final = 16 * 1024 * 1024
"""Bytes of one response's rows: a page of large rows ends early, and its last item is the
cursor."""

MAX_QUERY_VALUES: Final = 100
"""Repetitions of one query parameter; each becomes a term of a statement."""

MAX_QUERY_CHARS: Final = 1000
"""One value of a query: a word or sentence to search for."""

MAX_ID_CHARS: Final = 128
"""An id or cursor in a query; ids of this server have at most 44 characters."""

MAX_NAME_CHARS: Final = 256
"""A name, handle, label, tag or time zone: one line."""

MAX_DESCRIPTION_CHARS: Final = 10_000
"""A description or summary: one to three pages."""

MAX_SYSTEM_CHARS: Final = 1_000_000
"""A system prompt; larger than the context windows of models."""

MAX_BLOCK_CHARS: Final = 100_000
"""The value of one memory block; the prompt holds many."""

MAX_AGENT_BLOCKS: Final = 100
"""Memory blocks of one agent; all of them are in its prompt."""

MAX_TAGS: Final = 100
"""Tags of one agent or block."""

MAX_KEPT_JSON_BYTES: Final = 64 * 1024
"""Metadata or settings that are stored unchanged and returned with every item of a list."""

MAX_CONTEXT_TOKENS: Final = 100_000_000
"""A context window; larger than those of models, and well within an integer column."""
