"""The layout of the Redis log, and all scripts that work on it.

A run has two keys in one hash slot: a hash with its state (``token``, ``first``, ``last``,
``closed``, ``bytes``, ``aliases``) and a stream with its frames. An entry of the stream is one
append. Its id is ``<seq of its first frame>-0``, so a cursor is an address. Its only field is a
body: the frame count, the frame lengths unless there is only one frame, and the frames. An alias is
a separate key whose value is a run id.

Each script publishes its change of a run as a notification on the channel named like the hash. A
notification is a head (kind, token, seq) and, for an append, the body of the stream entry. All
numbers are little-endian.

Scripts named ``*_MANY`` work on any number of runs per call, independently of each other.
"""

import re
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha1
from itertools import pairwise
from typing import Final

from reattach.domain.ids import Seq, Token
from reattach.log.frames import pack_numbers, unpack_numbers
from reattach.log.redis.pages import COUNT

_HEAD: Final = struct.Struct("<Bqq")
_HEAD_SIZE: Final = _HEAD.size


class NotificationKind(IntEnum):
    """The kinds of notifications."""

    APPENDED = 0
    CLOSED = 1
    """Frames were appended, and the log was closed."""
    CREATED = 2
    """The log begins empty at this seq, because it is new or its frames were dropped."""
    TRIMMED = 3
    """Events before this seq were dropped."""
    DELETED = 4


@dataclass(frozen=True, slots=True)
class Notification:
    kind: NotificationKind
    seq: Seq
    ends: "array[int] | None"
    """The ends of the frames in ``frames``; None if there is one frame."""
    frames: bytes

    @property
    def last_seq(self) -> int:
        return self.seq + (1 if self.ends is None else len(self.ends)) - 1

    def split(self) -> Sequence[bytes]:
        """Return the frames one by one."""
        return (self.frames,) if self.ends is None else split_at(self.frames, self.ends)


def pack_append(token: Token, first_seq: Seq, frames: Sequence[bytes], close: bool) -> bytes:
    """Return the bytes of an append, as argument of the script and as notification."""
    head = _HEAD.pack(
        NotificationKind.CLOSED if close else NotificationKind.APPENDED, token, first_seq
    )
    if len(frames) == 1:  # The most frequent case by far.
        return b"".join((head, COUNT.pack(1), frames[0]))
    lengths = pack_numbers([len(frame) for frame in frames])
    return b"".join((head, COUNT.pack(len(frames)), lengths, *frames))


def unpack_notification(packed: bytes) -> Notification:
    """Parse a notification.

    Raises:
        ValueError: It is not one, or comes from a later version.
    """
    try:
        number, _, seq = _HEAD.unpack_from(packed)
        kind = NotificationKind(number)
        if kind > NotificationKind.CLOSED:
            return Notification(kind, seq, array("Q"), b"")
        (count,) = COUNT.unpack_from(packed, _HEAD_SIZE)
    except struct.error as error:
        raise ValueError("The notification has no head.") from error
    start = _HEAD_SIZE + COUNT.size
    if count == 1:
        return Notification(kind, seq, None, packed[start:])
    end = start + 4 * count
    return Notification(kind, seq, ends_of(packed[start:end]), packed[end:])


def split_at(frames: bytes, ends: "array[int]") -> list[bytes]:
    return [frames[begin:end] for begin, end in pairwise([0, *ends])]


def ends_of(lengths: bytes) -> "array[int]":
    """Return the ends of joined frames with these packed lengths."""
    ends = array("Q")
    end = 0
    for length in unpack_numbers(lengths):
        end += length
        ends.append(end)
    return ends


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of keys and channels. All names of one run are in one hash slot."""

    prefix: str

    def head(self, run_id: str) -> bytes:
        """Return the key of the run's state, which is also the name of its channel."""
        return self.run(run_id)[0]

    def run(self, run_id: str) -> tuple[bytes, bytes]:
        """Return the keys of the run's state and frames."""
        base = f"{self.prefix}:{{{run_id}}}:"
        return f"{base}head".encode(), f"{base}log".encode()

    @property
    def around_run(self) -> tuple[str, str, str]:
        """The text before the id in the keys of a run, and after it in that of each key."""
        return f"{self.prefix}:{{", "}:head", "}:log"

    @property
    def any_head(self) -> bytes:
        """The pattern that matches the state keys of all runs."""
        escaped = re.sub(r"([\\*?\[\]^-])", r"\\\1", self.prefix)
        return f"{escaped}:{{*}}:head".encode()

    def run_of(self, head: bytes) -> str | None:
        """Return the run of a state key; None for another key."""
        begin, end = f"{self.prefix}:{{".encode(), b"}:head"
        if not (head.startswith(begin) and head.endswith(end)):
            return None
        return head[len(begin) : -len(end)].decode(errors="replace")

    def alias(self, alias: str) -> bytes:
        return f"{self.prefix}:alias:{alias}".encode()


class Script:
    """A Lua script and the digest under which Redis caches it."""

    def __init__(self, *parts: str, flags: str = "") -> None:
        shebang = f"#!lua flags={flags}" if flags else "#!lua"
        self.text = "\n".join((shebang, *parts))
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_SHARED: Final = """
local function id(seq) return string.format('%.0f-0', seq) end
local CREATED, TRIMMED, DELETED = 2, 3, 4
local function notification(kind, token, seq) return struct.pack('<Bi8i8', kind, token, seq) end

-- Returns the state of a run, or nil if there is none or if its frames were evicted.
local function state_of(head, stream)
    local s = redis.call('HMGET', head, 'token', 'first', 'last', 'closed', 'bytes')
    if not s[1] then return nil end
    local state = {token = tonumber(s[1]), first = tonumber(s[2]), last = tonumber(s[3]),
                   closed = s[4] == '1', bytes = tonumber(s[5]), raw = s}
    if state.last >= state.first and redis.call('EXISTS', stream) == 0 then return nil end
    return state
end

-- Returns the first seq, count and body of the entry with this frame, or nil.
local function entry_with(stream, seq)
    local found = redis.call('XREVRANGE', stream, id(seq), '-', 'COUNT', 1)[1]
    if not found then return nil end
    local first = tonumber(string.match(found[1], '^%d+'))
    local body = found[2][2]
    local count = struct.unpack('<I4', body)
    if seq >= first + count then return nil end
    return first, count, body
end

-- Returns the lengths of a body's frames, and the position of the first frame.
local function lengths_of(body, count)
    if count == 1 then return {#body - 4}, 5 end
    local lengths = {}
    for n = 1, count do lengths[n] = struct.unpack('<I4', body, 1 + 4 * n) end
    return lengths, 5 + 4 * count
end
"""

OPEN: Final = Script(
    _SHARED,
    """
-- KEYS: head, stream, then the aliases unless they are in other slots. ARGV: token, first seq,
-- run id, expiry of the aliases in seconds, then the keys of the aliases.
local head, stream = KEYS[1], KEYS[2]
local token, first = tonumber(ARGV[1]), tonumber(ARGV[2])
local newest = redis.call('HGET', head, 'token')
if newest and token < tonumber(newest) then return {'fenced'} end
local state = state_of(head, stream)
local begins = not state or (not state.closed and state.last + 1 < first)
if begins then
    redis.call('DEL', stream)
    redis.call('HSET', head, 'token', ARGV[1], 'first', ARGV[2],
               'last', string.format('%.0f', first - 1), 'closed', '0', 'bytes', '0')
    redis.call('PERSIST', head)
    redis.call('PUBLISH', head, notification(CREATED, token, first))
else
    redis.call('HSET', head, 'token', ARGV[1])
end
if #ARGV > 4 then
    local known = redis.call('HGET', head, 'aliases')
    local aliases = known and cmsgpack.unpack(known) or {}
    for n = 5, #ARGV do
        if KEYS[n - 2] then redis.call('SET', KEYS[n - 2], ARGV[3], 'EX', ARGV[4]) end
        aliases[ARGV[n]] = 1
    end
    redis.call('HSET', head, 'aliases', cmsgpack.pack(aliases))
end
return {begins and 'begun' or 'ok', state_of(head, stream).raw}
""",
)

_APPEND: Final = """
local ENTRY_BYTES = 65536

local function is_retry(state, stream, first, count, close, body)
    local last = first + count - 1
    if close and not (state.closed and last == state.last) then return false end
    if first < state.first or last > state.last then return false end
    if count == 0 then return true end
    local lengths, at = lengths_of(body, count)
    local seq, n = first, 1
    while n <= count do
        local e_first, e_count, e_body = entry_with(stream, seq)
        if not e_first then return false end
        local e_lengths, e_at = lengths_of(e_body, e_count)
        for k = 1, e_count do
            if e_first + k - 1 >= seq and n <= count then
                local length = lengths[n]
                if length ~= e_lengths[k] or string.sub(body, at, at + length - 1)
                        ~= string.sub(e_body, e_at, e_at + length - 1) then
                    return false
                end
                at, n = at + length, n + 1
            end
            e_at = e_at + e_lengths[k]
        end
        seq = e_first + e_count
    end
    return true
end

-- Adds one entry. Returns false if the stream must exist and does not.
local function add_entry(stream, must_exist, first, body)
    if must_exist then
        return redis.call('XADD', stream, 'NOMKSTREAM', id(first), 'f', body)
    end
    return redis.call('XADD', stream, id(first), 'f', body)
end

-- Adds the frames of a body, in several entries if it is large: a read takes whole entries.
local function add(stream, must_exist, first, count, body)
    if #body <= ENTRY_BYTES then return add_entry(stream, must_exist, first, body) end
    local lengths, at = lengths_of(body, count)
    local n = 1
    while n <= count do
        local from, size = n, 0
        repeat
            size, n = size + lengths[n], n + 1
        until n > count or size + lengths[n] > ENTRY_BYTES
        local its_lengths = n - from > 1 and string.sub(body, 1 + 4 * from, 4 * n) or ''
        local frames = string.sub(body, at, at + size - 1)
        local entry = struct.pack('<I4', n - from) .. its_lengths .. frames
        if not add_entry(stream, must_exist, first + from - 1, entry) then return false end
        at = at + size
    end
    return true
end

local function append(head, stream, packed)
    local kind, token, first = struct.unpack('<Bi8i8', packed)
    local body = string.sub(packed, 18)
    local count = struct.unpack('<I4', body)
    local s = redis.call('HMGET', head, 'token', 'last', 'closed', 'bytes', 'first')
    if not s[1] then return 'missing' end
    if token < tonumber(s[1]) then return 'fenced' end
    local last = tonumber(s[2])
    if s[3] == '1' or first ~= last + 1 then
        local state = state_of(head, stream)
        if not state then return 'missing' end
        if is_retry(state, stream, first, count, kind == 1, body) then
            redis.call('HSET', head, 'last', s[2])  -- WAIT covers only this connection's writes.
            return 'ok'
        end
        return s[3] == '1' and 'closed' or 'mismatch:' .. s[2]
    end
    if count > 0 then
        if not add(stream, last >= tonumber(s[5]), first, count, body) then return 'missing' end
        last = first + count - 1
    end
    redis.call('HSET', head, 'last', string.format('%.0f', last), 'closed', tostring(kind),
               'bytes', string.format('%.0f', tonumber(s[4]) + #body))
    if kind == 1 then
        redis.call('EXPIRE', head, ARGV[1])
        redis.call('EXPIRE', stream, ARGV[1])
    end
    redis.call('PUBLISH', head, packed)
    return 'ok'
end
"""

APPEND_MANY: Final = Script(
    _SHARED,
    _APPEND,
    """
-- KEYS: head and stream of each run. ARGV: expiry of closed logs in seconds, one append per run.
local answers = {}
for n = 1, #KEYS / 2 do
    local done, answer = pcall(append, KEYS[2 * n - 1], KEYS[2 * n], ARGV[1 + n])
    if not done then
        answer = 'error:' .. (type(answer) == 'table' and answer.err or tostring(answer))
    end
    answers[n] = answer
end
return answers
""",
)

STATE_MANY: Final = Script(
    _SHARED,
    """
-- KEYS: head and stream of each run.
local answers = {}
for n = 1, #KEYS / 2 do
    local state = state_of(KEYS[2 * n - 1], KEYS[2 * n])
    answers[n] = state and state.raw or false
end
return answers
""",
    flags="no-writes",
)

FIND: Final = Script(
    _SHARED,
    """
-- KEYS: an alias. ARGV: the text before the id in the keys of a run, and after it in those of its
-- state and frames. Returns the run and its state, if it exists.
local run = redis.call('GET', KEYS[1])
if not run then return false end
local state = state_of(ARGV[1] .. run .. ARGV[2], ARGV[1] .. run .. ARGV[3])
return state and {run, state.raw}
""",
    flags="no-writes",
)

READ: Final = Script(
    _SHARED,
    """
-- Returns the bytes that the first frames of a body take, with their lengths.
local function bytes_before(body, frames)
    local count = #body >= 4 and struct.unpack('<I4', body) or 0
    if frames <= 0 or frames >= count or #body < 4 + 4 * count then return 0 end
    local bytes = 4 * frames
    for n = 1, frames do bytes = bytes + struct.unpack('<I4', body, 1 + 4 * n) end
    return bytes
end

-- KEYS: head, stream. ARGV: cursor, most bytes, most frames, and 1 to leave out those of an open
-- log. One frame is always returned.
-- Returns the bodies of the entries with these frames, which may have more frames around them.
local stream = KEYS[2]
local after, room, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local state = state_of(KEYS[1], stream)
if not state then return {'missing'} end
local answer = {'ok', state.raw, '0'}
if after + 1 < state.first or after >= state.last then return answer end
if ARGV[4] == '1' and not state.closed then return answer end
local batch = redis.call('XREVRANGE', stream, id(after + 1), '-', 'COUNT', 1)
if not batch[1] then return {'missing'} end
answer[3] = string.match(batch[1][1], '^%d+')
-- The frames of the first entry up to the cursor take no room.
local size, count, wanted = -bytes_before(batch[1][2][2], after + 1 - tonumber(answer[3])), 0, 1
while true do
    for n = 1, #batch do
        local body = batch[n][2][2]
        if count + n > 1 and size + #body > room then return answer end
        answer[3 + count + n] = body
        size = size + #body
    end
    count = count + #batch
    if #batch < wanted or size >= room or count >= most then return answer end
    local newest = batch[#batch][1]
    wanted = math.max(1, math.min(1000, math.ceil((room - size) * count / size), most - count))
    batch = redis.call('XRANGE', stream, '(' .. newest, '+', 'COUNT', wanted)
end
""",
    flags="no-writes",
)

TRIM: Final = Script(
    _SHARED,
    """
-- KEYS: head, stream. ARGV: first seq to keep.
local head, stream = KEYS[1], KEYS[2]
local state = state_of(head, stream)
if not state then return {'missing'} end
local first = math.min(tonumber(ARGV[1]), state.last + 1)
if first <= state.first then return {'ok', string.format('%.0f', state.first)} end
if first > state.last then
    redis.call('XTRIM', stream, 'MAXLEN', 0)
else
    local kept = entry_with(stream, first)
    if not kept then return {'missing'} end
    redis.call('XTRIM', stream, 'MINID', id(kept))
end
redis.call('HSET', head, 'first', string.format('%.0f', first))
redis.call('PUBLISH', head, notification(TRIMMED, state.token, first))
return {'ok', string.format('%.0f', first)}
""",
    flags="allow-oom",  # It makes room.
)

DELETE: Final = Script(
    _SHARED,
    """
-- KEYS: head, stream. Returns the keys of the aliases of the log.
local known = redis.call('HGET', KEYS[1], 'aliases')
if redis.call('UNLINK', KEYS[1], KEYS[2]) > 0 then
    redis.call('PUBLISH', KEYS[1], notification(DELETED, 0, 0))
end
local names = {}
for alias in pairs(known and cmsgpack.unpack(known) or {}) do names[#names + 1] = alias end
return names
""",
    flags="allow-oom",  # It makes room.
)

FORGET_ALIAS: Final = Script(
    """
-- KEYS: an alias. ARGV: the deleted run.
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
""",
    flags="allow-oom",  # It makes room.
)
