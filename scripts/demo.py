"""Show the main feature: answers are cut in the middle, resumed, and compared byte for byte.

The demo starts a server with the built-in model and talks to it with the unmodified Python SDK,
through a relay that resets TCP connections. It kills the server in the middle of an answer, starts
it again, and the answer goes on. The last line says whether anything was lost or doubled; the exit
status is 0 only if nothing was.

With ``--cluster`` there are two servers, which share a Redis and a PostgreSQL of the demo's own.
Every answer that was cut is resumed on the other server, which also goes on with the runs of a
server that was killed or stopped.
"""

import argparse
import itertools
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from letta_client import APIStatusError, Letta

from reattach.testing import (
    Cluster,
    Recording,
    Relay,
    ServerProcess,
    frames_to,
    seq_of,
    whole_frames,
)

QUESTION = (
    "Tell me a long story about a lighthouse keeper who receives letters from the sea. "
    "Describe the island, the storms, each letter, and how it ends."
)
SCRIPTED_QUESTION = "[chunks=200][rate=100]"
EVENTS_BEFORE_CUT = 15
TOKENS = 75  # enough for an answer that is cut three times
OWN_ENDS = {
    "end_turn": "the end that the model gave it",
    "max_tokens_exceeded": f"its limit of {TOKENS} tokens, which this demo sets",
}
"""The ends of an answer that its model decides."""
STARTED = time.monotonic()


def say(text: str = "") -> None:
    for line in text.splitlines() or [""]:
        print(f"{time.monotonic() - STARTED:6.1f} s  {line}", flush=True)


@dataclass(frozen=True)
class Stage:
    """The servers of the demo, and the relay through which the client reaches each of them."""

    servers: Sequence[ServerProcess]
    relays: Sequence[Relay]
    api_key: str = "none needed on loopback"
    question: str = QUESTION

    @property
    def is_cluster(self) -> bool:
        return len(self.servers) > 1

    def place(self, number: int) -> str:
        """Name the server that gets a request, if there is a choice."""
        return f" at {'AB'[number]}" if self.is_cluster else ""


@dataclass
class Reader:
    """A client of the SDK: the events that it saw, and the bytes that it received."""

    stage: Stage
    at: int = 0
    """The number of the server that it talks to."""
    recording: Recording = field(default_factory=Recording)
    pieces: list[bytes] = field(default_factory=list)
    cursor: int = 0
    run_id: str = ""
    text: str = ""
    end: str = ""

    def __post_init__(self) -> None:
        self.http = httpx.Client(transport=self.recording, timeout=60)
        self.go_to(self.at)

    def go_to(self, number: int) -> str:
        """Talk to that server from now on, and return its name."""
        self.at = number
        self.relay = self.stage.relays[number]
        self.sdk = Letta(
            base_url=self.relay.url,
            api_key=self.stage.api_key,
            max_retries=0,
            http_client=self.http,
        )
        return self.stage.place(number)

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
            self.cursor = max(self.cursor, max(map(seq_of, whole), default=0))
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
    """Read to the end, without a cut."""
    return False


def read_full_replay(stage: Stage, number: int, run_id: str) -> bytes:
    """Read the run from its start, from one server, without the SDK."""
    url = f"{stage.servers[number].url}/v1/runs/{run_id}/stream"
    headers = {"authorization": f"Bearer {stage.api_key}"} if stage.is_cluster else {}
    body = httpx.post(url, json={}, headers=headers, timeout=60).content
    frames = whole_frames(body)
    if frames[-1] != b"data: [DONE]\n\n":
        raise SystemExit(f"The replay does not end with [DONE]: {frames[-1]!r}")
    return b"".join(frames[:-1])


def compare(name: str, reader: Reader) -> bool:
    """Compare the joined pieces of a client with the full replay of every server."""
    same = [compare_at(number, name, reader) for number in range(len(reader.stage.servers))]
    return all(same)


def compare_at(number: int, name: str, reader: Reader) -> bool:
    """Compare the joined pieces of a client with one full replay, and report losses and doubles."""
    replay = read_full_replay(reader.stage, number, reader.run_id)
    expected = list(map(seq_of, whole_frames(replay)))
    got = list(map(seq_of, whole_frames(reader.joined)))
    lost = sorted(set(expected) - set(got))
    doubled = len(got) - len(set(got))
    same = reader.joined == replay
    say(
        f"{name}: {len(reader.pieces)} pieces joined, {len(reader.joined)} bytes, "
        f"{len(got)} of {len(expected)} events; lost {len(lost)}, doubled {doubled}; "
        f"{'equal to' if same else 'NOT EQUAL TO'} the full replay{reader.stage.place(number)}, "
        "byte for byte"
    )
    return same and not lost and not doubled


def send(reader: Reader, conversation_id: str, otid: str) -> Any:
    return reader.sdk.conversations.messages.create(
        conversation_id,
        messages=[{"role": "user", "content": reader.stage.question, "otid": otid}],
        background=True,
        stream_tokens=True,
    )


def cut_after_some_events(reader: Reader) -> Callable[[int], bool]:
    """Reset the TCP connection after some events; bytes in flight are lost with it."""

    def stop(seen: int) -> bool:
        if seen == EVENTS_BEFORE_CUT:
            say(f"  … {reader.text[-60:]!r}")
            say(f"  resetting the TCP connection after event {reader.cursor}")
            reader.relay.cut()
        return False

    return stop


def part_one(stage: Stage, conversation_id: str) -> bool:
    say("1. A long answer, whose connection is cut three times")
    otid = str(uuid.uuid4())
    reader = Reader(stage)
    cut = cut_after_some_events(reader)
    others = itertools.cycle(reversed(range(len(stage.servers))))

    def resume(way: str, stop: Callable[[int], bool], **named: str) -> None:
        place = reader.go_to(next(others))
        say(f"resuming{place} {way}, starting_after={reader.cursor}")
        messages = reader.sdk.conversations.messages
        reader.read(
            messages.stream(conversation_id, starting_after=reader.cursor, **named),  # type: ignore[arg-type]
            stop,
        )

    say(f"sending{stage.place(0)} in the background, with an OTID")
    reader.read(send(reader, conversation_id, otid), cut)
    resume("by run id", cut, run_id=reader.run_id)
    resume("by OTID", cut, otid=otid)
    resume("whatever runs in this conversation", to_the_end)
    say(f"  the answer has {len(reader.text)} characters and ends: …{reader.text[-60:]!r}")
    stored = [
        message.content
        for message in reader.sdk.conversations.messages.list(conversation_id, order="asc")
        if message.message_type == "assistant_message"
    ]
    kept = "".join(map(str, stored)) == reader.text
    say(f"the conversation's stored answer is {'the same' if kept else 'ANOTHER'} text")
    again = Reader(stage, next(others))
    say(f"sending the same OTID again{stage.place(again.at)}, which must not make a second run")
    again.read(send(again, conversation_id, otid), to_the_end)
    one_run = again.run_id == reader.run_id and again.joined == reader.joined
    say(f"  {'the same run, the same bytes' if one_run else 'ANOTHER RUN'}")
    return compare("1", reader) and kept and one_run


def part_two(stage: Stage, conversation_id: str) -> bool:
    say()
    say("2. Another answer, in whose middle the server is killed")

    def kill(server: ServerProcess) -> None:
        say(f"  kill -9 of the server{stage.place(0)} (process {server.pid})")
        server.kill()

    return interrupt(stage, conversation_id, "2", kill)


def part_three(stage: Stage, conversation_id: str) -> bool:
    say()
    say("3. A third answer, in whose middle the server is stopped for a new version")

    def stop(server: ServerProcess) -> None:
        say(f"  SIGTERM{stage.place(0)} (process {server.pid}), twice: it waits for no run")
        server.signal(signal.SIGTERM)
        while httpx.get(f"{server.url}/v1/ready/").is_success:  # Signals in a row count as one.
            time.sleep(0.01)
        server.signal(signal.SIGTERM)

    return interrupt(stage, conversation_id, "3", stop)


def interrupt(
    stage: Stage, conversation_id: str, name: str, stop_server: Callable[[ServerProcess], None]
) -> bool:
    """Let a server go in the middle of an answer, and read the rest from the next owner."""
    reader = Reader(stage)
    stopped_at = resumed_at = 0.0

    def stop(seen: int) -> bool:
        nonlocal stopped_at
        if seen == EVENTS_BEFORE_CUT:
            say(f"  … {reader.text[-60:]!r}")
            stop_server(stage.servers[0])
            stopped_at = time.monotonic()
        return False

    def note_first(_seen: int) -> bool:
        nonlocal resumed_at
        resumed_at = resumed_at or time.monotonic()
        return False

    reader.read(send(reader, conversation_id, str(uuid.uuid4())), stop)
    if not stage.is_cluster:
        restart(stage)
    place = reader.go_to(len(stage.servers) - 1)
    say(f"resuming{place} by run id, starting_after={reader.cursor}")
    reader.read(
        reader.sdk.conversations.messages.stream(
            conversation_id, run_id=reader.run_id, starting_after=reader.cursor
        ),
        note_first,
    )
    say(f"  the answer went on after a gap of {resumed_at - stopped_at:.1f} s, to {reader.end}")
    run = reader.sdk.runs.retrieve(reader.run_id)
    attempts = (run.metadata or {}).get("attempts")
    end = OWN_ENDS.get(run.stop_reason or "", f"no end of its own: stop_reason {run.stop_reason}")
    say(f"the answer came to {end}; attempts: {way_of(attempts)}")
    if stage.is_cluster:
        stage.servers[0].kill()  # It has ended, unless it was too slow.
        restart(stage)
    went_on = attempts is not None and run.stop_reason in OWN_ENDS
    return compare(name, reader) and went_on


def way_of(attempts: Any) -> str:
    """Return how each attempt at a run began."""
    return ", then ".join(
        f"{one['way']} from event {one['first_seq']} after a {one['interruption']}"
        if one["way"]
        else "the first"
        for one in attempts or []
    )


def restart(stage: Stage) -> None:
    say(f"starting the server{stage.place(0)} again")
    stage.servers[0].start()
    say(f"  it answers, {time.monotonic() - STARTED:.1f} s after the beginning of this demo")


def prepare(stage: Stage) -> str | None:
    """Create a conversation with a storyteller; return None if there is no model."""
    for number, (server, relay) in enumerate(zip(stage.servers, stage.relays, strict=True)):
        name = f"{'AB'[number]}: " if stage.is_cluster else ""
        say(f"  {name}{server.url}, reached by the client through a relay at {relay.url}")
    sdk = Reader(stage).sdk
    # The scripted ones come last.
    models = sdk.models.list()[:1] if stage.question == QUESTION else sdk.models.list()[-2:]
    if not models:
        say("There is no model. Run scripts/setup, which installs the built-in one.")
        return None
    agent = sdk.agents.create(
        name="storyteller",
        model=models[0].handle,
        model_settings={
            "provider_type": "openai",
            "temperature": 0,
            "max_output_tokens": TOKENS,
        },
        system="You are a storyteller.",
        memory_blocks=[{"label": "human", "value": "The reader likes the sea."}],
    )
    say(f"  agent {agent.name!r} with the model {agent.model}")
    say()
    return sdk.conversations.create(agent_id=agent.id).id


@contextmanager
def one_server(arguments: Sequence[str], question: str) -> Iterator[Stage]:
    say("Starting a server on a free port and a fresh directory")
    with (
        tempfile.TemporaryDirectory(prefix="reattach-demo-") as directory,
        ServerProcess(Path(directory), arguments=arguments) as server,
        Relay(server.address) as relay,
    ):
        yield Stage([server], [relay], question=question)


@contextmanager
def two_servers(arguments: Sequence[str], question: str) -> Iterator[Stage]:
    say("Starting Redis, PostgreSQL and two servers, on free ports")
    with Cluster(2, arguments=arguments) as cluster, ExitStack() as stack:
        say(f"  the lease of a server on its runs is {cluster.lease_seconds:g} s")
        servers = cluster.servers
        relays = [stack.enter_context(Relay(server.address)) for server in servers]
        yield Stage(servers, relays, cluster.api_key, question)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Show what Reattach is for.")
    parser.add_argument(
        "--cluster", action="store_true", help="with two servers, Redis and PostgreSQL"
    )
    parser.add_argument(
        "--scripted", action="store_true", help="with a scripted model, which is fast"
    )
    chosen = parser.parse_args()
    arguments = ["--log-level", "warning", *(["--scripted"] if chosen.scripted else [])]
    question = SCRIPTED_QUESTION if chosen.scripted else QUESTION
    started = two_servers if chosen.cluster else one_server
    with started(arguments, question) as stage:
        conversation_id = prepare(stage)
        if conversation_id is None:
            return 1
        good = part_one(stage, conversation_id)
        good = part_two(stage, conversation_id) and good
        if stage.is_cluster:
            good = part_three(stage, conversation_id) and good
    say()
    say("Nothing was lost and nothing was doubled." if good else "SOMETHING WAS LOST OR DOUBLED.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
