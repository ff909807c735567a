"""The official SDKs behind real proxies, with two servers of which one is killed repeatedly."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from letta_client import APIStatusError

from reattach.testing.programs.cluster import Cluster
from reattach.testing.programs.relay import Relay
from tests.support.proxy_server import HaproxyServer, NginxServer
from tests.support.python_sdk import Reader, Seen
from tests.support.threads import Thread, Threads, assert_one_whole_run, raw_client
from tests.support.typescript_sdk import Call, TypeScript, TypeScriptReader, require_node

DEPLOY = Path(__file__).parents[2] / "deploy"
ANSWERS = [
    "[chunks=100][rate=50]",
    "[unicode][chunks=60][rate=40]",
    "[think=20][chunks=60][rate=50]",
]
WAIT_SECONDS = 40.0
MOST_KILLS = 5
"""Only a kill between two answers has no effect."""
AGAIN = {502, 503, 504}
"""Statuses that a proxy answers when a server has died, and that are retried."""

Try = Callable[[Thread, str], None]


class Customer:
    """A program that sends with an SDK and resumes until it has the whole answer.

    Its proxy reaches the mortal server through ``relay``.
    """

    def __init__(
        self, threads: Threads, new_client: Callable[[], tuple[Seen, Try]], relay: ReadingRelay
    ) -> None:
        self.threads = threads
        self.answers = 0
        self.breaks = 0
        self.relay = relay
        self._new_client = new_client

    def talk(self, stop: threading.Event) -> None:
        texts = itertools.cycle(ANSWERS)
        while not stop.is_set():
            self._say(next(texts))

    def _say(self, text: str) -> None:
        thread = self.threads.conversation()
        client, once = self._new_client()
        while not client.complete:
            once(thread, text)
            self.breaks += client.broken is not None
        assert [run["id"] for run in thread.runs()] == [client.run_id]
        assert client.joined == thread.replay(client.run_id)
        assert_one_whole_run(client.joined)
        (run,) = thread.runs()
        assert run["status"] in {"completed", "failed"}
        assert client.text == thread.text()
        self.answers += 1


class ReadingRelay(Relay):
    """A relay that can wait for the server's next streamed event."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._reading = threading.Event()
        super().__init__(target, on_down=self._look)

    def wait_for_words(self) -> bool:
        """Wait for the next event of a stream, and return whether one came in time."""
        self._reading.clear()
        return self._reading.wait(WAIT_SECONDS)

    def _look(self, data: bytes) -> None:
        if b"assistant_message" in data:
            self._reading.set()


def python_client(url: str, api_key: str) -> tuple[Seen, Try]:
    client = Reader(url, api_key=api_key)
    messages = client.sdk.conversations.messages
    ways: Iterator[Callable[[Thread], Any]] = itertools.cycle(
        [
            client.resume,
            lambda thread: messages.stream(
                thread.path_id, otid=thread.otid, starting_after=client.cursor
            ),
            lambda thread: client.sdk.runs.messages.stream(
                client.run_id, starting_after=client.cursor
            ),
        ]
    )

    def once(thread: Thread, text: str) -> None:
        opening = next(ways) if client.run_id else lambda thread: client.send(thread, text)
        try:
            client.read(lambda: opening(thread))
        except APIStatusError as error:
            if error.status_code not in AGAIN:
                raise
            client.broken = error

    return client, once


def typescript_client(process: TypeScript, url: str, api_key: str) -> tuple[Seen, Try]:
    client = TypeScriptReader(process, url, api_key=api_key)
    ways: Iterator[Callable[[Thread], Call]] = itertools.cycle(
        [
            client.resume,
            lambda thread: client.resume(thread, run_id=None, otid=thread.otid),
            lambda thread: client.start(
                "runs.messages.stream", client.run_id, {"starting_after": client.cursor}
            ),
        ]
    )

    def once(thread: Thread, text: str) -> None:
        call = next(ways)(thread) if client.run_id else client.send(thread, text)
        outcome = client.read(call)
        refused = (outcome.error or {}).get("status")
        assert refused in {None, *AGAIN}, outcome.error

    return client, once


@pytest.mark.promise("P2", "P3", "P4", "P7", "P9", "S1", "S4")
def test_both_sdks_get_every_answer_whole_while_one_of_two_servers_is_killed_repeatedly(
    cluster: Cluster,
) -> None:
    mortal, other = cluster.servers[:2]
    stop = threading.Event()
    with ExitStack() as stack:
        ways = [stack.enter_context(ReadingRelay(mortal.address)) for _ in range(2)]
        upstreams = [[way.address, other.address] for way in ways]
        haproxy = stack.enter_context(HaproxyServer(DEPLOY / "haproxy.cfg", upstreams[0])).url
        nginx = stack.enter_context(NginxServer(DEPLOY / "nginx.conf", upstreams[1])).url
        key = cluster.api_key
        raw = stack.enter_context(raw_client(other.url, authorization=f"Bearer {key}"))
        process = stack.enter_context(TypeScript(require_node()))
        python = Customer(Threads(raw), lambda: python_client(haproxy, key), ways[0])
        typescript = Customer(Threads(raw), lambda: typescript_client(process, nginx, key), ways[1])
        customers = [python, typescript]
        pool = stack.enter_context(ThreadPoolExecutor(2))
        stack.callback(stop.set)
        talks = [pool.submit(customer.talk, stop) for customer in customers]
        for customer in customers:
            for _ in range(MOST_KILLS):
                assert customer.relay.wait_for_words(), [talk.done() for talk in talks]
                mortal.kill()
                mortal.start()
                if customer.breaks:
                    break
        stop.set()
        for talk in talks:
            talk.result(WAIT_SECONDS)
    assert all(customer.breaks and customer.answers for customer in customers)
