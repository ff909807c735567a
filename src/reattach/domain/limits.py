"""Every bound in one place, with its unit and its reason."""

from typing import Final

# Logs and readers.

REPLAY_SLICE_BYTES: Final = 64 * 1024
"""One write of a replay. Larger ones copy no faster, and smaller ones cost more calls."""

REPLAY_SLICE_EVENTS: Final = 10_000
"""Events of one such write, where the reader sets no bound of its own."""

LARGE_WRITE_BYTES: Final = 16 * 1024
"""What takes longer to copy than to write in several pieces."""

FAST_PATH_BODY_BYTES: Final = 4096
"""The body of a resume that is answered past the routing; all that SDKs send is far below it."""

REPLAY_TURN_BYTES: Final = 4 * REPLAY_SLICE_BYTES
"""What a replay writes before it lets the other readers have the event loop."""

RUN_LOG_BYTES: Final = 64 * 1024 * 1024
"""The log of one run. A live run is held in memory; an answer of this size is a fault."""

DELTA_BYTES: Final = 256
"""What a fragment of an answer costs in memory beside its text, roughly."""

PENDING_APPEND_BYTES: Final = 1024 * 1024
"""What a run may have produced and not yet in the log, before its engine has to wait."""

MAX_CURSOR: Final = 2**53 - 1
"""The largest ``starting_after``: the largest integer that every JSON client can say."""

SEND_BUFFER_BYTES: Final = 128 * 1024
"""What the kernel may hold of one reader's bytes; unbounded it takes about 4 MB for each."""

LISTEN_BACKLOG: Final = 4096
"""Connections that wait to be accepted: a crowd of readers that reconnect at once."""

ACCEPT_BATCH: Final = 256
"""Connections that are taken before anything else has its turn; each is some 50 µs of work."""

REFUSED_BYTES: Final = 64 * 1024
"""Bytes that are read from a connection that is refused, so that its client sees the answer."""

ACCEPT_PAUSE_SECONDS: Final = 1.0
"""How long those who connect wait when the process can open no more files."""

FILES_RESERVED: Final = 256
"""Open files that are kept back from connections, for databases, tools and callbacks; of few files
a quarter."""

UNLIMITED_CONNECTIONS: Final = 100_000
"""Connections of a process that may open any number of files: 1 GiB of waiting readers."""

ADDRESS_SHARE: Final = 0.75
"""The share of all connections that one address may have, unless set otherwise: one client cannot
shut the others out, and a proxy, whose connections share an address, has nearly all."""

IPV6_CLIENT_BITS: Final = 64
"""The part of an IPv6 address that stands for one client, who can choose the rest freely."""

# Time.

WATCH_SECONDS: Final = 1.0
"""How often connections are looked at whose time may be up: one timer for all of them."""

WATCH_ROUND_TICKS: Final = 4
"""In how many such looks all connections that were written to have their turn, at 4 µs each."""

HEAD_SECONDS: Final = 30.0
"""How long a new connection may say nothing, and how long the head of a request may take."""

BODY_IDLE_SECONDS: Final = 60.0
"""How long a request's body may pause; mobile networks hand over in less."""

BODY_SECONDS: Final = 900.0
"""How long a request's body may take in all: 16 MiB at 20 KiB/s."""

KEEPALIVE_IDLE_SECONDS: Final = 60
"""Silence after which TCP asks whether the other machine is still there."""

KEEPALIVE_INTERVAL_SECONDS: Final = 15
"""How often it asks again, until it has asked KEEPALIVE_PROBES times without an answer."""

KEEPALIVE_PROBES: Final = 4
"""The machine is gone after so many."""

EVICTION_SECONDS: Final = 1.0
"""How long a connection has waited for a request at least before it gives way to a new one."""

REFUSAL_LOG_SECONDS: Final = 60.0
"""How often the log says that connections are refused."""

IDLE_CONNECTION_SECONDS: Final = 125
"""How long a connection without a request is kept. Longer than clients keep theirs (httpx 5 s, Go
90 s, Caddy 120 s), since a POST on one that closes at that moment is lost."""

CLOSE_SECONDS: Final = 5
"""How long open connections may take to finish once every run has ended."""

APPEND_RETRY_SECONDS: Final = 10.0
"""How long a run keeps trying to append while the store does not take it, before it fails."""

APPEND_RETRY_DELAY_SECONDS: Final = 0.1
"""The wait between two such tries."""

ENGINE_STOP_SECONDS: Final = 2.0
"""How long a cancelled engine may take to stop before the run ends without it."""

CANCEL_WAIT_SECONDS: Final = 5.0
"""How long a cancel waits for the run's end before it answers ``cancelling``."""

SETTLE_WAIT_SECONDS: Final = 10.0
"""How long the end of a stream waits for the run's record, which is written right after."""

SETTLEMENT_LOOK_SECONDS: Final = 1.0
"""How often a process looks whether a run that another one works on has ended, if no word comes."""

OPEN_WAIT_SECONDS: Final = 5.0
"""How long a reader waits for the log of a run that another process is about to begin."""

OPEN_LOOK_SECONDS: Final = 0.05
"""How often it looks for that."""

CLOCK_JUMP_SECONDS: Final = 60.0
"""How far the clock may part from the monotonic clock before that is a jump: the corrections
of a clock that NTP keeps are far below."""

CLOCK_SET_SECONDS: Final = 60.0
"""How often a process asks the shared database for the time; meanwhile quartz drifts by 5 ms."""

SWEEP_INTERVAL_SECONDS: Final = 60.0
"""How often logs past their retention are looked for."""

# Files of SQLite.

WAL_IDLE_SECONDS: Final = 5.0
"""How long nothing is written before a WAL is emptied: an answer that streams is not disturbed."""

WAL_AGE_SECONDS: Final = 60.0
"""How long a WAL of a busy server may hold what was written, deleted text included."""

RECORDS_WAL_BYTES: Final = 16 * 1024 * 1024
"""The WAL of the records above which it is emptied, though readers may have to wait for that."""

# Recovery.

LEASE_SECONDS: Final = 15.0
"""How long a process may be silent before its runs are taken over and ended."""

BEATS_PER_LEASE: Final = 5
"""How often a lease is renewed before it runs out, so that a few lost beats cost nothing."""

LOST_LOG_FIRST_SEQ: Final = 1_000_000_001
"""Where a log begins again of which nobody knows how far it had got: past every real one, so that
no reader takes its events for what it had read of the lost one."""

RECOVERY_INTERVAL_SECONDS: Final = 2.0
"""How often runs without owner are looked for, and one that could not be given its end is tried
again; its readers wait for it."""

RECOVERIES_AT_ONCE: Final = 16
"""Runs that are recovered at the same time: enough to hide latency, few enough for memory."""

SWEEP_BATCH_RUNS: Final = 500
"""Runs whose logs one sweep deletes in one go, so that no statement grows with the backlog."""

# Sending.

MAX_SEND_MESSAGES: Final = 100
"""Messages of one send; a turn starts from a few."""

MAX_MESSAGE_PARTS: Final = 1000
"""Parts of one message's content."""

MAX_SEND_IMAGES: Final = 100
"""Images of one send; providers take no more in a request."""

MAX_IMAGE_BYTES: Final = 10 * 1024 * 1024
"""One image, decoded; providers take 5 to 20 MB."""

MAX_IMAGE_URL_CHARS: Final = 4096
"""The URL of an image, but for one that is the image itself; signed ones are long."""

MAX_CLIENT_TOOLS: Final = 256
"""Tools that one send brings along; models get worse at choosing long before."""

MAX_CLIENT_TOOL_BYTES: Final = 256 * 1024
"""The parameters' schema of one of them, as JSON; providers take less."""

MAX_CLIENT_TOOL_DESCRIPTION_CHARS: Final = 100_000
"""What one of them is for; letta-code explains its own at 10,500 characters and more."""

MAX_CLIENT_SKILLS: Final = 256
"""Skills that one send tells of; each is a line or more of the system prompt."""

MAX_SKILL_LOCATION_CHARS: Final = 4096
"""Where a skill is found: the longest path that common systems have."""

MAX_TOOL_CALL_ID_CHARS: Final = 64 * 1024
"""The id of a tool call as a client repeats it. Gateways pack signatures of reasoning into ids, of
some thousand characters. A longer id of a provider is replaced by its digest."""

MAX_ARGUMENTS_DEPTH: Final = 128
"""Objects and arrays within each other in the arguments of a tool call: decoders of providers'
clients give up at 200."""

MAX_FAILURE_CHARS: Final = 16 * 1024
"""The text of an error that ends a run; more of it helps nobody, and each stream repeats it."""

MAX_ANSWERED_CALLS: Final = 1000
"""Tool calls that one answer decides on; models make a few at a time."""

ANSWERS_LOOKED_AT: Final = 50
"""Answers of a conversation, the newest first, among which one that came again is looked for."""

MAX_OTID_CHARS: Final = 256
"""An OTID: clients use UUIDs, some with a prefix."""

MAX_STEPS: Final = 1000
"""Steps that one send may ask for."""

MAX_POLL_SECONDS: Final = 3600.0
"""The largest ``poll_interval``; it is only a hint."""

# Callbacks.

MAX_CALLBACK_URL_CHARS: Final = 2048
"""A URL to call back: what common servers take."""

CALLBACK_BODY_BYTES: Final = 1024 * 1024
"""What a receiver is sent; an answer that is larger is left out, and is read from the server."""

CALLBACK_SECONDS: Final = 10.0
"""How long a receiver may take, from the look-up of its name to its status."""

CALLBACK_LEASE_SECONDS: Final = 60.0
"""How long a process has for a call before another one may make it; well over what it takes."""

CALLBACKS_AT_ONCE: Final = 64
"""Calls of a process at a time: places for many tenants whose receivers hang."""

CALLBACK_LOOK_SECONDS: Final = 2.0
"""How often calls are looked for that are due again, or that another process left."""

CALLBACK_RETRY_SECONDS: Final = 2.0
"""The wait before the second call of a receiver; it doubles with each that fails."""

CALLBACK_MAX_RETRY_SECONDS: Final = 900.0
"""The longest such wait."""

CALLBACK_GIVE_UP_SECONDS: Final = 24 * 3600.0
"""How long after the end of its run a receiver is still called."""

# Contexts.

CONTEXT_CACHE_BYTES: Final = 64 * 1024 * 1024
"""Decoded contexts of conversations in memory between turns: some hundred long conversations."""

CONTEXT_MESSAGE_BYTES: Final = 1024
"""The memory of a decoded message beside its texts, roughly."""

# Compaction.

SUMMARY_SECONDS: Final = 300.0
"""How long a model may take for a summary; the run that needs it waits."""

SUMMARY_TOKENS: Final = 8192
"""The longest summary that is asked for, where nobody says another; reasoning counts too."""

SUMMARY_PART_CHARS: Final = 4000
"""What a summary is told of one part of a message: returns of tools are the longest, and the
least worth keeping."""

MIN_SUMMARY_CHARS: Final = 400
"""What is left of a summary at least, however little room there is."""

# Tools of the server.

TOOL_SECONDS: Final = 60.0
"""How long a tool may take by default: what people wait for an answer to begin."""

MAX_TOOL_OUTPUT_CHARS: Final = 256 * 1024
"""What a tool may return; more than the context windows of most models have."""

MAX_TOOL_THREADS: Final = 64
"""Calls of functions that may be running; those that hang count until they return."""

MAX_TENANT_TOOL_THREADS: Final = 16
"""The part of them that one tenant's calls may take."""

MAX_WATCHED_LINE_BYTES: Final = 256 * 1024
"""A line of a provider's answer that is looked at; those that matter have some hundred bytes."""

MAX_NAMED_TOOLS: Final = 64
"""The names of tools that the answer to a call of an unknown tool lists; agents have up to 256."""

MAX_NAMED_TOOLS_CHARS: Final = 4096
"""The characters of those names; the model reads them with every later step of the turn."""

MAX_TOOL_NAME_CHARS: Final = 64
"""As much of the name of an unknown tool is repeated to a provider; OpenAI takes no more."""

MAX_SHOWN_NAME_CHARS: Final = 100
"""As much of a wrong name, which may be of any length, is repeated in an error."""

MAX_MCP_TOOLS: Final = 500
"""Tools of one MCP server; those of a list that never ends would fill the memory."""

MAX_TOOL_SCHEMA_BYTES: Final = 256 * 1024
"""The parameters' schema of one of them, as JSON; providers take less."""

MCP_START_SECONDS: Final = 30.0
"""How long an MCP server may take to be reached: one that is started may have to be fetched."""

MCP_START_WAIT_SECONDS: Final = 5.0
"""How long the start of a server waits for them; those that are slower come later."""

MCP_READY_SECONDS: Final = 10.0
"""How long a turn waits for what a tool's server has not said yet, before it goes on without."""

MCP_PING_SECONDS: Final = 5.0
"""How long a server may take to say that it still knows a session."""

MCP_RETRY_SECONDS: Final = 1.0
"""The least between two tries to reach a server; after each failure it is twice as long."""

MCP_MAX_RETRY_SECONDS: Final = 60.0
"""The most between two tries: how long a server may be back before that is seen."""

MCP_STEADY_SECONDS: Final = 60.0
"""A connection that held so long was a good one: the next try comes soon again."""

MCP_STOP_SECONDS: Final = 10.0
"""How long stopping an MCP server may take: it is asked, then told, then killed, 2 s each."""

MAX_AGENT_TOOLS: Final = 256
"""Tools of one agent; models get worse at choosing long before."""

# Requests.

MAX_REQUEST_BYTES: Final = 16 * 1024 * 1024
"""The body of a request: a message with several photographs in base64 fits."""

LINGER_SECONDS: Final = 1.0
"""How long the rest of a body that is too large is taken, so that the client sees the answer."""

MAX_HEAD_BYTES: Final = 64 * 1024
"""The head of a request: its request line and headers. Common proxies pass on less."""

MAX_TRAILERS: Final = 32
"""Trailers of a request, which are dropped; clients send a checksum or two."""

MAX_TRAILER_BYTES: Final = 8 * 1024
"""All trailers of a request together."""

MAX_CHUNK_EXTENSION_BYTES: Final = 8 * 1024
"""All chunk extensions of a request together, which are dropped; clients send none."""

BODY_AHEAD_BYTES: Final = 64 * 1024
"""A request's body that the application has not taken; reading pauses beyond."""

CHUNKS_SLICE_BYTES: Final = 64 * 1024
"""How much of a chunked body is read before others have the event loop: the smallest chunks
take longest, about 1 µs each."""

HELD_BYTES: Final = 16 * 1024
"""Bytes behind a request whose response is not complete; reading pauses beyond them."""

MAX_JSON_DEPTH: Final = 64
"""Objects and arrays within each other; far below where decoders run out of stack."""

MAX_JSON_VALUES: Final = 100_000
"""Values of a body: each costs a microsecond and 100 bytes. 256 tools of 300 values each fit."""

INLINE_BODY_BYTES: Final = 64 * 1024
"""A body up to this size, with few values, is parsed in the event loop; larger ones in a thread."""

INLINE_BODY_VALUES: Final = 2_000
"""Values of such a body: a few milliseconds."""

MAX_QUERY_PARAMETERS: Final = 1_000
"""Parameters of one query string; each is decoded in the event loop."""

TENANT_BODY_BYTES: Final = 128 * 1024 * 1024
"""Request bodies of one tenant that a process holds at a time: eight of the largest."""

TENANT_BODY_BYTES_PER_MINUTE: Final = 2048 * 1024 * 1024
"""Bodies of one tenant that a process takes in a minute; conversations and images are stored."""

TENANT_RUNS: Final = 1_000
"""Open runs of one tenant on a process: more than a process works on well."""

TENANT_STREAMS: Final = 10_000
"""Open streams of one tenant on a process: each is a connection and a file."""

TENANT_REQUESTS_PER_SECOND: Final = 2_000
"""Requests of one tenant on a process over some time: about half of what it answers."""

QUOTA_BURST_SECONDS: Final = 10
"""How many seconds' worth of requests may come at once: readers reconnect in crowds."""

PROCESS_BODY_BYTES: Final = 256 * 1024 * 1024
"""Request bodies of all tenants that a process holds at a time: one tenant fills half of it."""

MAX_INTEGER: Final = 2**63 - 1
"""The largest magnitude of an integer in a request: what databases hold."""

MAX_PAGE_ITEMS: Final = 1000
"""Rows of one answer, so that no list is built in memory without an end."""

PAGE_BYTES: Final = 16 * 1024 * 1024
"""Rows of one answer in bytes: a page of large ones ends early, and its last item is the cursor."""

MAX_QUERY_VALUES: Final = 100
"""How often one query parameter may be repeated; each becomes a term of a statement."""

MAX_QUERY_CHARS: Final = 1000
"""One value of a query: a word or sentence that is looked for."""

MAX_ID_CHARS: Final = 128
"""An id or cursor in a query; those made here have at most 44 characters."""

MAX_NAME_CHARS: Final = 256
"""A name, handle, label, tag or time zone: what people read in one line."""

MAX_DESCRIPTION_CHARS: Final = 10_000
"""A description or summary: a page or three."""

MAX_SYSTEM_CHARS: Final = 1_000_000
"""A system prompt; more than the context windows that models have."""

MAX_BLOCK_CHARS: Final = 100_000
"""The value of one memory block, of which the prompt holds many."""

MAX_AGENT_BLOCKS: Final = 100
"""Memory blocks of one agent; all of them stand in its prompt."""

MAX_TAGS: Final = 100
"""Tags of one agent or block."""

MAX_KEPT_JSON_BYTES: Final = 64 * 1024
"""Metadata or settings that are kept as they came; they come back with every item of a list."""

MAX_CONTEXT_TOKENS: Final = 100_000_000
"""A context window; beyond what models have, and well within an integer column."""

MAX_VALIDATION_ERRORS: Final = 20
"""Faults of a request that its 422 lists; a client mends the first ones first."""

MAX_ERROR_CHARS: Final = 500
"""What an error repeats of a client's own value."""

# Lists of models.

MODEL_LIST_TIMEOUT_SECONDS: Final = 10.0
"""How long a provider may take to list its models; the server does not wait for it to start."""

MODEL_LIST_SECONDS: Final = 300.0
"""How long a list is used before it is asked for again, and the longest wait after a failure."""

MODEL_LIST_RETRY_SECONDS: Final = 1.0
"""The first wait after a provider could not be reached; it doubles each time."""

MAX_MODEL_LIST_BYTES: Final = 4 * 1024 * 1024
"""A provider's list of models; the largest known one has about 500 KiB."""

MAX_LISTED_MODELS: Final = 2000
"""Models of one provider that are listed; any other handle of it works too."""

MAX_ASKED_MODELS: Final = 20
"""Models that `doctor --models` asks for a token, each a call that may cost something."""

# Authentication.

MAX_TENANT_CHARS: Final = 200
"""The name of a tenant that an embedding application gives; an id or an address fits."""

MAX_API_KEY_CHARS: Final = 256
"""A presented API key; those made here are far shorter."""

KEY_CACHE_SECONDS: Final = 5.0
"""How long a look-up of a key is remembered, and so how late a revocation may take effect."""

KEY_USE_SECONDS: Final = 60.0
"""How exactly the last use of a key is known; each note of it is a write."""

AUDIT_LINES_PER_MINUTE: Final = 20
"""Refused keys that are told one by one; the others are counted."""

KEY_CACHE_ENTRIES: Final = 10_000
"""Known keys that are remembered, and as many unknown ones, each at about 200 bytes."""
