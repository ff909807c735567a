"""The server dies or is stopped in mid-answer, and OpenAI's client gets the whole completion."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from tests.clients.conftest import scripted_server
from tests.support.threads import WAIT_SECONDS, Threads, raw_client

CHUNKS = 30
ANSWER = f"[chunks={CHUNKS}][rate=20]"
TEXT = "".join(f"t{n} " for n in range(CHUNKS))
RETRIES = 10
"""Retries of the client while no server listens."""


class User:
    """A program that asks the agent with OpenAI's client."""

    def __init__(self, client: OpenAI, agent: str) -> None:
        self._create = client.chat.completions.create
        self._agent = agent

    def whole(self) -> str | None:
        answer = self._create(model=self._agent, messages=[{"role": "user", "content": ANSWER}])
        return answer.choices[0].message.content

    def streamed(
        self, key: str, pieces: list[str], then: Callable[[], object] = lambda: None
    ) -> None:
        """Ask for a stream under an idempotency key, and do something after its fifth piece."""
        stream = self._create(
            model=self._agent,
            messages=[{"role": "user", "content": ANSWER}],
            stream=True,
            extra_headers={"Idempotency-Key": key},
        )
        with stream:
            for chunk in stream:
                pieces.append(chunk.choices[0].delta.content or "")
                if len(pieces) == 5:
                    then()


@pytest.mark.promise("P9", "P15", "P19")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_an_answer_whose_server_restarts_comes_whole_from_one_run(
    number: signal.Signals, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(scripted_server(tmp_path, REATTACH_DRAIN_SECONDS="0.1"))
        raw = stack.enter_context(raw_client(server.url))
        url = f"{server.url}/openai/v1"
        client = stack.enter_context(OpenAI(base_url=url, api_key="none", max_retries=RETRIES))
        user = User(client, Threads(raw).default_thread().agent_id)
        asking = stack.enter_context(ThreadPoolExecutor(1))
        whole = asking.submit(user.whole)

        def interrupt() -> None:
            """Send the signal once both requests have their runs."""
            give_up_at = time.monotonic() + WAIT_SECONDS
            while len(raw.get("/v1/runs/").json()) < 2:
                assert time.monotonic() < give_up_at
                time.sleep(0.01)
            server.signal(number)

        broken: list[str] = []
        with pytest.raises(openai.APIConnectionError):
            user.streamed("request-1", broken, interrupt)
        assert TEXT.startswith("".join(broken))
        server.wait()
        server.start()
        again: list[str] = []
        user.streamed("request-1", again)
        assert "".join(again) == TEXT
        assert whole.result(WAIT_SECONDS) == TEXT
        runs = raw.get("/v1/runs/").json()
        assert [run["status"] for run in runs] == ["completed"] * 2
        assert all(len(run["metadata"]["attempts"]) == 2 for run in runs)
