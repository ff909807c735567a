"""Runs of an agent on a real server, which a test starts and leaves."""

from __future__ import annotations

from typing import Any

import httpx2


class Runs:
    """A new agent with the scripted model, and its runs."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http
        body = {"name": "guide", "model": "scripted/echo"}
        self.agent_id: str = self._answer(http.post("/v1/agents/", json=body))["id"]
        self._active: list[str] = []

    def start(self, text: str) -> str:
        """Send a text to a new conversation, and return the id of its run, which has begun."""
        query = {"agent_id": self.agent_id}
        conversation = self._answer(self._http.post("/v1/conversations/", params=query, json={}))
        sent = {"input": text, "background": True, "stream_tokens": True}
        path = f"/v1/conversations/{conversation['id']}/messages"
        with self._http.stream("POST", path, json=sent) as response:
            next(response.iter_lines())
            run_id: str = response.headers["x-run-id"]
        self._active.append(run_id)
        return run_id

    def finish(self, text: str) -> str:
        """Send a text, wait for the whole answer, and return the id of its run."""
        run_id = self.start(text)
        with self._http.stream("POST", f"/v1/runs/{run_id}/stream", json={}) as response:
            assert b"[DONE]" in response.read()
        return run_id

    def status(self, run_id: str) -> str:
        return str(self._answer(self._http.get(f"/v1/runs/{run_id}"))["status"])

    def cancel_all(self) -> None:
        for run_id in self._active:
            self._http.post(f"/v1/runs/{run_id}/cancel")

    @staticmethod
    def _answer(response: httpx2.Response) -> dict[str, Any]:
        response.raise_for_status()
        found: dict[str, Any] = response.json()
        return found
