"""Limits of the server that clients and operators can notice, with units and reasons."""

from typing import Final

from reattach.domain.ids import Seq

# Logs and readers.

REPLAY_SLICE_BYTES: Final = 64 * 1024
"""One write of a replay that is copied or read from the store. A client that stalls holds it."""

REPLAY_SLICE_EVENTS: Final = 10_000
"""Events of one such write, unless the reader asks for fewer."""

LARGE_WRITE_BYTES: Final = 16 * 1024
"""Data of this size costs more to copy than to write in several pieces."""

FAST_PATH_BODY_BYTES: Final = 4096
"""The largest body that the fast path reads; most are far smaller."""

KNOWN_HEADERS: Final = 1024
"""Headers of resumes whose facts are kept: some hundred bytes for each."""

KNOWN_HEADERS_BYTES: Final = 4096
"""The largest headers of a resume that is answered at once; clients send a few hundred bytes."""

KNOWN_TARGETS: Final = 1024
"""Runs that resumes find without a query: half a kilobyte for each."""

KNOWN_ADDRESSEES: Final = 256
"""Agents, and as many conversations, that sends find without a query: some kilobytes for each."""

KNOWN_ADDRESSEE_BYTES: Final = 32 * 1024
"""The largest of them, as JSON."""

SETTLED_RUNS_KNOWN: Final = 1024
"""Runs of which readers need not ask whether they are settled: a tenth of a kilobyte for each."""

REPLAY_TURN_BYTES: Final = 4 * REPLAY_SLICE_BYTES
"""Bytes that a replay writes before it yields to the event loop, at once if that needs no copy."""

RUN_LOG_BYTES: Final = 64 * 1024 * 1024
"""The log of one run. A live run is held in memory, and an answer of this size is a fault."""

FOLDS_BYTES: Final = 64 * 1024 * 1024
"""Folded messages of live runs that a process keeps for snapshots: some hundred long answers."""

MAX_FOLDS: Final = 1000
"""Live runs whose folded messages are kept: as many as one tenant may have open."""

SENT_SNAPSHOTS_BYTES: Final = 256 * 1024 * 1024
"""Snapshots that a process is sending. All readers of one share its bytes, so this is as many long
answers as bodies of requests, and one tenant can fill half of it."""

TRANSLATION_BYTES: Final = 16 * 1024 * 1024
"""Frames of one run in one dialect that are kept; readers behind them have them computed again."""

TRANSLATIONS_BYTES: Final = 64 * 1024 * 1024
"""Frames of runs in other dialects that a process keeps for further readers."""

FOLDS_AT_ONCE: Final = 4
"""Runs that are folded at a time. A fold is work of the event loop, so more would end no sooner."""

DELTA_BYTES: Final = 256
"""Approximate memory of a fragment of an answer, beside its text."""

PENDING_APPEND_BYTES: Final = 1024 * 1024
"""Output of a run that is not in the log yet; beyond it the engine has to wait."""

MAX_CURSOR: Final = 2**53 - 1
"""The largest ``starting_after``: the largest integer that every JSON client represents exactly."""

SEND_BUFFER_BYTES: Final = 128 * 1024
"""The kernel's send buffer of a reader; without a bound it takes about 4 MB each."""

LISTEN_BACKLOG: Final = 4096
"""Connections waiting to be accepted, such as a crowd of readers that reconnect at once."""

ACCEPT_BATCH: Final = 256
"""Connections accepted before the event loop continues; each takes about 50 µs."""

MOST_REFUSED: Final = 64
"""Connections beyond the limits whose requests are read at a time; a quarter of FILES_RESERVED."""

REFUSED_SECONDS: Final = 1.0
"""How long such a request may take."""

REFUSED_BYTES: Final = 64 * 1024
"""Bytes read from a refused connection, so that its client sees the response."""

ACCEPT_PAUSE_SECONDS: Final = 1.0
"""How long new connections wait when the process has no file descriptors left."""

FIRST_REQUEST_SECONDS: Final = 1.0
"""How long a server with an inherited socket, before it exits, waits for the requests of clients
whose connections it has accepted."""

FIRST_REQUEST_POLL_SECONDS: Final = 0.02
"""How often it looks whether they have arrived."""

FILES_RESERVED: Final = 256
"""File descriptors reserved for databases, tools and callbacks; at most a quarter of all."""

UNLIMITED_CONNECTIONS: Final = 100_000
"""Connections of a process without a limit of open files: 1 GiB of idle readers."""

ADDRESS_SHARE: Final = 0.75
"""Default share of all connections that one address may have: one client cannot lock others out,
and a proxy, whose connections share an address, can use most of them."""

IPV6_CLIENT_BITS: Final = 64
"""The prefix of an IPv6 address that identifies one client, who can choose the rest freely."""

# Time.

WATCH_SECONDS: Final = 1.0
"""Interval of the one timer that checks the deadlines of all connections."""

WATCH_ROUND_INTERVALS: Final = 4
"""Intervals in which every connection with unread bytes is checked once, at 4 µs each."""

HEAD_SECONDS: Final = 30.0
"""How long a new connection may be silent, and how long a request's head may take."""

BODY_IDLE_SECONDS: Final = 60.0
"""How long a request body may pause; handovers in mobile networks take less."""

BODY_SECONDS: Final = 900.0
"""How long a request body may take in total: 16 MiB at 20 KiB/s."""

KEEPALIVE_IDLE_SECONDS: Final = 60
"""Silence after which TCP probes whether the other machine is still there."""

KEEPALIVE_INTERVAL_SECONDS: Final = 15
"""Interval of further probes."""

KEEPALIVE_PROBES: Final = 4
"""Unanswered probes after which the other machine counts as gone."""

EVICTION_SECONDS: Final = 1.0
"""Minimum wait for a request after which a connection may give way to a new one."""

REFUSAL_LOG_SECONDS: Final = 60.0
"""Interval of log lines about refused connections."""

IDLE_CONNECTION_SECONDS: Final = 125
"""How long an idle connection is kept. Longer than clients keep theirs (httpx 5 s, Go 90 s, Caddy
120 s), because a POST on a connection that closes at that moment is lost."""

CLOSE_SECONDS: Final = 5
"""How long open connections may take to finish after every run has ended."""

APPEND_RETRY_SECONDS: Final = 10.0
"""How long a run retries an append to an unavailable store before it fails."""

APPEND_RETRY_DELAY_SECONDS: Final = 0.1
"""The wait between these retries."""

ENGINE_STOP_SECONDS: Final = 2.0
"""How long a cancelled engine may take to stop before the run ends without it."""

CANCEL_WAIT_SECONDS: Final = 5.0
"""How long a cancel request waits for the end of the run before it returns ``cancelling``."""

SETTLE_WAIT_SECONDS: Final = 10.0
"""How long the end of a stream waits for the run's record, which is written right after."""

SETTLEMENT_LOOK_SECONDS: Final = 1.0
"""Polling interval for the end of a run in another process, if no notification arrives."""

OPEN_WAIT_SECONDS: Final = 5.0
"""How long a reader waits for the log of a run that another process is starting."""

OPEN_LOOK_SECONDS: Final = 0.05
"""Polling interval of that wait."""

CLOCK_JUMP_SECONDS: Final = 60.0
"""Difference between wall clock and monotonic clock that counts as a jump; NTP's corrections are
far smaller."""

CLOCK_SET_SECONDS: Final = 60.0
"""Interval of reading the time of the shared database; quartz drifts by 5 ms in that time."""

SWEEP_INTERVAL_SECONDS: Final = 60.0
"""Interval of the search for logs past their retention."""

# Files of SQLite.

WAL_IDLE_SECONDS: Final = 5.0
"""Time without writes after which a WAL is emptied, so that streams are not disturbed."""

WAL_AGE_SECONDS: Final = 60.0
"""How long the WAL of a busy server may keep old content, including deleted text."""

RECORDS_WAL_BYTES: Final = 16 * 1024 * 1024
"""Size above which the records' WAL is emptied even if readers have to wait."""

# Recovery.

LEASE_SECONDS: Final = 15.0
"""How long a process may be silent before its runs are taken over and ended."""

BEATS_PER_LEASE: Final = 5
"""Renewals per lease, so that a few lost heartbeats do no harm."""

LOST_LOG_FIRST_SEQ: Final = Seq(1_000_000_001)
"""First seq of a log that replaces a lost one of unknown length: larger than any real seq, so that
no reader mistakes its events for those of the lost log."""

RECOVERY_INTERVAL_SECONDS: Final = 2.0
"""Interval of the search for runs without an owner, and of retries to continue or end one."""

RELEASE_WAIT_SECONDS: Final = (0.02, 0.06)
"""The shortest and the longest random wait before a process takes over runs that another one
released, so that one process gets most of them, and all at once."""

RELEASE_WAITS: Final = 4
"""How often it waits again because more runs were released meanwhile."""

LIFE_NOTED_SECONDS: Final = 30.0
"""How often a process alone records that it lives, while it has open runs."""

SUSPECT_SECONDS: Final = 10.0
"""The longest wait for a run that may have killed its processes, before the next is taken up."""

SUSPECT_LOOK_SECONDS: Final = 0.02

RECOVERIES_AT_ONCE: Final = 16
"""Concurrent recoveries: enough to hide latency, few enough for memory."""

TAKEOVER_BATCH_RUNS: Final = 100
"""Runs that are taken over by one transaction."""

SWEEP_BATCH_RUNS: Final = 500
"""Logs deleted by one sweep at a time, so that no statement grows with the backlog."""

MAX_AUDIT_ENTRIES: Final = 100_000
"""Entries of one tenant in the audit log, about 30 MB; older ones are deleted."""

AUDIT_SWEEP_SECONDS: Final = 3600.0

# Sending.

MAX_IMAGE_BYTES: Final = 10 * 1024 * 1024
"""One image, decoded; providers accept 5 to 20 MB."""

MAX_TOOL_CALL_ID_CHARS: Final = 64 * 1024
"""The id of a tool call, repeated by the client. Gateways pack reasoning signatures of some
thousand characters into ids; a longer id of a provider is replaced by its digest."""

MAX_ARGUMENTS_DEPTH: Final = 128
"""Nesting in the arguments of a tool call; decoders of provider clients fail at 200."""

MAX_FAILURE_CHARS: Final = 16 * 1024
"""The text of an error that ends a run; each stream repeats it."""

# Contexts.

CONTEXT_CACHE_BYTES: Final = 64 * 1024 * 1024
"""Decoded conversation contexts cached between turns: some hundred long conversations."""

CONTEXT_IDLE_SECONDS: Final = 3600.0
"""How long a context is cached without a turn. Another process may have deleted its messages."""

CONTEXT_MESSAGE_BYTES: Final = 640
"""Approximate memory of a decoded message, beside its texts."""

# Compaction.

SUMMARY_SECONDS: Final = 300.0
"""How long a model may take for a summary; the run that needs it waits."""

SUMMARY_TOKENS: Final = 8192
"""Default length of a summary; reasoning counts too."""

SUMMARY_PART_CHARS: Final = 4000
"""Characters of one message part that the summarizing model receives: tool results are the longest
parts, and the least worth keeping."""

MIN_SUMMARY_CHARS: Final = 400
"""Minimum length of a summary that is kept, however little room there is."""

# Tools of the server.

TOOL_SECONDS: Final = 60.0
"""Default time limit of a tool call."""

MAX_TOOL_OUTPUT_CHARS: Final = 256 * 1024
"""The result of a tool; most models have a smaller context window."""

MAX_TOOL_THREADS: Final = 64
"""Concurrent calls of functions in threads; calls that hang count until they return."""

MAX_TENANT_TOOL_THREADS: Final = 16
"""The part of these threads that one tenant may use."""

MAX_WATCHED_LINE_BYTES: Final = 256 * 1024
"""A line of a provider's response that is inspected; relevant ones have some hundred bytes."""

MAX_NAMED_TOOLS: Final = 64
"""Tool names listed in the result of a call of an unknown tool; agents have up to 256."""

MAX_NAMED_TOOLS_CHARS: Final = 4096
"""Characters of these names, which the model reads again in every later step of the turn."""

MAX_TOOL_NAME_CHARS: Final = 64
"""Characters of an unknown tool's name that are sent to a provider; OpenAI accepts no more."""

MAX_SHOWN_NAME_CHARS: Final = 100
"""Characters of a wrong name that an error repeats."""

MAX_MCP_TOOLS: Final = 500
"""Tools of one MCP server; an endless list would fill the memory."""

MAX_TOOL_SCHEMA_BYTES: Final = 256 * 1024
"""The parameter schema of an MCP tool, as JSON; providers accept less."""

MCP_START_SECONDS: Final = 30.0
"""How long connecting to an MCP server may take; one that is started may be downloaded first."""

MCP_START_WAIT_SECONDS: Final = 5.0
"""How long the start of the server waits for MCP servers; slower ones connect later."""

MCP_READY_SECONDS: Final = 10.0
"""How long a turn waits for a tool's server before it continues without it."""

MCP_PING_SECONDS: Final = 5.0
"""How long a server may take to confirm a session."""

MCP_RETRY_SECONDS: Final = 1.0
"""Minimum wait between attempts to connect; it doubles with each failure."""

MCP_MAX_RETRY_SECONDS: Final = 60.0
"""Maximum wait between attempts: how long a recovered server may stay unnoticed."""

MCP_STEADY_SECONDS: Final = 60.0
"""Lifetime after which a connection counts as good, and retries start with the minimum again."""

MCP_STOP_SECONDS: Final = 10.0
"""How long stopping an MCP server may take: close, SIGTERM, SIGKILL, 2 s each."""

MAX_AGENT_TOOLS: Final = 256
"""Tools of one agent; models choose worse long before."""

# Requests.

MAX_REQUEST_BYTES: Final = 16 * 1024 * 1024
"""A request body: a message with several photographs in base64 fits."""

LINGER_SECONDS: Final = 1.0
"""How long the rest of an oversized body is read, so that the client sees the response."""

MAX_HEAD_BYTES: Final = 64 * 1024
"""The head of a request: request line and headers. Common proxies allow less."""

MAX_TRAILERS: Final = 32
"""Trailers of a request, which are dropped; clients send a checksum or two."""

MAX_TRAILER_BYTES: Final = 8 * 1024
"""All trailers of a request."""

MAX_CHUNK_EXTENSION_BYTES: Final = 8 * 1024
"""All chunk extensions of a request, which are dropped; clients send none."""

BODY_AHEAD_BYTES: Final = 64 * 1024
"""Request body that the application has not read; reading pauses beyond it."""

CHUNKS_SLICE_BYTES: Final = 64 * 1024
"""Bytes of a chunked body that are parsed at a time; the smallest chunks take about 1 µs each."""

HELD_BYTES: Final = 16 * 1024
"""Bytes after a request whose response is not complete; reading pauses beyond them."""

MAX_INTEGER: Final = 2**63 - 1
"""The largest magnitude of an integer in a request: the range of databases."""

MAX_VALIDATION_ERRORS: Final = 20
"""Faults of a request that its 422 lists."""

MAX_ERROR_CHARS: Final = 500
"""Characters of a client's own value that an error repeats."""

# Models of providers, and lists of them.

MODEL_FIRST_SECONDS: Final = 300.0
"""How long a provider may send nothing before its first output; models reason in silence."""

MODEL_SILENCE_SECONDS: Final = 60.0
"""How long it may send no byte after that, by default."""

MODEL_LIST_TIMEOUT_SECONDS: Final = 10.0
"""How long a provider may take to list its models; the start of the server does not wait."""

MODEL_LIST_SECONDS: Final = 300.0
"""How long a list of models is cached, and the maximum wait after a failure."""

MODEL_LIST_RETRY_SECONDS: Final = 1.0
"""The first wait after a provider was unreachable; it doubles each time."""

MAX_MODEL_LIST_BYTES: Final = 4 * 1024 * 1024
"""A provider's list of models; the largest known one has about 500 KiB."""

MAX_LISTED_MODELS: Final = 2000
"""Models of one provider that are listed; its other handles work too."""

MAX_ASKED_MODELS: Final = 20
"""Models that `doctor --models` calls for one token; each call may cost money."""

# Authentication.

MAX_TENANT_CHARS: Final = 200
"""A tenant name set by an embedding application, such as an id or an address."""

MAX_API_KEY_CHARS: Final = 256
"""An API key in a request; keys of this server are far shorter."""

KEY_CACHE_SECONDS: Final = 5.0
"""How long a key look-up is cached, and how late a revocation may take effect."""

KEY_USE_SECONDS: Final = 60.0
"""Precision of a key's last use; each update is a write."""

MAX_STREAM_TOKEN_CHARS: Final = 4096
"""A stream token; one that reads has about 300 characters, and each name in it adds its length."""

STREAM_TOKEN_SECONDS: Final = 600
"""How long a stream token is valid by default: longer than a page takes to ask for the next one."""

MAX_STREAM_TOKEN_SECONDS: Final = 86_400
"""How long a stream token may be valid, and how long a replaced signing key still verifies."""

MIN_TOKEN_KEY_CHARS: Final = 32
"""A secret in the settings that signs stream tokens."""

TOKEN_EXPIRING_SECONDS: Final = 30.0
"""How long before its end a token is announced to expire on its open streams."""

TOKEN_USES_SECONDS: Final = 10.0
"""How often the uses of stream tokens are written, all together."""

TOKEN_GRACE_SECONDS: Final = 2.0
"""How much later than streams that can announce it others end with their token."""

AUDIT_LINES_PER_MINUTE: Final = 20
"""Refused keys that are logged one by one; further ones are counted."""

KEY_CACHE_ENTRIES: Final = 10_000
"""Cached look-ups of known keys, and as many of unknown keys, at about 200 bytes each."""

FIGURES_SECONDS: Final = 0.2
"""How long a scrape waits for the figures of a child; then its last known ones are shown."""

FIGURES_WAIT_SECONDS: Final = 2.0
"""How long a child waits for the figures of all children from its supervisor."""
