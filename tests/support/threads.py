"""Threads to send messages to, and their contents read without an SDK."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx

from reattach.testing.recording import whole_frames

WAIT_SECONDS = 20.0
"""Bound that keeps a broken server from hanging the tests."""

DONE = b"data: [DONE]\n\n"
TYPE = re.compile(rb'"message_type":"(\w+)"')
SEQ = re.compile(rb'"seq_id":(\d+)')


def raw_client(url: str, **headers: str) -> httpx.Client:
    return httpx.Client(
        base_url=url,
        headers=headers,
        timeout=WAIT_SECONDS,
        follow_redirects=True,
        transport=httpx.HTTPTransport(verify=False),  # there is no TLS on loopback to verify
    )


@dataclass(frozen=True)
class Thread:
    """A conversation, or the default one of an agent, with an OTID for one message."""

    raw: httpx.Client
    agent_id: str
    conversation_id: str | None
    otid: str = field(default_factory=lambda: f"otid-{uuid.uuid4()}")

    @property
    def url(self) -> str:
        return str(self.raw.base_url)

    @property
    def path_id(self) -> str:
        return self.conversation_id or "default"

    def message(self, text: str) -> Any:
        """A user's message with the thread's OTID, untyped because each SDK has its own types."""
        return {"role": "user", "content": text, "otid": self.otid}

    def runs(self) -> list[dict[str, Any]]:
        """List all runs of the agent, oldest first."""
        found: list[dict[str, Any]] = self.get("/v1/runs/", agent_id=self.agent_id, order="asc")
        return found

    def items(self) -> list[dict[str, Any]]:
        """List the stored messages of the conversation in order."""
        path = f"/v1/conversations/{self.path_id}/messages"
        found: list[dict[str, Any]] = self.get(
            path, agent_id=self.agent_id, order="asc", limit="1000"
        )
        return found

    def text(self) -> str:
        """Return the assistant's whole text as the conversation stores it."""
        kept = self.items()
        return "".join(i["content"] for i in kept if i["message_type"] == "assistant_message")

    def replay(self, run_id: str) -> bytes:
        """Replay the run and return its numbered frames without ``[DONE]``."""
        answer = self.raw.post(f"/v1/runs/{run_id}/stream", json={"include_pings": False})
        assert answer.status_code == 200, answer.text
        assert answer.content.endswith(DONE)
        assert answer.content.count(DONE) == 1
        return answer.content.removesuffix(DONE)

    def get(self, path: str, **query: str) -> Any:
        answer = self.raw.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None) -> httpx.Response:
        """Post to ``path``, relative to the conversation unless it begins with a slash."""
        if not path.startswith("/"):
            path = f"/v1/conversations/{self.path_id}/{path}"
        return self.raw.post(path, json=body)


@dataclass(frozen=True)
class Threads:
    """Creates agents and conversations."""

    raw: httpx.Client
    model: str = "scripted/echo"

    def default_thread(self) -> Thread:
        return Thread(self.raw, self._made("/v1/agents/", {"name": "a", "model": self.model}), None)

    def conversation(self, agent_id: str | None = None) -> Thread:
        agent_id = agent_id or self.default_thread().agent_id
        made = self._made(f"/v1/conversations/?agent_id={agent_id}", {})
        return Thread(self.raw, agent_id, made)

    def _made(self, path: str, body: dict[str, Any]) -> str:
        answer = self.raw.post(path, json=body)
        assert answer.status_code == 200, answer.text
        made: str = answer.json()["id"]
        return made


def types_of(frames: bytes) -> list[str]:
    """Return the message types of frames, in order."""
    matches = (TYPE.search(frame) for frame in whole_frames(frames))
    return [match[1].decode() for match in matches if match]


def seqs_of(frames: bytes) -> list[int]:
    """Return the numbers of frames, in order."""
    matches = (SEQ.search(frame) for frame in whole_frames(frames))
    return [int(match[1]) for match in matches if match]


def assert_one_whole_run(frames: bytes) -> None:
    """Assert that frames are numbered without a gap (P1) and end with one terminal group (P3)."""
    seqs, types = seqs_of(frames), types_of(frames)
    assert seqs == list(range(1, len(whole_frames(frames)) + 1))
    end = ["stop_reason", "error_message", "usage_statistics"]
    if "error_message" not in types:
        end.remove("error_message")
    assert types[-len(end) :] == end
    assert not {*types[: -len(end)]} & {"stop_reason", "error_message", "usage_statistics"}
