"""The synchronous client: its streams end from outside, and many threads use one client."""

from __future__ import annotations

import gc
import os
import random
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import trustme

from reattach import __version__
from reattach.client import (
    ClosedError,
    ReattachError,
    State,
    SyncClient,
    SyncStream,
    UnavailableError,
)
from reattach.client.drivers.transport import needs_certificates
from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.support.client_script import RUN
from tests.support.hanging_server import BUSY, HEAD, HangingServer
from tests.support.threads import WAIT_SECONDS, Threads


@contextmanager
def in_thread(work: Callable[[], object]) -> Iterator[None]:
    """Run the work in another thread meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        yield
        future.result(WAIT_SECONDS)


def begun(client: SyncClient) -> SyncStream:
    """Return a stream that has given its only event, so that the next one never comes."""
    stream = client.follow(run_id=RUN)
    assert next(stream)["seq_id"] == 1
    return stream


def test_the_end_of_a_with_statement_closes_the_connection_of_a_stream() -> None:
    with HangingServer() as server, SyncClient(server.url) as client:
        with begun(client) as stream:
            pass
        server.wait_left()
        assert stream.state.name == "closed"
        with pytest.raises(ClosedError, match="stream was closed"):
            next(stream)


def test_a_stream_that_is_forgotten_closes_its_connection() -> None:
    with HangingServer() as server, SyncClient(server.url) as client:
        stream = begun(client)
        gc.disable()  # It must not depend on the collector, which may run much later.
        try:
            del stream
            server.wait_left()
        finally:
            gc.enable()


def test_a_stream_keeps_its_client_and_a_client_that_is_forgotten_closes_its_connections() -> None:
    with HangingServer() as server:
        stream = SyncClient(server.url).follow(run_id=RUN)
        gc.collect()
        assert next(stream)["seq_id"] == 1
        http = stream._client._http
        del stream
        gc.collect()
        assert http.is_closed
        server.wait_left()


def test_a_thread_that_reads_ends_when_another_one_closes_its_stream() -> None:
    with HangingServer() as server, SyncClient(server.url) as client:
        stream = begun(client)
        with in_thread(stream.close), pytest.raises(ClosedError):
            next(stream)
        stream.close()
        server.wait_left()


def test_a_thread_that_reads_over_tls_ends_when_another_one_closes_its_stream() -> None:
    authority = trustme.CA()
    served, trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(served)
    authority.configure_trust(trusted)
    with (
        HangingServer(tls=served) as server,
        httpx2.Client(verify=trusted) as http,
        SyncClient(server.url, http=http) as client,
    ):
        stream = begun(client)
        with in_thread(stream.close), pytest.raises(ClosedError):
            next(stream)
        stream.close()
        server.wait_left()
        client.close()
        assert not http.is_closed


@pytest.mark.parametrize(
    ("url", "proxies", "needs"),
    [
        ("http://localhost:8283", {}, False),
        ("HTTPS://localhost:8283", {}, True),
        ("http://localhost:8283", {"HTTP_PROXY": "https://proxy.example.org"}, True),
    ],
)
def test_certificates_are_read_if_any_connection_may_use_tls(
    url: str, proxies: dict[str, str], needs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    assert needs_certificates(url) is needs


def test_a_client_that_is_closed_ends_the_streams_that_wait_for_a_retry() -> None:
    with HangingServer(BUSY) as server:
        client = SyncClient(server.url)
        waiting = threading.Event()

        def see(state: State) -> None:
            if state.name == "waiting":
                waiting.set()

        def close() -> None:
            assert waiting.wait(WAIT_SECONDS)
            client.close()

        stream = client.follow(run_id=RUN, on_state=see)
        with in_thread(close), pytest.raises(ClosedError):
            next(stream)
        with pytest.raises(ClosedError, match="client was closed"):
            client.follow(run_id=RUN)
        with pytest.raises(ClosedError, match="client was closed"):
            client.snapshot(run_id=RUN)


def test_try_now_ends_a_wait() -> None:
    with HangingServer(BUSY) as server, SyncClient(server.url) as client:
        stream = client.follow(run_id=RUN)
        # A call before the wait has no effect, so the other thread repeats it.
        with in_thread(lambda: _wake_until_live(stream)):
            assert next(stream)["seq_id"] == 1


def _wake_until_live(stream: SyncStream) -> None:
    while stream.state.name in {"idle", "connecting", "waiting"}:
        stream.try_now()


@pytest.mark.parametrize(("answer", "state"), [("", "connecting"), (HEAD, "live")])
def test_ctrl_c_ends_the_loop_and_closes_the_connection(answer: str, state: str) -> None:
    pressed = threading.Event()

    def see(now: State) -> None:
        if now.name == state:
            pressed.set()

    def press() -> None:
        assert pressed.wait(WAIT_SECONDS)
        server.head()
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with HangingServer(answer) as server, SyncClient(server.url) as client:
            stream = client.follow(run_id=RUN, on_state=see)
            with in_thread(press), pytest.raises(KeyboardInterrupt):
                next(stream)
            server.wait_left()
            assert stream.state.name == "closed"
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.promise("P4", "P9")
def test_many_threads_use_one_client_over_a_network_that_breaks(
    relay: Relay, threads: Threads
) -> None:
    conversations = [threads.conversation() for _ in range(8)]
    dice = random.Random(5)

    def read(number: int) -> list[int]:
        thread = conversations[number]
        seqs = []
        for event in client.send(thread.path_id, "[chunks=40][rate=200]", otid=thread.otid):
            seqs.append(event["seq_id"])
            if len(seqs) % 10 == number % 10:
                relay.cut_after(dice.randrange(2000))
        return seqs

    quick: dict[str, Any] = {"first_wait_seconds": 0.01, "longest_wait_seconds": 0.1}
    with SyncClient(relay.url, **quick) as client, ThreadPoolExecutor(8) as pool:
        for seqs in pool.map(read, range(8), timeout=WAIT_SECONDS):
            assert seqs == list(range(1, len(seqs) + 1))
            assert len(seqs) > 40
    assert all(len(thread.runs()) == 1 for thread in conversations)


@pytest.mark.promise("P21")
def test_runs_are_added_and_dropped_while_others_are_read(
    server: ServerProcess, threads: Threads
) -> None:
    """One run hangs until another thread drops it; the loop then ends with the others."""
    conversations = [threads.conversation() for _ in range(3)]
    seqs: dict[str, list[int]] = {}
    with SyncClient(server.url) as client:
        runs = []
        for thread, text in zip(
            conversations, ["[hang=2]", "[chunks=9]", "[chunks=9]"], strict=True
        ):
            with client.send(thread.path_id, text) as sent:
                next(sent)
                assert sent.run_id is not None
                runs.append(sent.run_id)
        many = client.many([runs[0]])
        with ThreadPoolExecutor(1) as pool:
            for event in many:
                seqs.setdefault(event["run_id"], []).append(event["seq_id"])
                if event["run_id"] == runs[0] and event["seq_id"] == 3:
                    pool.submit(many.add, runs[1], 4)
                if event["run_id"] == runs[1] and event["message_type"] == "usage_statistics":
                    many.add(runs[2])
                if event["run_id"] == runs[2] and event["message_type"] == "usage_statistics":
                    pool.submit(many.drop, runs[0])
        client.cancel(run_id=runs[0])
    assert many.state.name == "ended"
    assert seqs == {
        runs[0]: [1, 2, 3],
        runs[1]: list(range(5, 13)),
        runs[2]: list(range(1, 13)),
    }


# Tokens.


def test_streams_share_an_answer_of_the_token_function_which_runs_in_a_thread_of_theirs() -> None:
    calls: list[str] = []

    def token(fresh: bool) -> str:
        calls.append(threading.current_thread().name)
        return "secret"

    with HangingServer() as server, SyncClient(server.url, token=token) as client:
        with ThreadPoolExecutor(4, thread_name_prefix="reader") as pool:
            streams = list(pool.map(lambda _: begun(client), range(4)))
        heads = [server.head().lower() for _ in streams]
    assert all("authorization: bearer secret\r\n" in head for head in heads)
    assert len(calls) == 1
    assert calls[0].startswith("reader")


def test_an_asynchronous_token_function_is_refused() -> None:
    async def token(fresh: bool) -> str:
        return "secret"

    with pytest.raises(ReattachError, match=r"cannot await a token function\. Use Client"):
        SyncClient("http://127.0.0.1:1", token=token)  # type: ignore[arg-type]


def test_a_token_function_ends_the_stream_with_an_error_of_its_own() -> None:
    def token(fresh: bool) -> str:
        raise ReattachError("The user has signed out.")

    with (
        SyncClient("http://127.0.0.1:1", token=token) as client,
        pytest.raises(ReattachError, match="signed out"),
    ):
        next(client.follow(run_id=RUN))


def test_a_request_to_another_route_has_the_key_and_returns_the_decoded_answer(
    server: ServerProcess,
) -> None:
    with SyncClient(server.url) as client:
        agent = client.request("POST", "/v1/agents/", body={"name": "a", "model": "scripted/echo"})
        found = client.request("GET", f"/v1/agents/{agent['id']}", timeout_seconds=WAIT_SECONDS)
        assert found["name"] == "a"
        with pytest.raises(ReattachError, match="agent-nope") as refused:
            client.request("GET", "/v1/agents/agent-nope")
        assert refused.value.status > 399


def test_a_request_fails_when_nothing_comes_for_its_time() -> None:
    with (
        HangingServer() as server,
        SyncClient(server.url) as client,
        pytest.raises(UnavailableError, match="the connection fell silent"),
    ):
        client.request("GET", "/v1/runs/", timeout_seconds=0.1)


def test_the_client_names_itself_to_the_server() -> None:
    with HangingServer() as server, SyncClient(server.url) as client:
        begun(client)
        assert f"user-agent: reattach-python/{__version__}" in server.head().lower()
