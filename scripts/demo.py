"""The main job, shown: answers cut in the middle, resumed, and compared byte for byte.

Starts a server of its own with the built-in model, speaks to it with the unmodified Python SDK
through a relay that resets TCP connections, kills the server in mid-answer, and says in its last
line whether anything was lost or doubled. Exits with 0 only if nothing was.
"""

import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from letta_client import APIStatusError, Letta

from reattach.testing.process import ServerProcess
from reattach.testing.recording import Recording, frames_to, whole_frames
from reattach.testing.relay import Relay

QUESTION = (
    "Tell me a long story about a lighthouse keeper who receives letters from the sea. "
    "Describe the island, the storms, each letter, and how it ends."
)
EVENTS_BEFORE_CUT = 40
STARTED = time.monotonic()


def say(text: str = "") -> None:
    for line in text.splitlines() or [""]:
        print(f"{time.monotonic() - STARTED:6.1f} s  {line}", flush=True)


@dataclass
class Reader:
    """A client of the SDK: what it saw, and what came over the wire to it."""

    relay: Relay
    recording: Recording = field(default_factory=Recording)
    pieces: list[bytes] = field(default_factory=list)
    cursor: int = 0
    run_id: str = ""
    text: str = ""
    end: str = ""

    def __post_init__(self) -> None:
        self.sdk = Letta(
            base_url=self.relay.url,
            api_key="none needed on loopback",
            max_retries=0,
            http_client=httpx.Client(transport=self.recording, timeout=60),
        )

    def read(self, stream: Iterable[Any], stop: Callable[[int], bool]) -> None:
        """Read until ``stop`` cuts the connection, or the stream ends."""
        before, seen, ended = self.cursor, 0, "ended with [DONE]"
        try:
            for chunk in stream:
                seen += self._take(chunk)
                if stop(seen):
                    break
            else:
                self.end = "[DONE]"
        except httpx.TransportError as error:
            ended = f"broke: {type(error).__name__}"
        except APIStatusError as error:
            self.end = f"the error event {error.body}"
            ended = "ended with the SDK's exception for an error event"
            whole = whole_frames(self.recording.streams[-1])
            self.cursor = max(self.cursor, max(map(_seq, whole), default=0))
        piece = frames_to(self.recording.streams[-1], self.cursor, after=before)
        self.pieces.append(piece)
        say(f"  read events {before + 1} to {self.cursor}, then the stream {ended}")

    def _take(self, chunk: Any) -> int:
        seq = getattr(chunk, "seq_id", None)
        if seq is None or seq <= self.cursor:
            return 0
        self.cursor = seq
        self.run_id = getattr(chunk, "run_id", None) or self.run_id
        if chunk.message_type == "assistant_message":
            self.text += chunk.content
        return 1

    @property
    def joined(self) -> bytes:
        return b"".join(self.pieces)


def to_the_end(_seen: int) -> bool:
    """Cut nothing."""
    return False


def _seq(frame: bytes) -> int:
    marker = frame.find(b'"seq_id":')
    digits = frame[marker + 9 : marker + 20].split(b",")[0].rstrip(b"}\n")
    return int(digits) if marker >= 0 and digits.isdigit() else 0


def full_replay(base_url: str, run_id: str) -> bytes:
    """The run from its start, read raw and without the SDK."""
    body = httpx.post(f"{base_url}/v1/runs/{run_id}/stream", json={}, timeout=60).content
    frames = whole_frames(body)
    if frames[-1] != b"data: [DONE]\n\n":
        raise SystemExit(f"The replay does not end with [DONE]: {frames[-1]!r}")
    return b"".join(frames[:-1])


def compared(name: str, reader: Reader, base_url: str) -> bool:
    """Compare what a client joined with the full replay; say what is lost or doubled."""
    replay = full_replay(base_url, reader.run_id)
    expected = list(map(_seq, whole_frames(replay)))
    got = list(map(_seq, whole_frames(reader.joined)))
    lost = sorted(set(expected) - set(got))
    doubled = len(got) - len(set(got))
    same = reader.joined == replay
    say(
        f"{name}: {len(reader.pieces)} pieces joined, {len(reader.joined)} bytes, "
        f"{len(got)} of {len(expected)} events; lost {len(lost)}, doubled {doubled}; "
        f"{'equal to the full replay, byte for byte' if same else 'NOT EQUAL TO THE REPLAY'}"
    )
    return same and not lost and not doubled


def send(reader: Reader, conversation_id: str, otid: str, text: str = QUESTION) -> Any:
    return reader.sdk.conversations.messages.create(
        conversation_id,
        messages=[{"role": "user", "content": text, "otid": otid}],
        background=True,
        stream_tokens=True,
    )


def cutting(relay: Relay, reader: Reader) -> Callable[[int], bool]:
    """After some events, reset the TCP connection; what is in flight goes with it."""

    def stop(seen: int) -> bool:
        if seen == EVENTS_BEFORE_CUT:
            say(f"  … {reader.text[-60:]!r}")
            say(f"  resetting the TCP connection after event {reader.cursor}")
            relay.cut()
        return False

    return stop


def part_one(relay: Relay, server: ServerProcess, conversation_id: str) -> bool:
    say("1. A long answer, whose connection is cut three times")
    otid = str(uuid.uuid4())
    reader = Reader(relay)
    cut = cutting(relay, reader)
    messages = reader.sdk.conversations.messages
    say("sending in the background, with an OTID")
    reader.read(send(reader, conversation_id, otid), cut)
    say(f"resuming by run id, starting_after={reader.cursor}")
    reader.read(
        messages.stream(conversation_id, run_id=reader.run_id, starting_after=reader.cursor), cut
    )
    say(f"resuming by OTID, starting_after={reader.cursor}")
    reader.read(messages.stream(conversation_id, otid=otid, starting_after=reader.cursor), cut)
    say(f"resuming whatever runs in this conversation, starting_after={reader.cursor}")
    reader.read(messages.stream(conversation_id, starting_after=reader.cursor), to_the_end)
    say(f"  the answer has {len(reader.text)} characters and ends: …{reader.text[-60:]!r}")
    stored = [
        message.content
        for message in reader.sdk.conversations.messages.list(conversation_id, order="asc")
        if message.message_type == "assistant_message"
    ]
    kept = "".join(map(str, stored)) == reader.text
    say(f"the conversation's stored answer is {'the same' if kept else 'ANOTHER'} text")
    say("sending the same OTID again, which must not make a second run")
    again = Reader(relay)
    again.read(send(again, conversation_id, otid), to_the_end)
    one_run = again.run_id == reader.run_id and again.joined == reader.joined
    say(f"  {'the same run, the same bytes' if one_run else 'ANOTHER RUN'}")
    return compared("1", reader, server.url) and kept and one_run


def part_two(relay: Relay, server: ServerProcess, conversation_id: str) -> bool:
    say()
    say("2. Another answer, in whose middle the server is killed")
    reader = Reader(relay)

    def stop(seen: int) -> bool:
        if seen == EVENTS_BEFORE_CUT:
            say(f"  kill -9 of the server (process {server.pid}) after event {reader.cursor}")
            server.kill()
        return False

    reader.read(send(reader, conversation_id, str(uuid.uuid4())), stop)
    say("starting the server again on the same data")
    server.start()
    say(f"  it answers, {time.monotonic() - STARTED:.1f} s after the beginning of this demo")
    run = reader.sdk.runs.retrieve(reader.run_id)
    say(f"the run is {run.status}, stop_reason {run.stop_reason}: it did not hang")
    say(f"resuming by run id, starting_after={reader.cursor}")
    reader.read(
        reader.sdk.conversations.messages.stream(
            conversation_id, run_id=reader.run_id, starting_after=reader.cursor
        ),
        to_the_end,
    )
    say(f"  the stream's end: {reader.end}")
    return compared("2", reader, server.url) and run.status == "failed"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="reattach-demo-") as directory:
        say("Starting a server with the built-in model, on a free port and a fresh directory")
        with (
            ServerProcess(Path(directory), arguments=["--log-level", "warning"]) as server,
            Relay(server.address) as relay,
        ):
            say(f"  {server.url}, reached by the client through a relay at {relay.url}")
            sdk = Reader(relay).sdk
            models = sdk.models.list()
            if not models:
                say("No model. scripts/setup installs the built-in one; run that first.")
                return 1
            agent = sdk.agents.create(
                name="storyteller",
                model=models[0].handle,
                model_settings={
                    "provider_type": "openai",
                    "temperature": 0,
                    "max_output_tokens": 400,  # enough to be cut three times
                },
                system="You are a storyteller.",
                memory_blocks=[{"label": "human", "value": "The reader likes the sea."}],
            )
            conversation = sdk.conversations.create(agent_id=agent.id)
            say(f"  agent {agent.name!r} with the model {agent.model}")
            say()
            good = part_one(relay, server, conversation.id)
            good = part_two(relay, server, conversation.id) and good
    say()
    say("Nothing was lost and nothing was doubled." if good else "SOMETHING WAS LOST OR DOUBLED.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
